//! What can't be: unknown and impossible names, specifications without sense.
//! Each gets its own code and a line that names what it is about; the agent lives on.

use nakai_ctl::SpecBuilder;
use nakai_ctl::spec::HookKind;
use nakai_protocols::agent::ExecProcessRequest;
use nakai_protocols::oci;
use ttrpc::Code;

use crate::harness::expect::refused;
use crate::harness::{Ctx, Outcome, Scenario, scenario};

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        scenario!(unknown_containers_are_not_found),
        scenario!(unknown_processes_are_not_found),
        scenario!(impossible_ids_are_refused),
        scenario!(a_taken_exec_id_is_refused),
        scenario!(an_exec_id_is_free_after_its_wait),
        scenario!(requests_without_their_parts_are_refused),
        scenario!(bad_specs_are_refused_by_name),
        scenario!(bad_execs_are_refused_by_name),
        scenario!(names_of_absurd_length_are_not_found),
        scenario!(the_agent_says_what_it_is),
        scenario!(secrets_stay_out_of_the_log).host_only(),
    ]
}

async fn unknown_containers_are_not_found(ctx: Ctx) -> Outcome {
    let client = ctx.client();
    let id = "nobody";
    let process = SpecBuilder::new(id, "/").process();
    let not_found = |result| refused::<()>(result, Code::NOT_FOUND, &[id]);
    not_found(client.start_container(id).await);
    not_found(client.remove_container(id).await);
    not_found(client.exec_process(id, "x", process).await);
    not_found(client.signal_process(id, "", 9).await);
    not_found(client.wait_process(id, "").await.map(drop));
    not_found(client.write_stdin(id, "", b"x".to_vec()).await.map(drop));
    not_found(client.read_stdout(id, "", 100).await.map(drop));
    not_found(client.read_stderr(id, "", 100).await.map(drop));
    not_found(client.close_stdin(id, "").await);
    not_found(client.tty_win_resize(id, "", 1, 1).await);
    not_found(client.stats_container(id).await.map(drop));
    Ok(())
}

async fn unknown_processes_are_not_found(ctx: Ctx) -> Outcome {
    let container = ctx.idle(|spec| spec).await?;
    let (client, id, exec) = (ctx.client(), &container.id, "nobody");
    let not_found = |result| refused::<()>(result, Code::NOT_FOUND, &[id, exec]);
    not_found(client.signal_process(id, exec, 9).await);
    not_found(client.wait_process(id, exec).await.map(drop));
    not_found(client.write_stdin(id, exec, b"x".to_vec()).await.map(drop));
    not_found(client.read_stdout(id, exec, 100).await.map(drop));
    not_found(client.read_stderr(id, exec, 100).await.map(drop));
    not_found(client.close_stdin(id, exec).await);
    not_found(client.tty_win_resize(id, exec, 1, 1).await);
    Ok(())
}

async fn impossible_ids_are_refused(ctx: Ctx) -> Outcome {
    let container = ctx.idle(|spec| spec).await?;
    let long = "x".repeat(200);
    for id in ["", ".", "..", "../up", "a/b", "-x", "a b", "a\n", "ä", long.as_str()] {
        let created = ctx.client().create_container(id, container.spec().build()).await;
        refused(created, Code::INVALID_ARGUMENT, &["container id"]);
        let exec = ctx.client().exec_process(&container.id, id, container.process(["true"])).await;
        refused(exec, Code::INVALID_ARGUMENT, &["exec id"]);
    }
    Ok(())
}

async fn a_taken_exec_id_is_refused(ctx: Ctx) -> Outcome {
    let container = ctx.idle(|spec| spec).await?;
    let client = ctx.client();
    client.exec_process(&container.id, "one", container.process(["cat"])).await?;
    for exec in ["one", &container.id] {
        let again = client.exec_process(&container.id, exec, container.process(["true"])).await;
        refused(again, Code::ALREADY_EXISTS, &[exec, &container.id]);
    }
    client.write_stdin(&container.id, "one", b"alive".to_vec()).await?;
    assert_eq!(client.read_stdout(&container.id, "one", 100).await?, b"alive");
    Ok(())
}

async fn an_exec_id_is_free_after_its_wait(ctx: Ctx) -> Outcome {
    let container = ctx.idle(|spec| spec).await?;
    for round in 0..3 {
        let process = container.process(["sh", "-c", &format!("exit {round}")]);
        ctx.client().exec_process(&container.id, "same", process).await?;
        assert_eq!(ctx.client().wait_process(&container.id, "same").await?, round);
    }
    Ok(())
}

