//! Limits: in the guest's cgroup files, and in force. Statistics.

use nakai_ctl::SpecBuilder;
use nakai_protocols::agent::CgroupStats;
use nakai_protocols::oci::{LinuxBlockIO, LinuxHugepageLimit};
use tokio::time::Instant;
use ttrpc::Code;

use super::{devices, oom, pause, signals, update};
use crate::harness::context::SHELL_LIMIT;
use crate::harness::expect::refused;
use crate::harness::{Container, Ctx, Fallible, Outcome, Scenario, scenario};

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        scenario!(limits_are_in_the_guests_cgroup),
        scenario!(every_process_is_in_the_cgroup),
        scenario!(too_many_processes_are_refused),
        scenario!(too_much_memory_is_fatal),
        scenario!(an_exec_shares_the_limits),
        scenario!(every_form_of_cgroup_path_works),
        scenario!(a_cgroup_in_use_is_refused),
        scenario!(what_an_earlier_cgroup_was_limited_to_does_not_last).host_only(),
        scenario!(statistics_are_plausible),
        scenario!(weights_and_huge_pages_are_limited).vm_only(),
        scenario!(limits_may_be_none_at_all_or_the_least),
        scenario!(a_container_may_divide_its_cgroup).vm_only(),
        scenario!(statistics_do_without_pressure).own_agent().vm_only().kernel_parameter("psi=0"),
        scenario!(cgroup_v1_works_as_well)
            .own_agent()
            .vm_only()
            .kernel_parameter("agent.unified_cgroup_hierarchy=0"),
    ]
}

const MIB: i64 = 1 << 20;

fn limited(spec: SpecBuilder) -> SpecBuilder {
    let spec = spec.memory_limit(64 * MIB).memory_swap(64 * MIB).cpus(0.5).cpu_shares(512).pids_limit(20);
    spec.cpuset("0", "0")
}

async fn is_v2(ctx: &Ctx) -> Fallible<bool> {
    Ok(ctx.guest_sh("test -e $CGROUP/cgroup.controllers && echo v2 || :").await?.trim() == "v2")
}

/// A file of the container's cgroup. On v1 a controller is a directory of its own.
async fn file(ctx: &Ctx, container: &Container, v2: (bool, &str), v1: (&str, &str)) -> Fallible<String> {
    let cgroup = ctx.cgroup(&container.id);
    let path = if v2.0 { format!("{cgroup}/{}", v2.1) } else { format!("/{}{cgroup}/{}", v1.0, v1.1) };
    Ok(ctx.guest_sh(&format!("cat $CGROUP{path}")).await?.trim().to_owned())
}

/// An agent that was killed with its host may have left one.
async fn what_an_earlier_cgroup_was_limited_to_does_not_last(ctx: Ctx) -> Outcome {
    let v2 = is_v2(&ctx).await?;
    let container = ctx.container(|spec| spec.args(["sleep", "1000000"]))?;
    let tree = if v2 { "" } else { "/pids" };
    let left = format!("$CGROUP{tree}{}", ctx.cgroup(&container.id));
    ctx.guest_sh(&format!("mkdir {left} && echo 7 > {left}/pids.max")).await?;
    container.create().await?;
    assert_eq!(file(&ctx, &container, (v2, "pids.max"), ("pids", "pids.max")).await?, "max");
    container.remove().await?;
    Ok(())
}

async fn limits_may_be_none_at_all_or_the_least(ctx: Ctx) -> Outcome {
    let v2 = is_v2(&ctx).await?;
    let container = ctx.idle(|spec| spec.memory_swap(-1)).await?;
    if v2 && let Ok(swap) = file(&ctx, &container, (true, "memory.swap.max"), ("", "")).await {
        assert_eq!(swap, "max");
    }
    container.remove().await?;
    // More than the one would be needed to make the container.
    let alone = ctx.created(|spec| spec.pids_limit(1).args(["true"])).await?;
    assert_eq!(file(&ctx, &alone, (v2, "pids.max"), ("pids", "pids.max")).await?, "1");
    alone.start().await?;
    assert_eq!(alone.wait().await?, 0);
    alone.remove().await?;
    Ok(())
}

