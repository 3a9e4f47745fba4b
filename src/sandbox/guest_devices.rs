//! All devices of the guest in one container: what "privileged" means to Kubernetes, where the guest is the node.
//!
//! The host can't name them, for it does not know them. It asks by an annotation, which no other shim sends, so that
//! containers of other shims have the nodes that their specification names and no more. Only nodes are added: what may
//! be opened is for the rules of the specification. What the guest's system is on and its memory, in which the agent is,
//! have no node.

use std::collections::VecDeque;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, minor};
use oci_spec::runtime::{LinuxDevice, LinuxDeviceType, Spec};

use super::system_devices::{self, SystemDevices};
use crate::spec::{AddedDevice, DeviceKind, DeviceNumber, LentDevice, MEMORY};
use crate::storage::LentNode;

/// The annotation, whose value is `true`.
const ALL: &str = "io.nakai.guest-devices";

/// What each container has of its own.
const OWN: [&str; 5] = ["pts", "shm", "mqueue", "console", "ptmx"];

/// How many nodes a container may get: far more than a guest has.
const NODES_MAX: usize = 4096;

/// Adds the nodes, if the specification asks for them. Blocks.
pub(super) fn add(spec: &mut Spec) {
    let asked = spec.annotations().as_ref().and_then(|annotations| annotations.get(ALL));
    if asked.is_none_or(|value| value != "true") {
        return;
    }
    let SystemDevices { blocks, chars } = system_devices::find();
    let hidden: Vec<_> = MEMORY.into_iter().chain(blocks).chain(chars).collect();
    let mut linux = spec.linux().clone().unwrap_or_default();
    let mut nodes = linux.devices().clone().unwrap_or_default();
    for node in find(Path::new("/dev"), &hidden) {
        if !nodes.iter().any(|other| other.path() == node.path()) {
            nodes.push(node);
        }
    }
    linux.set_devices(Some(nodes));
    spec.set_linux(Some(linux));
}

/// The nodes of the guest's `/dev` that a mount of the specification names, each by itself: Kubernetes' `hostPath` in a
/// machine, where shims leave the path to the guest and send no rule for it. Blocks.
pub(super) fn bound(spec: &Spec) -> Vec<AddedDevice> {
    let sources = spec.mounts().iter().flatten().filter_map(|mount| mount.source().as_deref());
    let nodes = sources.filter(|source| source.starts_with("/dev") && *source != Path::new("/dev"));
    let found = nodes.filter_map(|path| {
        let metadata = std::fs::metadata(path).ok()?;
        let kind = match metadata.file_type() {
            kind if kind.is_char_device() => DeviceKind::Char,
            kind if kind.is_block_device() => DeviceKind::Block,
            _ => return None,
        };
        let number = DeviceNumber { major: major(metadata.rdev()), minor: minor(metadata.rdev()) };
        Some(AddedDevice { path: path.to_owned(), kind, number })
    });
    found.collect()
}

/// The disks of the storages that are nodes at these places: a device that a user mounts as a file, which the host has
/// plugged in for it. Blocks.
pub(super) fn lent(nodes: &[LentNode]) -> Vec<LentDevice> {
    let device = |node: &LentNode| {
        let metadata = std::fs::metadata(&node.path).ok()?;
        let number = DeviceNumber { major: major(metadata.rdev()), minor: minor(metadata.rdev()) };
        let is_disk = metadata.file_type().is_block_device();
        is_disk.then_some(LentDevice { number, read_only: node.read_only })
    };
    nodes.iter().filter_map(device).collect()
}

