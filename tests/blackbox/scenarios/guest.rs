//! What the host asks of the guest as a machine: its clock, its random numbers, its volumes.

use std::fs::OpenOptions;
use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use nakai_ctl::vm::VmConfig;
use nakai_ctl::{CallError, sandbox};
use nakai_protocols::agent::{
    MemAgentCompactConfig, MemAgentMemcgConfig, ReseedRandomDevRequest, ResizeVolumeRequest,
    SetGuestDateTimeRequest, Storage, VolumeStatsRequest,
};
use nakai_protocols::csi::VolumeStatsResponse;
use nakai_protocols::csi::volume_usage::Unit;
use ttrpc::Code;

use super::disks::{disk, program, succeed};
use crate::harness::context::SHELL_LIMIT;
use crate::harness::expect::{noise, refused};
use crate::harness::{Container, Ctx, Fallible, Outcome, Scenario, own_vm, scenario};

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        scenario!(the_clock_follows_the_host).vm_only(),
        scenario!(random_numbers_are_renewed).vm_only(),
        scenario!(times_and_seeds_that_are_none_are_refused),
        scenario!(a_volume_tells_how_full_it_is).own_agent(),
        scenario!(free_memory_is_compacted)
            .vm_only()
            .own_agent()
            .kernel_parameter("agent.mem_agent_enable=1"),
        scenario!(a_memory_agent_that_is_off_cannot_be_told),
        scenario!(a_service_reads_the_kernels_command_line).host_only(),
        scenario!(a_volume_grows_while_it_is_used).machine(with_a_larger_disk),
        scenario!(an_xfs_volume_grows_while_it_is_used).machine(with_a_larger_xfs),
    ]
}

async fn set_clock(ctx: &Ctx, seconds: i64, microseconds: i64) -> Result<(), CallError> {
    let request = SetGuestDateTimeRequest { Sec: seconds, Usec: microseconds, ..Default::default() };
    let answer = ctx.client().agent().set_guest_date_time(ctx.client().context(), &request).await;
    answer.map(drop).map_err(|error| CallError::new("SetGuestDateTime", "", error))
}

async fn reseed(ctx: &Ctx, data: Vec<u8>) -> Result<(), CallError> {
    let request = ReseedRandomDevRequest { data, ..Default::default() };
    let answer = ctx.client().agent().reseed_random_dev(ctx.client().context(), &request).await;
    answer.map(drop).map_err(|error| CallError::new("ReseedRandomDev", "", error))
}

fn now() -> Fallible<i64> {
    Ok(i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())?)
}

/// A guest that was paused for a day: its clock goes on from the host's.
async fn the_clock_follows_the_host(ctx: Ctx) -> Outcome {
    let container = ctx.idle(|spec| spec).await?;
    let tomorrow = now()? + 86_400;
    set_clock(&ctx, tomorrow, 500_000).await?;
    let seen: i64 = container.sh("date +%s").await?.parse()?;
    set_clock(&ctx, now()?, 0).await?;
    assert!((tomorrow..tomorrow + 3600).contains(&seen), "{seen} after it was set to {tomorrow}");
    let back: i64 = container.sh("date +%s").await?.parse()?;
    assert!(back < tomorrow, "{back} is not back from {tomorrow}");
    Ok(())
}

async fn random_numbers_are_renewed(ctx: Ctx) -> Outcome {
    let container = ctx.idle(|spec| spec).await?;
    for len in [1, 64, 5000] {
        reseed(&ctx, noise(len, 1)).await?;
    }
    let script = "for i in 1 2; do head -c 16 /dev/random | od -An -tx1; done | sort -u | wc -l";
    assert_eq!(container.sh(script).await?, "2");
    Ok(())
}

async fn times_and_seeds_that_are_none_are_refused(ctx: Ctx) -> Outcome {
    for (seconds, microseconds, word) in [(-1, 0, "Sec"), (1, -1, "Usec"), (1, 1_000_000, "Usec")] {
        refused(set_clock(&ctx, seconds, microseconds).await, Code::INVALID_ARGUMENT, &[word]);
    }
    refused(reseed(&ctx, Vec::new()).await, Code::INVALID_ARGUMENT, &["no data"]);
    Ok(())
}

async fn stats(ctx: &Ctx, path: &str) -> Result<VolumeStatsResponse, CallError> {
    let request = VolumeStatsRequest { volume_guest_path: path.to_owned(), ..Default::default() };
    let answer = ctx.client().agent().get_volume_stats(ctx.client().context(), &request).await;
    answer.map_err(|error| CallError::new("GetVolumeStats", path, error))
}

async fn resize(ctx: &Ctx, path: &str, size: u64) -> Result<(), CallError> {
    let request = ResizeVolumeRequest { volume_guest_path: path.to_owned(), size, ..Default::default() };
    let answer = ctx.client().agent().resize_volume(ctx.client().context(), &request).await;
    answer.map(drop).map_err(|error| CallError::new("ResizeVolume", path, error))
}