async fn requests_without_their_parts_are_refused(ctx: Ctx) -> Outcome {
    let container = ctx.idle(|spec| spec).await?;
    let mut request = container.request();
    request.container_id.push_str("-new");
    request.OCI = None.into();
    refused(ctx.client().create_container_with(&request).await, Code::INVALID_ARGUMENT, &["OCI"]);
    let request = ExecProcessRequest {
        container_id: container.id.clone(),
        exec_id: "x".to_owned(),
        ..Default::default()
    };
    let exec = ctx.client().agent().exec_process(ctx.client().context(), &request).await;
    let exec = exec.map_err(|error| nakai_ctl::CallError::new("ExecProcess", "x", error));
    refused(exec, Code::INVALID_ARGUMENT, &["process"]);
    Ok(())
}

type SpecEdit = fn(SpecBuilder) -> SpecBuilder;

/// What is wrong, and the words that the refusal has in it.
const BAD_SPECS: &[(SpecEdit, &[&str])] = &[
    (|spec| spec.edit(|spec| spec.Root = None.into()), &["root"]),
    (|spec| spec.edit(|spec| spec.Linux = None.into()), &["linux"]),
    (|spec| spec.edit(|spec| spec.Version = "2.0.0".to_owned()), &["ociVersion", "2.0.0"]),
    (|spec| spec.args(["a\0b"]), &["process.args", "NUL"]),
    (|spec| spec.environment(["=x"]), &["process.env"]),
    (|spec| spec.environment(["SECRET"]), &["process.env", "="]),
    (|spec| spec.cwd("relative"), &["process.cwd", "relative"]),
    (|spec| spec.rlimit("RLIMIT_NONSENSE", 1, 1), &["RLIMIT_NONSENSE"]),
    (|spec| spec.rlimit("RLIMIT_NOFILE", 10, 5), &["RLIMIT_NOFILE"]),
    (|spec| spec.oom_score_adj(1001), &["oomScoreAdj", "1001"]),
    (|spec| spec.namespaces([("nonsense", "")]), &["namespace", "nonsense"]),
    (|spec| spec.namespaces([("mount", ""), ("mount", "")]), &["linux.namespaces", "two entries"]),
    (|spec| spec.namespaces([("user", "")]), &["linux.uidMappings"]),
    (|spec| spec.namespaces([("pid", "/proc/1/ns/pid")]), &["pid", "/proc/1/ns/pid"]),
    (|spec| spec.namespaces([("mount", "/proc/1/ns/mnt")]), &["linux.namespaces", "/proc/1/ns/mnt"]),
    (|spec| spec.mount("/../up", "tmpfs", "tmpfs", &[]), &["/../up"]),
    (|spec| spec.mount("/", "tmpfs", "tmpfs", &[]), &["mount", "root"]),
    (|spec| spec.mount("/x", "tmpfs", "tmpfs", &["idmap"]), &["/x", "id-mapped"]),
    (|spec| spec.mount("/x", "/tmp", "bind", &["rbind", "ridmap"]), &["/x", "id-mapped"]),
    (
        |spec| {
            let mapping = oci::LinuxIDMapping { HostID: 1000, Size: 1, ..Default::default() };
            spec.edit(|spec| spec.Linux.mut_or_insert_default().UIDMappings.push(mapping))
        },
        &["linux.uidMappings"],
    ),
    (|spec| spec.sysctl("kernel.hostname", "x"), &["kernel.hostname"]),
    (|spec| spec.sysctl("vm.swappiness", "1"), &["vm.swappiness"]),
    (
        |spec| spec.edit(|spec| spec.Process.mut_or_insert_default().ApparmorProfile = "mine".to_owned()),
        &["process.apparmorProfile", "mine"],
    ),
    (
        |spec| spec.edit(|spec| spec.Process.mut_or_insert_default().SelinuxLabel = "u:r:mine:s0".to_owned()),
        &["process.selinuxLabel", "u:r:mine:s0"],
    ),
    (|spec| spec.cgroups_path("/../up"), &["cgroupsPath", "/../up"]),
    (|spec| spec.cgroups_path("/"), &["cgroupsPath", "root"]),
    (
        |spec| spec.seccomp(oci::LinuxSeccomp { DefaultAction: "NONSENSE".into(), ..Default::default() }),
        &["NONSENSE"],
    ),
    (|spec| spec.hook(HookKind::Prestart, "bin/relative", ["x"], 0), &["hooks.prestart", "bin/relative"]),
    (|spec| spec.hook(HookKind::Poststop, "/bin/true", ["x"], -1), &["hooks", "-1"]),
    (
        |spec| {
            spec.add_device(oci::LinuxDevice {
                Path: "/dev/x".into(),
                Type: "q".into(),
                ..Default::default()
            })
        },
        &["q"],
    ),
];

async fn bad_specs_are_refused_by_name(ctx: Ctx) -> Outcome {
    for (edit, words) in BAD_SPECS {
        let container = ctx.container(edit)?;
        refused(container.create().await, Code::INVALID_ARGUMENT, words);
        refused(container.start().await, Code::NOT_FOUND, &[&container.id]);
    }
    Ok(())
}

