//! The side effects of attaching a storage, each behind a trait, so that everything above them is tested
//! without privileges; and what stands behind the traits in a real guest.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::libc;
use nix::sys::stat::stat;

use super::error::Cause;
use super::huge_pages;
use super::verity::{self, Verity};
use crate::guest::beneath::Root;
use crate::guest::modules::Modules;
use crate::guest::mount::{self, MountError, MountOptions};
use crate::guest::mountinfo::{self, MountInfo};

/// What is mounted and how.
#[derive(Debug)]
pub struct MountOrder<'a> {
    /// The source as the host named it, for messages.
    pub from: &'a str,
    /// The source for mount(2): the same, or a `/proc/self/fd/` link to what is open.
    pub link: &'a str,
    /// The filesystem's type, or `bind`.
    pub fstype: &'a str,
    /// Options as in fstab(5), one in each. Flags are told from data here.
    pub options: &'a [String],
}

/// Where it is mounted.
#[derive(Debug)]
pub struct Target<'a> {
    /// A name in an open directory: `/proc/self/fd/N/name`.
    pub link: &'a Path,
    /// The path as a person knows it, for messages.
    pub path: &'a Path,
}

/// What the drivers need of the kernel. All of it may block.
pub trait MountOps: Send + Sync {
    /// Makes sure that the kernel knows the filesystem, loading its module if it doesn't.
    fn load_filesystem(&self, fstype: &str) -> Result<(), Cause>;

    /// Whether the kernel says that the filesystem needs no block device (filesystems(5)).
    fn is_without_device(&self, fstype: &str) -> bool;

    /// Mounts (mount(2)), or, with the option `remount`, changes a mount. Errors name source and target.
    fn mount(&self, order: &MountOrder<'_>, target: &Target<'_>) -> Result<(), Cause>;

    /// Takes down the topmost mount at the target (umount2(2) with `UMOUNT_NOFOLLOW`). Fails if it is in use.
    /// Errors name the target.
    fn unmount(&self, target: &Target<'_>) -> Result<(), Cause>;

    /// Detaches what is mounted beneath `path`, but for what lies at or beneath one of `others`. Says whether there was
    /// anything.
    fn detach_beneath(&self, path: &Path, others: &[PathBuf]) -> bool;

    /// Whether something is mounted at `path`. A path that isn't there is no mount point.
    fn is_mount_point(&self, path: &Path) -> Result<bool, Cause>;

    /// A name for a device that checks a disk; nothing else is called so.
    fn new_verity_name(&self) -> Result<String, Cause>;

    /// Makes a device of that name that reads a disk and checks it. Returns its node.
    fn add_verity(&self, name: &str, disk: &str, verity: &Verity) -> Result<PathBuf, Cause>;

    /// Removes it, if it is there.
    fn remove_verity(&self, name: &str) -> Result<(), Cause>;

    /// Takes `count` huge pages of `size` KiB into the kernel's pool: all, or none.
    fn reserve_huge_pages(&self, size: u64, count: u64) -> Result<(), Cause>;

    /// Takes them out again.
    fn give_back_huge_pages(&self, size: u64, count: u64) -> Result<(), Cause>;

    /// The type bits of the mode of what `path` leads to (inode(7)).
    fn file_type(&self, path: &Path) -> Result<libc::mode_t, Errno> {
        stat(path).map(|stat| stat.st_mode & libc::S_IFMT)
    }
}

/// Finds what storages are made of: the block devices that the host plugs, the images that the guest pulls.
#[async_trait::async_trait]
pub trait BlockLookup: Send + Sync {
    /// The path of the device node in `/dev`, waited for if it is not there yet. `driver` is one of `blk`
    /// (the address is a PCI path), `scsi` (`ID:LUN`), `mmioblk` and `nvdimm` (a device path).
    async fn find_block(&self, driver: &'static str, address: &str) -> Result<PathBuf, Cause>;

    /// Has an image pulled and unpacked as `rootfs` in the directory `bundle`.
    async fn pull_image(&self, image: &str, bundle: &Path) -> Result<(), Cause>;

    /// Makes an ext4 on a disk, unless there is one.
    async fn make_ext4(&self, disk: &Path) -> Result<(), Cause>;

    /// Has an encrypted ext4 made on a disk, and mounted.
    async fn mount_encrypted(&self, disk: &Path, mount_point: &Path) -> Result<(), Cause>;

    /// Waits until a call above whose future was dropped has really ended at `mount_point`. May never return: bound it.
    async fn ended(&self, mount_point: &Path);
}

/// The guest's own kernel.
pub struct KernelMounts {
    modules: Arc<Modules>,
}

impl fmt::Debug for KernelMounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KernelMounts").finish_non_exhaustive()
    }
}

