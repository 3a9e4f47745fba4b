//! Statistics of cgroup v1: the kernel's `Documentation/admin-guide/cgroup-v1/`.

use super::encode::{block_entry, field};
use super::files::Files;
use super::parse::{device, number, pids, value};
use super::{HugePages, HugeUse};
use crate::cgroup::CgroupError;
use nakai_scan::{Wire, pairs, words};
use nix::unistd::{SysconfVar, sysconf};

/// The controllers that have something to tell. The first two tell it in one message.
pub(super) const CONTROLLERS: [&str; 6] = ["cpuacct", "cpu", "memory", "pids", "blkio", "hugetlb"];

const NANOSECONDS: u64 = 1_000_000_000;

/// Writes what the controllers have to tell, of those that there are in their order.
pub(super) fn read(
    parts: &mut [(&str, Files)],
    huge: &HugePages,
    wire: &mut Wire,
) -> Result<(), CgroupError> {
    let mut cpu = None;
    for (controller, files) in parts {
        if let Some(message) = cpu.take_if(|_| *controller != "cpu") {
            wire.end(message);
        }
        match *controller {
            "cpuacct" => {
                cpu = Some(wire.begin(field::CPU));
                cpu_usage(files, wire)?;
            }
            "cpu" => {
                cpu.get_or_insert_with(|| wire.begin(field::CPU));
                throttling(files, wire)?;
            }
            "memory" => memory(files, wire)?,
            "pids" => pids(files, wire)?,
            "blkio" => {
                let message = wire.begin(field::BLOCK);
                blkio(files, wire)?;
                wire.end(message);
            }
            "hugetlb" => huge.read(files, ".usage_in_bytes", wire, huge_pages)?,
            _ => {}
        }
    }
    if let Some(message) = cpu {
        wire.end(message);
    }
    Ok(())
}

fn cpu_usage(files: &mut Files, wire: &mut Wire) -> Result<(), CgroupError> {
    let Some(total) = number(files, "cpuacct.usage", "")? else { return Ok(()) };
    let message = wire.begin(field::USAGE);
    wire.number(field::TOTAL, total);
    let per_cpu = words(files.read("cpuacct.usage_percpu", "")?.unwrap_or_default());
    let list = wire.begin(field::PER_CPU);
    per_cpu.split_whitespace().filter_map(|usage| usage.parse().ok()).for_each(|usage| wire.varint(usage));
    wire.end(list);
    let ticks = files.read("cpuacct.stat", "")?.unwrap_or_default();
    for (field, key) in [(field::KERNEL_MODE, "system"), (field::USER_MODE, "user")] {
        wire.number(field, value(ticks, key).unwrap_or(0).saturating_mul(tick()));
    }
    wire.end(message);
    Ok(())
}

/// A tick of the clock that the kernel shows to programs, in nanoseconds.
fn tick() -> u64 {
    let per_second = sysconf(SysconfVar::CLK_TCK).ok().flatten().and_then(|ticks| u64::try_from(ticks).ok());
    NANOSECONDS.checked_div(per_second.unwrap_or(100)).unwrap_or(0)
}

fn throttling(files: &mut Files, wire: &mut Wire) -> Result<(), CgroupError> {
    if let Some(stat) = files.read("cpu.stat", "")? {
        let value = |key| value(stat, key).unwrap_or(0);
        wire.numbers(field::THROTTLING, &["nr_periods", "nr_throttled", "throttled_time"].map(value));
    }
    Ok(())
}

fn memory(files: &mut Files, wire: &mut Wire) -> Result<(), CgroupError> {
    let Some(text) = files.read("memory.stat", "")? else { return Ok(()) };
    let message = wire.begin(field::MEMORY);
    let (mut own, mut total) = (0, 0);
    pairs(text, &mut |key, value| {
        match key {
            b"cache" => own = value,
            b"total_cache" => total = value,
            _ => {}
        }
        wire.entry(field::STATS, key, value);
    });
    let use_hierarchy = number(files, "memory.use_hierarchy", "")? == Some(1);
    // The usage includes the sub-cgroups then, and so should its part.
    wire.number(field::CACHE, if use_hierarchy { total } else { own });
    memory_data(files, "memory", field::MEMORY_USAGE, wire)?;
    memory_data(files, "memory.memsw", field::SWAP_USAGE, wire)?;
    memory_data(files, "memory.kmem", field::KERNEL_USAGE, wire)?;
    wire.number(field::USE_HIERARCHY, use_hierarchy.into());
    wire.end(message);
    Ok(())
}

fn memory_data(files: &mut Files, prefix: &str, field: u8, wire: &mut Wire) -> Result<(), CgroupError> {
    let Some(usage) = number(files, prefix, ".usage_in_bytes")? else { return Ok(()) };
    let mut value = |name| Ok(number(files, prefix, name)?.unwrap_or(0));
    let (highest, hits) = (value(".max_usage_in_bytes")?, value(".failcnt")?);
    wire.numbers(field, &[usage, highest, hits, value(".limit_in_bytes")?]);
    Ok(())
}

fn huge_pages(files: &mut Files, prefix: &str) -> Result<Option<HugeUse>, CgroupError> {
    let mut value = |name| number(files, prefix, name);
    let Some(usage) = value(".usage_in_bytes")? else { return Ok(None) };
    Ok(Some([usage, value(".max_usage_in_bytes")?.unwrap_or(0), value(".failcnt")?.unwrap_or(0)]))
}

/// The I/O scheduler keeps the statistics: BFQ, before Linux 5.0 CFQ, and if neither has anything to
/// say, the throttling layer, which counts for all devices.
fn blkio(files: &mut Files, wire: &mut Wire) -> Result<(), CgroupError> {
    let tables = [
        (field::BYTES, "io_service_bytes", true),
        (field::OPERATIONS, "io_serviced", true),
        (field::QUEUED, "io_queued", false),
        (field::SERVICE_TIME, "io_service_time", false),
        (field::WAIT_TIME, "io_wait_time", false),
        (field::MERGED, "io_merged", false),
        (field::TIME, "time", false),
        (field::SECTORS, "sectors", false),
    ];
    for (field, name, throttled) in tables {
        let scheduler = [("blkio.bfq.", "_recursive"), ("blkio.", "_recursive")];
        let throttle = [("blkio.throttle.", "_recursive"), ("blkio.throttle.", "")];
        for (start, end) in scheduler.into_iter().chain(throttle.into_iter().filter(|_| throttled)) {
            let text = files.read(start, &[name, end].concat())?.unwrap_or_default();
            if block_entries(words(text), field, wire) {
                break;
            }
        }
    }
    Ok(())
}

/// Lines of `major:minor Operation value` or `major:minor value`; the sum over all devices is left out. Whether there was
/// one.
fn block_entries(text: &str, field: u8, wire: &mut Wire) -> bool {
    let parse = |line: &str| {
        let mut fields = line.split_whitespace();
        let device = device(fields.next()?)?;
        let (op, value) = match (fields.next()?, fields.next()) {
            (op, Some(value)) => (op.to_ascii_lowercase(), value),
            (value, None) => (String::new(), value),
        };
        block_entry(wire, field, device, &op, value.parse().ok()?);
        Some(())
    };
    text.lines().filter_map(parse).count() > 0
}
