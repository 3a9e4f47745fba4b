//! Statistics of cgroup v2: the kernel's `Documentation/admin-guide/cgroup-v2.rst`.

use super::encode::{block_entry, field};
use super::files::Files;
use super::parse::{device, limit, number, pids, value};
use super::{HugePages, HugeUse, UNLIMITED};
use crate::cgroup::CgroupError;
use nakai_scan::{Wire, pairs, words};

/// What `memory.stat` said the last time, and what that is on the wire: of a container that rests, it says it again.
#[derive(Debug, Default)]
pub(super) struct Told {
    text: Vec<u8>,
    entries: Vec<u8>,
    cache: u64,
    kernel: Option<u64>,
}

/// Writes what the cgroup has to tell.
pub(super) fn read(
    files: &mut Files,
    huge: &HugePages,
    told: &mut Told,
    wire: &mut Wire,
) -> Result<(), CgroupError> {
    cpu(files, wire)?;
    memory(files, told, wire)?;
    pids(files, wire)?;
    if let Some(stat) = files.read("io.stat", "")? {
        let message = wire.begin(field::BLOCK);
        block(words(stat), wire);
        wire.end(message);
    }
    huge.read(files, ".current", wire, huge_pages)
}

/// Times are in microseconds here and in nanoseconds on the wire.
fn cpu(files: &mut Files, wire: &mut Wire) -> Result<(), CgroupError> {
    let Some(stat) = files.read("cpu.stat", "")? else { return Ok(()) };
    let (mut usage, mut user, mut system) = (0, 0, 0);
    let (mut periods, mut throttled, mut time) = (None, 0, 0);
    pairs(stat, &mut |key, value| {
        let nanoseconds = value.saturating_mul(1000);
        match key {
            b"usage_usec" => usage = nanoseconds,
            b"system_usec" => system = nanoseconds,
            b"user_usec" => user = nanoseconds,
            // Without the controller the kernel accounts for time but throttles nobody.
            b"nr_periods" => periods = Some(value),
            b"nr_throttled" => throttled = value,
            b"throttled_usec" => time = nanoseconds,
            _ => {}
        }
    });
    let message = wire.begin(field::CPU);
    // None for each processor.
    wire.numbers(field::USAGE, &[usage, 0, system, user]);
    if let Some(periods) = periods {
        wire.numbers(field::THROTTLING, &[periods, throttled, time]);
    }
    wire.end(message);
    Ok(())
}

fn memory(files: &mut Files, told: &mut Told, wire: &mut Wire) -> Result<(), CgroupError> {
    let Some(text) = files.read("memory.stat", "")? else { return Ok(()) };
    if told.text != text {
        *told = Told::of(text);
    }
    let message = wire.begin(field::MEMORY);
    wire.append(&told.entries);
    wire.number(field::CACHE, told.cache);
    memory_data(files, "memory", field::MEMORY_USAGE, wire)?;
    memory_data(files, "memory.swap", field::SWAP_USAGE, wire)?;
    if let Some(usage) = told.kernel {
        wire.numbers(field::KERNEL_USAGE, &[usage, 0, 0, UNLIMITED]);
    }
    wire.number(field::USE_HIERARCHY, 1);
    wire.end(message);
    Ok(())
}

impl Told {
    fn of(text: &[u8]) -> Self {
        let mut wire = Wire::with_room(text.len().saturating_mul(2));
        let (mut cache, mut kernel) = (0, None);
        pairs(text, &mut |key, value| {
            let mut entry = |key| wire.entry(field::STATS, key, value);
            // With the names that a shim on a v1 host looks for.
            match key {
                b"file" => {
                    cache = value;
                    entry(b"cache");
                    entry(b"total_cache");
                }
                b"anon" => {
                    entry(b"rss");
                    entry(b"total_rss");
                }
                b"file_mapped" => {
                    entry(b"mapped_file");
                    entry(b"total_mapped_file");
                }
                b"inactive_file" => entry(b"total_inactive_file"),
                b"kernel" => kernel = Some(value),
                _ => {}
            }
            entry(key);
        });
        Self { text: text.to_owned(), entries: wire.into_bytes(), cache, kernel }
    }
}

fn memory_data(files: &mut Files, prefix: &str, field: u8, wire: &mut Wire) -> Result<(), CgroupError> {
    let Some(usage) = number(files, prefix, ".current")? else { return Ok(()) };
    // Since Linux 5.19 (memory) and 6.5 (swap).
    let highest = number(files, prefix, ".peak")?.unwrap_or(0);
    let limit = limit(files, prefix, ".max")?.unwrap_or(UNLIMITED);
    wire.numbers(field, &[usage, highest, hits(files, prefix)?, limit]);
    Ok(())
}

/// v2 does not keep the highest usage.
fn huge_pages(files: &mut Files, prefix: &str) -> Result<Option<HugeUse>, CgroupError> {
    let Some(usage) = number(files, prefix, ".current")? else { return Ok(None) };
    Ok(Some([usage, 0, hits(files, prefix)?]))
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
fn block(text: &str, wire: &mut Wire) {
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
            for (field, op) in [(field::BYTES, bytes), (field::OPERATIONS, operations)] {
                if let Some(op) = op {
                    block_entry(wire, field, device, op, value);
                }
            }
        }
    }
}
