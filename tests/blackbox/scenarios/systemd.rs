//! The agent as a service of systemd, which makes units of containers.
//!
//! A container is the system: its init is systemd, whose one service is the agent, on a vsock port of its own. What is
//! asked of that agent becomes containers in the container.

use std::process::Command;

use nakai_ctl::sandbox::request;
use nakai_ctl::spec::HookKind;
use nakai_ctl::{Address, Client, SpecBuilder};
use nakai_protocols::agent::{GetOOMEventRequest, UpdateContainerRequest};
use nakai_protocols::spec::CAPABILITIES;
use nakai_rootfs::cache::Cache;
use nakai_rootfs::systemd;
use tokio::time::Instant;
use ttrpc::Code;

use super::oom::EAT;
use super::update::{MEGABYTE, memory};
use crate::harness::context::SHELL_LIMIT;
use crate::harness::expect::{refused, succeeded};
use crate::harness::{Container, Ctx, Fallible, Outcome, Scenario, scenario};

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        scenario!(containers_are_scopes_in_their_slices).vm_only(),
        scenario!(containers_are_scopes_on_v1_as_well)
            .own_agent()
            .vm_only()
            .kernel_parameter("agent.unified_cgroup_hierarchy=0"),
    ]
}

const PORT: u32 = 2024;

/// What systemd wants to hear from release 256 on, in place of the kernel's command line. The 258th has v1 no more.
const WITH_V1: &str = "SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1";
const WITHOUT_V1: u32 = 258;

const SERVICE: &str = "[Unit]\nDefaultDependencies=no\n[Service]\n\
     ExecStart=/usr/bin/nakai --config /etc/nakai.toml --log-level debug --server-addr vsock://-1:2024\n\
     StandardOutput=file:/run/agent.log\nStandardError=file:/run/agent.log\n";

/// The system: systemd from its packages, the guest's agent and busybox, and roots for two containers.
fn system(ctx: &Ctx, word: &str, cgroups: [&str; 2], options: &[&str]) -> Fallible<Container> {
    let agent = "/usr/bin/nakai";
    let [source, kind] = cgroups;
    let system = ctx.container(|spec| {
        spec.args(["/lib/systemd/systemd", "--unit=agent.service", WITH_V1, word])
            .env("container", "blackbox")
            .capabilities(CAPABILITIES.map(|name| format!("CAP_{name}")))
            .no_new_privileges(false)
            .masked_paths([""; 0])
            .readonly_paths([""; 0])
            .without_mount("/sys/fs/cgroup")
            .mount("/sys/fs/cgroup", source, kind, options)
            .mount("/run", "tmpfs", "tmpfs", &["nosuid", "nodev", "mode=755"])
            .mount("/tmp", "tmpfs", "tmpfs", &["nosuid", "nodev"])
            .mount(agent, agent, "bind", &["bind", "ro"])
    })?;
    let tree = systemd::fetch(&Cache::of_project()?)?;
    for entry in std::fs::read_dir(&tree)? {
        let entry = entry?;
        // Newer releases have links there, into usr, and the programs' path has that, too.
        if entry.file_type()?.is_symlink() && system.root.join(entry.file_name()).exists() {
            continue;
        }
        let copied = Command::new("cp").arg("-a").arg(entry.path()).arg(&system.root).status()?;
        assert!(copied.success(), "cp: {copied}");
    }
    std::fs::write(system.file(agent), "")?;
    // Else the kernel's command line counted, which is for the agent around it.
    std::fs::write(system.file("/etc/nakai.toml"), "")?;
    std::fs::write(system.file("/etc/machine-id"), "")?;
    std::fs::write(system.file("/etc/systemd/system/agent.service"), SERVICE)?;
    for name in ["one", "two"] {
        std::fs::create_dir(system.root.join(name))?;
        ctx.copy_root(&system.root.join(name).join("rootfs"))?;
    }
    Ok(system)
}

