//! A guest that grows while it runs: CPUs, memory, swap.

use std::path::{Path, PathBuf};
use std::time::Duration;

use nakai_ctl::sandbox;
use nakai_protocols::oci::LinuxCPU;
use serde_json::json;
use tokio::time::Instant;
use ttrpc::Code;

use super::recovery::crash;
use super::update::{MEGABYTE, cpu, memory, memory_limit, update};
use crate::harness::expect::refused;
use crate::harness::{Container, Ctx, Fallible, Outcome, Scenario, scenario};

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        scenario!(cpus_and_memory_that_are_plugged_in_reach_containers)
            .vm_only()
            .own_agent()
            .kernel_parameter("agent.hotplug_timeout=60"),
        scenario!(on_cgroup_v1_too)
            .vm_only()
            .own_agent()
            .kernel_parameter("agent.unified_cgroup_hierarchy=0"),
        scenario!(plugged_disks_become_swap)
            .vm_only()
            .own_agent()
            .kernel_parameter("agent.hotplug_timeout=60"),
    ]
}

/// More than any guest needs, however busy its host is.
const LIMIT: Duration = Duration::from_secs(90);

/// How many CPUs a program may run on, which are online.
async fn cpus_of(container: &Container) -> Fallible<String> {
    container.sh("nproc").await
}

/// Prints the guest's memory in KiB.
const MEMORY: &str = "grep MemTotal /proc/meminfo | tr -dc 0-9";