/// The nodes beneath `root`, by the path that they have in `/dev`. What can't be read, or goes while it is looked at, is
/// left out.
fn find(root: &Path, hidden: &[DeviceNumber]) -> Vec<LinuxDevice> {
    let mut nodes = Vec::new();
    let mut directories = VecDeque::from([PathBuf::new()]);
    while let Some(directory) = directories.pop_front() {
        let entries = std::fs::read_dir(root.join(&directory)).into_iter().flatten().flatten();
        for entry in entries {
            let path = directory.join(entry.file_name());
            if OWN.iter().any(|own| path == Path::new(own)) || nodes.len() >= NODES_MAX {
                continue;
            }
            // Not through links: they would lead out.
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_dir() {
                directories.push_back(path);
            } else if let Some(node) = node(Path::new("/dev").join(path), &metadata, hidden) {
                nodes.push(node);
            }
        }
    }
    nodes
}

fn node(path: PathBuf, metadata: &std::fs::Metadata, hidden: &[DeviceNumber]) -> Option<LinuxDevice> {
    let kind = match metadata.file_type() {
        kind if kind.is_char_device() => LinuxDeviceType::C,
        kind if kind.is_block_device() => LinuxDeviceType::B,
        _ => return None,
    };
    let number = DeviceNumber { major: major(metadata.rdev()), minor: minor(metadata.rdev()) };
    // Character and block devices have numbers of their own, but none of these is worth the difference.
    if hidden.contains(&number) {
        return None;
    }
    let mut node = LinuxDevice::default();
    node.set_path(path)
        .set_typ(kind)
        .set_major(i64::try_from(number.major).ok()?)
        .set_minor(i64::try_from(number.minor).ok()?)
        .set_file_mode(Some(metadata.mode() & 0o7777))
        .set_uid(Some(metadata.uid()))
        .set_gid(Some(metadata.gid()));
    Some(node)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_found_but_those_that_are_hidden() {
        // Of the machine that this runs on, where these are everywhere.
        let paths = |hidden: &[DeviceNumber]| {
            let nodes = find(Path::new("/dev"), hidden);
            nodes.iter().map(|node| node.path().display().to_string()).collect::<Vec<_>>()
        };
        let null = DeviceNumber { major: 1, minor: 3 };
        let (all, fewer) = (paths(&[]), paths(&[null]));
        assert!(all.contains(&"/dev/null".to_owned()) && all.contains(&"/dev/zero".to_owned()), "{all:?}");
        assert!(!fewer.contains(&"/dev/null".to_owned()) && fewer.contains(&"/dev/zero".to_owned()));
        assert!(!all.iter().any(|path| path.starts_with("/dev/pts/") || path == "/dev/ptmx"), "{all:?}");
    }

    #[test]
    fn nodes_that_are_mounted_by_themselves_are_found() {
        let mount =
            |source: &str| serde_json::json!({"destination": "/x", "source": source, "options": ["bind"]});
        let mounts = ["/dev/null", "/dev/../dev", "/dev", "/dev/no-such-node", "/proc/self/fd", "/dev/zero"]
            .map(mount);
        let spec =
            serde_json::from_value(serde_json::json!({"ociVersion": "1.2.0", "mounts": mounts})).unwrap();
        let found: Vec<_> = bound(&spec).into_iter().map(|found| (found.kind, found.number.minor)).collect();
        assert_eq!(found, [(DeviceKind::Char, 3), (DeviceKind::Char, 5)]);
    }

    #[test]
    fn only_who_asks_gets_them() {
        let mut spec = Spec::default();
        let before = spec.clone();
        add(&mut spec);
        assert_eq!(spec, before);
        spec.set_annotations(Some([(ALL.to_owned(), "true".to_owned())].into()));
        add(&mut spec);
        let nodes = spec.linux().as_ref().unwrap().devices().clone().unwrap();
        let zero = nodes.iter().find(|node| node.path() == Path::new("/dev/zero")).unwrap();
        assert_eq!((zero.major(), zero.minor(), zero.typ()), (1, 5, LinuxDeviceType::C));
        add(&mut spec);
        assert_eq!(spec.linux().as_ref().unwrap().devices().as_ref().unwrap().len(), nodes.len());
    }
}