async fn a_volume_tells_how_full_it_is(ctx: Ctx) -> Outcome {
    const MIB: u64 = 1 << 20;
    let volume = "/run/kata-containers/sandbox/ephemeral/volume";
    let storage = Storage {
        driver: "ephemeral".into(),
        source: "tmpfs".into(),
        fstype: "tmpfs".into(),
        mount_point: volume.into(),
        options: vec!["size=8m".into(), "nr_inodes=100".into()],
        ..Default::default()
    };
    let mut request = sandbox::request("volumes", "volumes", !ctx.is_host());
    request.storages.push(storage);
    ctx.client().create_sandbox(&request).await?;
    let container = ctx.idle(|spec| spec.mount("/volume", volume, "bind", &["bind"])).await?;
    let fill = "head -c 1048576 /dev/zero > /volume/file && mkdir -p /volume/a/b";
    container.sh(fill).await?;
    let seen = stats(&ctx, volume).await?;
    let of = |unit: Unit| seen.usage.iter().find(|usage| usage.unit == unit.into()).ok_or("no such unit");
    let (bytes, inodes) = (of(Unit::BYTES)?, of(Unit::INODES)?);
    assert_eq!((bytes.total, bytes.used, bytes.available), (8 * MIB, MIB, 7 * MIB));
    assert_eq!((inodes.total, inodes.used, inodes.available), (100, 4, 96));
    let condition = seen.volume_condition.clone().unwrap_or_default();
    assert!(!condition.abnormal, "{condition}");

    for outside in ["/", "/proc", "/run", "/run/kata-containers-2"] {
        refused(stats(&ctx, outside).await, Code::INVALID_ARGUMENT, &[outside, "not beneath"]);
        refused(resize(&ctx, outside, MIB).await, Code::INVALID_ARGUMENT, &[outside, "not beneath"]);
    }
    let gone = format!("{volume}/gone");
    refused(stats(&ctx, &gone).await, Code::NOT_FOUND, &["volume/gone"]);
    refused(resize(&ctx, &gone, MIB).await, Code::NOT_FOUND, &["volume/gone"]);
    refused(resize(&ctx, volume, 16 * MIB).await, Code::UNIMPLEMENTED, &[volume, "tmpfs"]);
    Ok(())
}

/// What the host has made of a disk with a file system of 16 MiB.
const DISK: u64 = 64 << 20;

fn with_a_larger_disk(config: &mut VmConfig, files: &Path) -> Outcome {
    let image = disk(files, "grows", "16M")?;
    OpenOptions::new().write(true).open(&image)?.set_len(DISK)?;
    config.disks = vec![image];
    Ok(())
}

/// mkfs.xfs makes none that is smaller.
const XFS: u64 = 300 << 20;

/// The guest that `make image` builds has no XFS: this one gets the kernel's module for it.
fn with_a_larger_xfs(config: &mut VmConfig, files: &Path) -> Outcome {
    let image = files.join("xfs.img");
    OpenOptions::new().write(true).create_new(true).open(&image)?.set_len(XFS)?;
    succeed(Command::new(program("mkfs.xfs")).arg("-q").arg(&image))?;
    OpenOptions::new().write(true).open(&image)?.set_len(2 * XFS)?;
    config.disks = vec![image];
    let initrd = files.join("initrd-with-xfs");
    own_vm::add_module(&config.initrd, "xfs", &initrd)?;
    config.initrd = initrd;
    Ok(())
}

async fn an_xfs_volume_grows_while_it_is_used(ctx: Ctx) -> Outcome {
    grows(&ctx, "xfs", XFS, 2 * XFS).await
}

async fn a_volume_grows_while_it_is_used(ctx: Ctx) -> Outcome {
    grows(&ctx, "ext4", 16 << 20, DISK).await
}

/// A file system of `size` bytes on a disk that has more, to half of what there is and then to all of it.
async fn grows(ctx: &Ctx, fstype: &str, size: u64, disk: u64) -> Outcome {
    let volume = "/run/kata-containers/sandbox/storage/grows";
    let storage = Storage {
        driver: "blk".into(),
        source: "/dev/vda".into(),
        fstype: fstype.into(),
        mount_point: volume.into(),
        ..Default::default()
    };
    ctx.client().create_sandbox(&sandbox::request("grows", "grows", true)).await?;
    let container = ctx.container(|spec| spec.args(["sleep", "1000000"]))?;
    let container = container.edit(|spec| spec.mount("/volume", volume, "bind", &["bind", "rw"]));
    let mut request = container.request();
    request.storages.push(storage);
    ctx.client().create_container_with(&request).await?;
    container.start().await?;
    let total = async || -> Fallible<u64> {
        let usage = stats(ctx, volume).await?.usage;
        Ok(usage.iter().find(|usage| usage.unit == Unit::BYTES.into()).ok_or("no bytes")?.total)
    };
    let before = total().await?;
    refused(resize(ctx, volume, disk + 1).await, Code::OUT_OF_RANGE, &[volume, &disk.to_string()]);
    refused(resize(ctx, volume, 1 << 20).await, Code::OUT_OF_RANGE, &[volume, "shrink"]);
    assert_eq!(total().await?, before);
    resize(ctx, volume, size + (disk - size) / 2).await?;
    let half = total().await?;
    // 0 is the whole disk, and that it has this size already is fine.
    for _ in 0..2 {
        resize(ctx, volume, 0).await?;
    }
    let all = total().await?;
    assert!(before < half && half < all && all > disk / 2, "{before} {half} {all}");
    // It holds more than it could before, which has to be on the disk and not only in the guest's memory.
    let more = size + (4 << 20);
    container.sh(&format!("fallocate -l {more} /volume/x && sync")).await?;
    container.remove().await?;
    Ok(())
}