impl KernelMounts {
    /// Mounts, with filesystems from these modules.
    pub fn new(modules: Arc<Modules>) -> Self {
        Self { modules }
    }
}

fn cause(error: impl std::error::Error + Send + Sync + 'static) -> Cause {
    Arc::new(error)
}

impl MountOps for KernelMounts {
    fn load_filesystem(&self, fstype: &str) -> Result<(), Cause> {
        self.modules.load_filesystem(fstype).map_err(cause)
    }

    fn is_without_device(&self, fstype: &str) -> bool {
        let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
        known.lines().any(|line| line.strip_prefix("nodev\t") == Some(fstype))
    }

    fn mount(&self, order: &MountOrder<'_>, target: &Target<'_>) -> Result<(), Cause> {
        let options = MountOptions::parse(order.options).map_err(cause)?;
        let (Some(directory), Some(name)) = (target.link.parent(), target.link.file_name()) else {
            return Err(cause(Errno::EINVAL));
        };
        // Looked up in its directory for each call: after the first one, the mount itself is what has to be
        // changed.
        let directory = Root::open(directory).map_err(cause)?;
        let mounted = mount::mount_beneath(order.link, &directory, Path::new(name), order.fstype, &options);
        mounted.map_err(|mut error| {
            if let MountError::Mount { origin, target: shown, .. } = &mut error {
                order.from.clone_into(origin);
                target.path.clone_into(shown);
            }
            cause(error)
        })
    }

    fn unmount(&self, target: &Target<'_>) -> Result<(), Cause> {
        mount::unmount(target.link, false).map_err(|mut error| {
            if let MountError::Unmount { target: shown, .. } = &mut error {
                target.path.clone_into(shown);
            }
            cause(error)
        })
    }

    fn detach_beneath(&self, path: &Path, others: &[PathBuf]) -> bool {
        let mounts = mountinfo::mounts_beneath(path).unwrap_or_default();
        let is_left = |mount: &&MountInfo| {
            mount.mount_point != path && !others.iter().any(|other| mount.mount_point.starts_with(other))
        };
        let detached =
            mounts.iter().filter(is_left).filter(|mount| mount::detach(&mount.mount_point).is_ok());
        detached.count() > 0
    }

    fn new_verity_name(&self) -> Result<String, Cause> {
        verity::new_name().map_err(cause)
    }

    fn add_verity(&self, name: &str, disk: &str, verity: &Verity) -> Result<PathBuf, Cause> {
        for module in ["dm_mod", "dm_verity"] {
            // Both may be built in; else the device mapper says what is missing.
            let _ = self.modules.load(module, &[]);
        }
        let table = verity.table(disk).map_err(cause)?;
        verity::create(name, &table).map_err(cause)
    }

    fn remove_verity(&self, name: &str) -> Result<(), Cause> {
        verity::remove(name).map_err(cause)
    }

    fn reserve_huge_pages(&self, size: u64, count: u64) -> Result<(), Cause> {
        huge_pages::reserve(size, count).map_err(cause)
    }

    fn give_back_huge_pages(&self, size: u64, count: u64) -> Result<(), Cause> {
        huge_pages::give_back(size, count).map_err(cause)
    }

    fn is_mount_point(&self, path: &Path) -> Result<bool, Cause> {
        mountinfo::is_mount_point(path).map_err(cause)
    }
}
