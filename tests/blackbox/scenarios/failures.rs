//! Creations that fail, hang, or lose their caller: nothing stays behind, and nobody else waits.

use std::time::Duration;

use nakai_ctl::SpecBuilder;
use nakai_ctl::sandbox::shm_storage;
use nakai_ctl::spec::HookKind;
use nakai_protocols::agent::{CreateContainerRequest, Device, Storage};
use nakai_protocols::oci;
use ttrpc::Code;

use super::recovery::{Looks, freeze};
use crate::harness::context::SHELL_LIMIT;
use crate::harness::expect::{refused, succeeded};
use crate::harness::{Container, Ctx, Fallible, Outcome, Scenario, scenario};

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        scenario!(a_create_that_fails_leaves_nothing),
        scenario!(a_failing_hook_fails_the_create),
        scenario!(an_init_that_dies_early_fails_the_create),
        scenario!(a_slow_hook_is_ended_by_its_timeout),
        scenario!(a_slow_hook_keeps_nobody_waiting),
        scenario!(a_create_whose_caller_goes_leaves_nothing),
        scenario!(a_create_whose_time_is_up_leaves_nothing),
        scenario!(a_container_dies_with_its_start_under_way),
        scenario!(many_containers_are_made_at_once),
        scenario!(execs_without_end_take_turns).host_only(),
        scenario!(a_guest_without_room_for_a_thread_still_kills).vm_only().own_agent(),
    ]
}

type RequestEdit = fn(&mut CreateContainerRequest);

/// What goes wrong, what the caller is told, and the words in it. In the order of the steps of a creation.
const FAILURES: &[(RequestEdit, Code, &[&str])] = &[
    (
        |request| {
            let device = Device { id: "d1".into(), type_: "nonsense".into(), ..Default::default() };
            request.devices.push(device);
        },
        Code::INVALID_ARGUMENT,
        &["nonsense"],
    ),
    (
        // The first one is attached, then taken back.
        |request| {
            request.storages.push(volume("first"));
            request.storages.push(Storage { driver: "nonsense".into(), ..volume("second") });
        },
        Code::INVALID_ARGUMENT,
        &["nonsense"],
    ),
    (
        |request| {
            request.storages.push(volume("first"));
            request.storages.push(Storage { fstype: "nonsense".into(), ..volume("second") });
        },
        Code::INVALID_ARGUMENT,
        &["nonsense"],
    ),
    (
        |request| request.storages.push(Storage { mount_point: "/etc".into(), ..volume("x") }),
        Code::INVALID_ARGUMENT,
        &["/etc"],
    ),
    (
        |request| spec(request).Root.mut_or_insert_default().Path = "/no/root".into(),
        Code::NOT_FOUND,
        &["/no/root"],
    ),
    (
        |request| spec(request).Root.mut_or_insert_default().Path = "/".into(),
        Code::INVALID_ARGUMENT,
        &["root"],
    ),
    (
        |request| spec(request).Process.mut_or_insert_default().Cwd = "relative".into(),
        Code::INVALID_ARGUMENT,
        &["process.cwd"],
    ),
    (
        |request| {
            let mount = oci::Mount {
                destination: "/mnt".into(),
                source: "/no/source".into(),
                type_: "bind".into(),
                options: vec!["bind".into()],
                ..Default::default()
            };
            spec(request).Mounts.push(mount);
        },
        Code::INTERNAL,
        &["/no/source"],
    ),
    (
        |request| {
            let mount = oci::Mount {
                destination: "/mnt".into(),
                source: "x".into(),
                type_: "nonsensefs".into(),
                ..Default::default()
            };
            spec(request).Mounts.push(mount);
        },
        Code::INTERNAL,
        &["/mnt"],
    ),
    (
        // The kernel says no to a file of the cgroup, when the cgroup is there already.
        |request| {
            spec(request).Linux.mut_or_insert_default().Resources.mut_or_insert_default().Pids =
                Some(oci::LinuxPids { Limit: i64::MAX, ..Default::default() }).into()
        },
        Code::INTERNAL,
        &["pids.max"],
    ),
    (
        |request| spec(request).Process.mut_or_insert_default().Args = vec!["no-such-program".into()],
        Code::NOT_FOUND,
        &["no-such-program"],
    ),
    (
        |request| spec(request).Process.mut_or_insert_default().Cwd = "/etc/passwd".into(),
        Code::INVALID_ARGUMENT,
        &["/etc/passwd"],
    ),
];

