//! Sets of CPUs and memory nodes in the kernel's list format (`0-3,7`; cpuset(7), "List format"), and the
//! edit that brings a container's cpuset down to what is online.
//!
//! A host's numbers may name more CPUs than the guest has: writing them to `cpuset.cpus` fails the create on
//! v1.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use oci_spec::runtime::{Linux, LinuxCpu, LinuxResources};

use super::SpecError;

/// The highest number accepted: the kernel's largest CONFIG_NR_CPUS is 8192.
const MAX: u16 = 8191;

/// Why a text is not a list of CPUs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CpuSetError {
    /// A part that is neither a number nor a range.
    #[error("{part:?} is neither a number nor a range")]
    Part {
        /// The part between two commas.
        part: String,
    },
    /// A number above any that a kernel knows.
    #[error("{number} is above {MAX}")]
    TooHigh {
        /// The number as given.
        number: String,
    },
}

/// A set of CPUs or memory nodes. [`fmt::Display`] writes the shortest list; parsing accepts any order,
/// overlaps, and the line end of a sysfs file. No text at all is the empty set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CpuSet(BTreeSet<u16>);

impl CpuSet {
    /// What both sets have.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        Self(self.0.intersection(&other.0).copied().collect())
    }

    /// Whether there is nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether `number` is one of them.
    #[must_use]
    pub fn contains(&self, number: u16) -> bool {
        self.0.contains(&number)
    }
}

impl FromIterator<u16> for CpuSet {
    /// Numbers above the kernel's highest are left out.
    fn from_iter<I: IntoIterator<Item = u16>>(numbers: I) -> Self {
        Self(numbers.into_iter().filter(|n| *n <= MAX).collect())
    }
}

impl FromStr for CpuSet {
    type Err = CpuSetError;

    fn from_str(text: &str) -> Result<Self, CpuSetError> {
        let mut ranges = Vec::new();
        let text = text.trim();
        if text.is_empty() {
            return Ok(Self::default());
        }
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (number(part, first)?, number(part, last)?);
            if first > last {
                return Err(CpuSetError::Part { part: part.to_owned() });
            }
            ranges.push((first, last));
        }
        // Each number once, so that many large ranges over each other cost no more than one.
        ranges.sort_unstable();
        let (mut set, mut next) = (BTreeSet::new(), 0);
        for (first, last) in ranges {
            set.extend(first.max(next)..=last);
            next = next.max(last.saturating_add(1));
        }
        Ok(Self(set))
    }
}

fn number(part: &str, digits: &str) -> Result<u16, CpuSetError> {
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(CpuSetError::Part { part: part.to_owned() });
    }
    match digits.parse() {
        Ok(number) if number <= MAX => Ok(number),
        _ => Err(CpuSetError::TooHigh { number: digits.to_owned() }),
    }
}

impl fmt::Display for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut numbers = self.0.iter().copied().peekable();
        let mut separator = "";
        while let Some(first) = numbers.next() {
            let mut last = first;
            while let Some(next) = numbers.next_if(|next| Some(*next) == last.checked_add(1)) {
                last = next;
            }
            f.write_str(separator)?;
            separator = ",";
            if first == last { write!(f, "{first}")? } else { write!(f, "{first}-{last}")? }
        }
        Ok(())
    }
}

/// Narrows `linux.resources.cpu.cpus` and `.mems` to what is online.
pub(super) fn apply(
    linux: &mut Linux,
    cpus: &CpuSet,
    mems: Option<&CpuSet>,
    warnings: &mut Vec<String>,
) -> Result<(), SpecError> {
    let Some(resources) = linux.resources_mut().as_mut() else { return Ok(()) };
    narrow_to_online(resources, cpus, mems, warnings)
}

/// Narrows `cpu.cpus` and `cpu.mems` to what is online. A set of which nothing is online says nothing about this
/// guest: it is left out, with a warning.
///
/// # Errors
/// [`SpecError::CpuSet`] if either is no set.
pub fn narrow_to_online(
    resources: &mut LinuxResources,
    cpus: &CpuSet,
    mems: Option<&CpuSet>,
    warnings: &mut Vec<String>,
) -> Result<(), SpecError> {
    let Some(cpu) = resources.cpu_mut().as_mut() else { return Ok(()) };
    cpu.set_cpus(narrow("linux.resources.cpu.cpus", LinuxCpu::cpus(cpu).as_deref(), cpus, warnings)?);
    // Without NUMA there is one node, the first.
    let first = CpuSet::from_iter([0]);
    let online = mems.unwrap_or(&first);
    cpu.set_mems(narrow("linux.resources.cpu.mems", cpu.mems().as_deref(), online, warnings)?);
    Ok(())
}