async fn limits_are_in_the_guests_cgroup(ctx: Ctx) -> Outcome {
    let v2 = is_v2(&ctx).await?;
    let container = ctx.idle(limited).await?;
    let memory = (64 * MIB).to_string();
    let quota = if v2 { "50000 100000" } else { "50000" };
    let (shares, swap) = if v2 { ("59", "0") } else { ("512", memory.as_str()) };
    let swap_files = ("memory.swap.max", ("memory", "memory.memsw.limit_in_bytes"));
    for (in_v2, in_v1, expected) in [
        ("memory.max", ("memory", "memory.limit_in_bytes"), memory.as_str()),
        ("cpu.max", ("cpu", "cpu.cfs_quota_us"), quota),
        ("cpu.weight", ("cpu", "cpu.shares"), shares),
        ("pids.max", ("pids", "pids.max"), "20"),
        ("cpuset.cpus", ("cpuset", "cpuset.cpus"), "0"),
        (swap_files.0, swap_files.1, swap),
    ] {
        let result = file(&ctx, &container, (v2, in_v2), in_v1).await;
        // Kernels can be built, or booted, without swap accounting.
        match result {
            Err(_) if in_v2 == swap_files.0 => {}
            seen => assert_eq!(seen?, expected, "{in_v2}"),
        }
    }
    Ok(())
}

async fn every_process_is_in_the_cgroup(ctx: Ctx) -> Outcome {
    let v2 = is_v2(&ctx).await?;
    let container = ctx.idle(|spec| spec).await?;
    ctx.client().exec_process(&container.id, "other", container.process(["sleep", "1000000"])).await?;
    container.sh("setsid sleep 1000000 > /dev/null 2>&1 < /dev/null &").await?;
    // A cgroup's own list leaves out who is not in the pid namespace of its reader.
    let count = |controller: &str| {
        let lines =
            format!("cat $PROC/[0-9]*/cgroup 2> /dev/null | grep '{}$' | cut -d : -f 2", container.id);
        let script = format!("{lines} | tr , '\\n' | grep -cx '{controller}' || :");
        let ctx = ctx.clone();
        async move { Fallible::Ok(ctx.guest_sh(&script).await?.trim().to_owned()) }
    };
    let controllers: &[&str] =
        if v2 { &[""] } else { &["cpu", "cpuacct", "cpuset", "memory", "pids", "devices", "freezer"] };
    for controller in controllers {
        // The shell is counted until it has been reaped, which is a moment after its end is told.
        let deadline = Instant::now() + SHELL_LIMIT;
        while count(controller).await? != "3" {
            assert!(Instant::now() < deadline, "{controller}: {}, not 3", count(controller).await?);
        }
    }
    Ok(())
}

async fn too_many_processes_are_refused(ctx: Ctx) -> Outcome {
    let script = "i=0; while [ $i -lt 30 ]; do sleep 1000000 & i=$((i+1)); done; echo all";
    let finished = ctx.run(|spec| spec.pids_limit(10).args(["sh", "-c", script])).await?;
    let stderr = String::from_utf8_lossy(&finished.stderr).into_owned();
    assert!(stderr.contains("can't fork"), "{stderr}");
    assert_eq!(String::from_utf8_lossy(&finished.stdout), "");
    Ok(())
}

/// One buffer of so many megabytes, all of it written.
fn fill(megabytes: u32) -> [String; 5] {
    ["dd", "if=/dev/zero", "of=/dev/null", &format!("bs={megabytes}M"), "count=1"].map(str::to_owned)
}

async fn too_much_memory_is_fatal(ctx: Ctx) -> Outcome {
    let limit = |spec: SpecBuilder| spec.memory_limit(32 * MIB).memory_swap(32 * MIB);
    assert_eq!(ctx.run(|spec| limit(spec).args(fill(64))).await?.status, 137);
    assert_eq!(ctx.run(|spec| limit(spec).args(fill(8))).await?.status, 0);
    Ok(())
}

async fn an_exec_shares_the_limits(ctx: Ctx) -> Outcome {
    let container = ctx.idle(|spec| spec.memory_limit(32 * MIB).memory_swap(32 * MIB)).await?;
    assert_eq!(container.exec(fill(64)).await?.status, 137);
    assert_eq!(container.sh("echo alive").await?, "alive");
    Ok(())
}

