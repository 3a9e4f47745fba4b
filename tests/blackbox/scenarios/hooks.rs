//! Hooks of the specification: when they run, where, and what they are told.

use nakai_ctl::spec::HookKind;
use nakai_protocols::oci;
use ttrpc::Code;

use super::recovery::Looks;
use crate::harness::context::SHELL_LIMIT;
use crate::harness::expect::refused;
use crate::harness::{Ctx, Outcome, Scenario, scenario};

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        scenario!(hooks_run_in_their_order),
        scenario!(hooks_are_told_the_state),
        scenario!(a_start_container_hook_runs_inside),
        scenario!(a_failing_start_container_hook_ends_init),
        scenario!(a_start_container_hook_that_hangs_keeps_nobody_waiting),
        scenario!(hooks_after_the_start_can_fail),
        scenario!(a_hook_after_the_start_is_ended_by_its_timeout),
        scenario!(what_hooks_leave_goes_with_the_container),
        scenario!(a_hook_after_the_start_that_hangs_is_ended_without_a_timeout),
    ]
}

const RUNTIME_HOOKS: [(HookKind, &str); 5] = [
    (HookKind::Prestart, "prestart"),
    (HookKind::CreateRuntime, "createRuntime"),
    (HookKind::CreateContainer, "createContainer"),
    (HookKind::Poststart, "poststart"),
    (HookKind::Poststop, "poststop"),
];

async fn hooks_run_in_their_order(ctx: Ctx) -> Outcome {
    let container = ctx.container(|spec| spec.args(["sleep", "1000000"]))?;
    let (host, guest) = ctx.directory(&container, "log")?;
    let container = RUNTIME_HOOKS.into_iter().fold(container, |container, (kind, name)| {
        let script = format!("echo {name} >> {guest}/order");
        container.edit(|spec| spec.hook(kind, "/bin/sh", ["sh", "-c", &script], 0))
    });
    let order = || std::fs::read_to_string(host.join("order")).unwrap_or_default();
    container.create().await?;
    assert_eq!(order(), "prestart\ncreateRuntime\ncreateContainer\n");
    container.start().await?;
    assert_eq!(order(), "prestart\ncreateRuntime\ncreateContainer\npoststart\n");
    container.remove().await?;
    assert_eq!(order(), "prestart\ncreateRuntime\ncreateContainer\npoststart\npoststop\n");
    Ok(())
}

async fn hooks_are_told_the_state(ctx: Ctx) -> Outcome {
    let container = ctx.container(|spec| spec.args(["sleep", "1000000"]).annotation("mine", "value"))?;
    let (host, guest) = ctx.directory(&container, "log")?;
    let container = RUNTIME_HOOKS.into_iter().fold(container, |container, (kind, name)| {
        let script = format!("cat > {guest}/{name}; echo \"$0 $1 $HOOK $PWD\" > {guest}/{name}.how");
        container.edit(|spec| {
            spec.hook(kind, "/bin/sh", ["sh", "-c", &script, "zero", "one"], 0).edit(|spec| {
                let hooks = spec.Hooks.mut_or_insert_default();
                let lists = [&mut hooks.Prestart, &mut hooks.CreateRuntime, &mut hooks.CreateContainer];
                let lists = lists.into_iter().chain([&mut hooks.Poststart, &mut hooks.Poststop]);
                lists.flatten().for_each(|hook| hook.Env = vec!["HOOK=environment".to_owned()]);
            })
        })
    });
    container.create().await?;
    container.start().await?;
    container.remove().await?;
    for (name, status) in [
        ("prestart", "creating"),
        ("createRuntime", "creating"),
        ("createContainer", "creating"),
        ("poststart", "running"),
        ("poststop", "stopped"),
    ] {
        let text = std::fs::read_to_string(host.join(name))?;
        let state: serde_json::Value = serde_json::from_str(&text)?;
        assert_eq!(state["id"], container.id.as_str(), "{name}: {text}");
        assert_eq!(state["status"], status, "{name}: {text}");
        assert_eq!(state["annotations"]["mine"], "value", "{name}: {text}");
        assert!(state["bundle"].as_str().is_some_and(|bundle| bundle.starts_with('/')), "{name}: {text}");
        // Required once the container is created, and without meaning inside or after it.
        let has_pid = state["pid"].as_i64().is_some_and(|pid| pid > 0);
        assert_eq!(has_pid, !matches!(name, "createContainer" | "poststop"), "{name}: {text}");
        let bundle = state["bundle"].as_str().unwrap_or_default();
        let how = std::fs::read_to_string(host.join(format!("{name}.how")))?;
        assert_eq!(how, format!("zero one environment {bundle}\n"), "{name}");
    }
    Ok(())
}