async fn tell_compaction(ctx: &Ctx, request: &MemAgentCompactConfig) -> Result<(), CallError> {
    let answer = ctx.client().agent().mem_agent_compact_set(ctx.client().context(), request).await;
    answer.map(drop).map_err(|error| CallError::new("MemAgentCompactSet", "", error))
}

async fn tell_reclaiming(ctx: &Ctx, request: &MemAgentMemcgConfig) -> Result<(), CallError> {
    let answer = ctx.client().agent().mem_agent_memcg_set(ctx.client().context(), request).await;
    answer.map(drop).map_err(|error| CallError::new("MemAgentMemcgSet", "", error))
}

/// Waits for a number that a script prints to change.
async fn changes(container: &Container, script: &str) -> Outcome {
    let wait =
        format!("n() {{ {script}; }}; a=$(n); while [ \"$(n)\" = \"$a\" ]; do sleep 0.2; done; echo changed");
    assert_eq!(container.sh(&wait).await?, "changed");
    Ok(())
}

/// The kernel's own counters tell that it compacts and ages pages, soon after the host has asked for it.
async fn free_memory_is_compacted(ctx: Ctx) -> Outcome {
    ctx.client().create_sandbox(&sandbox::request("memory", "memory", true)).await?;
    let container = ctx.idle(|spec| spec.mount("/sys", "/sys", "bind", &["rbind", "ro"])).await?;
    let compact = MemAgentCompactConfig {
        period_secs: Some(1),
        period_psi_percent_limit: Some(100),
        compact_psi_percent_limit: Some(100),
        compact_threshold: Some(0),
        ..Default::default()
    };
    tell_compaction(&ctx, &compact).await?;
    changes(&container, "grep -E 'compact_(daemon_)?(free|migrate)_scanned' /proc/vmstat").await?;
    let memcg = MemAgentMemcgConfig {
        period_secs: Some(1),
        period_psi_percent_limit: Some(100),
        ..Default::default()
    };
    tell_reclaiming(&ctx, &memcg).await?;
    let enabled = "until grep -q '0x000[1-9a-f]' /sys/kernel/mm/lru_gen/enabled; do sleep 0.2; done; echo on";
    assert_eq!(container.sh(enabled).await?, "on");
    let wrong = MemAgentCompactConfig { compact_order: Some(99), ..Default::default() };
    refused(tell_compaction(&ctx, &wrong).await, Code::INVALID_ARGUMENT, &["compact_order"]);
    Ok(())
}

async fn a_memory_agent_that_is_off_cannot_be_told(ctx: Ctx) -> Outcome {
    let compact = tell_compaction(&ctx, &MemAgentCompactConfig::new()).await;
    refused(compact, Code::FAILED_PRECONDITION, &["mem_agent_enable"]);
    let memcg = tell_reclaiming(&ctx, &MemAgentMemcgConfig::new()).await;
    refused(memcg, Code::FAILED_PRECONDITION, &["mem_agent_enable"]);
    Ok(())
}

/// Unless it has a file of its own, which has said all then.
async fn a_service_reads_the_kernels_command_line(ctx: Ctx) -> Outcome {
    const SCRIPT: &str = "mount -t tmpfs tmpfs /run; cd /run
        echo 'quiet agent.server_addr=unix:///run/of-the-kernel.sock' > cmdline
        echo 'server_addr = \"unix:///run/of-the-file.sock\"' > agent.toml
        mount --bind cmdline /proc/cmdline; exec \"$@\"";
    for (arguments, address) in
        [(&[][..], "of-the-kernel.sock"), (&["--config", "/run/agent.toml"], "of-the-file.sock")]
    {
        let directory = tempfile::tempdir()?;
        let words = directory.path().join("words");
        let file = std::fs::File::create(&words)?;
        let mut agent = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child=KILL"])
            .args(["--mount-proc", "sh", "-ec", SCRIPT, "sh"])
            // Not the first process of its namespace, which would be the guest's.
            .args(["sh", "-c", "\"$@\" & wait", "sh"])
            .arg(ctx.agent())
            .args(arguments)
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()?;
        let deadline = tokio::time::Instant::now() + SHELL_LIMIT;
        let said = loop {
            let said = std::fs::read_to_string(&words)?;
            if said.contains("serving on") || tokio::time::Instant::now() > deadline {
                break said;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        };
        agent.kill()?;
        agent.wait()?;
        assert!(said.contains(&format!("serving on unix:///run/{address}")), "{arguments:?}: {said}");
    }
    Ok(())
}
