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

/// Lines of `key value`; others are passed over.
pub(super) fn pairs(text: &str) -> impl Iterator<Item = (&str, u64)> {
    Pairs(text)
}

/// What is left of the text.
struct Pairs<'a>(&'a str);

/// Which part of a line a byte belongs to.
#[derive(Clone, Copy)]
enum Part {
    Key,
    /// Blanks between the key and its number.
    Before,
    Number,
    /// Blanks behind it.
    After,
    /// It makes no sense.
    Nonsense,
}

impl<'a> Iterator for Pairs<'a> {
    type Item = (&'a str, u64);

    /// One look at each byte. (The ways of the standard library take five times as many instructions, and memory alone has
    /// fifty lines.)
    fn next(&mut self) -> Option<Self::Item> {
        while !self.0.is_empty() {
            let text = self.0;
            let (mut part, mut key, mut value, mut end) = (Part::Key, 0, 0_u64, text.len());
            for (at, byte) in text.bytes().enumerate() {
                part = match (part, byte) {
                    (_, b'\n') => {
                        end = at;
                        break;
                    }
                    (Part::Key, b' ') => {
                        key = at;
                        Part::Before
                    }
                    (Part::Key, _) => Part::Key,
                    (Part::Before | Part::Number, b'0'..=b'9') => {
                        let digit = u64::from(byte.wrapping_sub(b'0'));
                        match value.checked_mul(10).and_then(|value| value.checked_add(digit)) {
                            Some(number) => {
                                value = number;
                                Part::Number
                            }
                            None => Part::Nonsense,
                        }
                    }
                    (Part::Before, b' ' | b'\t' | b'\r') => Part::Before,
                    (Part::Number | Part::After, b' ' | b'\t' | b'\r') => Part::After,
                    _ => Part::Nonsense,
                };
            }
            self.0 = text.get(end.saturating_add(1)..).unwrap_or_default();
            if let (Part::Number | Part::After, Some(key)) = (part, text.get(..key)) {
                return Some((key, value));
            }
        }
        None
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines_of_a_key_and_a_number_are_found() {
        let text = "anon 12\n\nfile  3 \nno number\nx 1 2\ny -1\nz 18446744073709551615\nw 18446744073709551616\nlast 0";
        let found: Vec<_> = pairs(text).collect();
        assert_eq!(found, [("anon", 12), ("file", 3), ("z", u64::MAX), ("last", 0)]);
    }

    proptest! {
        /// As the standard library would take them apart.
        #[test]
        fn any_text_is_taken_apart_alike(text in "[a-c\u{e9} \t0-9\n+-]{0,60}") {
            let digits = |value: &str| !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
            let expected: Vec<_> = text
                .split('\n')
                .filter_map(|line| line.split_once(' '))
                .map(|(key, value)| (key, value.trim_matches([' ', '\t', '\r'])))
                .filter(|(_, value)| digits(value))
                .filter_map(|(key, value)| Some((key, value.parse().ok()?)))
                .collect();
            prop_assert_eq!(pairs(&text).collect::<Vec<_>>(), expected);
        }
    }
}