async fn every_form_of_cgroup_path_works(ctx: Ctx) -> Outcome {
    let (pods, name) = (format!("pods-{}", ctx.prefix()), ctx.fresh_exec_id());
    for (given, expected) in [
        (format!("/{pods}/burstable/{name}"), format!("/{pods}/burstable/{name}")),
        (format!("{pods}.slice:cri:{name}"), format!("/{pods}.slice/cri/{name}")),
        (format!("{pods}/{name}/"), format!("/{pods}/{name}")),
        (String::new(), String::new()),
    ] {
        let container = ctx.idle(|spec| spec.cgroups_path(&given)).await?;
        let expected = if expected.is_empty() { format!("/{}", container.id) } else { expected };
        let find = format!("find $CGROUP -type d -path '*{expected}' | wc -l");
        assert_ne!(ctx.guest_sh(&find).await?.trim(), "0", "{given}");
        container.remove().await?;
        assert_eq!(ctx.guest_sh(&find).await?.trim(), "0", "{given}, after the removal");
    }
    Ok(())
}

/// Removing a container kills its cgroup: that must never be another's.
async fn a_cgroup_in_use_is_refused(ctx: Ctx) -> Outcome {
    let pods = format!("pods-{}", ctx.prefix());
    let path = format!("/{pods}/{}", ctx.fresh_exec_id());
    let owner = ctx.idle(|spec| spec.cgroups_path(&path)).await?;
    let intruder = ctx.container(|spec| spec.cgroups_path(&path))?;
    refused(
        intruder.create().await,
        Code::FAILED_PRECONDITION,
        &[&intruder.id, path.trim_start_matches('/')],
    );
    let above = ctx.container(|spec| spec.cgroups_path(&pods))?;
    refused(above.create().await, Code::FAILED_PRECONDITION, &[&above.id, &pods]);
    let below = ctx.container(|spec| spec.cgroups_path(&format!("{path}/below")))?;
    refused(below.create().await, Code::FAILED_PRECONDITION, &[&below.id, &pods]);
    // Nobody is in it yet when it is wanted by two.
    let wanted = format!("/{pods}/{}", ctx.fresh_exec_id());
    let sleeper = || ctx.container(|spec| spec.cgroups_path(&wanted).args(["sleep", "1000000"]));
    let (one, other) = (sleeper()?, sleeper()?);
    let (first, second) = tokio::join!(one.create(), other.create());
    let (made, refusal) = if first.is_ok() { (one, second) } else { (other, first) };
    refused(refusal, Code::FAILED_PRECONDITION, &["cgroup", &pods]);
    made.start().await?;
    assert_eq!(made.sh("echo alive").await?, "alive");
    assert_eq!(owner.sh("echo alive").await?, "alive");
    Ok(())
}

async fn stats(ctx: &Ctx, container: &Container) -> Fallible<CgroupStats> {
    Ok(ctx.client().stats_container(&container.id).await?.cgroup_stats.unwrap_or_default())
}

