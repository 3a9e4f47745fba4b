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

/// A number in decimal digits and nothing else. (The standard library's takes three times as many instructions, as it is
/// made for any base; memory alone has fifty of them.)
fn decimal(digits: &[u8]) -> Option<u64> {
    let (first, rest) = digits.split_first()?;
    let digit = |byte: &u8| byte.checked_sub(b'0').filter(|digit| *digit < 10).map(u64::from);
    rest.iter().try_fold(digit(first)?, |number, byte| number.checked_mul(10)?.checked_add(digit(byte)?))
}

/// Lines of `key value`; others are passed over.
pub(super) fn pairs(text: &str) -> impl Iterator<Item = (&str, u64)> {
    text.as_bytes().split(|byte| *byte == b'\n').filter_map(|line| {
        let space = line.iter().position(|byte| *byte == b' ')?;
        let (key, value) = line.split_at_checked(space)?;
        Some((std::str::from_utf8(key).ok()?, decimal(value.trim_ascii())?))
    })
}

/// Lines of `key value`.
pub(in crate::cgroup) fn flat(text: &str) -> HashMap<String, u64> {
    // More than the kernel has, with the few that the caller may add: nothing is moved for want of room.
    let mut all = HashMap::with_capacity(MANY);
    all.extend(pairs(text).map(|(key, value)| (key.to_owned(), value)));
    all
}

/// As many keys as a file may have.
const MANY: usize = 96;

/// The value of one key in lines of `key value`: where only a few are wanted, a table of all costs more.
pub(super) fn value(text: &str, key: &str) -> Option<u64> {
    pairs(text).find_map(|(found, value)| (found == key).then_some(value))
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