/// In the container's own root, after StartContainer and before the program.
async fn a_start_container_hook_runs_inside(ctx: Ctx) -> Outcome {
    let script = "echo hook > /order; id -u >> /order; cat > /state";
    let container = ctx
        .created(|spec| {
            // What libcontainer makes for a node is not for everybody to write in.
            let program = "echo program >> /order; stat -c %a /dev/deep /dev/deep/er >> /modes";
            let node = oci::LinuxDevice {
                Path: "/dev/deep/er/zero".to_owned(),
                Type: "c".to_owned(),
                Major: 1,
                Minor: 5,
                ..Default::default()
            };
            let hook = ["sh", "-c", script];
            spec.hook(HookKind::StartContainer, "/bin/sh", hook, 0)
                .annotation("mine", "value")
                .add_device(node)
                .args(["sh", "-c", program])
        })
        .await?;
    assert!(!container.file("/order").exists());
    container.start().await?;
    // The call's answer comes when the hook has ended.
    assert!(std::fs::read_to_string(container.file("/order"))?.starts_with("hook\n0\n"));
    assert_eq!(container.wait().await?, 0);
    assert_eq!(std::fs::read_to_string(container.file("/order"))?, "hook\n0\nprogram\n");
    let state: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(container.file("/state"))?)?;
    assert_eq!(
        (&state["id"], &state["status"]),
        (&container.id.as_str().into(), &"created".into()),
        "{state}"
    );
    assert!(state["pid"].as_i64().is_some_and(|pid| pid > 0), "{state}");
    assert_eq!(state["annotations"]["mine"], "value", "{state}");
    assert_eq!(std::fs::read_to_string(container.file("/modes"))?, "755\n755\n");
    Ok(())
}

/// The program does not run then, and the container is there to be looked at and removed.
async fn a_failing_start_container_hook_ends_init(ctx: Ctx) -> Outcome {
    for (script, timeout, cause) in [("exit 3", 0, "3"), ("exec sleep 1000000", 1, "timeout")] {
        let container = ctx
            .created(|spec| {
                let hook = ["sh", "-c", script];
                spec.hook(HookKind::StartContainer, "/bin/true", [""; 0], 0)
                    .hook(HookKind::StartContainer, "/bin/sh", hook, timeout)
                    .args(["touch", "/program-ran"])
            })
            .await?;
        let started = ctx.client().start_container(&container.id).await;
        refused(started, Code::INTERNAL, &["startContainer hook /bin/sh", cause]);
        assert_ne!(container.wait().await?, 0, "{script}");
        assert!(!container.file("/program-ran").exists(), "{script}");
        let again = ctx.client().start_container(&container.id).await;
        refused(again, Code::FAILED_PRECONDITION, &["stopped"]);
        container.remove().await?;
    }
    Ok(())
}

/// What its own time ends is in `a_failing_start_container_hook_ends_init`. Until then the container can be ended, and
/// everything else goes on.
async fn a_start_container_hook_that_hangs_keeps_nobody_waiting(ctx: Ctx) -> Outcome {
    for by_removal in [false, true] {
        let hook = ["sh", "-c", "echo > /hook-runs; exec sleep 1000000"];
        let container = ctx
            .created(|spec| {
                spec.hook(HookKind::StartContainer, "/bin/sh", hook, 600).args(["touch", "/program-ran"])
            })
            .await?;
        let (other, id) = (ctx.another_client().await?, container.id.clone());
        let started = tokio::spawn(async move { other.start_container(&id).await });
        let looks = Looks::begin();
        while !container.file("/hook-runs").exists() {
            looks.pause("the hook").await?;
        }
        ctx.client().check().await?;
        ctx.client().stats_container(&container.id).await?;
        assert_eq!(ctx.run(|spec| spec.args(["true"])).await?.status, 0);
        let exec = ctx.client().exec_process(&container.id, "x", container.process(["true"])).await;
        refused(exec, Code::FAILED_PRECONDITION, &["starting"]);
        assert!(!started.is_finished(), "its hook runs");
        if !by_removal {
            container.signal(libc::SIGKILL).await?;
            assert_eq!(container.wait().await?, 137);
            started.await??;
            assert!(!container.file("/program-ran").exists());
        }
        container.remove().await?;
    }
    Ok(())
}