/// A connection to the agent in the system. Nobody connects before it listens: the vsock device would hang.
async fn inner_client(ctx: &Ctx, system: &Container, times: u32) -> Fallible<Client> {
    let deadline = Instant::now() + SHELL_LIMIT;
    let served = format!(
        "[ -e /run/agent.log ] && [ $(grep -c '\"serving\"' /run/agent.log) -ge {times} ] && echo yes || :"
    );
    // While systemd divides its cgroup, no process can be put there.
    while !shell(system, &served).await.is_ok_and(|said| said == "yes") {
        if Instant::now() > deadline {
            let log = shell(system, "cat /run/agent.log; systemctl status agent.service 2>&1 || :").await?;
            return Err(format!("the agent in the system does not serve: {log}").into());
        }
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
    let Address::Hybrid { path, .. } = ctx.address() else { return Err("no hybrid vsock".into()) };
    let client = Client::connect(&Address::Hybrid { path: path.clone(), port: PORT }).await?;
    client.check().await?;
    Ok(client)
}

async fn shell(system: &Container, script: &str) -> Fallible<String> {
    Ok(succeeded(system.exec(["/bin/busybox", "sh", "-c", script]).await?))
}

/// What systemd says of a unit, a line each.
async fn show(system: &Container, unit: &str, properties: &[&str]) -> Fallible<Vec<String>> {
    let properties: Vec<String> = properties.iter().map(|property| format!("-p {property}")).collect();
    let said = shell(system, &format!("systemctl show {} {unit}", properties.join(" "))).await?;
    let mut lines: Vec<String> = said.lines().map(str::to_owned).collect();
    lines.sort_unstable();
    Ok(lines)
}

fn inner(name: &str, cgroup: &str) -> SpecBuilder {
    SpecBuilder::new(name, &format!("/{name}/rootfs"))
        .args(["sleep", "1000000"])
        .memory_limit(64 * MEGABYTE)
        .cpu_quota(50_000, 200_000)
        .pids_limit(32)
        .cgroups_path(cgroup)
}

/// A container that goes on as `script` says when there is `/eat`, and has little memory.
async fn goes_on_at_a_word(client: &Client, name: &str, slice: &str, script: &str) -> Outcome {
    let script = format!("until [ -e /eat ]; do sleep 0.1; done; {script}");
    let spec = SpecBuilder::new(name, "/two/rootfs").args(["sh", "-c", &script]).memory_limit(16 * MEGABYTE);
    let spec = spec.memory_swap(16 * MEGABYTE).cgroups_path(&format!("{slice}:nakai:{name}"));
    client.create_container(name, spec.build()).await?;
    client.start_container(name).await?;
    Ok(())
}

/// Gives the word, and comes back when the unit of `name` is gone, which no server has seen.
async fn unseen(system: &Container, name: &str) -> Outcome {
    let script = format!(
        "for p in /proc/[0-9]*; do [ \"$(cat $p/comm 2> /dev/null)\" != nakai-server ] || server=${{p##*/}}; done; \
         kill -STOP $server; : > /two/rootfs/eat; n=0; cd /sys/fs/cgroup; \
         while {{ [ -d nakai-{name}.scope ] || [ -d pods.slice/pods-a.slice/nakai-{name}.scope ]; }} && \
         [ $n -lt 600 ]; do sleep 0.1; n=$((n + 1)); done; \
         rm /two/rootfs/eat; kill -CONT $server; [ $n -lt 600 ] || echo still there"
    );
    assert_eq!(shell(system, &script).await?, "");
    Ok(())
}

/// systemd removes the cgroup of a unit whose last process was killed, and here it is faster than the server.
async fn an_oom_kill_is_told_though_the_unit_is_gone(system: &Container, client: &Client) -> Outcome {
    for slice in ["pods-a.slice", "-.slice"] {
        // In a process of init's, or itself. Each is told, and none is told of who has ended by its own will.
        for (name, script, status, is_told) in [
            ("forgiving", format!("sh -c '{EAT}'; exit 0"), 0, true),
            ("failing", "exit 3".to_owned(), 3, false),
            ("eater", EAT.to_owned(), 137, true),
        ] {
            goes_on_at_a_word(client, name, slice, &script).await?;
            unseen(system, name).await?;
            assert_eq!(client.wait_process(name, "").await?, status, "{name} in {slice}");
            client.remove_container(name).await?;
            if is_told {
                let event =
                    client.agent().get_oom_event(client.context(), &GetOOMEventRequest::new()).await?;
                assert_eq!(event.container_id, name, "in {slice}");
            }
        }
    }
    Ok(())
}

async fn containers_are_scopes_in_their_slices(ctx: Ctx) -> Outcome {
    const CGROUP: &str = "/sys/fs/cgroup/pods.slice/pods-a.slice/nakai-one.scope";
    const LIMITS: &str = "cat memory.max cpu.max pids.max";
    let system = system(&ctx, "", ["cgroup", "cgroup"], &["nosuid", "noexec", "nodev"])?;
    system.create().await?;
    system.start().await?;
    let client = inner_client(&ctx, &system, 1).await?;
    client.create_sandbox(&request("system", "system", false)).await?;
    let misnamed = client.create_container("one", inner("one", "pods:nakai:one").build()).await;
    refused(misnamed, Code::INVALID_ARGUMENT, &["pods:nakai:one", "slice"]);

    client.create_container("one", inner("one", "pods-a.slice:nakai:one").build()).await?;
    client.start_container("one").await?;
    let properties =
        ["ActiveState", "Slice", "Delegate", "MemoryMax", "CPUQuotaPerSecUSec", "TasksMax", "ControlGroup"];
    let expected = |memory: &str| {
        vec![
            "ActiveState=active".to_owned(),
            "CPUQuotaPerSecUSec=250ms".to_owned(),
            "ControlGroup=/pods.slice/pods-a.slice/nakai-one.scope".to_owned(),
            "Delegate=yes".to_owned(),
            format!("MemoryMax={memory}"),
            "Slice=pods-a.slice".to_owned(),
            "TasksMax=32".to_owned(),
        ]
    };
    let limits = format!("cd {CGROUP}; {LIMITS}");
    assert_eq!(show(&system, "nakai-one.scope", &properties).await?, expected("67108864"));
    assert_eq!(shell(&system, &limits).await?, "67108864\n50000 200000\n32");
    client.exec_process("one", "x", inner("one", "").args(["sleep", "1000000"]).process()).await?;
    let both = format!("wc -l < {CGROUP}/cgroup.procs");
    assert_eq!(shell(&system, &both).await?, "2", "the exec'd process is elsewhere");

    let resources = Some(memory(128 * MEGABYTE, 0)).into();
    let update = UpdateContainerRequest { container_id: "one".into(), resources, ..Default::default() };
    client.agent().update_container(client.context(), &update).await?;
    assert_eq!(show(&system, "nakai-one.scope", &properties).await?, expected("134217728"));
    // systemd reads all of its units anew, and puts in force what it knows.
    shell(&system, "systemctl daemon-reload; systemctl set-property --runtime pods-a.slice TasksMax=900")
        .await?;
    assert_eq!(shell(&system, &limits).await?, "134217728\n50000 200000\n32");
    assert_eq!(shell(&system, &both).await?, "2");

    // The next server knows of the unit, and what has ended by itself is gone as well.
    client.create_container("two", inner("two", "pods-a.slice:nakai:two").args(["true"]).build()).await?;
    client.start_container("two").await?;
    assert_eq!(client.wait_process("two", "").await?, 0);
    let kill = "for p in /proc/[0-9]*; do [ \"$(cat $p/comm 2> /dev/null)\" != nakai-server ] || kill -9 ${p##*/}; done";
    shell(&system, kill).await?;
    let client = inner_client(&ctx, &system, 2).await?;
    for name in ["one", "two"] {
        client.remove_container(name).await?;
        let unit = format!("nakai-{name}.scope");
        let gone = ["ActiveState=inactive", "LoadState=not-found"];
        assert_eq!(show(&system, &unit, &["ActiveState", "LoadState"]).await?, gone, "{unit}");
    }
    assert_eq!(shell(&system, "find /sys/fs/cgroup/pods.slice -name '*.scope'").await?, "");
    an_oom_kill_is_told_though_the_unit_is_gone(&system, &client).await?;
    // The name is free again.
    client.create_container("one", inner("one", "pods-a.slice:nakai:one").build()).await?;
    client.remove_container("one").await?;
    client.destroy_sandbox().await?;
    system.remove().await?;
    Ok(())
}

/// The release, by the name of a library that is in each; of those that have it elsewhere nothing is known.
fn release() -> Fallible<Option<u32>> {
    let libraries = systemd::fetch(&Cache::of_project()?)?.join("usr/lib/x86_64-linux-gnu/systemd");
    let mut names =
        std::fs::read_dir(libraries).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let release = |name: &str| name.strip_prefix("libsystemd-shared-")?.split('.').next()?.parse().ok();
    Ok(names.find_map(|name| release(name.to_str()?)))
}

/// The guest's trees are the system's, with the one that systemd has for processes besides. Unless it is told not to, it
/// has one of v2 for them, too.
async fn containers_are_scopes_on_v1_as_well(ctx: Ctx) -> Outcome {
    ctx.client().create_sandbox(&request("v1", "v1", true)).await?;
    if release()?.is_some_and(|release| release >= WITHOUT_V1) {
        return Ok(());
    }
    let mount = "cd /sys/fs/cgroup && mount -o remount,rw cgroup . && mkdir systemd unified && \
                 mount -t cgroup -o none,name=systemd cgroup systemd";
    let hook = ["sh", "-c", mount];
    ctx.run(|spec| spec.args(["true"]).hook(HookKind::Prestart, "/bin/sh", hook, 0)).await?;
    for (word, unified) in [("systemd.legacy_systemd_cgroup_controller=1", "no"), ("", "yes")] {
        let system = system(&ctx, word, ["/sys/fs/cgroup", "bind"], &["rbind", "rw"])?;
        system.create().await?;
        system.start().await?;
        let has_unified = "[ -e /sys/fs/cgroup/unified/cgroup.procs ] && echo yes || echo no";
        let client = inner_client(&ctx, &system, 1).await?;
        assert_eq!(shell(&system, has_unified).await?, unified);
        client.create_sandbox(&request("system", "system", false)).await?;
        scopes_on_v1(&system, &client).await?;
        client.destroy_sandbox().await?;
        // Where systemd has no cgroups the agent leaves none either.
        let left = "find /sys/fs/cgroup/freezer /sys/fs/cgroup/cpuset -name '*.slice'";
        assert_eq!(shell(&system, left).await?, "");
        system.remove().await?;
    }
    Ok(())
}

async fn scopes_on_v1(system: &Container, client: &Client) -> Outcome {
    const SCOPE: &str = "pods.slice/pods-a.slice/nakai-one.scope";
    let all_limits = format!(
        "cd /sys/fs/cgroup; cat memory/{SCOPE}/memory.limit_in_bytes cpu/{SCOPE}/cpu.shares \
         cpu/{SCOPE}/cpu.cfs_quota_us cpu/{SCOPE}/cpu.cfs_period_us pids/{SCOPE}/pids.max devices/{SCOPE}/devices.list"
    );
    // How many processes it has in each of the trees.
    let processes =
        format!("for tree in /sys/fs/cgroup/*/{SCOPE}; do wc -l < $tree/cgroup.procs; done | sort -u");
    let properties = [
        "ActiveState",
        "Slice",
        "Delegate",
        "MemoryLimit",
        "CPUQuotaPerSecUSec",
        "CPUShares",
        "TasksMax",
        "ControlGroup",
    ];
    let expected = |memory: i64| {
        vec![
            "ActiveState=active".to_owned(),
            "CPUQuotaPerSecUSec=250ms".to_owned(),
            "CPUShares=512".to_owned(),
            "ControlGroup=/pods.slice/pods-a.slice/nakai-one.scope".to_owned(),
            "Delegate=yes".to_owned(),
            format!("MemoryLimit={memory}"),
            "Slice=pods-a.slice".to_owned(),
            "TasksMax=32".to_owned(),
        ]
    };
    let spec = inner("one", "pods-a.slice:nakai:one").cpu_shares(512);
    client.create_container("one", spec.build()).await?;
    client.start_container("one").await?;
    assert_eq!(show(system, "nakai-one.scope", &properties).await?, expected(64 * MEGABYTE));
    let limits = shell(system, &all_limits).await?;
    let (numbers, devices) = limits.split_once("\n32\n").ok_or_else(|| limits.clone())?;
    assert_eq!(numbers, "67108864\n512\n50000\n200000");
    assert!(devices.contains("c 1:3 ") && !devices.contains("a *:*"), "{devices}");
    client.exec_process("one", "x", inner("one", "").args(["sleep", "1000000"]).process()).await?;
    assert_eq!(shell(system, &processes).await?, "2", "the exec'd process is elsewhere");

    let resources = Some(memory(128 * MEGABYTE, 0)).into();
    let update = UpdateContainerRequest { container_id: "one".into(), resources, ..Default::default() };
    client.agent().update_container(client.context(), &update).await?;
    assert_eq!(show(system, "nakai-one.scope", &properties).await?, expected(128 * MEGABYTE));
    // systemd reads all of its units anew, and puts in force what it knows.
    shell(system, "systemctl daemon-reload; systemctl set-property --runtime pods-a.slice TasksMax=900")
        .await?;
    assert_eq!(shell(system, &all_limits).await?, limits.replace("67108864", "134217728"));
    assert_eq!(shell(system, &processes).await?, "2");
    let stats = client.stats_container("one").await?.cgroup_stats.unwrap_or_default();
    assert_eq!((stats.pids_stats.current, stats.memory_stats.usage.limit), (2, 128 << 20));
    client.pause_container("one").await?;
    let frozen = format!("cat /sys/fs/cgroup/freezer/{SCOPE}/freezer.state");
    assert_eq!(shell(system, &frozen).await?, "FROZEN");
    client.resume_container("one").await?;

    // The next server knows of the unit, and whoever got away is ended with it.
    let away = ["sh", "-c", "setsid sleep 1000000 > /dev/null 2>&1 < /dev/null &"];
    client.exec_process("one", "away", inner("one", "").args(away).process()).await?;
    assert_eq!(client.wait_process("one", "away").await?, 0);
    assert_eq!(shell(system, &processes).await?, "3");
    client.signal_process("one", "", libc::SIGKILL as u32).await?;
    assert_eq!(client.wait_process("one", "").await?, 137);
    client.remove_container("one").await?;
    let gone = ["ActiveState=inactive", "LoadState=not-found"];
    assert_eq!(show(system, "nakai-one.scope", &["ActiveState", "LoadState"]).await?, gone);
    assert_eq!(shell(system, "find /sys/fs/cgroup -name '*.scope' -path '*/pods.slice/*'").await?, "");

    // One with a hook is libcontainer's to make.
    let eater = inner("two", "pods-a.slice:nakai:two").memory_limit(16 * MEGABYTE).memory_swap(16 * MEGABYTE);
    let eater = eater.hook(HookKind::CreateRuntime, "/bin/busybox", ["busybox", "true"], 0);
    client.create_container("two", eater.args(["sh", "-c", EAT]).build()).await?;
    assert_eq!(
        show(system, "nakai-two.scope", &["ActiveState", "TasksMax"]).await?,
        ["ActiveState=active", "TasksMax=32"]
    );
    client.start_container("two").await?;
    assert_eq!(client.wait_process("two", "").await?, 137);
    assert_eq!(client.oom_event().await?, "two");
    client.remove_container("two").await?;
    Ok(())
}
