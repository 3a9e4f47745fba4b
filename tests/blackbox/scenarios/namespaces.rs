//! Which namespaces containers share, and which are their own.

use std::collections::BTreeMap;

use nakai_protocols::oci::LinuxNamespace;
use ttrpc::Code;

use crate::harness::expect::refused;
use crate::harness::{Container, Ctx, Fallible, Outcome, SANDBOX_HOSTNAME, Scenario, scenario};

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        scenario!(ipc_uts_and_network_are_the_sandboxes),
        scenario!(an_exec_is_in_all_of_its_containers_namespaces),
        scenario!(init_is_the_first_process),
        scenario!(the_hostname_is_the_sandboxes),
        scenario!(shared_memory_is_shared),
        scenario!(mounts_stay_inside),
        scenario!(a_network_namespace_can_be_ones_own),
        scenario!(clocks_can_be_ones_own),
        scenario!(an_exec_does_not_follow_an_init_that_has_moved),
    ]
}

const KINDS: [&str; 6] = ["ipc", "uts", "pid", "mnt", "net", "user"];

fn show(directory: &str) -> String {
    KINDS.map(|kind| format!("readlink {directory}/{kind}; ")).concat()
}

/// The namespaces of init, by kind.
async fn namespaces(container: &Container) -> Fallible<BTreeMap<&'static str, String>> {
    let links = container.sh(&show("/proc/1/ns")).await?;
    Ok(KINDS.into_iter().zip(links.lines().map(str::to_owned)).collect())
}

async fn ipc_uts_and_network_are_the_sandboxes(ctx: Ctx) -> Outcome {
    let capable = |spec: nakai_ctl::SpecBuilder| spec.capabilities(["CAP_SYS_PTRACE"]);
    let one = namespaces(&ctx.idle(capable).await?).await?;
    let other = namespaces(&ctx.idle(capable).await?).await?;
    let agents = ctx.guest_sh(&show("$PROC/$SERVER/ns")).await?;
    let agents: BTreeMap<_, _> = KINDS.into_iter().zip(agents.lines()).collect();
    for (kind, shared, agents_own) in [
        ("ipc", true, false),
        ("uts", true, false),
        ("net", true, true),
        ("user", true, true),
        ("pid", false, false),
        ("mnt", false, false),
    ] {
        assert_eq!(one[kind] == other[kind], shared, "{kind}: {one:?} {other:?}");
        assert_eq!(one[kind] == agents[kind], agents_own, "{kind}, the agent's: {one:?} {agents:?}");
    }
    Ok(())
}

async fn an_exec_is_in_all_of_its_containers_namespaces(ctx: Ctx) -> Outcome {
    let container = ctx.idle(|spec| spec.capabilities(["CAP_SYS_PTRACE"])).await?;
    let both = [show("/proc/1/ns"), show("/proc/self/ns")];
    assert_eq!(container.sh(&both[0]).await?, container.sh(&both[1]).await?);
    let cgroup = "readlink /proc/1/ns/cgroup; readlink /proc/self/ns/cgroup; \
                  sort -u /proc/1/cgroup /proc/self/cgroup | wc -l; wc -l < /proc/1/cgroup";
    let seen = container.sh(cgroup).await?;
    let lines: Vec<&str> = seen.lines().collect();
    assert_eq!((lines[0], lines[2]), (lines[1], lines[3]), "{seen}");
    Ok(())
}

async fn init_is_the_first_process(ctx: Ctx) -> Outcome {
    assert_eq!(ctx.output("echo $$", |spec| spec).await?, "1");
    let container = ctx.idle(|spec| spec).await?;
    // A container is started when its init has been told to go on: give it the time to become its program.
    container.sh_until("cat /proc/1/comm", "sleep").await?;
    let seen = container
        .sh("tr '\\0' ' ' < /proc/1/cmdline; echo; cat /proc/[0-9]*/comm 2> /dev/null | sort -u")
        .await?;
    // Nothing but init, the shell, and what the shell runs.
    let comms: Vec<&str> = seen.lines().skip(1).collect();
    assert!(seen.starts_with("sleep 1000000 \n"), "{seen}");
    assert!(comms.iter().all(|comm| ["sleep", "sh", "cat", "sort"].contains(comm)), "{seen}");
    a_start_is_answered_when_init_goes_on(&ctx).await
}

/// To look takes longer than init takes to become its program: of some that have just been started one is seen as it,
/// however busy the machine. If starts were answered too early, none would be.
async fn a_start_is_answered_when_init_goes_on(ctx: &Ctx) -> Outcome {
    for _ in 0..20 {
        let container = ctx.idle(|spec| spec).await?;
        let seen = container.sh("cat /proc/1/comm").await?;
        container.remove().await?;
        if seen == "sleep" {
            return Ok(());
        }
    }
    Err("StartContainer is answered long before init goes on".into())
}

