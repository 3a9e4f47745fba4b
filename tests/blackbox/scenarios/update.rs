//! New limits for a container that runs.

use nakai_ctl::CallError;
use nakai_protocols::agent::UpdateContainerRequest;
use nakai_protocols::oci::{LinuxCPU, LinuxDeviceCgroup, LinuxMemory, LinuxPids, LinuxResources};
use ttrpc::Code;

use crate::harness::expect::refused;
use crate::harness::{Container, Ctx, Fallible, Outcome, Scenario, scenario};

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        scenario!(limits_are_those_of_the_last_update),
        scenario!(what_is_not_named_stays),
        scenario!(memory_goes_up_and_down_with_its_swap),
        scenario!(cpus_that_are_not_there_are_left_out),
        scenario!(a_processes_limit_is_felt),
        scenario!(nonsense_changes_nothing),
        scenario!(device_rules_are_not_touched),
    ]
}

pub(super) const MEGABYTE: i64 = 1 << 20;

pub(super) async fn update(ctx: &Ctx, id: &str, resources: LinuxResources) -> Result<(), CallError> {
    let resources = Some(resources).into();
    let request = UpdateContainerRequest { container_id: id.to_owned(), resources, ..Default::default() };
    let answer = ctx.client().agent().update_container(ctx.client().context(), &request).await;
    answer.map(drop).map_err(|error| CallError::new("UpdateContainer", id, error))
}

pub(super) fn memory(limit: i64, swap: i64) -> LinuxResources {
    let memory = LinuxMemory { Limit: limit, Swap: swap, ..Default::default() };
    LinuxResources { Memory: Some(memory).into(), ..Default::default() }
}

pub(super) fn cpu(cpu: LinuxCPU) -> LinuxResources {
    LinuxResources { CPU: Some(cpu).into(), ..Default::default() }
}

fn pids(limit: i64) -> LinuxResources {
    LinuxResources {
        Pids: Some(LinuxPids { Limit: limit, ..Default::default() }).into(),
        ..Default::default()
    }
}

/// The first of these files that the container's cgroup has: v1's name and v2's.
async fn limit(ctx: &Ctx, container: &Container, v1: &str, v2: &str) -> Fallible<String> {
    let id = &container.id;
    let script = format!(
        "for name in {v1} {v2}; do\n\
         for file in $(find $CGROUP -path \"*/{id}/$name\"); do cat $file; exit; done\ndone"
    );
    Ok(ctx.guest_sh(&script).await?.trim().to_owned())
}

pub(super) async fn memory_limit(ctx: &Ctx, container: &Container) -> Fallible<String> {
    limit(ctx, container, "memory.limit_in_bytes", "memory.max").await
}

pub(super) async fn limits_are_those_of_the_last_update(ctx: Ctx) -> Outcome {
    let container = ctx.idle(|spec| spec.memory_limit(64 * MEGABYTE).pids_limit(50)).await?;
    update(&ctx, &container.id, memory(32 * MEGABYTE, 0)).await?;
    assert_eq!(memory_limit(&ctx, &container).await?, (32 * MEGABYTE).to_string());
    update(&ctx, &container.id, pids(20)).await?;
    assert_eq!(limit(&ctx, &container, "pids.max", "").await?, "20");
    update(&ctx, &container.id, pids(-1)).await?;
    assert_eq!(limit(&ctx, &container, "pids.max", "").await?, "max");
    let shares = LinuxCPU { Shares: 512, Quota: 20_000, Period: 40_000, ..Default::default() };
    update(&ctx, &container.id, cpu(shares)).await?;
    let seen = limit(&ctx, &container, "cpu.shares", "cpu.weight").await?;
    assert!(["512", "59"].contains(&&*seen), "{seen}");
    let seen = limit(&ctx, &container, "cpu.cfs_quota_us", "cpu.max").await?;
    assert!(["20000", "20000 40000"].contains(&&*seen), "{seen}");
    update(&ctx, &container.id, cpu(LinuxCPU { Quota: -1, ..Default::default() })).await?;
    let seen = limit(&ctx, &container, "cpu.cfs_quota_us", "cpu.max").await?;
    assert!(["-1", "max 40000"].contains(&&*seen), "{seen}");
    Ok(())
}