/// The kernel counts a process until it has been reaped, which is a moment after its end is told.
async fn processes_become(ctx: &Ctx, container: &Container, count: u64) -> Outcome {
    while stats(ctx, container).await?.pids_stats.current != count {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    Ok(())
}

async fn statistics_are_plausible(ctx: Ctx) -> Outcome {
    let container = ctx.idle(limited).await?;
    let first = stats(&ctx, &container).await?;
    assert_eq!((first.pids_stats.current, first.pids_stats.limit), (1, 20));
    let memory = &first.memory_stats.usage;
    assert_eq!(memory.limit, (64 * MIB).unsigned_abs());
    assert!((10_000..memory.limit).contains(&memory.usage), "{memory:?}");
    assert!(first.cpu_stats.cpu_usage.total_usage > 0, "{first}");
    container.sh("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done").await?;
    ctx.client().exec_process(&container.id, "other", container.process(["sleep", "1000000"])).await?;
    processes_become(&ctx, &container, 2).await?;
    let second = stats(&ctx, &container).await?;
    let used = |stats: &CgroupStats| stats.cpu_stats.cpu_usage.total_usage;
    // Nanoseconds: counting to 20,000 takes at least a millisecond.
    assert!(used(&second) > used(&first) + 1_000_000, "{} then {}", used(&first), used(&second));
    // Also of one that has not started, and of one that has ended.
    let other = ctx.created(|spec| spec.args(["true"])).await?;
    assert_eq!(stats(&ctx, &other).await?.pids_stats.current, 1);
    other.start().await?;
    other.wait().await?;
    processes_become(&ctx, &other, 0).await?;
    Ok(())
}

/// A kernel can be booted without pressure stall information: its files are not there, or can't be read.
async fn statistics_do_without_pressure(ctx: Ctx) -> Outcome {
    ctx.client().create_sandbox(&nakai_ctl::sandbox::request("psi", "psi", true)).await?;
    assert_eq!(ctx.guest_sh("cat $PROC/pressure/cpu 2> /dev/null || echo none").await?, "none");
    statistics_are_plausible(ctx).await
}

/// libcontainer counts the weight in 16 bits, and stumbles over pages of a size that the guest does not have.
async fn weights_and_huge_pages_are_limited(ctx: Ctx) -> Outcome {
    let page = |size: &str, limit| LinuxHugepageLimit {
        Pagesize: size.to_owned(),
        Limit: limit,
        ..Default::default()
    };
    let container = ctx
        .idle(|spec| {
            spec.edit(|spec| {
                let resources = spec.Linux.mut_or_insert_default().Resources.mut_or_insert_default();
                resources.BlockIO = Some(LinuxBlockIO { Weight: 1000, ..Default::default() }).into();
                resources.HugepageLimits = vec![page("2MB", 4 << 20), page("16GB", 0)];
            })
        })
        .await?;
    let cgroup = ctx.cgroup(&container.id);
    let seen = ctx.guest_sh(&format!("cd $CGROUP{cgroup}; head -n 1 io.weight hugetlb.2MB.max -q")).await?;
    assert_eq!(seen.trim(), "default 10000\n4194304");
    let nonsense = ctx.container(|spec| {
        spec.edit(|spec| {
            let resources = spec.Linux.mut_or_insert_default().Resources.mut_or_insert_default();
            resources.HugepageLimits = vec![page("../2MB", 1)];
        })
    })?;
    refused(nonsense.create().await, Code::INVALID_ARGUMENT, &["hugepageLimits", "../2MB"]);
    Ok(())
}

/// As systemd does, and Docker in a container.
async fn a_container_may_divide_its_cgroup(ctx: Ctx) -> Outcome {
    let script = "cd /sys/fs/cgroup; mkdir init; echo 1 > init/cgroup.procs; \
                  echo +pids > cgroup.subtree_control && echo divided; sleep 1000000";
    let options = ["nosuid", "noexec", "nodev", "relatime", "rw"];
    let container = ctx
        .started(|spec| spec.mount("/sys/fs/cgroup", "cgroup", "cgroup", &options).args(["sh", "-c", script]))
        .await?;
    assert_eq!(ctx.client().read_stdout(&container.id, "", 100).await?, b"divided\n");
    assert_eq!(container.sh("cat /proc/self/cgroup").await?, "0::/init");
    assert!(stats(&ctx, &container).await?.pids_stats.current >= 1);
    container.remove().await?;
    Ok(())
}

async fn cgroup_v1_works_as_well(ctx: Ctx) -> Outcome {
    ctx.client().create_sandbox(&nakai_ctl::sandbox::request("v1", "v1", true)).await?;
    assert!(!is_v2(&ctx).await?);
    limits_are_in_the_guests_cgroup(ctx.clone()).await?;
    every_process_is_in_the_cgroup(ctx.clone()).await?;
    too_much_memory_is_fatal(ctx.clone()).await?;
    statistics_are_plausible(ctx.clone()).await?;
    pause::a_paused_container_stands_still_until_it_is_resumed(ctx.clone()).await?;
    pause::sigkill_for_all_reaches_a_paused_container(ctx.clone()).await?;
    update::limits_are_those_of_the_last_update(ctx.clone()).await?;
    update::memory_goes_up_and_down_with_its_swap(ctx.clone()).await?;
    devices::only_the_usual_devices_can_be_opened(ctx.clone()).await?;
    oom::a_container_that_is_killed_for_its_memory_is_named(ctx.clone()).await?;
    signals::sigkill_for_the_container_kills_all(ctx).await
}