/// What a script prints in the end: what QEMU plugs in comes when the guest gets round to it.
async fn until(container: &Container, script: &str, expected: &str) -> Fallible<String> {
    let deadline = Instant::now() + LIMIT;
    loop {
        let seen = container.sh(script).await?;
        if seen == expected || Instant::now() > deadline {
            return Ok(seen);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn cpus_and_memory_that_are_plugged_in_reach_containers(ctx: Ctx) -> Outcome {
    ctx.client().create_sandbox(&sandbox::request("grows", "grows", true)).await?;
    let any = ctx.idle(|spec| spec.memory_limit(64 * MEGABYTE)).await?;
    let three = ctx.idle(|spec| spec.cpuset("0-2", "0")).await?;
    let one = ctx.idle(|spec| spec).await?;
    update(&ctx, &one.id, cpu(LinuxCPU { Cpus: "0,9".into(), ..Default::default() })).await?;
    assert_eq!(cpus_of(&three).await?, "1");
    let details = ctx.client().guest_details().await?;
    assert_eq!(details.mem_block_size_bytes, 128 << 20);
    let before: u64 = any.sh(MEMORY).await?.parse()?;

    let mut qmp = ctx.qmp().await?;
    qmp.plug_cpu().await?;
    qmp.plug_cpu().await?;
    qmp.plug_memory("module", 256).await?;
    // The guest has not heard of them yet.
    ctx.client().within(LIMIT).online_cpu_mem(3, false, true).await?;
    let counts = [cpus_of(&any).await?, cpus_of(&three).await?, cpus_of(&one).await?];
    assert_eq!(counts, ["3", "3", "1"]);
    let grown = (before + (256 << 10)).to_string();
    assert_eq!(until(&any, MEMORY, &grown).await?, grown, "memory comes online as it comes");

    // Limits beyond what there was.
    update(&ctx, &any.id, memory(640 * MEGABYTE, 0)).await?;
    assert_eq!(memory_limit(&ctx, &any).await?, (640 * MEGABYTE).to_string());
    update(&ctx, &one.id, cpu(LinuxCPU { Cpus: "1-3".into(), ..Default::default() })).await?;
    assert_eq!(cpus_of(&one).await?, "2");

    // What was asked for is known to the next server, too.
    let ctx = crash(&ctx).await?;
    let (any, one) = (any.over(&ctx), one.over(&ctx));

    // What a shim says, just before it starts a program that makes as many threads as there are CPUs.
    qmp.plug_cpu().await?;
    ctx.client().within(LIMIT).online_cpu_mem(4, true, false).await?;
    assert_eq!([cpus_of(&one).await?, cpus_of(&any).await?], ["3", "4"]);

    let probed = ctx.client().mem_hotplug_by_probe(&[1 << 40]).await;
    assert!(!details.support_mem_hotplug_probe, "this kernel has none");
    refused(probed, Code::FAILED_PRECONDITION, &["memory/probe", "by itself"]);
    Ok(())
}

async fn on_cgroup_v1_too(ctx: Ctx) -> Outcome {
    ctx.client().create_sandbox(&sandbox::request("grows", "grows", true)).await?;
    let (any, two) = (ctx.idle(|spec| spec).await?, ctx.idle(|spec| spec.cpuset("0-1", "0")).await?);
    assert_eq!(cpus_of(&any).await?, "1");
    let mut qmp = ctx.qmp().await?;
    qmp.plug_cpu().await?;
    qmp.plug_cpu().await?;
    // On a busy host the guest may take longer than the agent waits; then the next try finds them there.
    let deadline = Instant::now() + LIMIT;
    while let Err(error) = ctx.client().within(LIMIT).online_cpu_mem(3, true, true).await {
        assert_eq!(error.code, Code::DEADLINE_EXCEEDED, "{error}");
        assert!(Instant::now() < deadline, "{error}");
    }
    assert_eq!([cpus_of(&any).await?, cpus_of(&two).await?], ["3", "2"]);
    refused(
        ctx.client().within(LIMIT).online_cpu_mem(9, true, true).await,
        Code::DEADLINE_EXCEEDED,
        &["3 of 9 CPUs", "at most 0-3"],
    );
    // A shim, which does not ask to wait, goes on with what there is.
    ctx.client().within(LIMIT).online_cpu_mem(9, true, false).await?;
    Ok(())
}

/// A disk that `mkswap` has been to: the version, the last page, the end of the first page.
fn swap_image(files: &Path, name: &str) -> Fallible<PathBuf> {
    const PAGES: u32 = 4096;
    let mut page = vec![0; 4096];
    page[1024..1028].copy_from_slice(&1u32.to_le_bytes());
    page[1028..1032].copy_from_slice(&(PAGES - 1).to_le_bytes());
    page[4086..].copy_from_slice(b"SWAPSPACE2");
    let path = files.join(name);
    std::fs::write(&path, page)?;
    std::fs::OpenOptions::new().write(true).open(&path)?.set_len(u64::from(PAGES) * 4096)?;
    Ok(path)
}

async fn plugged_disks_become_swap(ctx: Ctx) -> Outcome {
    ctx.client().create_sandbox(&sandbox::request("swaps", "swaps", true)).await?;
    let mut qmp = ctx.qmp().await?;
    let slots = [u32::try_from(qmp.pci_slot("rp0").await?)?, 0];
    let first = swap_image(ctx.files()?, "first")?;
    qmp.plug_disk("swap0", &first, "virtio-blk-pci", json!({"bus": "rp0"})).await?;
    ctx.client().within(LIMIT).add_swap(&slots).await?;
    // Once is enough.
    ctx.client().within(LIMIT).add_swap(&slots).await?;
    assert_eq!(ctx.guest_sh("grep -c partition $PROC/swaps").await?.trim(), "1");

    let second = swap_image(ctx.files()?, "second")?;
    qmp.plug_disk("swap1", &second, "virtio-blk-pci", json!({"bus": "rp1"})).await?;
    ctx.client().within(LIMIT).add_swap_path("/dev/vdb").await?;
    assert_eq!(ctx.guest_sh("grep -c partition $PROC/swaps").await?.trim(), "2");

    let third = ctx.files()?.join("third");
    std::fs::write(&third, vec![0; 1 << 20])?;
    qmp.plug_disk("swap2", &third, "virtio-blk-pci", json!({"bus": "rp2"})).await?;
    let slots = [u32::try_from(qmp.pci_slot("rp2").await?)?, 0];
    let no_signature = ctx.client().within(LIMIT).add_swap(&slots).await;
    refused(no_signature, Code::INVALID_ARGUMENT, &["/dev/vdc", "mkswap"]);
    refused(ctx.client().add_swap(&[32]).await, Code::INVALID_ARGUMENT, &["\"20\""]);
    refused(ctx.client().add_swap_path("swap").await, Code::INVALID_ARGUMENT, &["swap"]);
    refused(ctx.client().add_swap_path("/run/nothing").await, Code::NOT_FOUND, &["/run/nothing"]);
    Ok(())
}
