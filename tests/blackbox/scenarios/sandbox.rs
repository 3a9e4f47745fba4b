//! The sandbox: its life, what containers share in it, and the guest's own hooks.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use nakai_ctl::spec::HookKind;
use nakai_ctl::{SpecBuilder, sandbox};
use nakai_protocols::agent::{CreateSandboxRequest, KernelModule, Storage};
use ttrpc::Code;

use crate::harness::expect::refused;
use crate::harness::own_vm::{HOOK_FILES, HOOK_LOG, hook_script};
use crate::harness::{Container, Ctx, Fallible, Outcome, Scenario, scenario};

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        scenario!(a_sandbox_lives_from_create_to_destroy).ends_its_agent(),
        scenario!(the_agent_ends_though_its_host_has_hung_up).ends_its_agent(),
        scenario!(an_agent_that_ends_takes_no_other_sandbox).ends_its_agent().host_only(),
        scenario!(a_pid_namespace_can_be_shared).own_agent(),
        scenario!(a_shared_pid_namespace_ends_with_the_container_that_made_it).own_agent(),
        scenario!(guest_hooks_run_for_every_container).own_agent(),
    ]
}

fn request(ctx: &Ctx) -> CreateSandboxRequest {
    sandbox::request("pod", "pod-host", !ctx.is_host())
}

async fn a_sandbox_lives_from_create_to_destroy(ctx: Ctx) -> Outcome {
    let client = ctx.client();
    client.check().await?;
    let early = ctx.container(|spec| spec.args(["sleep", "1000000"]))?;
    refused(early.create().await, Code::FAILED_PRECONDITION, &["sandbox"]);
    refused(early.start().await, Code::NOT_FOUND, &[&early.id]);

    let mut bad = request(&ctx);
    bad.storages.push(Storage { driver: "nonsense".to_owned(), ..sandbox::shm_storage() });
    refused(client.create_sandbox(&bad).await, Code::INVALID_ARGUMENT, &["nonsense"]);
    let mut bad = request(&ctx);
    bad.kernel_modules.push(KernelModule { name: "no_such_module".to_owned(), ..Default::default() });
    let refusal = client.create_sandbox(&bad).await.unwrap_err();
    assert!(refusal.message.contains("no_such_module"), "{refusal}");
    refused(early.create().await, Code::FAILED_PRECONDITION, &["sandbox"]);

    let mut good = request(&ctx);
    good.dns = vec!["nameserver 192.0.2.53".to_owned(), "search example.org".to_owned()];
    client.create_sandbox(&good).await?;
    let names = ctx.guest_sh("cat $PROC/$SERVER/root/etc/resolv.conf").await?;
    assert_eq!(names.trim_end(), "nameserver 192.0.2.53\nsearch example.org");
    let name = "/run/kata-containers/sandbox/hostname";
    let early = early.edit(|spec| spec.mount("/etc/hostname", name, "bind", &["rbind", "ro"]));
    early.create().await?;
    early.start().await?;
    assert_eq!(early.sh("cat /etc/hostname").await?, "pod-host");
    refused(client.create_sandbox(&good).await, Code::ALREADY_EXISTS, &["sandbox"]);
    assert_eq!(early.sh("hostname").await?, "pod-host");
    client.destroy_sandbox().await?;
    Ok(())
}

/// A hook takes longer than the host waits for the end of the sandbox. That comes all the same, and the agent's with it.
async fn the_agent_ends_though_its_host_has_hung_up(ctx: Ctx) -> Outcome {
    ctx.client().create_sandbox(&request(&ctx)).await?;
    let slow = |spec: SpecBuilder| spec.hook(HookKind::Poststop, "/bin/sh", ["sh", "-c", "sleep 3"], 60);
    ctx.idle(slow).await?;
    let impatient = ctx.another_client().await?.within(Duration::from_millis(500));
    assert!(impatient.destroy_sandbox().await.is_err(), "the hook takes longer");
    Ok(())
}

/// Whoever asked for one just then would have it for a moment.
async fn an_agent_that_ends_takes_no_other_sandbox(ctx: Ctx) -> Outcome {
    ctx.client().create_sandbox(&request(&ctx)).await?;
    let mut asking = Vec::new();
    for _ in 0..4 {
        let (ctx, client) = (ctx.clone(), ctx.another_client().await?);
        asking.push(tokio::spawn(async move {
            // Until the connection ends.
            loop {
                match client.create_sandbox(&request(&ctx)).await {
                    Ok(()) => return Err("there is another sandbox"),
                    Err(error) if matches!(error.code, Code::ALREADY_EXISTS | Code::FAILED_PRECONDITION) => {}
                    Err(_) => return Ok(()),
                }
            }
        }));
    }
    ctx.client().destroy_sandbox().await?;
    for asked in asking {
        asked.await??;
    }
    Ok(())
}

