//! The few formats that the files of a cgroup have. Nothing here fails: what can't be understood is left out.

use super::UNLIMITED;
use super::files::Files;
use crate::cgroup::CgroupError;
use crate::cgroup::tree::Dir;
use nakai_protocols::agent::BlkioStatsEntry;
use std::collections::HashMap;
use std::ffi::CStr;

/// A file of one number.
pub(super) fn number(files: &mut Files, start: &str, end: &str) -> Result<Option<u64>, CgroupError> {
    Ok(files.read(start, end)?.and_then(|text| text.trim().parse().ok()))
}

/// A file of one number that may be `max`: that is [`UNLIMITED`].
pub(super) fn limit(files: &mut Files, start: &str, end: &str) -> Result<Option<u64>, CgroupError> {
    Ok(files.read(start, end)?.and_then(|text| match text.trim() {
        "max" => Some(UNLIMITED),
        number => number.parse().ok(),
    }))
}

/// Lines of `key value`.
pub(in crate::cgroup) fn flat(text: &str) -> HashMap<String, u64> {
    let pair = |line: &str| {
        let (key, value) = line.trim().split_once(' ')?;
        Some((key.to_owned(), value.trim().parse().ok()?))
    };
    // As many as there are lines, and the few that the caller may add.
    let mut pairs = HashMap::with_capacity(text.lines().count().saturating_add(8));
    pairs.extend(text.lines().filter_map(pair));
    pairs
}

/// A file of lines of `key value`.
pub(super) fn flat_file(files: &mut Files, file: &str) -> Result<Option<HashMap<String, u64>>, CgroupError> {
    Ok(files.read(file, "")?.map(flat))
}

/// The value of one key in lines of `key value`: where only a few are wanted, a table of all costs more.
pub(super) fn value(text: &str, key: &str) -> Option<u64> {
    let of_key = |line: &str| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok();
    text.lines().find_map(of_key)
}

/// `major:minor`. A minor number has up to 20 bits.
pub(super) fn device(field: &str) -> Option<(u64, u64)> {
    let (major, minor) = field.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

pub(super) fn entry((major, minor): (u64, u64), op: &str, value: u64) -> BlkioStatsEntry {
    BlkioStatsEntry { major, minor, op: op.to_owned(), value, ..Default::default() }
}

/// The sizes of huge pages that the directory has files for, which end in `usage`.
pub(super) fn huge_page_sizes(dir: &Dir, usage: &str) -> Result<Vec<String>, CgroupError> {
    let size = |file: &CStr| {
        let size = file.to_str().ok()?.strip_prefix("hugetlb.")?.strip_suffix(usage)?;
        // `hugetlb.2MB.rsvd` counts reservations.
        (!size.contains('.')).then(|| size.to_owned())
    };
    Ok(dir.list()?.iter().filter_map(|(file, _)| size(file)).collect())
}
