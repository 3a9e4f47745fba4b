//! Device nodes and the device cgroup's rules, in the guest's numbers.
//!
//! The host writes its own device numbers. Each [`DeviceUpdate`] tells where a device appeared in the guest; its node
//! and the rules that name the same device get the guest's numbers, all at once, so that swapped numbers don't meet.
//!
//! The rules that leave here are complete and in order, the last match deciding: deny all; the host's; an `rwm` for each
//! device of the request that no rule named; what every container needs ([`default_rules`]); the denial of the guest's
//! own root disk. Shims drop the rules altogether: then each node listed is allowed.
//!
//! On v1 libcontainer writes the list. On v2 it enforces nothing (unless built with libbpf): the list is the input for the agent's
//! own BPF_PROG_TYPE_CGROUP_DEVICE program. v1 can't except a device from an allowed range (the kernel
//! removes only an equal exception), so a range that has the root disk in it is refused there.

use std::fmt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Linux, LinuxDevice, LinuxDeviceCgroup as Rule, LinuxDeviceType as Type};

use super::{CgroupVersion, Facts, SpecError};

/// The number of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DeviceNumber {
    /// Its driver.
    pub major: u64,
    /// Which of the driver's devices.
    pub minor: u64,
}

impl fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// Whether a device is accessed by blocks or as a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeviceKind {
    /// A block device.
    Block,
    /// A character device.
    Char,
}

/// Where a device of the request appeared in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceUpdate {
    /// Its node's path in the spec.
    pub container_path: PathBuf,
    /// The node's path in the container, where it is another one (a VFIO group's number is the guest's).
    pub final_path: Option<PathBuf>,
    /// What it is in the guest.
    pub kind: DeviceKind,
    /// Its number in the guest.
    pub number: DeviceNumber,
}

/// Rewrites `linux.devices` and `linux.resources.devices`.
pub(super) fn apply(linux: &mut Linux, facts: &Facts) -> Result<(), SpecError> {
    let mut nodes = linux.devices().clone().unwrap_or_default();
    let mut resources = linux.resources().clone().unwrap_or_default();
    let given = resources.devices().clone().unwrap_or_default();
    let renumbered = update_nodes(&mut nodes, &facts.devices)?;
    check_nodes(&nodes, &facts.root_devices)?;

    let mut rules = vec![rule(false, Type::A, None, None, "rwm")];
    rules.extend(update_rules(&given, &renumbered));
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
    resources.set_devices(Some(rules));
    linux.set_resources(Some(resources));
    linux.set_devices((!nodes.is_empty()).then_some(nodes));
    Ok(())
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
fn signed(number: u64) -> Option<i64> {
    Some(i64::try_from(number).unwrap_or(i64::MAX))
}

/// A device's number on the host and in the guest.
struct Renumbered {
    host: (Type, i64, i64),
    guest: (Type, i64, i64),
}

impl Renumbered {
    fn is_named_by(&self, rule: &Rule) -> bool {
        let (kind, major, minor) = self.host;
        let kinds = [Some(kind), Some(Type::A), None];
        kinds.contains(&rule.typ()) && rule.major() == Some(major) && rule.minor() == Some(minor)
    }

    fn allow(&self) -> Rule {
        let (kind, major, minor) = self.guest;
        rule(true, kind, Some(major), Some(minor), "rwm")
    }
}

fn update_nodes(nodes: &mut [LinuxDevice], updates: &[DeviceUpdate]) -> Result<Vec<Renumbered>, SpecError> {
    let mut renumbered: Vec<Renumbered> = Vec::new();
    for (index, update) in updates.iter().enumerate() {
        if updates.iter().take(index).any(|u| u.container_path == update.container_path) {
            return Err(duplicate("devices of the request", &update.container_path));
        }
    }
    for update in updates {
        let node = nodes
            .iter_mut()
            .find(|node| *node.path() == update.container_path)
            .ok_or_else(|| SpecError::DeviceNotInSpec { path: update.container_path.clone() })?;
        let kind = match update.kind {
            DeviceKind::Block => Type::B,
            DeviceKind::Char => Type::C,
        };
        let number = |n: u64| signed(n).unwrap_or(i64::MAX);
        let guest = (kind, number(update.number.major), number(update.number.minor));
        let host = (plain(node.typ()), node.major(), node.minor());
        if renumbered.iter().any(|r| r.host == host && r.guest != guest) {
            let named = format!("the host's {}:{}", host.1, host.2);
            return Err(SpecError::Duplicate { field: "devices of the request", value: named });
        }
        node.set_typ(guest.0).set_major(guest.1).set_minor(guest.2);
        renumbered.push(Renumbered { host, guest });
    }
    // Only now: a final path may be the container path of another update.
    let mut moves: Vec<(usize, PathBuf)> = Vec::new();
    for update in updates {
        if let (Some(to), Some(at)) =
            (&update.final_path, nodes.iter().position(|node| *node.path() == update.container_path))
        {
            moves.push((at, to.clone()));
        }
    }
    for (at, to) in moves {
        if let Some(node) = nodes.get_mut(at) {
            node.set_path(to);
        }
    }
    Ok(renumbered)
}

/// mknod(2) knows unbuffered character devices as character devices.
fn plain(kind: Type) -> Type {
    if kind == Type::U { Type::C } else { kind }
}

fn duplicate(field: &'static str, path: &Path) -> SpecError {
    SpecError::Duplicate { field, value: path.display().to_string() }
}

fn check_nodes(nodes: &[LinuxDevice], root_devices: &[DeviceNumber]) -> Result<(), SpecError> {
    for (index, node) in nodes.iter().enumerate() {
        let path = node.path();
        let invalid = |reason| {
            Err(SpecError::Invalid { field: "linux.devices", value: path.display().to_string(), reason })
        };
        let below_dev = path.strip_prefix("/dev").is_ok_and(|rest| {
            rest.components().next().is_some()
                && rest.components().all(|part| matches!(part, std::path::Component::Normal(_)))
        });
        if !below_dev {
            return invalid("nodes are made beneath /dev only");
        }
        if node.typ() == Type::A {
            return invalid("type 'a' is for rules, not for nodes");
        }
        if node.typ() != Type::P && (node.major() < 0 || node.minor() < 0) {
            return invalid("a negative device number");
        }
        if nodes.iter().take(index).any(|other| other.path() == path) {
            return Err(duplicate("linux.devices", path));
        }
        let is_root =
            |d: &DeviceNumber| signed(d.major) == Some(node.major()) && signed(d.minor) == Some(node.minor());
        if node.typ() == Type::B && root_devices.iter().any(is_root) {
            let device = path.display().to_string();
            return Err(SpecError::RootDevice { device, reason: "no container may have it" });
        }
    }
    Ok(())
}

/// The host's rules in the guest's numbers. A rule for both kinds with a number becomes one of each, as the kernel
/// of v1 would read `a 8:0` as everything. A denial without access denies all of it.
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

/// The numbers of a rule, `None` for any. -1 is runc's own word for any. 0:0 is how a message says nothing; no device has it
/// (major 0 is for filesystems without one, see devices.txt of the kernel's documentation).
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

#[cfg(test)]
#[path = "devices_tests.rs"]
mod tests;
