//! Statistics of cgroup v2: the kernel's `Documentation/admin-guide/cgroup-v2.rst`.

use super::encode::{Entries, Used};
use super::files::Files;
use super::parse::{device, entry, limit, number, pairs, value};
use super::{HugePages, UNLIMITED};
use crate::cgroup::CgroupError;
use nakai_protocols::agent::{
    BlkioStats, CpuStats, CpuUsage, HugetlbStats, MemoryData, MemoryStats, PidsStats, ThrottlingData,
};
use protobuf::MessageField;

/// Adds what the cgroup has to tell.
pub(super) fn read(files: &mut Files, huge: &HugePages, used: &mut Used) -> Result<(), CgroupError> {
    let stats = &mut used.stats;
    stats.cpu_stats = cpu(files)?.into();
    used.memory = memory(files)?;
    stats.pids_stats = pids(files)?.into();
    stats.blkio_stats = files.read("io.stat", "")?.map(block).into();
    stats.hugetlb_stats = huge.read(files, ".current", huge_pages)?;
    Ok(())
}

/// Times are in microseconds here and in nanoseconds on the wire.
fn cpu(files: &mut Files) -> Result<Option<CpuStats>, CgroupError> {
    let Some(stat) = files.read("cpu.stat", "")? else { return Ok(None) };
    let (mut cpu_usage, mut throttling, mut is_throttled) = (CpuUsage::new(), ThrottlingData::new(), false);
    for (key, value) in pairs(stat) {
        let nanoseconds = value.saturating_mul(1000);
        match key {
            "usage_usec" => cpu_usage.total_usage = nanoseconds,
            "system_usec" => cpu_usage.usage_in_kernelmode = nanoseconds,
            "user_usec" => cpu_usage.usage_in_usermode = nanoseconds,
            // Without the controller the kernel accounts for time but throttles nobody.
            "nr_periods" => (throttling.periods, is_throttled) = (value, true),
            "nr_throttled" => throttling.throttled_periods = value,
            "throttled_usec" => throttling.throttled_time = nanoseconds,
            _ => {}
        }
    }
    Ok(Some(CpuStats {
        cpu_usage: MessageField::some(cpu_usage),
        throttling_data: is_throttled.then_some(throttling).into(),
        ..Default::default()
    }))
}

fn memory(files: &mut Files) -> Result<Option<(MemoryStats, Entries)>, CgroupError> {
    let Some(text) = files.read("memory.stat", "")? else { return Ok(None) };
    let mut entries = Entries::with_room(text.len().saturating_mul(2));
    let (mut cache, mut kernel) = (0, None);
    for (key, value) in pairs(text) {
        // With the names that a shim on a v1 host looks for.
        match key {
            "file" => {
                cache = value;
                entries.push("cache", value);
                entries.push("total_cache", value);
            }
            "anon" => {
                entries.push("rss", value);
                entries.push("total_rss", value);
            }
            "file_mapped" => {
                entries.push("mapped_file", value);
                entries.push("total_mapped_file", value);
            }
            "inactive_file" => entries.push("total_inactive_file", value),
            "kernel" => kernel = Some(value),
            _ => {}
        }
        entries.push(key, value);
    }
    let kernel = kernel.map(|usage| MemoryData { usage, limit: UNLIMITED, ..Default::default() });
    let stats = MemoryStats {
        cache,
        usage: memory_data(files, "memory")?.into(),
        swap_usage: memory_data(files, "memory.swap")?.into(),
        kernel_usage: kernel.into(),
        use_hierarchy: true,
        ..Default::default()
    };
    Ok(Some((stats, entries)))
}

fn memory_data(files: &mut Files, prefix: &str) -> Result<Option<MemoryData>, CgroupError> {
    let Some(usage) = number(files, prefix, ".current")? else { return Ok(None) };
    Ok(Some(MemoryData {
        usage,
        // Since Linux 5.19 (memory) and 6.5 (swap).
        max_usage: number(files, prefix, ".peak")?.unwrap_or(0),
        failcnt: hits(files, prefix)?,
        limit: limit(files, prefix, ".max")?.unwrap_or(UNLIMITED),
        ..Default::default()
    }))
}

/// No limit is 0 on the wire.
fn pids(files: &mut Files) -> Result<Option<PidsStats>, CgroupError> {
    let Some(current) = number(files, "pids.current", "")? else { return Ok(None) };
    let limit = number(files, "pids.max", "")?.unwrap_or(0);
    Ok(Some(PidsStats { current, limit, ..Default::default() }))
}

/// v2 does not keep the highest usage.
fn huge_pages(files: &mut Files, prefix: &str) -> Result<Option<HugetlbStats>, CgroupError> {
    let Some(usage) = number(files, prefix, ".current")? else { return Ok(None) };
    Ok(Some(HugetlbStats { usage, failcnt: hits(files, prefix)?, ..Default::default() }))
}

/// How often a limit was hit.
fn hits(files: &mut Files, prefix: &str) -> Result<u64, CgroupError> {
    let events = files.read(prefix, ".events")?.unwrap_or_default();
    Ok(value(events, "max").unwrap_or(0))
}

/// Lines of `major:minor key=value...`.
///
/// Operations are counted where they belong, as `read`, `write` and `discard` of `io_serviced`. A shim on a v2
/// host looks for them among the bytes, by their v2 names: so they are there, too.
fn block(text: &str) -> BlkioStats {
    let mut stats = BlkioStats::new();
    for line in text.lines() {
        let mut fields = line.split_whitespace();
        let Some(device) = fields.next().and_then(device) else { continue };
        for (key, value) in fields.filter_map(|field| field.split_once('=')) {
            let Ok(value) = value.parse() else { continue };
            let (bytes, operations) = match key {
                "rbytes" => (Some("read"), None),
                "wbytes" => (Some("write"), None),
                "dbytes" => (Some("dbytes"), None),
                "rios" => (Some("rios"), Some("read")),
                "wios" => (Some("wios"), Some("write")),
                "dios" => (Some("dios"), Some("discard")),
                _ => (None, None),
            };
            stats.io_service_bytes_recursive.extend(bytes.map(|op| entry(device, op, value)));
            stats.io_serviced_recursive.extend(operations.map(|op| entry(device, op, value)));
        }
    }
    stats
}