async fn the_hostname_is_the_sandboxes(ctx: Ctx) -> Outcome {
    assert_eq!(ctx.output("hostname", |spec| spec).await?, SANDBOX_HOSTNAME);
    assert_eq!(ctx.output("hostname", |spec| spec.hostname(SANDBOX_HOSTNAME)).await?, SANDBOX_HOSTNAME);
    // One container can't rename the pod.
    assert_eq!(ctx.output("hostname", |spec| spec.hostname("other")).await?, SANDBOX_HOSTNAME);
    assert_ne!(ctx.output("hostname x 2> /dev/null || echo refused", |spec| spec).await?, "");
    assert_eq!(ctx.output("hostname", |spec| spec).await?, SANDBOX_HOSTNAME);
    Ok(())
}

async fn shared_memory_is_shared(ctx: Ctx) -> Outcome {
    let (one, other) = (ctx.idle(|spec| spec).await?, ctx.idle(|spec| spec).await?);
    one.sh("echo hello > /dev/shm/greeting").await?;
    assert_eq!(
        other.sh("cat /dev/shm/greeting; rm /dev/shm/greeting; stat -c %a /dev/shm").await?,
        "hello\n1777"
    );
    let options = one.sh("grep ' /dev/shm ' /proc/mounts | cut -d ' ' -f 3-4").await?;
    for option in ["tmpfs", "noexec", "nosuid", "nodev", "size=65536k"] {
        assert!(options.contains(option), "{option} is not in {options}");
    }
    Ok(())
}

/// What a container mounts is neither seen by the agent nor by another.
async fn mounts_stay_inside(ctx: Ctx) -> Outcome {
    let capable = |spec: nakai_ctl::SpecBuilder| spec.capabilities(["CAP_SYS_ADMIN"]);
    let (one, other) = (ctx.idle(capable).await?, ctx.idle(capable).await?);
    one.sh("mkdir /inner && mount -t tmpfs inner-of-one /inner").await?;
    assert_eq!(one.sh("grep -c inner-of-one /proc/mounts").await?, "1");
    assert_eq!(other.sh("grep -c inner-of-one /proc/mounts || :").await?, "0");
    let agents = ctx.guest_sh("grep -c inner-of-one $PROC/$SERVER/mountinfo || :").await?;
    assert_eq!(agents.trim(), "0");
    Ok(())
}

async fn a_network_namespace_can_be_ones_own(ctx: Ctx) -> Outcome {
    let own = [("ipc", ""), ("uts", ""), ("mount", ""), ("network", "")];
    let container = ctx.idle(|spec| spec.namespaces(own).capabilities(["CAP_SYS_PTRACE"])).await?;
    let agents = ctx.guest_sh("readlink $PROC/$SERVER/ns/net").await?;
    assert_ne!(namespaces(&container).await?["net"], agents.trim());
    Ok(())
}

async fn clocks_can_be_ones_own(ctx: Ctx) -> Outcome {
    let link = "readlink /proc/self/ns/time";
    let usual = ctx.output(link, |spec| spec).await?;
    let own = ctx
        .started(|spec| {
            spec.args(["sh", "-c", &format!("{link}; sleep 1000000")]).edit(|spec| {
                let time = LinuxNamespace { Type: "time".to_owned(), ..Default::default() };
                spec.Linux.mut_or_insert_default().Namespaces.push(time);
            })
        })
        .await?;
    let init = String::from_utf8(ctx.client().read_stdout(&own.id, "", 100).await?)?;
    assert_eq!(own.sh(link).await?, init.trim_end());
    assert_ne!(init.trim_end(), usual);
    Ok(())
}

async fn an_exec_does_not_follow_an_init_that_has_moved(ctx: Ctx) -> Outcome {
    for (flag, kind) in [("-m", "mnt"), ("-n", "net"), ("-u", "uts")] {
        let container = ctx
            .started(|spec| {
                spec.capabilities(["CAP_SYS_ADMIN"]).args([
                    "unshare",
                    flag,
                    "sh",
                    "-c",
                    "echo moved; sleep 1000000",
                ])
            })
            .await?;
        assert_eq!(ctx.client().read_stdout(&container.id, "", 100).await?, b"moved\n");
        let exec = ctx.client().exec_process(&container.id, "late", container.process(["true"])).await;
        if kind == "net" {
            // An exec does not join that one: it is the sandbox's, and stays so.
            exec?;
        } else {
            refused(exec, Code::FAILED_PRECONDITION, &[kind, "namespace"]);
        }
        container.remove().await?;
    }
    Ok(())
}