async fn a_hook_after_the_start_is_ended_by_its_timeout(ctx: Ctx) -> Outcome {
    let container = ctx.container(|spec| spec.args(["sleep", "1000000"]))?;
    let (host, guest) = ctx.directory(&container, "log")?;
    let script = format!("echo >> {guest}/ran; exec sleep 1000000");
    let slow = ["sh", "-c", &script];
    let container = container.edit(|spec| {
        spec.hook(HookKind::Poststart, "/bin/sh", slow, 1).hook(HookKind::Poststop, "/bin/sh", slow, 1)
    });
    container.create().await?;
    container.start().await?;
    assert_eq!(container.sh("echo alive").await?, "alive");
    container.remove().await?;
    assert_eq!(std::fs::read_to_string(host.join("ran"))?, "\n\n", "both");
    Ok(())
}

/// Nobody else would end it: the caller of RemoveContainer may be gone, and a pod would never be.
async fn a_hook_after_the_start_that_hangs_is_ended_without_a_timeout(ctx: Ctx) -> Outcome {
    let container = ctx.container(|spec| spec.args(["sleep", "1000000"]))?;
    let (host, guest) = ctx.directory(&container, "log")?;
    let script = format!("echo >> {guest}/ran; exec sleep 1000000");
    let slow = ["sh", "-c", &script];
    let container = container.edit(|spec| {
        spec.hook(HookKind::Poststart, "/bin/sh", slow, 0).hook(HookKind::Poststop, "/bin/sh", slow, 0)
    });
    container.create().await?;
    tokio::time::timeout(SHELL_LIMIT, container.start()).await??;
    assert_eq!(container.sh("echo alive").await?, "alive");
    tokio::time::timeout(SHELL_LIMIT, container.remove()).await??;
    assert_eq!(std::fs::read_to_string(host.join("ran"))?, "\n\n", "both");
    Ok(())
}

/// The runtime specification's "Lifecycle": their errors are logged, and the rest goes on.
async fn hooks_after_the_start_can_fail(ctx: Ctx) -> Outcome {
    let container = ctx.container(|spec| spec.args(["sleep", "1000000"]))?;
    let (host, guest) = ctx.directory(&container, "log")?;
    let script = format!("echo >> {guest}/ran; exit 1");
    let container =
        [HookKind::Poststart, HookKind::Poststop].into_iter().fold(container, |container, kind| {
            let twice = ["sh", "-c", &script];
            container.edit(|spec| spec.hook(kind, "/bin/sh", twice, 0).hook(kind, "/bin/sh", twice, 0))
        });
    container.create().await?;
    container.start().await?;
    assert_eq!(container.sh("echo alive").await?, "alive");
    container.remove().await?;
    assert_eq!(std::fs::read_to_string(host.join("ran"))?, "\n\n\n\n", "all four");
    Ok(())
}

/// A hook is told where the bundle is, and nobody else knows to clean it. A shim that gets an error for a removal asks
/// again, and must not hear of a container that is not there.
async fn what_hooks_leave_goes_with_the_container(ctx: Ctx) -> Outcome {
    let litter = |end: &str| {
        let enter = r#"cd "$(sed 's/.*"bundle": *"\([^"]*\)".*/\1/')""#;
        let script =
            format!("{enter} && mkdir -p deep/down && echo > deep/down/left && ln -s / link && {end}");
        ["sh".to_owned(), "-c".to_owned(), script]
    };
    for kind in [HookKind::CreateRuntime, HookKind::Poststop] {
        let container =
            ctx.container(|spec| spec.args(["sleep", "1000000"]).hook(kind, "/bin/sh", litter("exit 0"), 0))?;
        let before = ctx.inventory().await?;
        container.create().await?;
        container.start().await?;
        container.remove().await?;
        ctx.returns_to(&before).await?;
    }
    let container =
        ctx.container(|spec| spec.hook(HookKind::CreateRuntime, "/bin/sh", litter("exit 1"), 0))?;
    let before = ctx.inventory().await?;
    let created = ctx.client().create_container(&container.id, container.spec().clone().build()).await;
    refused(created, Code::INTERNAL, &["hook"]);
    ctx.returns_to(&before).await
}
