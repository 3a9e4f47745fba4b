//! A container's life: create, start, wait, remove; and calls that come in the wrong state.

use ttrpc::Code;

use crate::harness::expect::{refused, succeeded};
use crate::harness::{Ctx, Outcome, Scenario, scenario};

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        scenario!(a_container_runs_from_create_to_remove),
        scenario!(init_waits_for_start),
        scenario!(the_exit_code_is_told),
        scenario!(a_second_start_is_refused),
        scenario!(start_of_an_ended_container_is_refused),
        scenario!(a_taken_id_is_refused_and_its_owner_lives_on),
        scenario!(an_id_can_be_used_again),
        scenario!(a_created_container_can_be_removed),
        scenario!(a_running_container_can_be_removed),
        scenario!(a_removal_ends_those_who_wait),
        scenario!(execs_and_starts_leave_no_trace),
        scenario!(a_root_without_a_mount_for_devices_is_used_again),
    ]
}

async fn a_container_runs_from_create_to_remove(ctx: Ctx) -> Outcome {
    let container = ctx.created(|spec| spec.args(["sh", "-c", "echo out; echo err >&2; exit 7"])).await?;
    container.start().await?;
    let finished = container.finish(b"").await?;
    assert_eq!((finished.status, &*finished.stdout, &*finished.stderr), (7, &b"out\n"[..], &b"err\n"[..]));
    container.remove().await?;
    refused(container.remove().await, Code::NOT_FOUND, &[&container.id]);
    Ok(())
}

async fn init_waits_for_start(ctx: Ctx) -> Outcome {
    let container = ctx.created(|spec| spec.args(["touch", "/started"])).await?;
    ctx.client().check().await?;
    assert!(!container.file("/started").exists(), "it has run before its start");
    container.start().await?;
    assert_eq!(container.wait().await?, 0);
    assert!(container.file("/started").exists());
    Ok(())
}

async fn the_exit_code_is_told(ctx: Ctx) -> Outcome {
    for code in [0, 1, 42, 127, 255] {
        let finished = ctx.run(|spec| spec.args(["sh", "-c", &format!("exit {code}")])).await?;
        assert_eq!(finished.status, code);
    }
    let container = ctx.idle(|spec| spec).await?;
    for code in [0, 3, 126, 255] {
        assert_eq!(container.exec(["sh", "-c", &format!("exit {code}")]).await?.status, code);
    }
    Ok(())
}

async fn a_second_start_is_refused(ctx: Ctx) -> Outcome {
    let container = ctx.idle(|spec| spec).await?;
    refused(container.start().await, Code::FAILED_PRECONDITION, &[&container.id, "running"]);
    assert_eq!(container.sh("echo alive").await?, "alive");
    Ok(())
}

async fn start_of_an_ended_container_is_refused(ctx: Ctx) -> Outcome {
    let container = ctx.started(|spec| spec.args(["true"])).await?;
    container.wait().await?;
    refused(container.start().await, Code::FAILED_PRECONDITION, &[&container.id, "stopped"]);
    let exec = ctx.client().exec_process(&container.id, "late", container.process(["true"])).await;
    refused(exec, Code::FAILED_PRECONDITION, &[&container.id, "stopped"]);
    Ok(())
}

async fn a_taken_id_is_refused_and_its_owner_lives_on(ctx: Ctx) -> Outcome {
    let container = ctx.idle(|spec| spec).await?;
    refused(container.create().await, Code::ALREADY_EXISTS, &[&container.id]);
    assert_eq!(container.sh("echo alive").await?, "alive");
    container.remove().await?;
    Ok(())
}

async fn an_id_can_be_used_again(ctx: Ctx) -> Outcome {
    let container = ctx.container(|spec| spec.args(["echo", "hello"]))?;
    for _ in 0..3 {
        container.create().await?;
        container.start().await?;
        assert_eq!(succeeded(container.finish(b"").await?), "hello");
        container.remove().await?;
    }
    Ok(())
}

async fn a_created_container_can_be_removed(ctx: Ctx) -> Outcome {
    let container = ctx.created(|spec| spec.args(["touch", "/started"])).await?;
    container.remove().await?;
    assert!(!container.file("/started").exists(), "removing it has started it");
    refused(container.start().await, Code::NOT_FOUND, &[&container.id]);
    Ok(())
}

async fn a_running_container_can_be_removed(ctx: Ctx) -> Outcome {
    // It ignores what can be ignored.
    let container =
        ctx.started(|spec| spec.args(["sh", "-c", "trap '' TERM INT HUP; sleep 1000000"])).await?;
    container.remove().await?;
    refused(container.wait().await, Code::NOT_FOUND, &[&container.id]);
    Ok(())
}

async fn a_removal_ends_those_who_wait(ctx: Ctx) -> Outcome {
    let container = ctx.idle(|spec| spec).await?;
    let exec = "waited";
    ctx.client().exec_process(&container.id, exec, container.process(["sleep", "1000000"])).await?;
    let init = ctx.client().wait_process(&container.id, "");
    let other = ctx.client().wait_process(&container.id, exec);
    let output = ctx.client().read_stdout(&container.id, exec, 100);
    let (init, other, output, removed) = tokio::join!(init, other, output, container.remove());
    removed?;
    // 128 + SIGKILL.
    assert_eq!((init?, other?, output?), (137, 137, Vec::new()));
    Ok(())
}

/// Neither in the agent's working directory nor in that of the container's state.
async fn execs_and_starts_leave_no_trace(ctx: Ctx) -> Outcome {
    let directory = ctx.guest_sh("readlink $PROC/$SERVER/cwd").await?;
    let container = ctx.idle(|spec| spec).await?;
    for _ in 0..5 {
        assert_eq!(container.sh("echo alive").await?, "alive");
    }
    assert_eq!(ctx.guest_sh("readlink $PROC/$SERVER/cwd").await?, directory);
    let sockets = format!("find $RUN -path '*/{}/*' -name 'tenant-*'", container.id);
    assert_eq!(ctx.guest_sh(&sockets).await?.trim_end(), "");
    Ok(())
}

/// What the first one has made in its `/dev` is in the root filesystem, and there when the next one comes.
async fn a_root_without_a_mount_for_devices_is_used_again(ctx: Ctx) -> Outcome {
    let container = ctx.container(|spec| {
        let spec = spec.without_mount("/dev/shm").without_mount("/dev/pts").without_mount("/dev/mqueue");
        spec.without_mount("/dev").args(["sh", "-c", "readlink /dev/fd; echo x > /dev/null"])
    })?;
    for _ in 0..2 {
        container.create().await?;
        container.start().await?;
        assert_eq!(succeeded(container.finish(b"").await?), "/proc/self/fd");
        container.remove().await?;
    }
    Ok(())
}