/// A container in the sandbox's shared PID namespace.
async fn sharing(ctx: &Ctx) -> Fallible<Container> {
    let container = ctx.container(|spec| {
        let spec = spec.args(["sleep", "1000000"]).capabilities(["CAP_SYS_PTRACE"]);
        // libcontainer 0.7 looks for its own pid in another namespace's /proc when it mounts cgroup v1.
        if ctx.is_host() { spec.without_mount("/sys/fs/cgroup") } else { spec }
    })?;
    let mut request = container.request();
    request.sandbox_pidns = true;
    ctx.client().create_container_with(&request).await?;
    container.start().await?;
    Ok(container)
}

/// Without a pause process the first container's PID namespace is the sandbox's, and its init the one that matters.
async fn a_shared_pid_namespace_ends_with_the_container_that_made_it(ctx: Ctx) -> Outcome {
    ctx.client().create_sandbox(&request(&ctx)).await?;
    let (first, second) = (sharing(&ctx).await?, sharing(&ctx).await?);
    first.sh_until("pidof sleep | wc -w", "2").await?;
    first.remove().await?;
    assert_eq!(second.wait().await?, 128 + libc::SIGKILL);
    // The next one starts afresh, and is joined in its turn.
    let (third, fourth) = (sharing(&ctx).await?, sharing(&ctx).await?);
    third.sh_until("pidof sleep | wc -w", "2").await?;
    fourth.remove().await?;
    third.sh_until("pidof sleep | wc -w", "1").await?;
    Ok(())
}

async fn a_pid_namespace_can_be_shared(ctx: Ctx) -> Outcome {
    let mut with_pidns = request(&ctx);
    with_pidns.sandbox_pidns = true;
    ctx.client().create_sandbox(&with_pidns).await?;
    let (one, other) = (sharing(&ctx).await?, sharing(&ctx).await?);
    let alone = ctx.idle(|spec| spec).await?;
    let namespace = "readlink /proc/self/ns/pid";
    assert_eq!(one.sh(namespace).await?, other.sh(namespace).await?);
    assert_ne!(one.sh(namespace).await?, alone.sh(namespace).await?);
    one.sh_until("pidof sleep | wc -w", "2").await?;

    // Not even those go on that have left init's care; and the other container does.
    one.exec(["sh", "-c", "(setsid sleep 1000001 > /dev/null 2>&1 &)"]).await?;
    other.sh_until("ps | grep -c '[s]leep 1000001'", "1").await?;
    ctx.client().signal_process(&one.id, "", 9).await?;
    assert_eq!(one.wait().await?, 137);
    other.sh_until("ps | grep -c '[s]leep 1000001' || :", "0").await?;
    one.remove().await?;

    // Its namespace outlives the first container.
    let third = sharing(&ctx).await?;
    assert_eq!(third.sh(namespace).await?, other.sh(namespace).await?);
    // SIGTERM to an init that is not the first process of its namespace is not made into SIGKILL.
    third.signal(libc::SIGTERM).await?;
    let status = third.wait().await?;
    assert!([128 + libc::SIGTERM, 128 + libc::SIGKILL].contains(&status), "{status}");
    assert_eq!(other.sh("echo alive").await?, "alive");
    Ok(())
}

async fn guest_hooks_run_for_every_container(ctx: Ctx) -> Outcome {
    let directory = ctx.hook_directory();
    if ctx.is_host() {
        for (hook, mode) in HOOK_FILES {
            let path = Path::new(directory).join(hook);
            std::fs::create_dir_all(path.parent().ok_or("a hook lies in a directory")?)?;
            std::fs::write(&path, hook_script())?;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))?;
        }
    }
    let mut with_hooks = request(&ctx);
    with_hooks.guest_hook_path = directory.to_owned();
    ctx.client().create_sandbox(&with_hooks).await?;
    let one = ctx.idle(|spec| spec).await?;
    one.remove().await?;
    let log = ctx.guest_sh(&format!("grep '\"{}\"' $PROC/$SERVER/root{HOOK_LOG}", one.id)).await?;
    let ran: Vec<&str> = log.lines().map(|line| line.split(" {").next().unwrap_or(line)).collect();
    // One that fails fails nothing, and they all run in the bundle.
    let expected = ["prestart/10-first", "prestart/15-fails", "prestart/20-second", "poststop/10-end"];
    let bundle = format!("/run/kata-containers/{}", one.id);
    let expected: Vec<String> = expected
        .iter()
        .map(|hook| format!("{directory}/{hook} {} {bundle}", hook.split('/').next().unwrap_or_default()))
        .collect();
    assert_eq!(ran, expected, "{log}");
    Ok(())
}
