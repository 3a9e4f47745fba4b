//! Growing a file system while it is mounted.
//!
//! The kernel does it: ext4 and XFS have an ioctl(2) for it, so that no tool has to be in the guest. The host has
//! made the device larger before.
#![expect(unsafe_code, reason = "the ioctls of file systems")]

use std::fs;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::{fstat, major, minor};
use nix::sys::statfs::{EXT4_SUPER_MAGIC, FsType, Statfs, XFS_SUPER_MAGIC, fstatfs};

use super::VolumeError;

/// Where the kernel tells the size of block devices by their numbers.
const BLOCK_DEVICES: &str = "/sys/dev/block";
/// The unit of those sizes (sysfs-block).
const SECTOR: u64 = 512;

/// `struct xfs_fsop_geom_v1` of xfs_fs.h.
#[repr(C)]
#[derive(Default)]
struct XfsGeometry {
    block_size: u32,
    _before: [u32; 6],
    inode_percent: u32,
    data_blocks: u64,
    _rest: [u64; 9],
}

/// `struct xfs_growfs_data` of xfs_fs.h.
#[repr(C)]
struct XfsGrow {
    blocks: u64,
    inode_percent: u32,
    _padding: u32,
}

mod ioctls {
    nix::ioctl_write_ptr!(ext4_resize, b'f', 16, u64);
    nix::ioctl_read!(xfs_geometry, b'X', 100, super::XfsGeometry);
    nix::ioctl_write_ptr!(xfs_grow, b'X', 110, super::XfsGrow);
}

/// Grows the volume that is mounted at `path` beneath `base` to `size` bytes, or, if that is 0, to the size of
/// its device. A volume that has this size already is fine. Blocks as long as it takes.
///
/// # Errors
///
/// [`VolumeError`].
pub fn grow(base: &Path, path: &Path, size: u64) -> Result<(), VolumeError> {
    let volume = super::open(base, path, OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY)?;
    let step =
        |step| move |errno: Errno| VolumeError::Step { path: path.to_owned(), step, source: errno.into() };
    let system = fstatfs(&volume).map_err(step("ask its file system"))?;
    let kind = system.filesystem_type();
    if kind != EXT4_SUPER_MAGIC && kind != XFS_SUPER_MAGIC {
        return Err(VolumeError::FileSystem { path: path.to_owned(), fstype: name(kind) });
    }
    let device = device_size(&volume, path)?;
    let size = if size == 0 { device } else { size };
    if size > device {
        return Err(VolumeError::DeviceTooSmall { path: path.to_owned(), size, device });
    }
    if kind == EXT4_SUPER_MAGIC {
        grow_ext4(&volume, &system, path, size)
    } else {
        grow_xfs(&volume, path, size)
    }
}

fn device_size(volume: &OwnedFd, path: &Path) -> Result<u64, VolumeError> {
    let number = fstat(volume)
        .map_err(|errno| VolumeError::Step {
            path: path.to_owned(),
            step: "look at it",
            source: errno.into(),
        })?
        .st_dev;
    let device = format!("{}:{}", major(number), minor(number));
    let missing = |source| VolumeError::NoDevice { path: path.to_owned(), device: device.clone(), source };
    let text = fs::read_to_string(Path::new(BLOCK_DEVICES).join(&device).join("size")).map_err(missing)?;
    let sectors: Result<u64, _> = text.trim().parse();
    let sectors = sectors.map_err(|error| missing(std::io::Error::other(error)))?;
    Ok(sectors.saturating_mul(SECTOR))
}

fn grow_ext4(volume: &OwnedFd, system: &Statfs, path: &Path, size: u64) -> Result<(), VolumeError> {
    // Its own structures are not among the blocks it tells. So it has more than that, never less.
    let block = u64::try_from(system.block_size()).unwrap_or_default();
    let seen = system.blocks().saturating_mul(block);
    if seen > size {
        return Err(VolumeError::Shrink { path: path.to_owned(), size, current: seen });
    }
    let blocks = size.checked_div(block).unwrap_or_default();
    // SAFETY: the argument is an integer that lives through the call; the kernel only reads it.
    let grown = unsafe { ioctls::ext4_resize(volume.as_raw_fd(), &raw const blocks) };
    grown.map(drop).map_err(|errno| VolumeError::Step {
        path: path.to_owned(),
        step: "grow the ext4 file system",
        source: errno.into(),
    })
}

fn grow_xfs(volume: &OwnedFd, path: &Path, size: u64) -> Result<(), VolumeError> {
    let step =
        |step| move |errno: Errno| VolumeError::Step { path: path.to_owned(), step, source: errno.into() };
    let mut geometry = XfsGeometry::default();
    // SAFETY: the argument has the layout and size that the ioctl's number says, and lives through the call.
    unsafe { ioctls::xfs_geometry(volume.as_raw_fd(), &raw mut geometry) }
        .map_err(step("ask the XFS file system"))?;
    let block = u64::from(geometry.block_size);
    let blocks = size.checked_div(block).unwrap_or_default();
    if geometry.data_blocks > blocks {
        let current = geometry.data_blocks.saturating_mul(block);
        return Err(VolumeError::Shrink { path: path.to_owned(), size, current });
    }
    if geometry.data_blocks == blocks {
        return Ok(());
    }
    let wanted = XfsGrow { blocks, inode_percent: geometry.inode_percent, _padding: 0 };
    // SAFETY: as above; the kernel only reads it.
    unsafe { ioctls::xfs_grow(volume.as_raw_fd(), &raw const wanted) }
        .map(drop)
        .map_err(step("grow the XFS file system"))
}

/// What a file system is called, if it is a usual one.
fn name(kind: FsType) -> String {
    use nix::sys::statfs as magic;
    let known = [
        (magic::TMPFS_MAGIC, "tmpfs"),
        (magic::OVERLAYFS_SUPER_MAGIC, "overlay"),
        (magic::BTRFS_SUPER_MAGIC, "btrfs"),
        (magic::FUSE_SUPER_MAGIC, "fuse"),
        (magic::HUGETLBFS_MAGIC, "hugetlbfs"),
    ];
    let found = known.into_iter().find(|(number, _)| *number == kind).map(|(_, name)| name.to_owned());
    found.unwrap_or_else(|| format!("{:#x}", kind.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_are_as_large_as_the_kernels() {
        assert_eq!(size_of::<XfsGeometry>(), 112);
        assert_eq!(size_of::<XfsGrow>(), 16);
    }

    #[test]
    fn a_file_system_that_cannot_grow_is_named() {
        assert_eq!(name(nix::sys::statfs::TMPFS_MAGIC), "tmpfs");
        assert_eq!(name(FsType(0x1234)), "0x1234");
        let error = grow(Path::new("/proc"), Path::new("/proc/self"), 1).unwrap_err().to_string();
        assert_eq!(error, "volume /proc/self: growing a file system of type 0x9fa0 is not implemented");
    }
}
