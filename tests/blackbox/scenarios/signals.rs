//! Signals: who gets them, and what Wait makes of an end by one.

use ttrpc::Code;

use crate::harness::expect::refused;
use crate::harness::{Ctx, Outcome, Scenario, scenario};

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        scenario!(an_end_by_signal_is_128_and_its_number),
        scenario!(init_can_be_killed),
        scenario!(init_handles_sigterm_itself),
        scenario!(sigterm_ends_an_init_that_does_not_handle_it),
        scenario!(sigkill_for_the_container_kills_all),
        scenario!(a_created_init_can_be_killed),
        scenario!(signals_to_the_dead_are_harmless_until_waited),
        scenario!(unknown_signals_are_refused),
        scenario!(a_signal_reaches_one_process_only),
    ]
}

async fn an_end_by_signal_is_128_and_its_number(ctx: Ctx) -> Outcome {
    let container = ctx.idle(|spec| spec).await?;
    let real_time = [libc::SIGRTMIN(), libc::SIGRTMAX()];
    let usual = [libc::SIGHUP, libc::SIGINT, libc::SIGABRT, libc::SIGKILL, libc::SIGUSR1, libc::SIGTERM];
    for signal in usual.into_iter().chain(real_time) {
        let exec = ctx.fresh_exec_id();
        ctx.client().exec_process(&container.id, &exec, container.process(["sleep", "1000000"])).await?;
        ctx.client().signal_process(&container.id, &exec, signal.unsigned_abs()).await?;
        assert_eq!(ctx.client().wait_process(&container.id, &exec).await?, 128 + signal);
    }
    // By its own hand.
    assert_eq!(container.exec(["sh", "-c", "kill -SEGV $$"]).await?.status, 139);
    Ok(())
}

async fn init_can_be_killed(ctx: Ctx) -> Outcome {
    let container = ctx.idle(|spec| spec).await?;
    container.signal(libc::SIGKILL).await?;
    assert_eq!(container.wait().await?, 137);
    Ok(())
}

async fn init_handles_sigterm_itself(ctx: Ctx) -> Outcome {
    let script = "trap 'echo bye; exit 5' TERM; echo ready; while :; do sleep 0.1; done";
    let container = ctx.started(|spec| spec.args(["sh", "-c", script])).await?;
    assert_eq!(ctx.client().read_stdout(&container.id, "", 100).await?, b"ready\n");
    container.signal(libc::SIGTERM).await?;
    let finished = container.finish(b"").await?;
    assert_eq!((finished.status, &*finished.stdout), (5, &b"bye\n"[..]));
    Ok(())
}

/// The first process of a pid namespace never sees a signal without a handler (pid_namespaces(7)).
async fn sigterm_ends_an_init_that_does_not_handle_it(ctx: Ctx) -> Outcome {
    for name in [true, false] {
        let container = ctx.idle(|spec| spec).await?;
        let exec = if name { container.id.as_str() } else { "" };
        ctx.client().signal_process(&container.id, exec, 15).await?;
        assert_eq!(container.wait().await?, 137);
    }
    Ok(())
}

pub(super) async fn sigkill_for_the_container_kills_all(ctx: Ctx) -> Outcome {
    let container = ctx.idle(|spec| spec).await?;
    ctx.client().exec_process(&container.id, "other", container.process(["sleep", "1000000"])).await?;
    // The host has processes of other scenarios, too.
    let mark = format!("eft-by-{}", container.id);
    let script = format!("for n in 1 2; do (setsid sh -c 'while :; do sleep 1000000; done' l{mark} &); done");
    assert_eq!(container.exec(["sh", "-c", &script]).await?.status, 0);
    ctx.client().signal_process(&container.id, "", 9).await?;
    let (init, other) = tokio::join!(container.wait(), ctx.client().wait_process(&container.id, "other"));
    assert_eq!((init?, other?), (137, 137));
    let left = format!("cat $PROC/[0-9]*/cmdline 2> /dev/null | tr '\\0' '\\n' | grep -cx '[l]{mark}' || :");
    assert_eq!(ctx.guest_sh(&left).await?.trim(), "0");
    Ok(())
}

async fn a_created_init_can_be_killed(ctx: Ctx) -> Outcome {
    let container = ctx.created(|spec| spec.args(["sleep", "1000000"])).await?;
    ctx.client().signal_process(&container.id, "", 9).await?;
    assert_eq!(container.wait().await?, 137);
    refused(container.start().await, Code::FAILED_PRECONDITION, &[&container.id]);
    Ok(())
}

async fn signals_to_the_dead_are_harmless_until_waited(ctx: Ctx) -> Outcome {
    let container = ctx.idle(|spec| spec).await?;
    ctx.client().exec_process(&container.id, "short", container.process(["true"])).await?;
    // The end of its output comes with its end.
    assert_eq!(ctx.client().read_stdout(&container.id, "short", 1).await?, b"");
    ctx.client().signal_process(&container.id, "short", 15).await?;
    assert_eq!(ctx.client().wait_process(&container.id, "short").await?, 0);
    let late = ctx.client().signal_process(&container.id, "short", 15).await;
    refused(late, Code::NOT_FOUND, &["short", &container.id]);
    Ok(())
}

async fn unknown_signals_are_refused(ctx: Ctx) -> Outcome {
    let container = ctx.idle(|spec| spec).await?;
    for signal in [65, 1000, u32::MAX] {
        let sent = ctx.client().signal_process(&container.id, &container.id, signal).await;
        refused(sent, Code::INVALID_ARGUMENT, &[&container.id, &signal.to_string()]);
    }
    // Nothing is sent: it asks whether there is somebody.
    ctx.client().signal_process(&container.id, &container.id, 0).await?;
    assert_eq!(container.sh("echo alive").await?, "alive");
    Ok(())
}

async fn a_signal_reaches_one_process_only(ctx: Ctx) -> Outcome {
    let container = ctx.idle(|spec| spec).await?;
    for exec in ["one", "two"] {
        ctx.client().exec_process(&container.id, exec, container.process(["sleep", "1000000"])).await?;
    }
    ctx.client().signal_process(&container.id, "one", 9).await?;
    assert_eq!(ctx.client().wait_process(&container.id, "one").await?, 137);
    // Init and the other live. The one is seen until it has been reaped, which is a moment after its end is told.
    container.sh_until("pidof sleep | wc -w", "2").await?;
    Ok(())
}
