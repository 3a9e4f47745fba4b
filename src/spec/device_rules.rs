//! The device cgroup's rules: complete, in order, and in the guest's numbers.
//!
//! The last rule that matches decides. In order: deny all; the host's; an `rwm` for each device of the
//! request that no rule named; one for each disk that is lent as a file; what every container needs ([`default_rules`]);
//! the denial of what the guest's own system is on and of its memory.
//!
//! Shims drop the rules altogether. Then each node that the specification lists or mounts from the guest's `/dev` is
//! allowed, and everything to a process that may load modules into the guest's kernel: engines call that privileged,
//! and no rule would keep it from anything.
//!
//! On v1 the list is written as it is, by `Cgroup::write_rules` or where libcontainer makes init by that; on v2
//! [`crate::cgroup::Cgroup::enforce_devices`] makes a program of it. v1 can't except a device from an allowed range
//! (the kernel removes only an equal exception), so a range that has one of the guest's system in it is refused
//! there, as is a narrower denial of the host's.

use oci_spec::runtime::{
    Capability, LinuxDevice, LinuxDeviceCgroup as Rule, LinuxDeviceType as Type, Process,
};

use super::devices::{DeviceKind, DeviceNumber, LentDevice, Renumbered};
use super::{CgroupVersion, Facts, SpecError};

/// `mem`, `kmem` and `port` (Documentation/admin-guide/devices.txt).
pub const MEMORY: [DeviceNumber; 3] = [
    DeviceNumber { major: 1, minor: 1 },
    DeviceNumber { major: 1, minor: 2 },
    DeviceNumber { major: 1, minor: 4 },
];

/// What a privileged process has, and no other: these alone are as good as the whole guest.
const PRIVILEGED: [Capability; 3] = [Capability::SysModule, Capability::SysRawio, Capability::SysAdmin];

/// Whether a process gets all devices when the specification has no device rules.
pub(super) fn is_privileged(process: &Process) -> bool {
    let held = process.capabilities().as_ref().and_then(|sets| sets.effective().as_ref());
    held.is_some_and(|held| PRIVILEGED.iter().all(|capability| held.contains(capability)))
}

/// The whole list. `added` allows the guest's devices that the host does not know of.
pub(super) fn assemble(
    given: &[Rule],
    nodes: &[LinuxDevice],
    renumbered: &[Renumbered],
    added: &[Rule],
    is_privileged: bool,
    facts: &Facts,
) -> Result<Vec<Rule>, SpecError> {
    let mut rules = vec![rule(false, Type::A, None, None, "rwm")];
    rules.extend(update_rules(given, renumbered));
    if given.is_empty() && is_privileged {
        rules.push(rule(true, Type::A, None, None, "rwm"));
    } else if given.is_empty() {
        rules.extend(nodes.iter().filter(|node| node.typ() != Type::P).map(allow_node));
        rules.extend(facts.bound_devices.iter().map(|bound| {
            let kind = if bound.kind == DeviceKind::Block { Type::B } else { Type::C };
            rule(true, kind, signed(bound.number.major), signed(bound.number.minor), "rwm")
        }));
    } else {
        rules.extend(added.iter().cloned());
        rules.extend(
            renumbered.iter().filter(|r| !given.iter().any(|g| r.is_named_by(g))).map(Renumbered::allow),
        );
    }
    rules.extend(facts.lent_devices.iter().map(allow_lent));
    rules.extend(default_rules());
    let own = own_devices(&rules, facts);
    if facts.cgroup_version == CgroupVersion::V1 {
        check_ranges(&rules, &own)?;
        check_denials(&rules)?;
    }
    rules.extend(own.iter().map(|(kind, d)| rule(false, *kind, signed(d.major), signed(d.minor), "rwm")));
    Ok(rules)
}

/// What no container may open: what the guest's system is on, and its memory and the other ways to its disk where a rule
/// would open them.
fn own_devices(rules: &[Rule], facts: &Facts) -> Vec<(Type, DeviceNumber)> {
    let blocks = facts.root_devices.iter().map(|device| (Type::B, *device));
    let chars = MEMORY.iter().chain(&facts.system_chars).map(|device| (Type::C, *device));
    let is_opened = |(kind, device): &(Type, DeviceNumber)| {
        rules.iter().any(|rule| rule.allow() && opens(rule) && is_within(rule, *kind, device))
    };
    blocks.chain(chars.filter(is_opened)).collect()
}

/// Whether it is about more than making nodes.
fn opens(rule: &Rule) -> bool {
    rule.access().as_deref().is_some_and(|access| access.contains(['r', 'w']))
}

fn is_within(rule: &Rule, kind: Type, device: &DeviceNumber) -> bool {
    [Some(kind), Some(Type::A), None].contains(&rule.typ())
        && rule.major().is_none_or(|major| Some(major) == signed(device.major))
        && rule.minor().is_none_or(|minor| Some(minor) == signed(device.minor))
}

fn allow_lent(LentDevice { number, read_only }: &LentDevice) -> Rule {
    let access = if *read_only { "rm" } else { "rwm" };
    rule(true, Type::B, signed(number.major), signed(number.minor), access)
}

fn allow_node(node: &LinuxDevice) -> Rule {
    let mut rule = Rule::from(node);
    rule.set_typ(rule.typ().map(plain));
    rule
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

/// v1: refuses a range of allowed devices that has one of the guest's own in it. Where everything is allowed a
/// denial does become an exception.
fn check_ranges(rules: &[Rule], own: &[(Type, DeviceNumber)]) -> Result<(), SpecError> {
    for rule in exceptions(rules) {
        let range = rule.major().is_none() || rule.minor().is_none();
        if !(rule.allow() && opens(rule) && range) {
            continue;
        }
        if let Some((_, device)) = own.iter().find(|(kind, device)| is_within(rule, *kind, device)) {
            return Err(SpecError::RootDevice {
                device: device.to_string(),
                reason: "cgroup v1 can't except it from a rule with a wildcard",
            });
        }
    }
    Ok(())
}

/// v1: refuses a denial of a part of what an earlier rule allows, which would have no effect.
fn check_denials(rules: &[Rule]) -> Result<(), SpecError> {
    let exceptions: Vec<&Rule> = exceptions(rules).collect();
    for (index, denial) in exceptions.iter().enumerate().filter(|(_, rule)| !rule.allow() && opens(rule)) {
        let meet = |a: Option<i64>, b: Option<i64>| a.is_none() || b.is_none() || a == b;
        let is_without_effect = |rule: &&&Rule| {
            let same = rule.major() == denial.major() && rule.minor() == denial.minor();
            rule.allow()
                && opens(rule)
                && rule.typ() == denial.typ()
                && !same
                && meet(rule.major(), denial.major())
                && meet(rule.minor(), denial.minor())
        };
        if let Some(allowed) = exceptions.iter().take(index).find(is_without_effect) {
            return Err(SpecError::Invalid {
                field: "linux.resources.devices",
                value: format!("deny {denial} after allow {allowed}"),
                reason: "cgroup v1 can't except a part of what a rule allows",
            });
        }
    }
    Ok(())
}

/// The rules that become exceptions from a denial of everything on v1; none where everything is allowed.
fn exceptions(rules: &[Rule]) -> impl Iterator<Item = &Rule> {
    let last_all = rules.iter().rposition(|rule| rule.typ() == Some(Type::A));
    let allows_all = last_all.and_then(|at| rules.get(at)).is_some_and(Rule::allow);
    let skipped = if allows_all { rules.len() } else { last_all.map_or(0, |at| at.saturating_add(1)) };
    rules.iter().skip(skipped)
}
