//! Device nodes in the guest's numbers.
//!
//! The host writes its own device numbers. Each [`DeviceUpdate`] tells where a device appeared in the guest;
//! its node and the rules that name the same device ([`super::device_rules`]) get the guest's numbers, all at
//! once, so that swapped numbers don't meet.

use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Linux, LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType as Type};

use super::device_rules::{self, plain, signed};
use super::{Facts, SpecError, io_devices};

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

/// A device of the guest's that a container gets besides those that its spec names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddedDevice {
    /// The node's path, in the guest and in the container.
    pub path: PathBuf,
    /// What it is.
    pub kind: DeviceKind,
    /// Its number.
    pub number: DeviceNumber,
}

/// A block device of the guest's whose node the host has lent as a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LentDevice {
    /// Its number.
    pub number: DeviceNumber,
    /// Whether it is only to be read.
    pub read_only: bool,
}

/// Rewrites `linux.devices` and `linux.resources.devices`; returns the nodes outside of `/dev`, which libcontainer would
/// refuse.
pub(super) fn apply(
    linux: &mut Linux,
    is_privileged: bool,
    facts: &Facts,
) -> Result<Vec<LinuxDevice>, SpecError> {
    let mut nodes = linux.devices().clone().unwrap_or_default();
    let mut resources = linux.resources().clone().unwrap_or_default();
    let given = resources.devices().clone().unwrap_or_default();
    let renumbered = update_nodes(&mut nodes, &facts.devices)?;
    let added = add_nodes(&mut nodes, &facts.added_devices);
    check_nodes(&nodes, &facts.root_devices)?;
    let rules = device_rules::assemble(&given, &nodes, &renumbered, &added, is_privileged, facts)?;
    resources.set_devices(Some(rules));
    io_devices::renumber(&mut resources, &renumbered);
    linux.set_resources(Some(resources));
    let (nodes, outside): (Vec<_>, Vec<_>) =
        nodes.into_iter().partition(|node| node.path().starts_with("/dev"));
    linux.set_devices((!nodes.is_empty()).then_some(nodes));
    Ok(outside)
}

/// The directories beneath `/dev` that are made for nodes.
pub(super) fn directories(linux: &Linux) -> Vec<PathBuf> {
    let mut directories = Vec::new();
    for node in linux.devices().iter().flatten() {
        let above = node.path().ancestors().skip(1);
        let within = above.take_while(|path| path.starts_with("/dev") && *path != Path::new("/dev"));
        directories.extend(within.map(Path::to_owned));
    }
    directories.sort_unstable();
    directories.dedup();
    directories
}

/// A device's number on the host and in the guest.
pub(super) struct Renumbered {
    pub(super) host: (Type, i64, i64),
    pub(super) guest: (Type, i64, i64),
}

impl Renumbered {
    /// Whether it is the block device that the host knows by this number.
    pub(super) fn is_block(&self, major: i64, minor: i64) -> bool {
        self.host == (Type::B, major, minor)
    }
}

/// Adds nodes that the spec has not; returns the rules that allow them.
fn add_nodes(nodes: &mut Vec<LinuxDevice>, added: &[AddedDevice]) -> Vec<LinuxDeviceCgroup> {
    let mut rules = Vec::new();
    for AddedDevice { path, kind, number } in added {
        if nodes.iter().any(|node| node.path() == path) {
            continue;
        }
        let (major, minor) =
            (signed(number.major).unwrap_or(i64::MAX), signed(number.minor).unwrap_or(i64::MAX));
        let mut node = LinuxDevice::default();
        let kind = if *kind == DeviceKind::Block { Type::B } else { Type::C };
        node.set_path(path.clone())
            .set_typ(kind)
            .set_major(major)
            .set_minor(minor)
            .set_file_mode(Some(0o666));
        rules.push(LinuxDeviceCgroup::from(&node));
        nodes.push(node);
    }
    rules
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

fn duplicate(field: &'static str, path: &Path) -> SpecError {
    SpecError::Duplicate { field, value: path.display().to_string() }
}

fn check_nodes(nodes: &[LinuxDevice], root_devices: &[DeviceNumber]) -> Result<(), SpecError> {
    let mut seen = HashSet::with_capacity(nodes.len());
    for node in nodes {
        let path = node.path();
        let invalid = |reason| {
            Err(SpecError::Invalid { field: "linux.devices", value: path.display().to_string(), reason })
        };
        let is_place = path.strip_prefix("/").is_ok_and(|rest| {
            rest.components().next().is_some()
                && rest.components().all(|part| matches!(part, std::path::Component::Normal(_)))
        });
        if !is_place || path == Path::new("/dev") {
            return invalid("it is not the absolute path of a node");
        }
        if node.typ() == Type::A {
            return invalid("type 'a' is for rules, not for nodes");
        }
        if node.typ() != Type::P && (node.major() < 0 || node.minor() < 0) {
            return invalid("a negative device number");
        }
        if !seen.insert(path) {
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

#[cfg(test)]
#[path = "devices_tests.rs"]
mod tests;