fn spec(request: &mut CreateContainerRequest) -> &mut oci::Spec {
    request.OCI.mut_or_insert_default()
}

fn volume(name: &str) -> Storage {
    Storage { mount_point: format!("/run/kata-containers/sandbox/ephemeral/{name}"), ..shm_storage() }
}

/// The same id can be created afterwards, as if nothing had been.
async fn works_now(container: &Container) -> Outcome {
    container.create().await?;
    container.start().await?;
    assert_eq!(succeeded(container.finish(b"").await?), "works");
    container.remove().await?;
    Ok(())
}

async fn a_create_that_fails_leaves_nothing(ctx: Ctx) -> Outcome {
    let container = ctx.container(|spec| spec.args(["echo", "works"]))?;
    let before = ctx.inventory().await?;
    for (number, (edit, code, words)) in FAILURES.iter().enumerate() {
        let mut request = container.request();
        edit(&mut request);
        let created = ctx.client().create_container_with(&request).await;
        assert!(created.is_err(), "failure {number} {words:?} was accepted");
        refused(created, *code, words);
        refused(container.start().await, Code::NOT_FOUND, &[&container.id]);
        ctx.returns_to(&before).await.map_err(|error| format!("failure {number} {words:?}: {error}"))?;
    }
    works_now(&container).await?;
    ctx.returns_to(&before).await
}

/// `/bin/sh` is where hooks of the runtime run, on the host as in the guest.
fn hook(spec: SpecBuilder, kind: HookKind, script: &str, timeout: i64) -> SpecBuilder {
    spec.hook(kind, "/bin/sh", ["sh", "-c", script], timeout)
}

async fn a_failing_hook_fails_the_create(ctx: Ctx) -> Outcome {
    let container = ctx.container(|spec| spec.args(["echo", "works"]))?;
    let before = ctx.inventory().await?;
    for kind in [HookKind::Prestart, HookKind::CreateRuntime, HookKind::CreateContainer] {
        let script = "echo the reason >&2; exit 3";
        let failing = hook(container.spec().clone(), kind, script, 0).build();
        let created = ctx.client().create_container(&container.id, failing).await;
        refused(created, Code::INTERNAL, &["hook", "the reason"]);
        ctx.returns_to(&before).await.map_err(|error| format!("{kind:?}: {error}"))?;
    }
    works_now(&container).await
}

/// Killed from outside while it is being made.
async fn an_init_that_dies_early_fails_the_create(ctx: Ctx) -> Outcome {
    let container = ctx.container(|spec| spec.args(["echo", "works"]))?;
    let before = ctx.inventory().await?;
    // The state is on the hook's standard input.
    let script = "kill -9 $(sed 's/.*\"pid\":\\([0-9]*\\).*/\\1/')";
    let dying = hook(container.spec().clone(), HookKind::Prestart, script, 0).build();
    refused(ctx.client().create_container(&container.id, dying).await, Code::INTERNAL, &[&container.id]);
    ctx.returns_to(&before).await?;
    works_now(&container).await
}

async fn a_slow_hook_is_ended_by_its_timeout(ctx: Ctx) -> Outcome {
    let container = ctx.container(|spec| spec.args(["echo", "works"]))?;
    let before = ctx.inventory().await?;
    for kind in [HookKind::Prestart, HookKind::CreateRuntime, HookKind::CreateContainer] {
        let slow = hook(container.spec().clone(), kind, "exec sleep 1000000", 1).build();
        refused(ctx.client().create_container(&container.id, slow).await, Code::INTERNAL, &["hook"]);
        ctx.returns_to(&before).await.map_err(|error| format!("{kind:?}: {error}"))?;
    }
    works_now(&container).await
}

