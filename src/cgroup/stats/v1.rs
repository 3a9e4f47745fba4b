//! Statistics of cgroup v1: the kernel's `Documentation/admin-guide/cgroup-v1/`.

use super::HugePages;
use super::parse::{device, entry, flat_file, number, value};
use crate::cgroup::CgroupError;
use crate::cgroup::tree::Dir;
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
    dir: &Dir,
    huge: &HugePages,
    stats: &mut CgroupStats,
) -> Result<(), CgroupError> {
    match controller {
        "cpuacct" => cpu_stats(stats).cpu_usage = cpu_usage(dir)?.into(),
        "cpu" => cpu_stats(stats).throttling_data = throttling(dir)?.into(),
        "memory" => stats.memory_stats = memory(dir)?.into(),
        "pids" => stats.pids_stats = pids(dir)?.into(),
        "blkio" => stats.blkio_stats = MessageField::some(blkio(dir)?),
        "hugetlb" => {
            stats.hugetlb_stats = huge.read(dir, ".usage_in_bytes", |prefix| huge_pages(dir, prefix))?
        }
        _ => {}
    }
    Ok(())
}

fn cpu_stats(stats: &mut CgroupStats) -> &mut CpuStats {
    stats.cpu_stats.mut_or_insert_default()
}

fn cpu_usage(dir: &Dir) -> Result<Option<CpuUsage>, CgroupError> {
    let Some(total_usage) = number(dir, "cpuacct.usage")? else { return Ok(None) };
    let per_cpu = dir.read_statistics("cpuacct.usage_percpu")?.unwrap_or_default();
    let ticks = dir.read_statistics("cpuacct.stat")?.unwrap_or_default();
    let nanoseconds = |key| value(&ticks, key).unwrap_or(0).saturating_mul(tick());
    Ok(Some(CpuUsage {
        total_usage,
        percpu_usage: per_cpu.split_whitespace().filter_map(|usage| usage.parse().ok()).collect(),
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

fn throttling(dir: &Dir) -> Result<Option<ThrottlingData>, CgroupError> {
    Ok(dir.read_statistics("cpu.stat")?.map(|stat| {
        let value = |key| value(&stat, key).unwrap_or(0);
        ThrottlingData {
            periods: value("nr_periods"),
            throttled_periods: value("nr_throttled"),
            throttled_time: value("throttled_time"),
            ..Default::default()
        }
    }))
}

fn memory(dir: &Dir) -> Result<Option<MemoryStats>, CgroupError> {
    let Some(stats) = flat_file(dir, "memory.stat")? else { return Ok(None) };
    let use_hierarchy = number(dir, "memory.use_hierarchy")? == Some(1);
    // The usage includes the sub-cgroups then, and so should its part.
    let cache = if use_hierarchy { "total_cache" } else { "cache" };
    Ok(Some(MemoryStats {
        cache: stats.get(cache).copied().unwrap_or(0),
        usage: memory_data(dir, "memory")?.into(),
        swap_usage: memory_data(dir, "memory.memsw")?.into(),
        kernel_usage: memory_data(dir, "memory.kmem")?.into(),
        use_hierarchy,
        stats,
        ..Default::default()
    }))
}

fn memory_data(dir: &Dir, prefix: &str) -> Result<Option<MemoryData>, CgroupError> {
    let Some(usage) = number(dir, &format!("{prefix}.usage_in_bytes"))? else { return Ok(None) };
    let value = |name| Ok(number(dir, &format!("{prefix}.{name}"))?.unwrap_or(0));
    Ok(Some(MemoryData {
        usage,
        max_usage: value("max_usage_in_bytes")?,
        failcnt: value("failcnt")?,
        limit: value("limit_in_bytes")?,
        ..Default::default()
    }))
}

fn pids(dir: &Dir) -> Result<Option<PidsStats>, CgroupError> {
    let Some(current) = number(dir, "pids.current")? else { return Ok(None) };
    let limit = number(dir, "pids.max")?.unwrap_or(0);
    Ok(Some(PidsStats { current, limit, ..Default::default() }))
}

fn huge_pages(dir: &Dir, prefix: &str) -> Result<Option<HugetlbStats>, CgroupError> {
    let value = |name| number(dir, &format!("{prefix}.{name}"));
    let Some(usage) = value("usage_in_bytes")? else { return Ok(None) };
    Ok(Some(HugetlbStats {
        usage,
        max_usage: value("max_usage_in_bytes")?.unwrap_or(0),
        failcnt: value("failcnt")?.unwrap_or(0),
        ..Default::default()
    }))
}

/// The I/O scheduler keeps the statistics: BFQ, before Linux 5.0 CFQ, and if neither has anything to
/// say, the throttling layer, which counts for all devices.
fn blkio(dir: &Dir) -> Result<BlkioStats, CgroupError> {
    let table = |name: &str, throttled: bool| {
        let scheduler = [format!("blkio.bfq.{name}_recursive"), format!("blkio.{name}_recursive")];
        let throttle = [format!("blkio.throttle.{name}_recursive"), format!("blkio.throttle.{name}")];
        for file in scheduler.iter().chain(throttle.iter().filter(|_| throttled)) {
            let entries = dir.read_statistics(file)?.map(|text| block_entries(&text)).unwrap_or_default();
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
