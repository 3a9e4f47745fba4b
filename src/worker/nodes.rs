//! Device nodes: outside of `/dev`, where libcontainer makes none and raw block volumes may be, and those in the
//! `/dev` of an init that is made without it.
//!
//! The image is somebody else's: nothing here follows a link out of the root, and what is there already stays as it is.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmod, fchmodat, fstat, fstatat, makedev, mknodat};
use nix::unistd::{Pid, fchownat};
use oci_spec::runtime::{LinuxDevice, LinuxDeviceType as Type};

use super::job::{Failure, FailureKind};
use crate::guest::beneath::Root;
use crate::spec::OutsideNode;

/// Makes those that are hidden by mounts, or those that are not, beneath `root`.
pub(super) fn make(root: &Path, nodes: &[OutsideNode], hidden: bool) -> Result<(), Failure> {
    for OutsideNode { node, .. } in nodes.iter().filter(|node| node.hidden == hidden) {
        let failed = |error: &dyn std::fmt::Display| Failure {
            kind: FailureKind::InvalidSpec,
            message: format!("make the node {}: {error}", node.path().display()),
        };
        make_one(root, node).map_err(|error| failed(&error))?;
    }
    Ok(())
}

/// libcontainer makes directories for devices such that everybody may write in them.
pub(super) fn close_directories(init: Pid, directories: &[PathBuf]) -> Result<(), Failure> {
    if directories.is_empty() {
        return Ok(());
    }
    let failed = |error: &dyn std::fmt::Display| {
        Failure::internal(format!("close the directories of devices to others: {error}"))
    };
    let root = PathBuf::from(format!("/proc/{init}/root"));
    let root = Root::open(&root).map_err(|error| failed(&error))?;
    for directory in directories {
        let path = directory.strip_prefix("/").unwrap_or(directory);
        let opened = root.open_path(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY, Mode::empty());
        let opened = opened.map_err(|error| failed(&error))?;
        if fstat(&opened).map_err(|errno| failed(&errno))?.st_mode & 0o7777 == 0o777 {
            fchmod(&opened, Mode::from_bits_truncate(0o755)).map_err(|errno| failed(&errno))?;
        }
    }
    Ok(())
}

fn make_one(root: &Path, node: &LinuxDevice) -> std::io::Result<()> {
    let path = node.path().strip_prefix("/").unwrap_or(node.path());
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(std::io::ErrorKind::InvalidInput.into());
    };
    let root = Root::open(root).map_err(std::io::Error::other)?;
    let parent = root.create_dir(parent, 0o755).map_err(std::io::Error::other)?;
    if !make_named(parent.as_fd(), name, node)? {
        return Ok(());
    }
    // The umask took a part of it.
    Ok(fchmodat(parent.as_fd(), name, mode(node), FchmodatFlags::NoFollowSymlink)?)
}

/// Makes a node of the container's own `/dev`; for a process without umask. What is there already is the
/// specification's: it has been mounted there.
pub(super) fn make_in_dev(dev: &Root, node: &LinuxDevice) -> std::io::Result<()> {
    let invalid = || std::io::Error::from(std::io::ErrorKind::InvalidInput);
    let path = node.path().strip_prefix("/dev").map_err(|_| invalid())?;
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Err(invalid()) };
    let made = if parent.as_os_str().is_empty() {
        make_named(dev.as_fd(), name, node)
    } else {
        let parent = dev.create_dir(parent, 0o755).map_err(std::io::Error::other)?;
        make_named(parent.as_fd(), name, node)
    };
    match made {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        made => made.map(drop),
    }
}

fn mode(node: &LinuxDevice) -> Mode {
    Mode::from_bits_truncate(node.file_mode().unwrap_or(0o666) & 0o7777)
}

/// Makes it, unless it is there already; tells whether it was not.
fn make_named(parent: BorrowedFd<'_>, name: &OsStr, node: &LinuxDevice) -> std::io::Result<bool> {
    let kind = match node.typ() {
        Type::B => SFlag::S_IFBLK,
        Type::P => SFlag::S_IFIFO,
        _ => SFlag::S_IFCHR,
    };
    let number = |number: i64| u64::try_from(number).unwrap_or_default();
    let device = match node.typ() {
        Type::P => 0,
        _ => makedev(number(node.major()), number(node.minor())),
    };
    match mknodat(parent, name, kind, mode(node), device) {
        Ok(()) => {}
        // Of an earlier container with the same root, perhaps.
        Err(Errno::EEXIST) => {
            let there = fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
            let is_it = SFlag::from_bits_truncate(there.st_mode & libc::S_IFMT) == kind
                && (node.typ() == Type::P || there.st_rdev == device);
            return if is_it { Ok(false) } else { Err(Errno::EEXIST.into()) };
        }
        Err(errno) => return Err(errno.into()),
    }
    let (uid, gid) = (node.uid().unwrap_or(0), node.gid().unwrap_or(0));
    if (uid, gid) != (0, 0) {
        fchownat(parent, name, Some(uid.into()), Some(gid.into()), AtFlags::AT_SYMLINK_NOFOLLOW)?;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};

    use super::*;

    fn node(path: &str, kind: Type, minor: i64) -> OutsideNode {
        let mut node = LinuxDevice::default();
        node.set_path(path.into()).set_typ(kind).set_major(1).set_minor(minor).set_file_mode(Some(0o640));
        OutsideNode { node, hidden: false }
    }

    /// A fifo, for which nobody needs rights; nodes are a black-box scenario's.
    #[test]
    fn a_node_is_made_once_and_what_is_there_is_left_alone() {
        let root = tempfile::tempdir().unwrap();
        let fifo = [node("/opt/deep/fifo", Type::P, 0)];
        make(root.path(), &fifo, true).unwrap();
        assert!(!root.path().join("opt").exists(), "the hidden ones only");
        make(root.path(), &fifo, false).unwrap();
        make(root.path(), &fifo, false).unwrap();
        let made = std::fs::symlink_metadata(root.path().join("opt/deep/fifo")).unwrap();
        assert!(made.file_type().is_fifo());
        assert_eq!(made.mode() & 0o7777, 0o640);
        symlink("/etc/passwd", root.path().join("opt/link")).unwrap();
        let error = make(root.path(), &[node("/opt/link", Type::B, 3)], false).unwrap_err();
        assert!(error.message.contains("/opt/link"), "{error}");
        symlink("/../../..", root.path().join("climb")).unwrap();
        make(root.path(), &[node("/climb/fifo", Type::P, 0)], false).unwrap();
        assert!(root.path().join("fifo").exists());
    }
}