async fn bad_execs_are_refused_by_name(ctx: Ctx) -> Outcome {
    let container = ctx.idle(|spec| spec).await?;
    let bad: [(SpecEdit, &str); 5] = [
        (|spec| spec.args([""]), "process.args"),
        (|spec| spec.environment(["SECRET"]), "process.env"),
        (|spec| spec.cwd("relative"), "process.cwd"),
        (|spec| spec.cwd("/no/such/directory"), "/no/such/directory"),
        (|spec| spec.rlimit("RLIMIT_NOFILE", 10, 5), "RLIMIT_NOFILE"),
    ];
    for (edit, word) in bad {
        let process = edit(container.spec().clone().args(["true"])).process();
        let exec = ctx.client().exec_process(&container.id, "bad", process).await;
        refused(exec, Code::INVALID_ARGUMENT, &[word]);
        refused(ctx.client().wait_process(&container.id, "bad").await, Code::NOT_FOUND, &["bad"]);
    }
    assert_eq!(container.sh("echo alive").await?, "alive");
    Ok(())
}

/// Longer than what is told of a failure, than a packet between two processes, than a path.
async fn names_of_absurd_length_are_not_found(ctx: Ctx) -> Outcome {
    let container = ctx.idle(|spec| spec).await?;
    for length in [20_000, 220_000] {
        for name in ["x".repeat(length), format!("/{}", "x".repeat(length))] {
            let edit = |spec: SpecBuilder| spec.args([name.clone()]);
            let process = edit(container.spec().clone()).process();
            let exec = ctx.client().exec_process(&container.id, "absurd", process).await;
            refused(exec, Code::NOT_FOUND, &["xxx"]);
            refused(ctx.container(edit)?.create().await, Code::NOT_FOUND, &["xxx"]);
        }
        let process = container.spec().clone().args(["true"]).cwd(&"/x".repeat(length / 2)).process();
        let exec = ctx.client().exec_process(&container.id, "absurd", process).await;
        refused(exec, Code::INVALID_ARGUMENT, &["/x/x"]);
    }
    assert_eq!(container.sh("echo alive").await?, "alive");
    Ok(())
}

async fn the_agent_says_what_it_is(ctx: Ctx) -> Outcome {
    ctx.client().check().await?;
    let version = ctx.client().version().await?;
    assert_eq!((&*version.agent_version, &*version.grpc_version), (env!("CARGO_PKG_VERSION"), "0.0.1"));
    let details = ctx.client().guest_details().await?;
    let agent = details.agent_details.unwrap_or_default();
    assert_eq!(agent.version, env!("CARGO_PKG_VERSION"));
    assert_eq!(agent.init_daemon, !ctx.is_host());
    assert!(agent.supports_seccomp);
    for driver in ["ephemeral", "local", "virtio-fs", "blk", "scsi", "overlayfs"] {
        assert!(agent.storage_handlers.iter().any(|known| known == driver), "{:?}", agent.storage_handlers);
    }
    assert!(details.mem_block_size_bytes.is_power_of_two(), "{}", details.mem_block_size_bytes);
    Ok(())
}

/// Logs are read by more people than containers.
async fn secrets_stay_out_of_the_log(ctx: Ctx) -> Outcome {
    const SECRET: &str = "for-the-container-alone";
    let container = ctx.idle(|spec| spec.env("TOKEN", SECRET)).await?;
    assert_eq!(container.sh("echo $TOKEN").await?, SECRET);
    for args in [&["sh", "-c", "exit 3", SECRET] as &[_], &["no-such-program", SECRET]] {
        let _ = container.exec(args.iter().copied()).await;
    }
    let mut lost = container.process(["true"]);
    lost.Cwd = "/dev/null/x".to_owned();
    assert!(container.exec_process(lost).await.is_err());
    ctx.client().exec_process(&container.id, "cat", container.process(["cat"])).await?;
    ctx.client().write_stdin(&container.id, "cat", SECRET.into()).await?;
    ctx.client().signal_process(&container.id, "cat", 9).await?;
    let failing = ctx.container(|spec| {
        spec.env("TOKEN", SECRET).hook(HookKind::Prestart, "/bin/false", ["false", SECRET], 0)
    })?;
    assert!(failing.create().await.is_err());
    // The log is written in order: what comes last is there when the rest is.
    refused(ctx.client().remove_container("the-last-word").await, Code::NOT_FOUND, &["the-last-word"]);
    let mut log = String::new();
    while !log.contains("the-last-word") {
        log = ctx.guest_sh("cat $PROC/$SUPERVISOR/fd/1").await?;
    }
    assert!(log.contains(&container.id) && log.contains("ExecProcess"), "{log}");
    assert!(!log.contains(SECRET), "{log}");
    Ok(())
}
