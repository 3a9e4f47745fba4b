//! Mounts by descriptors (open_tree(2), mount_setattr(2), move_mount(2)) and not by paths: a bind mount has all its
//! restrictions before anybody can see it, and both it and its detachment meet what is held open, whatever name that
//! has by then.

#![expect(unsafe_code, reason = "nix has none of these calls")]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::Path;

use nix::NixPath as _;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, umount2};

use crate::tree::{Place, by_descriptor};

/// Of move_mount(2); not among libc's constants.
const T_EMPTY_PATH: u32 = 0x40;

/// A mount of `source` that is nowhere yet, with the mounts below it if it is to be `recursive`.
pub(crate) fn copy_of(source: &Path, recursive: bool) -> io::Result<OwnedFd> {
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | depth(recursive).cast_unsigned();
    let call = |path: &CStr| {
        // SAFETY: `path` is a NUL-terminated string that outlives the call.
        unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) }
    };
    let fd = Errno::result(source.with_nix_path(call)?)?;
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the call has just opened it, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Forbids writing through a mount.
pub(crate) fn make_readonly(mount: impl AsFd) -> io::Result<()> {
    set(mount, libc::MOUNT_ATTR_RDONLY, MsFlags::empty(), false)
}

/// Gives a mount another propagation type, and those below it too if `recursive`.
pub(crate) fn propagate(mount: impl AsFd, kind: MsFlags, recursive: bool) -> io::Result<()> {
    set(mount, 0, kind, recursive)
}

fn set(mount: impl AsFd, attributes: u64, propagation: MsFlags, recursive: bool) -> io::Result<()> {
    let attributes =
        libc::mount_attr { attr_set: attributes, attr_clr: 0, propagation: propagation.bits(), userns_fd: 0 };
    let (fd, flags) = (mount.as_fd().as_raw_fd(), libc::AT_EMPTY_PATH | depth(recursive));
    let (pointer, size) = (&raw const attributes, size_of::<libc::mount_attr>());
    // SAFETY: the path is a NUL-terminated string, and the structure of that size outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_mount_setattr, fd, c"".as_ptr(), flags, pointer, size) };
    Ok(Errno::result(result).map(drop)?)
}

/// Mounts what [`copy_of`] gave on what `target` is open for.
pub(crate) fn attach(mount: impl AsFd, target: impl AsFd) -> io::Result<()> {
    let (from, to) = (mount.as_fd().as_raw_fd(), target.as_fd().as_raw_fd());
    let (empty, flags) = (c"".as_ptr(), libc::MOVE_MOUNT_F_EMPTY_PATH | T_EMPTY_PATH);
    // SAFETY: both paths are NUL-terminated strings.
    let result = unsafe { libc::syscall(libc::SYS_move_mount, from, empty, to, empty, flags) };
    Ok(Errno::result(result).map(drop)?)
}

/// Detaches what is mounted at a place, also while the guest has files open there. Nothing is no failure.
pub(crate) fn detach(place: &Place) -> io::Result<()> {
    let top = place.open()?;
    // Else the mounts below it would be detached from their originals too (mount_namespaces(7)). It is refused for what
    // is no mount, and to those who may not mount.
    if propagate(&top, MsFlags::MS_PRIVATE, true).is_err() {
        return Ok(());
    }
    Ok(umount2(&by_descriptor(&top), MntFlags::MNT_DETACH)?)
}

fn depth(recursive: bool) -> i32 {
    if recursive { libc::AT_RECURSIVE } else { 0 }
}
