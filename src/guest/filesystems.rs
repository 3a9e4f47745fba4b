//! How full the guest's filesystems are, for its metrics.

use nix::sys::statvfs::statvfs;

use super::mountinfo::{self, MountInfo};
use crate::observe::metrics::Filesystem;

/// Those that keep data. The others have no size, or are memory, which is told elsewhere.
const TYPES: [&str; 5] = ["ext4", "xfs", "btrfs", "vfat", "overlay"];

/// The filesystems that can be written to, each once, where it was mounted first. Blocks, for as long as their devices
/// do.
pub fn writable() -> Vec<Filesystem> {
    let mut mounts = mountinfo::read().unwrap_or_default();
    mounts.retain(is_told);
    let mut seen = Vec::new();
    mounts.retain(|mount| {
        let number = (mount.major, mount.minor);
        let is_new = !seen.contains(&number);
        seen.push(number);
        is_new
    });
    mounts.iter().filter_map(look).collect()
}

fn is_told(mount: &MountInfo) -> bool {
    let is_writable = |options: &str| options.split(',').all(|option| option != "ro");
    TYPES.contains(&mount.fstype.as_str()) && is_writable(&mount.options) && is_writable(&mount.super_options)
}

fn look(mount: &MountInfo) -> Option<Filesystem> {
    let stat = statvfs(&mount.mount_point).ok()?;
    let bytes = |blocks: u64| blocks.saturating_mul(stat.fragment_size());
    let used = stat.blocks().saturating_sub(stat.blocks_free());
    Some(Filesystem {
        mount: mount.mount_point.to_string_lossy().into_owned(),
        device: mount.source.clone(),
        bytes: [bytes(stat.blocks()), bytes(used), bytes(stat.blocks_available())],
        inodes: [stat.files(), stat.files().saturating_sub(stat.files_free()), stat.files_available()],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_keeps_data_and_takes_more_is_told() {
        let told: Vec<_> = mountinfo::parse(
            b"1 0 8:1 / / rw - ext4 /dev/vda rw\n2 1 8:2 / /ro ro - ext4 /dev/vdb rw\n\
              3 1 8:3 / /sb rw - xfs /dev/vdc ro\n4 1 0:5 / /tmp rw - tmpfs tmpfs rw\n\
              5 1 0:6 / /merged rw,noatime - overlay overlay rw,lowerdir=/ro\n",
        )
        .into_iter()
        .filter(is_told)
        .map(|mount| mount.mount_point)
        .collect();
        assert_eq!(told, ["/", "/merged"].map(std::path::PathBuf::from));
    }

    #[test]
    fn what_is_full_is_no_more_than_what_there_is() {
        for filesystem in writable() {
            let [total, used, available] = filesystem.bytes;
            assert!(used <= total && available <= total, "{filesystem:?}");
        }
    }
}