/// A container whose creation waits in a prestart hook until the file, returned too, is made.
fn gated(ctx: &Ctx) -> Fallible<(Container, std::path::PathBuf)> {
    let container = ctx.container(|spec| spec.args(["echo", "works"]))?;
    let (host, guest) = ctx.directory(&container, "gate")?;
    let script = format!(": > {guest}/waiting; while [ ! -e {guest}/open ]; do sleep 0.1; done");
    let container = container.edit(|spec| hook(spec, HookKind::Prestart, &script, 0));
    Ok((container, host))
}

/// Until the hook waits.
async fn hook_runs(gate: &std::path::Path) {
    while !gate.join("waiting").exists() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn a_slow_hook_keeps_nobody_waiting(ctx: Ctx) -> Outcome {
    let (container, gate) = gated(&ctx)?;
    let other = ctx.idle(|spec| spec).await?;
    let others = async {
        hook_runs(&gate).await;
        ctx.client().check().await?;
        assert_eq!(other.sh("echo alive").await?, "alive");
        assert_eq!(ctx.output("echo another", |spec| spec).await?, "another");
        ctx.client().stats_container(&other.id).await?;
        ctx.client().signal_process(&other.id, "", 9).await?;
        other.remove().await?;
        // Itself, it is not there yet, but its id is taken.
        refused(container.start().await, Code::NOT_FOUND, &[&container.id]);
        refused(container.create().await, Code::ALREADY_EXISTS, &[&container.id]);
        std::fs::write(gate.join("open"), "")?;
        Fallible::Ok(())
    };
    let (created, others) = tokio::join!(container.create(), others);
    others?;
    created?;
    container.start().await?;
    assert_eq!(succeeded(container.finish(b"").await?), "works");
    Ok(())
}

async fn a_create_whose_caller_goes_leaves_nothing(ctx: Ctx) -> Outcome {
    let before = ctx.inventory().await?;
    let (container, gate) = gated(&ctx)?;
    let other = ctx.another_client().await?;
    let request = container.request();
    let create = tokio::spawn(async move { other.create_container_with(&request).await });
    hook_runs(&gate).await;
    // Its client and its connection go with it.
    create.abort();
    let _ = create.await;
    // The hook is still shut in: it goes with the one who wanted it.
    ctx.returns_to(&before).await?;
    std::fs::write(gate.join("open"), "")?;
    refused(container.start().await, Code::NOT_FOUND, &[&container.id]);
    container.create().await?;
    Ok(())
}

async fn a_create_whose_time_is_up_leaves_nothing(ctx: Ctx) -> Outcome {
    for terminal in [false, true] {
        let before = ctx.inventory().await?;
        let (container, gate) = gated(&ctx)?;
        let container = container.edit(|spec| spec.terminal(terminal));
        // Long enough to get to the hook; a busy machine is given more.
        for seconds in [2, 8, 32, 128] {
            let hasty = ctx.client().within(Duration::from_secs(seconds));
            let created = hasty.create_container(&container.id, container.spec().build()).await;
            refused(created, Code::DEADLINE_EXCEEDED, &[]);
            ctx.returns_to(&before).await?;
            if gate.join("waiting").exists() {
                break;
            }
        }
        assert!(gate.join("waiting").exists(), "it did not get to its hook");
        std::fs::write(gate.join("open"), "")?;
        container.create().await?;
        // Something of the first would be in the way.
        container.remove().await?;
    }
    Ok(())
}

/// A poststart hook hangs in StartContainer while the container is removed.
async fn a_container_dies_with_its_start_under_way(ctx: Ctx) -> Outcome {
    let container = ctx.container(|spec| spec.args(["sleep", "1000000"]))?;
    let (gate, guest) = ctx.directory(&container, "gate")?;
    let script = format!(": > {guest}/waiting; exec sleep 1000000");
    let container = container.edit(|spec| hook(spec, HookKind::Poststart, &script, 600));
    container.create().await?;
    let removed = async {
        hook_runs(&gate).await;
        container.remove().await
    };
    let (started, removed) = tokio::join!(container.start(), removed);
    refused(started, Code::FAILED_PRECONDITION, &[&container.id]);
    removed?;
    Ok(())
}

async fn many_containers_are_made_at_once(ctx: Ctx) -> Outcome {
    let count = if ctx.is_host() { 20 } else { 8 };
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..count {
        let ctx = ctx.clone();
        tasks.spawn(async move {
            let finished = ctx.run(|spec| spec.args(["echo", &number.to_string()])).await?;
            assert_eq!(succeeded(finished), number.to_string());
            Fallible::Ok(())
        });
    }
    while let Some(result) = tasks.join_next().await {
        result??;
    }
    Ok(())
}

/// How many of the supervisor's children work for it: an init, and a process that is exec'd, has its program's name in
/// the end, and the server its own.
async fn workers(ctx: &Ctx) -> Fallible<usize> {
    let names = "for child in $(cat $PROC/$SUPERVISOR/task/*/children); do \
                 cat $PROC/$child/comm 2> /dev/null; done | grep -cxF \"$(cat $PROC/$SUPERVISOR/comm)\" || :";
    Ok(ctx.guest_sh(names).await?.trim().parse()?)
}

/// More execs than a guest may have workers, and all are stuck for a while.
async fn execs_without_end_take_turns(ctx: Ctx) -> Outcome {
    const EXECS: usize = 150;
    const AT_ONCE: usize = 64;
    let (stuck, other) = (ctx.idle(|spec| spec).await?, ctx.idle(|spec| spec).await?);
    ctx.guest_sh(&freeze(&stuck.id, true)).await?;
    let client = ctx.another_client().await?.within(SHELL_LIMIT);
    let mut execs = tokio::task::JoinSet::new();
    for _ in 0..EXECS {
        let (client, id, exec) = (client.clone(), stuck.id.clone(), ctx.fresh_exec_id());
        let process = stuck.process(["true"]);
        execs.spawn(async move {
            client.exec_process(&id, &exec, process).await?;
            client.wait_process(&id, &exec).await
        });
    }
    let looks = Looks::begin();
    while workers(&ctx).await? < AT_ONCE {
        looks.pause("as many workers as there may be").await?;
    }
    // Other containers have theirs meanwhile. One process of the last look may still be there.
    for _ in 0..10 {
        assert_eq!(other.sh("echo on").await?, "on");
        let workers = workers(&ctx).await?;
        assert!(workers <= AT_ONCE + 1, "{workers} workers at once");
    }
    ctx.guest_sh(&freeze(&stuck.id, false)).await?;
    while let Some(status) = execs.join_next().await {
        assert_eq!(status??, 0);
    }
    Ok(())
}

/// As a fork bomb in a container without a limit leaves it: the kernel refuses every process and every thread.
async fn a_guest_without_room_for_a_thread_still_kills(ctx: Ctx) -> Outcome {
    ctx.client().create_sandbox(&nakai_ctl::sandbox::request("full", "full", true)).await?;
    let server = ctx.guest_sh("echo $SERVER").await?;
    let victim = ctx.idle(|spec| spec).await?;
    let script = "exec 2>&1; cd /proc/sys/kernel && most=$(cat threads-max) && echo 20 > threads-max && echo none && read go; \
         echo $most > threads-max; echo again; read go";
    let bomb = ctx
        .started(|spec| spec.readonly_paths([""; 0]).masked_paths([""; 0]).args(["sh", "-c", script]))
        .await?;
    let said = async || ctx.client().read_stdout(&bomb.id, "", 100).await;
    assert_eq!(said().await?, b"none\n");
    // Idle threads have ended.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let exec = ctx.client().exec_process(&victim.id, "late", victim.process(["true"])).await;
    refused(exec, Code::RESOURCE_EXHAUSTED, &[]);
    victim.signal(libc::SIGKILL).await?;
    assert_eq!(victim.wait().await?, 137);
    ctx.client().write_stdin(&bomb.id, "", b"go\n".to_vec()).await?;
    assert_eq!(said().await?, b"again\n");
    bomb.sh("true").await?;
    assert_eq!(ctx.guest_sh("echo $SERVER").await?, server, "it is the same server");
    Ok(())
}