fn narrow(
    field: &'static str,
    asked: Option<&str>,
    online: &CpuSet,
    warnings: &mut Vec<String>,
) -> Result<Option<String>, SpecError> {
    let Some(asked) = asked else { return Ok(None) };
    let set: CpuSet = asked.parse().map_err(|source| SpecError::CpuSet { field, source })?;
    let both = set.intersection(online);
    if both.is_empty() {
        if !set.is_empty() {
            warnings.push(format!("{field} {asked:?} left out: only {online} is online"));
        }
        return Ok(None);
    }
    Ok(Some(both.to_string()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn lists_parse_and_print_in_their_shortest_form() {
        for (text, expected) in [
            ("", ""),
            ("\n", ""),
            ("0", "0"),
            ("0-3,7\n", "0-3,7"),
            ("7,0,1,2,1-3", "0-3,7"),
            ("8191", "8191"),
            ("4-4", "4"),
        ] {
            assert_eq!(text.parse::<CpuSet>().unwrap().to_string(), expected, "{text:?}");
        }
        for bad in ["a", "1,", ",", "-1", "1-", "3-1", "1--2", "8192", "0-4294967295", "+1", "1 2", "0-3:1/2"]
        {
            assert!(bad.parse::<CpuSet>().is_err(), "{bad:?} was accepted");
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_parses_to_the_same(numbers in prop::collection::btree_set(0..=MAX, 0..40)) {
            let set: CpuSet = numbers.into_iter().collect();
            prop_assert_eq!(set.to_string().parse::<CpuSet>().unwrap(), set);
        }

        #[test]
        fn any_list_is_the_union_of_its_parts(
            parts in prop::collection::vec((0..=MAX, 0u16..20, any::<bool>()), 1..8),
        ) {
            let parts: Vec<_> = parts
                .into_iter()
                .map(|(first, more, alone)| (first, if alone { first } else { first.saturating_add(more).min(MAX) }))
                .collect();
            let words = parts.iter().map(|(a, b)| if a == b { a.to_string() } else { format!("{a}-{b}") });
            let set: CpuSet = words.collect::<Vec<_>>().join(",").parse().unwrap();
            let expected: CpuSet = parts.iter().flat_map(|(a, b)| *a..=*b).collect();
            prop_assert_eq!(&set, &expected);
            prop_assert_eq!(set.len(), expected.0.len());
            // The shortest form: its parts rise, and between two of them something is missing.
            let printed = set.to_string();
            let ends: Vec<Vec<u16>> =
                printed.split(',').map(|part| part.split('-').map(|n| n.parse().unwrap()).collect()).collect();
            for pair in ends.windows(2) {
                prop_assert!(pair[0].last().unwrap() + 1 < pair[1][0], "{}", printed);
            }
        }

        #[test]
        fn a_container_never_gets_what_is_not_online(
            asked in prop::collection::btree_set(0u16..16, 0..8), online in prop::collection::btree_set(0u16..16, 1..8),
        ) {
            let (asked, online): (CpuSet, CpuSet) = (asked.into_iter().collect(), online.into_iter().collect());
            let cpu = json!({"cpus": asked.to_string()});
            let mut linux: Linux = serde_json::from_value(json!({"resources": {"cpu": cpu}})).unwrap();
            apply(&mut linux, &online, None, &mut Vec::new()).unwrap();
            let value = serde_json::to_value(&linux).unwrap();
            let given = value["resources"]["cpu"]["cpus"].as_str().unwrap_or_default();
            prop_assert_eq!(given.parse::<CpuSet>().unwrap(), asked.intersection(&online));
        }

        #[test]
        fn no_text_makes_it_panic(text in "[0-9,\\- \n]{0,24}") {
            let _ = text.parse::<CpuSet>();
        }

        #[test]
        fn an_intersection_has_what_both_have(
            a in prop::collection::vec(0u16..64, 0..30),
            b in prop::collection::vec(0u16..64, 0..30),
        ) {
            let (a, b): (CpuSet, CpuSet) = (a.into_iter().collect(), b.into_iter().collect());
            let both = a.intersection(&b);
            prop_assert!((0..64).all(|n| both.contains(n) == (a.contains(n) && b.contains(n))));
        }
    }

    #[test]
    fn a_container_gets_the_cpus_that_are_online() {
        let online: CpuSet = "0-3".parse().unwrap();
        let nodes: CpuSet = "0".parse().unwrap();
        for (cpu, expected, warned) in [
            (json!({"cpus": "2-9", "mems": "0-1"}), json!({"cpus": "2-3", "mems": "0"}), 0),
            (json!({"cpus": "8", "mems": "1"}), json!({}), 2),
            (json!({"cpus": "", "shares": 2}), json!({"shares": 2}), 0),
        ] {
            let mut linux: Linux = serde_json::from_value(json!({"resources": {"cpu": cpu}})).unwrap();
            let mut warnings = Vec::new();
            apply(&mut linux, &online, Some(&nodes), &mut warnings).unwrap();
            assert_eq!(serde_json::to_value(&linux).unwrap()["resources"]["cpu"], expected);
            assert_eq!(warnings.len(), warned, "{warnings:?}");
        }
    }

    #[test]
    fn without_numa_there_is_node_0_and_nonsense_is_refused() {
        let online: CpuSet = "0-3".parse().unwrap();
        let mut linux: Linux =
            serde_json::from_value(json!({"resources": {"cpu": {"mems": "0-1"}}})).unwrap();
        apply(&mut linux, &online, None, &mut Vec::new()).unwrap();
        assert_eq!(serde_json::to_value(&linux).unwrap()["resources"]["cpu"]["mems"], "0");
        let mut linux: Linux =
            serde_json::from_value(json!({"resources": {"cpu": {"cpus": "all"}}})).unwrap();
        let error = apply(&mut linux, &online, None, &mut Vec::new()).unwrap_err();
        assert!(error.to_string().contains("cpu.cpus"), "{error}");
    }
}
