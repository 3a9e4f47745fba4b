//! The device cgroup's rules: complete, in order, and in the guest's numbers.
//!
//! The last rule that matches decides. In order: deny all; the host's; an `rwm` for each device of the
//! request that no rule named; what every container needs ([`default_rules`]); the denial of the guest's own
//! root disk. Shims drop the rules altogether: then each node listed is allowed.
//!
//! On v1 libcontainer writes the list. On v2 it does nothing; there [`crate::cgroup::Cgroup::enforce_devices`] makes
//! a program of it. v1 can't except a device from an allowed range (the kernel removes only an equal exception),
//! so a range that has the root disk in it is refused there.

use oci_spec::runtime::{LinuxDevice, LinuxDeviceCgroup as Rule, LinuxDeviceType as Type};

use super::devices::{DeviceNumber, Renumbered};
use super::{CgroupVersion, Facts, SpecError};

/// The whole list.
pub(super) fn assemble(
    given: &[Rule],
    nodes: &[LinuxDevice],
    renumbered: &[Renumbered],
    facts: &Facts,
) -> Result<Vec<Rule>, SpecError> {
    let mut rules = vec![rule(false, Type::A, None, None, "rwm")];
    rules.extend(update_rules(given, renumbered));
    if given.is_empty() {
        rules.extend(nodes.iter().map(Rule::from));
    } else {
        rules.extend(
            renumbered.iter().filter(|r| !given.iter().any(|g| r.is_named_by(g))).map(Renumbered::allow),
        );
    }
    rules.extend(default_rules());
    if facts.cgroup_version == CgroupVersion::V1 {
        check_ranges(&rules, &facts.root_devices)?;
    }
    rules.extend(
        facts.root_devices.iter().map(|d| rule(false, Type::B, signed(d.major), signed(d.minor), "rwm")),
    );
    Ok(rules)
}

/// What every container may use, as runc has it: making any node, the pseudo devices, terminals and tun.
#[must_use]
pub fn default_rules() -> Vec<Rule> {
    let mut rules = vec![rule(true, Type::C, None, None, "m"), rule(true, Type::B, None, None, "m")];
    let pseudo = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2), (10, 200)];
    rules.extend(pseudo.map(|(major, minor)| rule(true, Type::C, Some(major), Some(minor), "rwm")));
    rules.push(rule(true, Type::C, Some(136), None, "rwm"));
    rules
}

fn rule(allow: bool, kind: Type, major: Option<i64>, minor: Option<i64>, access: &str) -> Rule {
    let mut rule = Rule::default();
    rule.set_allow(allow).set_typ(Some(kind)).set_major(major).set_minor(minor);
    rule.set_access(Some(access.to_owned()));
    rule
}

/// A device number as the spec has it; one beyond the kernel's range matches nothing.
pub(super) fn signed(number: u64) -> Option<i64> {
    Some(i64::try_from(number).unwrap_or(i64::MAX))
}

/// mknod(2) knows unbuffered character devices as character devices.
pub(super) fn plain(kind: Type) -> Type {
    if kind == Type::U { Type::C } else { kind }
}

impl Renumbered {
    fn is_named_by(&self, rule: &Rule) -> bool {
        let (kind, major, minor) = self.host;
        let kinds = [Some(kind), Some(Type::A), None];
        kinds.contains(&rule.typ().map(plain)) && rule.major() == Some(major) && rule.minor() == Some(minor)
    }

    fn allow(&self) -> Rule {
        let (kind, major, minor) = self.guest;
        rule(true, kind, Some(major), Some(minor), "rwm")
    }
}

/// The host's rules in the guest's numbers. A rule for both kinds with a number becomes one of each, as the
/// kernel of v1 would read `a 8:0` as everything. A denial without access denies all of it.
fn update_rules(given: &[Rule], renumbered: &[Renumbered]) -> Vec<Rule> {
    let mut rules = Vec::with_capacity(given.len());
    for rule in given {
        let mut rule = rule.clone();
        if !rule.allow() && rule.access().as_deref().unwrap_or("").is_empty() {
            rule.set_access(Some("rwm".to_owned()));
        }
        let (major, minor) = wildcards(rule.major(), rule.minor());
        rule.set_major(major).set_minor(minor);
        let matches: Vec<_> = renumbered.iter().filter(|r| r.is_named_by(&rule)).collect();
        let both = matches!(rule.typ(), None | Some(Type::A));
        if !matches.is_empty() {
            for Renumbered { guest: (kind, major, minor), .. } in matches {
                rule.set_typ(Some(*kind)).set_major(Some(*major)).set_minor(Some(*minor));
                rules.push(rule.clone());
            }
        } else if both && (major.is_some() || minor.is_some()) {
            for kind in [Type::C, Type::B] {
                rule.set_typ(Some(kind));
                rules.push(rule.clone());
            }
        } else {
            rule.set_typ(Some(rule.typ().map_or(Type::A, plain)));
            rules.push(rule);
        }
    }
    rules
}

/// The numbers of a rule, `None` for any. -1 is runc's own word for any. 0:0 is how a message says nothing;
/// no device has it (major 0 is for filesystems without one, see devices.txt of the kernel's documentation).
fn wildcards(major: Option<i64>, minor: Option<i64>) -> (Option<i64>, Option<i64>) {
    match (major.filter(|n| *n >= 0), minor.filter(|n| *n >= 0)) {
        (Some(0), None | Some(0)) => (None, None),
        (Some(0), minor) => (None, minor),
        numbers => numbers,
    }
}

/// v1: refuses a range of allowed block devices that has a root device in it. Where everything is allowed a
/// denial does become an exception.
fn check_ranges(rules: &[Rule], root_devices: &[DeviceNumber]) -> Result<(), SpecError> {
    let last_all = rules.iter().rposition(|rule| rule.typ() == Some(Type::A));
    let allows_all = last_all.and_then(|at| rules.get(at)).is_some_and(Rule::allow);
    if allows_all {
        return Ok(());
    }
    for rule in rules.iter().skip(last_all.map_or(0, |at| at.saturating_add(1))) {
        let opens = rule.access().as_deref().is_some_and(|access| access.contains(['r', 'w']));
        let range = rule.major().is_none() || rule.minor().is_none();
        let within = |d: &&DeviceNumber| {
            rule.major().is_none_or(|major| Some(major) == signed(d.major))
                && rule.minor().is_none_or(|minor| Some(minor) == signed(d.minor))
        };
        if !(rule.allow() && opens && range && rule.typ() == Some(Type::B)) {
            continue;
        }
        if let Some(device) = root_devices.iter().find(within) {
            return Err(SpecError::RootDevice {
                device: device.to_string(),
                reason: "cgroup v1 can't except it from a rule with a wildcard",
            });
        }
    }
    Ok(())
}
