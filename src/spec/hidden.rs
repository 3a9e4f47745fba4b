//! Where a path of the container's lies: on the root filesystem, or in what is mounted over it.
//!
//! An init that is made without libcontainer makes its working directory itself, where it is seen by then.
//!
//! libcontainer makes neither the working directory nor nodes outside of `/dev`, so that they are made around it: before
//! it on the root, which may be read-only afterwards; in a volume, where the volume is; in a filesystem that begins
//! with the container, once that is there.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxDevice, Mount};
use serde::{Deserialize, Serialize};

/// Where the working directory is made, if it is missing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum WorkingDirectory {
    /// On the root filesystem, at this path.
    OnRoot(PathBuf),
    /// In a volume.
    InVolume {
        /// The volume's path in the guest.
        volume: PathBuf,
        /// The path in it.
        inside: PathBuf,
    },
    /// In a memory filesystem of the container, at this path of the container's: libcontainer can't enter it, and the
    /// executor does.
    InMemory(PathBuf),
    /// It is there, or it can't be.
    There,
    /// Wherever this path of the container's leads once all is mounted: init makes it before it enters it.
    Seen(PathBuf),
}

/// A node that is made outside of `/dev`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutsideNode {
    /// Its path, kind, number, owner and permissions.
    pub node: LinuxDevice,
    /// Whether a mount hides the root filesystem there.
    pub hidden: bool,
}

/// The mount that is seen at `path`, of those on the root; the last one covers those before it.
fn mount_at<'a>(mounts: &'a [Mount], path: &Path) -> Option<&'a Mount> {
    mounts.iter().rev().find(|mount| path.starts_with(mount.destination()))
}

/// Tells where `cwd`, absolute and without `..`, lies.
pub(super) fn working_directory(mounts: &[Mount], cwd: &Path) -> WorkingDirectory {
    let Some(mount) = mount_at(mounts, cwd) else { return WorkingDirectory::OnRoot(cwd.to_owned()) };
    let inside = cwd.strip_prefix(mount.destination()).map(Path::to_owned).unwrap_or_default();
    let has = |word: &str| mount.options().iter().flatten().any(|option| option == word);
    if inside.as_os_str().is_empty() || has("ro") || has("rro") {
        return WorkingDirectory::There;
    }
    let is_bind = mount.typ().as_deref() == Some("bind") || has("bind") || has("rbind");
    match mount.source() {
        Some(volume) if is_bind => WorkingDirectory::InVolume { volume: volume.clone(), inside },
        _ if !is_bind && mount.typ().as_deref() == Some("tmpfs") => {
            WorkingDirectory::InMemory(cwd.to_owned())
        }
        _ => WorkingDirectory::There,
    }
}

/// Adds to each node where it lies.
pub(super) fn outside_nodes(mounts: &[Mount], nodes: Vec<LinuxDevice>) -> Vec<OutsideNode> {
    let place = |node: LinuxDevice| OutsideNode { hidden: mount_at(mounts, node.path()).is_some(), node };
    nodes.into_iter().map(place).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn mounts() -> Vec<Mount> {
        let mount = |to: &str, kind: &str, options: Value| json!({"destination": to, "type": kind, "source": "/guest", "options": options});
        let all = json!([
            mount("/proc", "proc", json!([])),
            mount("/work", "bind", json!(["rbind", "rw"])),
            mount("/work/run", "tmpfs", json!(["nosuid"])),
            mount("/fixed", "bind", json!(["bind", "ro"])),
            mount("/run/deep", "bind", json!(["bind"])),
            mount("/run", "tmpfs", json!([]))
        ]);
        serde_json::from_value(all).unwrap()
    }

    #[test]
    fn a_working_directory_is_made_where_it_is_seen() {
        use WorkingDirectory::{InMemory, InVolume, OnRoot, There};
        let in_volume = |inside: &str| InVolume { volume: "/guest".into(), inside: inside.into() };
        for (cwd, expected) in [
            ("/", OnRoot("/".into())),
            ("/workshop", OnRoot("/workshop".into())),
            ("/work", There),
            ("/work/src/deep", in_volume("src/deep")),
            ("/work/run/app", InMemory("/work/run/app".into())),
            ("/fixed/src", There),
            ("/proc/self/fd/7", There),
            // What is mounted later hides what was there.
            ("/run/deep/x", InMemory("/run/deep/x".into())),
        ] {
            assert_eq!(working_directory(&mounts(), Path::new(cwd)), expected, "{cwd}");
        }
    }

    #[test]
    fn a_node_is_hidden_beneath_a_mount() {
        let node = |path: &str| {
            let mut node = LinuxDevice::default();
            node.set_path(path.into());
            node
        };
        let placed = outside_nodes(&mounts(), vec![node("/opt/disk"), node("/work/disk")]);
        assert_eq!(placed.iter().map(|placed| placed.hidden).collect::<Vec<_>>(), [false, true]);
    }
}
