//! The few formats that the files of a cgroup have. Nothing here fails: what can't be understood is left out.

use super::encode::field;
use super::files::Files;
use super::{HUGE, UNLIMITED};
use crate::cgroup::CgroupError;
use crate::cgroup::tree::Dir;
use nakai_scan::{Wire, pairs, whole, words};
use std::collections::HashMap;
use std::ffi::CStr;

/// A file of one number.
pub(super) fn number(files: &mut Files, start: &str, end: &str) -> Result<Option<u64>, CgroupError> {
    Ok(files.read(start, end)?.and_then(whole))
}

/// A file of one number that may be `max`: that is [`UNLIMITED`].
pub(super) fn limit(files: &mut Files, start: &str, end: &str) -> Result<Option<u64>, CgroupError> {
    Ok(files.read(start, end)?.and_then(|text| match text.trim_ascii() {
        b"max" => Some(UNLIMITED),
        number => whole(number),
    }))
}

/// Lines of `key value`.
pub(in crate::cgroup) fn flat(text: &str) -> HashMap<String, u64> {
    // More than the kernel has, with the few that the caller may add: nothing is moved for want of room.
    let mut all = HashMap::with_capacity(MANY);
    pairs(text.as_bytes(), &mut |key, value| {
        all.insert(words(key).to_owned(), value);
    });
    all
}

/// As many keys as a file may have.
const MANY: usize = 96;

/// The value of one key in lines of `key value`: where only a few are wanted, a table of all costs more.
pub(super) fn value(text: &[u8], key: &str) -> Option<u64> {
    let mut value = None;
    pairs(text, &mut |found, number| {
        if found == key.as_bytes() {
            value = value.or(Some(number));
        }
    });
    value
}

/// `major:minor`. A minor number has up to 20 bits.
pub(super) fn device(field: &str) -> Option<(u64, u64)> {
    let (major, minor) = field.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// How the files of each size of huge pages begin that the directory has files for, which end in `usage`.
pub(super) fn huge_pages(dir: &Dir, usage: &str) -> Result<Vec<String>, CgroupError> {
    let of_size = |file: &CStr| {
        let start = file.to_str().ok()?.strip_suffix(usage)?;
        // `hugetlb.2MB.rsvd` counts reservations.
        (!start.strip_prefix(HUGE)?.contains('.')).then(|| start.to_owned())
    };
    Ok(dir.list()?.iter().filter_map(|(file, _)| of_size(file)).collect())
}

/// Writes what the controller of processes tells, which is the same on v1 and v2. No limit is 0 on the wire.
pub(super) fn pids(files: &mut Files, wire: &mut Wire) -> Result<(), CgroupError> {
    let Some(current) = number(files, "pids.current", "")? else { return Ok(()) };
    wire.numbers(field::PIDS, &[current, number(files, "pids.max", "")?.unwrap_or(0)]);
    Ok(())
}