async fn what_is_not_named_stays(ctx: Ctx) -> Outcome {
    let container = ctx.idle(|spec| spec.memory_limit(64 * MEGABYTE)).await?;
    update(&ctx, &container.id, LinuxResources::default()).await?;
    update(&ctx, &container.id, pids(40)).await?;
    assert_eq!(memory_limit(&ctx, &container).await?, (64 * MEGABYTE).to_string());
    let nothing = UpdateContainerRequest { container_id: container.id.clone(), ..Default::default() };
    ctx.client().agent().update_container(ctx.client().context(), &nothing).await?;
    refused(update(&ctx, "nobody", pids(1)).await, Code::NOT_FOUND, &["nobody"]);
    Ok(())
}

pub(super) async fn memory_goes_up_and_down_with_its_swap(ctx: Ctx) -> Outcome {
    let container = ctx.idle(|spec| spec.memory_limit(64 * MEGABYTE).memory_swap(64 * MEGABYTE)).await?;
    for size in [128, 32, 256, 48] {
        update(&ctx, &container.id, memory(size * MEGABYTE, size * MEGABYTE)).await?;
        assert_eq!(memory_limit(&ctx, &container).await?, (size * MEGABYTE).to_string());
    }
    update(&ctx, &container.id, memory(-1, 0)).await?;
    let seen = memory_limit(&ctx, &container).await?;
    assert!(["max", "9223372036854771712"].contains(&&*seen), "{seen}");
    Ok(())
}

async fn cpus_that_are_not_there_are_left_out(ctx: Ctx) -> Outcome {
    let container = ctx.idle(|spec| spec).await?;
    let all = LinuxCPU { Cpus: "0-4000".into(), Mems: "0".into(), ..Default::default() };
    update(&ctx, &container.id, cpu(all)).await?;
    let online = ctx.guest_sh("cat /sys/devices/system/cpu/online").await?;
    assert_eq!(limit(&ctx, &container, "cpuset.cpus", "").await?, online.trim());
    update(&ctx, &container.id, cpu(LinuxCPU { Cpus: "0".into(), ..Default::default() })).await?;
    assert_eq!(container.sh("grep Cpus_allowed_list /proc/self/status | cut -f 2").await?, "0");
    Ok(())
}

async fn a_processes_limit_is_felt(ctx: Ctx) -> Outcome {
    let container = ctx.idle(|spec| spec).await?;
    let crowd = ["sh", "-c", "for i in 1 2 3 4 5 6; do sleep 1000000 & done; wait"];
    update(&ctx, &container.id, pids(4)).await?;
    assert_ne!(container.exec(crowd).await?.status, 0, "there is no room for all");
    Ok(())
}

async fn nonsense_changes_nothing(ctx: Ctx) -> Outcome {
    let container = ctx.idle(|spec| spec.memory_limit(64 * MEGABYTE)).await?;
    for (resources, named) in [
        (memory(32 * MEGABYTE, 16 * MEGABYTE), "memory.swap"),
        (memory(-2, 0), "memory.limit"),
        (cpu(LinuxCPU { Cpus: "all".into(), ..Default::default() }), "cpu.cpus"),
    ] {
        refused(update(&ctx, &container.id, resources).await, Code::INVALID_ARGUMENT, &[named]);
    }
    assert_eq!(memory_limit(&ctx, &container).await?, (64 * MEGABYTE).to_string());
    Ok(())
}

async fn device_rules_are_not_touched(ctx: Ctx) -> Outcome {
    let container = ctx.idle(|spec| spec).await?;
    let none = LinuxDeviceCgroup { Type: "a".into(), Access: "rwm".into(), ..Default::default() };
    update(&ctx, &container.id, LinuxResources { Devices: vec![none], ..pids(60) }).await?;
    update(&ctx, &container.id, pids(61)).await?;
    assert_eq!(container.sh("echo x > /dev/null && echo written").await?, "written");
    Ok(())
}
