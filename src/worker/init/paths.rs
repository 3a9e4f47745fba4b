//! Paths that a container may not write to, and paths that it may not see.
//!
//! A path is opened once, beneath the root, and from then on is a descriptor: where a link of the image leads is
//! covered itself, and nobody can put something else there in between. What is not there needs no cover.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, SFlag, fstat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

use super::super::job::Failure;
use super::super::sys;
use super::dev;
use crate::guest::beneath::{BeneathError, Root};

/// Makes what is at each of `paths` read-only, and leaves everything else of its mount as it is, as runc does.
pub(super) fn make_read_only(root: &Root, paths: &[String]) -> Result<(), Failure> {
    for path in paths {
        let failed =
            |cause: &dyn std::fmt::Display| Failure::internal(format!("make {path} read-only: {cause}"));
        let Some(place) = find(root, path).map_err(|error| failed(&error))? else { continue };
        let copy = copy(place.as_fd(), true).map_err(|errno| failed(&errno))?;
        sys::set_mount_attributes(&copy, libc::MOUNT_ATTR_RDONLY, 0, false)
            .map_err(|errno| failed(&errno.desc()))?;
        put(&copy, &place).map_err(|errno| failed(&errno))?;
    }
    Ok(())
}

/// Covers what is at each of `paths`: a directory by an empty one, anything else by the null device of `dev`.
pub(super) fn mask(root: &Root, dev: &Root, paths: &[String]) -> Result<(), Failure> {
    if paths.is_empty() {
        return Ok(());
    }
    let null = dev::null(dev)?;
    let mut empty = None;
    for path in paths {
        let failed = |cause: &dyn std::fmt::Display| Failure::internal(format!("mask {path}: {cause}"));
        let Some(place) = find(root, path).map_err(|error| failed(&error))? else { continue };
        let kind = fstat(&place).map_err(|errno| failed(&errno.desc()))?.st_mode;
        let is_directory = SFlag::from_bits_truncate(kind) & SFlag::S_IFMT == SFlag::S_IFDIR;
        match (is_directory, &empty) {
            (false, _) => put_copy(null.as_fd(), &place),
            // One for all: what is mounted can be copied.
            (true, Some(mounted)) => put_copy(AsFd::as_fd(mounted), &place),
            (true, None) => empty_directory().and_then(|directory| {
                put(&directory, &place)?;
                empty = Some(directory);
                Ok(())
            }),
        }
        .map_err(|errno| failed(&errno))?;
    }
    Ok(())
}

/// What is at `path` in the container, links included; nothing if there is nothing.
fn find(root: &Root, path: &str) -> Result<Option<OwnedFd>, BeneathError> {
    match root.open_path(Path::new(path), OFlag::O_PATH, Mode::empty()) {
        Ok(place) => Ok(Some(place)),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// An empty memory filesystem that nobody can write to, mounted nowhere yet.
fn empty_directory() -> rustix::io::Result<OwnedFd> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(context.as_fd(), "source", "tmpfs")?;
    fsconfig_set_flag(context.as_fd(), "ro")?;
    fsconfig_create(context.as_fd())?;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_RDONLY)
}

/// A mount of what `what` stands on, mounted nowhere yet.
fn copy(what: BorrowedFd<'_>, recursive: bool) -> rustix::io::Result<OwnedFd> {
    let mut flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(what, "", flags)
}

fn put(mount: &OwnedFd, place: &OwnedFd) -> rustix::io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, "", place, "", flags)
}

/// Shows at `place` what `what` stands on.
pub(super) fn put_copy(what: BorrowedFd<'_>, place: &OwnedFd) -> rustix::io::Result<()> {
    put(&copy(what, false)?, place)
}
