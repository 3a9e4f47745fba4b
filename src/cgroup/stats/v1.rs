//! Statistics of cgroup v1: the kernel's `Documentation/admin-guide/cgroup-v1/`.

use super::HugePages;
use super::encode::{Entries, Used};
use super::files::Files;
use super::parse::{device, entry, number, pairs, value};
use crate::cgroup::CgroupError;
use nakai_protocols::agent::{
    BlkioStats, BlkioStatsEntry, CgroupStats, CpuStats, CpuUsage, HugetlbStats, MemoryData, MemoryStats,
    PidsStats, ThrottlingData,
};
use nix::unistd::{SysconfVar, sysconf};
use protobuf::MessageField;

/// The controllers that have something to tell.
pub(super) const CONTROLLERS: [&str; 6] = ["cpuacct", "cpu", "memory", "pids", "blkio", "hugetlb"];

const NANOSECONDS: u64 = 1_000_000_000;

/// Adds what one controller has to tell.
pub(super) fn read(
    controller: &str,
    files: &mut Files,
    huge: &HugePages,
    used: &mut Used,
) -> Result<(), CgroupError> {
    let stats = &mut used.stats;
    match controller {
        "cpuacct" => cpu_stats(stats).cpu_usage = cpu_usage(files)?.into(),
        "cpu" => cpu_stats(stats).throttling_data = throttling(files)?.into(),
        "memory" => used.memory = memory(files)?,
        "pids" => stats.pids_stats = pids(files)?.into(),
        "blkio" => stats.blkio_stats = MessageField::some(blkio(files)?),
        "hugetlb" => stats.hugetlb_stats = huge.read(files, ".usage_in_bytes", huge_pages)?,
        _ => {}
    }
    Ok(())
}

fn cpu_stats(stats: &mut CgroupStats) -> &mut CpuStats {
    stats.cpu_stats.mut_or_insert_default()
}

fn cpu_usage(files: &mut Files) -> Result<Option<CpuUsage>, CgroupError> {
    let Some(total_usage) = number(files, "cpuacct.usage", "")? else { return Ok(None) };
    let per_cpu = files.read("cpuacct.usage_percpu", "")?.unwrap_or_default();
    let percpu_usage = per_cpu.split_whitespace().filter_map(|usage| usage.parse().ok()).collect();
    let ticks = files.read("cpuacct.stat", "")?.unwrap_or_default();
    let nanoseconds = |key| value(ticks, key).unwrap_or(0).saturating_mul(tick());
    Ok(Some(CpuUsage {
        total_usage,
        percpu_usage,
        usage_in_kernelmode: nanoseconds("system"),
        usage_in_usermode: nanoseconds("user"),
        ..Default::default()
    }))
}

/// A tick of the clock that the kernel shows to programs, in nanoseconds.
fn tick() -> u64 {
    let per_second = sysconf(SysconfVar::CLK_TCK).ok().flatten().and_then(|ticks| u64::try_from(ticks).ok());
    NANOSECONDS.checked_div(per_second.unwrap_or(100)).unwrap_or(0)
}

fn throttling(files: &mut Files) -> Result<Option<ThrottlingData>, CgroupError> {
    Ok(files.read("cpu.stat", "")?.map(|stat| {
        let value = |key| value(stat, key).unwrap_or(0);
        ThrottlingData {
            periods: value("nr_periods"),
            throttled_periods: value("nr_throttled"),
            throttled_time: value("throttled_time"),
            ..Default::default()
        }
    }))
}

