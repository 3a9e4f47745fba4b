//! The devices that hold the guest's own system: what no container may open.
//!
//! The root may be a disk or a partition, a device-mapper target or an array above some, or a filesystem without a
//! device of its own (overlay, btrfs) above some. Whoever may write any of them writes the system. sysfs(5) tells
//! what a block device is made of (`slaves`), and which character devices lead to the same disk.

use std::collections::BTreeSet;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, minor};
use nix::sys::statfs::{FsType, TMPFS_MAGIC, statfs};

use crate::guest::mountinfo::{self, MountInfo};
use crate::spec::DeviceNumber;

/// An initramfs (statfs(2)).
const RAMFS_MAGIC: FsType = FsType(0x8584_58f6);

/// How many filesystems or devices above each other are followed.
const MAX_DEPTH: usize = 8;

/// What the root filesystem is on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct SystemDevices {
    /// Disks, partitions, targets.
    pub(super) blocks: Vec<DeviceNumber>,
    /// Other ways to the same disks.
    pub(super) chars: Vec<DeviceNumber>,
}

/// Looks at this guest; blocks for a few reads of sysfs. An initramfs is on no device.
pub(super) fn find() -> SystemDevices {
    if statfs("/").is_ok_and(|root| [TMPFS_MAGIC, RAMFS_MAGIC].contains(&root.filesystem_type())) {
        return SystemDevices::default();
    }
    let Ok(root) = std::fs::metadata("/") else { return SystemDevices::default() };
    let mut found = Found { sys: Path::new("/sys"), blocks: BTreeSet::new(), chars: BTreeSet::new() };
    match device(root.dev()) {
        Some(device) => found.block(device, MAX_DEPTH),
        None => {
            let mounts = mountinfo::read().unwrap_or_default();
            if let Some(root) = mounts.iter().rev().find(|mount| mount.mount_point == Path::new("/")) {
                found.mount(root, &mounts, MAX_DEPTH);
            }
        }
    }
    found.all()
}

/// A number as `(major, minor)`, which has an order.
type Number = (u64, u64);

struct Found<'a> {
    sys: &'a Path,
    blocks: BTreeSet<Number>,
    chars: BTreeSet<Number>,
}

impl Found<'_> {
    fn all(self) -> SystemDevices {
        let numbers = |all: BTreeSet<Number>| {
            all.into_iter().map(|(major, minor)| DeviceNumber { major, minor }).collect()
        };
        SystemDevices { blocks: numbers(self.blocks), chars: numbers(self.chars) }
    }

    /// What the filesystem is on that is mounted so.
    fn mount(&mut self, mount: &MountInfo, mounts: &[MountInfo], depth: usize) {
        let Some(depth) = depth.checked_sub(1) else { return };
        if mount.major != 0 {
            return self.block((mount.major.into(), mount.minor.into()), depth);
        }
        for layer in layers(mount) {
            let beneath = |other: &&MountInfo| other.id != mount.id && layer.starts_with(&other.mount_point);
            let deepest = |other: &&MountInfo| other.mount_point.as_os_str().len();
            if let Some(other) = mounts.iter().filter(beneath).max_by_key(deepest) {
                self.mount(other, mounts, depth);
            }
        }
        // btrfs and the like name one of their devices.
        let source = Path::new(&mount.source);
        if let Ok(metadata) = std::fs::metadata(source)
            && source.is_absolute()
            && metadata.file_type().is_block_device()
            && let Some(device) = device(metadata.rdev())
        {
            self.block(device, depth);
        }
    }

    /// The device, and all that it is made of.
    fn block(&mut self, device: Number, depth: usize) {
        let Some(depth) = depth.checked_sub(1) else { return };
        if !self.blocks.insert(device) {
            return;
        }
        let directory = self.sys.join(format!("dev/block/{}:{}", device.0, device.1));
        for slave in entries(&directory.join("slaves")) {
            if let Some(slave) = number(&slave) {
                self.block(slave, depth);
            }
        }
        // A partition's directory lies in its disk's.
        if directory.join("partition").exists()
            && let Some(disk) = number(&directory.join(".."))
        {
            self.block(disk, depth);
        }
        self.other_ways(&directory.join("device"));
    }

    /// SCSI's generic devices, and those of NVMe's controllers and namespaces.
    fn other_ways(&mut self, disk: &Path) {
        let generic = ["scsi_generic", "bsg"].iter().flat_map(|class| entries(&disk.join(class)));
        let is_nvme =
            |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("ng"));
        let nvme = entries(disk).into_iter().filter(is_nvme).chain([disk.to_owned()]);
        self.chars.extend(generic.chain(nvme).filter_map(|way| number(&way)));
    }
}

