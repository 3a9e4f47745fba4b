//! The container's root: its mounts, and the way into it.
//!
//! All happens in the mount namespace that init was born in, a copy of the guest's that has no way back. The root is
//! bound on itself, everything mounted in it through descriptors, and the guest's mounts are left and dropped. Nothing is
//! ever looked up by a path that could lead out of the root.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::mount::{MntFlags, umount2};
use nix::unistd::{chdir, fchdir, pivot_root};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use super::super::child::failed;
use super::super::job::{CreateJob, Failure};
use super::super::{cgroups, mounts, sys};
use crate::guest::beneath::Root;
use crate::spec::WorkingDirectory;

/// Binds the root and makes all mounts of `job` in it. `cgroup` is the container's on v2.
pub(super) fn make(job: &CreateJob, cgroup: Option<&Path>) -> Result<Root, Failure> {
    let wanted = job.mounts.as_ref().ok_or_else(|| Failure::internal("a container without mounts"))?;
    let tied = mounts::copy_tied(wanted)?;
    mounts::keep_from_guest(wanted.private)?;
    let root = bind(&job.rootfs).map_err(|errno| {
        Failure::internal(format!("bind the root filesystem {}: {errno}", job.rootfs.display()))
    })?;
    let root = Root::of(root, &job.rootfs);
    mounts::make_in(&root, wanted, cgroup, tied)?;
    if let Some((trees, Some(mount))) = &job.cgroups {
        cgroups::show_trees(&root, trees, mount)?;
    }
    Ok(root)
}

/// A mount of its own: what is to become the root has to be one.
fn bind(rootfs: &Path) -> rustix::io::Result<OwnedFd> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let tree = open_tree(rustix::fs::CWD, rootfs, flags)?;
    move_mount(&tree, "", rustix::fs::CWD, rootfs, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    Ok(tree)
}

/// Makes it the root of this process and of its mount namespace.
pub(super) fn enter(root: &Root) -> Result<(), Failure> {
    // The old root comes to lie on the new one, and goes from there (pivot_root(2)). None of its mounts has a peer in the
    // guest any more, so that nothing is unmounted there.
    fchdir(root.as_fd())
        .and_then(|()| pivot_root(".", "."))
        .and_then(|()| umount2(".", MntFlags::MNT_DETACH))
        .and_then(|()| chdir("/"))
        .map_err(|errno| failed("enter the root filesystem", errno))
}

/// Makes the working directory if it is missing, as every OCI runtime does. Where that can't be, entering it will say so:
/// it may lie where only a process of the container finds a way.
pub(super) fn make_working_directory(root: &Root, job: &CreateJob) {
    if let WorkingDirectory::Seen(path) = &job.working_directory {
        let _ = root.create_dir(path, 0o755);
    }
}

pub(super) fn make_read_only(root: &Root) -> Result<(), Failure> {
    sys::set_mount_attributes(root, libc::MOUNT_ATTR_RDONLY, 0, false)
        .map_err(|errno| failed("make the root filesystem read-only", errno))
}