fn memory(files: &mut Files) -> Result<Option<(MemoryStats, Entries)>, CgroupError> {
    let Some(text) = files.read("memory.stat", "")? else { return Ok(None) };
    let mut entries = Entries::with_room(text.len().saturating_mul(2));
    let (mut own, mut total) = (0, 0);
    for (key, value) in pairs(text) {
        match key {
            "cache" => own = value,
            "total_cache" => total = value,
            _ => {}
        }
        entries.push(key, value);
    }
    let use_hierarchy = number(files, "memory.use_hierarchy", "")? == Some(1);
    // The usage includes the sub-cgroups then, and so should its part.
    let stats = MemoryStats {
        cache: if use_hierarchy { total } else { own },
        usage: memory_data(files, "memory")?.into(),
        swap_usage: memory_data(files, "memory.memsw")?.into(),
        kernel_usage: memory_data(files, "memory.kmem")?.into(),
        use_hierarchy,
        ..Default::default()
    };
    Ok(Some((stats, entries)))
}

fn memory_data(files: &mut Files, prefix: &str) -> Result<Option<MemoryData>, CgroupError> {
    let Some(usage) = number(files, prefix, ".usage_in_bytes")? else { return Ok(None) };
    let mut value = |name| Ok(number(files, prefix, name)?.unwrap_or(0));
    Ok(Some(MemoryData {
        usage,
        max_usage: value(".max_usage_in_bytes")?,
        failcnt: value(".failcnt")?,
        limit: value(".limit_in_bytes")?,
        ..Default::default()
    }))
}

fn pids(files: &mut Files) -> Result<Option<PidsStats>, CgroupError> {
    let Some(current) = number(files, "pids.current", "")? else { return Ok(None) };
    let limit = number(files, "pids.max", "")?.unwrap_or(0);
    Ok(Some(PidsStats { current, limit, ..Default::default() }))
}

fn huge_pages(files: &mut Files, prefix: &str) -> Result<Option<HugetlbStats>, CgroupError> {
    let mut value = |name| number(files, prefix, name);
    let Some(usage) = value(".usage_in_bytes")? else { return Ok(None) };
    Ok(Some(HugetlbStats {
        usage,
        max_usage: value(".max_usage_in_bytes")?.unwrap_or(0),
        failcnt: value(".failcnt")?.unwrap_or(0),
        ..Default::default()
    }))
}

/// The I/O scheduler keeps the statistics: BFQ, before Linux 5.0 CFQ, and if neither has anything to
/// say, the throttling layer, which counts for all devices.
fn blkio(files: &mut Files) -> Result<BlkioStats, CgroupError> {
    let mut table = |name: &str, throttled: bool| {
        let scheduler = [("blkio.bfq.", "_recursive"), ("blkio.", "_recursive")];
        let throttle = [("blkio.throttle.", "_recursive"), ("blkio.throttle.", "")];
        for (start, end) in scheduler.into_iter().chain(throttle.into_iter().filter(|_| throttled)) {
            let text = files.read(start, &[name, end].concat())?;
            let entries = text.map(block_entries).unwrap_or_default();
            if !entries.is_empty() {
                return Ok(entries);
            }
        }
        Ok(Vec::new())
    };
    Ok(BlkioStats {
        io_service_bytes_recursive: table("io_service_bytes", true)?,
        io_serviced_recursive: table("io_serviced", true)?,
        io_queued_recursive: table("io_queued", false)?,
        io_service_time_recursive: table("io_service_time", false)?,
        io_wait_time_recursive: table("io_wait_time", false)?,
        io_merged_recursive: table("io_merged", false)?,
        io_time_recursive: table("time", false)?,
        sectors_recursive: table("sectors", false)?,
        ..Default::default()
    })
}

/// Lines of `major:minor Operation value` or `major:minor value`; the sum over all devices is left out.
fn block_entries(text: &str) -> Vec<BlkioStatsEntry> {
    let parse = |line: &str| {
        let mut fields = line.split_whitespace();
        let device = device(fields.next()?)?;
        let (op, value) = match (fields.next()?, fields.next()) {
            (op, Some(value)) => (op.to_ascii_lowercase(), value),
            (value, None) => (String::new(), value),
        };
        Some(entry(device, &op, value.parse().ok()?))
    };
    text.lines().filter_map(parse).collect()
}