/// The directories that an overlay lays on each other.
fn layers(mount: &MountInfo) -> Vec<PathBuf> {
    if mount.fstype != "overlay" {
        return Vec::new();
    }
    let value = |option: &str| {
        let (name, value) = option.split_once('=')?;
        ["lowerdir", "lowerdir+", "datadir+", "upperdir"].contains(&name).then(|| value.to_owned())
    };
    let all: Vec<String> = mount.super_options.split(',').filter_map(value).collect();
    let parts = all.iter().flat_map(|value| value.split(':')).filter(|part| part.starts_with('/'));
    parts.map(PathBuf::from).collect()
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// What the `dev` file of a directory of sysfs says.
fn number(directory: &Path) -> Option<Number> {
    let text = std::fs::read_to_string(directory.join("dev")).ok()?;
    let (major, minor) = text.trim().split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// The number of a device, unless it is that of a filesystem without one.
fn device(number: u64) -> Option<Number> {
    Some((major(number), minor(number))).filter(|(major, _)| *major != 0)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    /// A target above a partition of a SCSI disk, and an NVMe disk beside them.
    fn sysfs(root: &Path) {
        let dev = |directory: &str, number: &str| {
            let directory = root.join(directory);
            fs::create_dir_all(&directory).unwrap();
            fs::write(directory.join("dev"), number).unwrap();
        };
        fs::create_dir_all(root.join("dev/block")).unwrap();
        for (directory, number) in [
            ("devices/host0/block/sda", "8:0"),
            ("devices/host0/block/sda/sda2", "8:2"),
            ("devices/host0/block/sda/sda3", "8:3"),
            ("devices/virtual/block/dm-0", "253:0"),
            ("devices/nvme0/nvme0n1", "259:1"),
        ] {
            dev(directory, &format!("{number}\n"));
            symlink(root.join(directory), root.join("dev/block").join(number)).unwrap();
        }
        fs::write(root.join("devices/host0/block/sda/sda2/partition"), "2\n").unwrap();
        fs::write(root.join("devices/host0/block/sda/sda3/partition"), "3\n").unwrap();
        dev("devices/host0/scsi_generic/sg0", "21:0\n");
        dev("devices/host0/bsg/0:0:0:0", "246:0\n");
        symlink(root.join("devices/host0"), root.join("devices/host0/block/sda/device")).unwrap();
        fs::create_dir_all(root.join("devices/virtual/block/dm-0/slaves")).unwrap();
        symlink(
            root.join("devices/host0/block/sda/sda2"),
            root.join("devices/virtual/block/dm-0/slaves/sda2"),
        )
        .unwrap();
        dev("devices/nvme0", "241:0\n");
        dev("devices/nvme0/ng0n1", "240:0\n");
        symlink(root.join("devices/nvme0"), root.join("devices/nvme0/nvme0n1/device")).unwrap();
    }

    fn pairs(numbers: &[DeviceNumber]) -> Vec<Number> {
        numbers.iter().map(|number| (number.major, number.minor)).collect()
    }

    fn found(look: impl FnOnce(&mut Found<'_>)) -> (Vec<Number>, Vec<Number>) {
        let sys = tempfile::tempdir().unwrap();
        sysfs(sys.path());
        let mut found = Found { sys: sys.path(), blocks: BTreeSet::new(), chars: BTreeSet::new() };
        look(&mut found);
        let SystemDevices { blocks, chars } = found.all();
        (pairs(&blocks), pairs(&chars))
    }

    #[test]
    fn a_target_is_followed_to_the_disk_and_the_ways_to_it() {
        let target = found(|found| found.block((253, 0), MAX_DEPTH));
        assert_eq!(target, (vec![(8, 0), (8, 2), (253, 0)], vec![(21, 0), (246, 0)]));
        let nvme = found(|found| found.block((259, 1), MAX_DEPTH));
        assert_eq!(nvme, (vec![(259, 1)], vec![(240, 0), (241, 0)]));
        assert_eq!(found(|found| found.block((7, 7), MAX_DEPTH)), (vec![(7, 7)], vec![]));
    }

    #[test]
    fn a_filesystem_without_a_device_is_followed_to_those_below_it() {
        let table = b"20 1 8:2 / /media/ro ro - ext4 /dev/sda2 ro\n\
            21 1 0:40 / /media/rw rw - tmpfs tmpfs rw\n\
            22 1 0:41 / / rw - overlay overlay rw,lowerdir=/media/ro/system:/media/ro,upperdir=/media/rw/up\n";
        let mounts = mountinfo::parse(table);
        let root = mounts.last().unwrap();
        let overlay = found(|found| found.mount(root, &mounts, MAX_DEPTH));
        assert_eq!(overlay, (vec![(8, 0), (8, 2)], vec![(21, 0), (246, 0)]));
        // One whose layers are hidden by itself ends.
        let hidden = mountinfo::parse(b"22 1 0:41 / / rw - overlay overlay rw,lowerdir=/a,upperdir=/b\n");
        assert_eq!(found(|found| found.mount(&hidden[0], &hidden, MAX_DEPTH)), (vec![], vec![]));
    }
}
