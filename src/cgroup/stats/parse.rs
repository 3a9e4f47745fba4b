//! The few formats that the files of a cgroup have. Nothing here fails: what can't be understood is left out.

use super::UNLIMITED;
use crate::cgroup::CgroupError;
use crate::cgroup::tree::Dir;
use nakai_protocols::agent::{BlkioStatsEntry, HugetlbStats};
use std::collections::HashMap;

/// A file of one number.
pub(super) fn number(dir: &Dir, file: &str) -> Result<Option<u64>, CgroupError> {
    Ok(dir.read_statistics(file)?.and_then(|text| text.trim().parse().ok()))
}

/// A file of one number that may be `max`: that is [`UNLIMITED`].
pub(super) fn limit(dir: &Dir, file: &str) -> Result<Option<u64>, CgroupError> {
    Ok(dir.read_statistics(file)?.and_then(|text| match text.trim() {
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
    text.lines().filter_map(pair).collect()
}

/// A file of lines of `key value`.
pub(super) fn flat_file(dir: &Dir, file: &str) -> Result<Option<HashMap<String, u64>>, CgroupError> {
    Ok(dir.read_statistics(file)?.map(|text| flat(&text)))
}

/// `major:minor`. A minor number has up to 20 bits.
pub(super) fn device(field: &str) -> Option<(u64, u64)> {
    let (major, minor) = field.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

pub(super) fn entry((major, minor): (u64, u64), op: &str, value: u64) -> BlkioStatsEntry {
    BlkioStatsEntry { major, minor, op: op.to_owned(), value, ..Default::default() }
}

/// The statistics of each size of huge pages, of which the directory itself tells the sizes.
///
/// `usage` is how a file of usage ends, `read_one` gets how the files of a size begin.
pub(super) fn hugetlb(
    dir: &Dir,
    usage: &str,
    read_one: impl Fn(&str) -> Result<HugetlbStats, CgroupError>,
) -> Result<HashMap<String, HugetlbStats>, CgroupError> {
    let mut sizes = HashMap::new();
    for (file, _) in dir.list()? {
        let Some(prefix) = file.to_str().ok().and_then(|file| file.strip_suffix(usage)) else { continue };
        match prefix.strip_prefix("hugetlb.") {
            // `hugetlb.2MB.rsvd` counts reservations.
            Some(size) if !size.contains('.') => sizes.insert(size.to_owned(), read_one(prefix)?),
            _ => None,
        };
    }
    Ok(sizes)
}
