//! `blk`, `scsi`, `mmioblk`, `nvdimm`: a filesystem on a block device, or, where the filesystem is called `bind`, its
//! node. The four differ only in how the device is found.
//!
//! The host may ask for the file system to be made first, and for it to be encrypted: an ext4 by the guest's own
//! [mkfs](super::super::format), or by the [confidential data hub](super::super::hub), which then mounts it, too. A
//! volume that is silently not encrypted is worse than none: what the hub has not mounted is no volume.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::{OFlag, open};
use nix::libc;
use nix::sys::stat::Mode;

use super::super::layers::PARTITION;
use super::super::ops::BlockLookup;
use super::super::request::BIND;
use super::super::verity::Verity;
use super::{Driver, Fill, Places, StorageError, Work};
use crate::storage::StorageRequest;

#[derive(Debug)]
pub(super) struct Block {
    pub(super) name: &'static str,
}

/// What is done to the disk before it is mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Preparation {
    Nothing,
    /// It gets a file system.
    Format,
    /// It gets an encrypted one, which is mounted with it.
    Encrypt,
}

#[async_trait::async_trait]
impl Driver for Block {
    fn fills_mount_point(&self, request: &StorageRequest) -> Option<Fill> {
        matches!(preparation(request), Ok(Preparation::Encrypt)).then_some(Fill::Mount)
    }

    async fn find_source(
        &self,
        request: &StorageRequest,
        lookup: &dyn BlockLookup,
    ) -> Result<String, StorageError> {
        let preparation = preparation(request)?;
        // A disk that was there at boot is named by its node, whatever the bus. Its driver may not be loaded yet.
        let by_node = self.name == "blk" && request.source.starts_with("/dev/");
        let kind = if by_node { "mmioblk" } else { self.name };
        let found = lookup.find_block(kind, &request.source).await;
        let error = |cause| StorageError::Device { driver: self.name, device: request.source.clone(), cause };
        let mut node = found.map_err(error)?;
        if let Some(number) = request.driver_options.iter().find_map(|option| partition_number(option)) {
            node = partition_of(&node, number);
            let found = lookup.find_block("mmioblk", &node.to_string_lossy()).await;
            node = found.map_err(error)?;
        }
        let mount_point = request.target();
        match preparation {
            Preparation::Nothing => {}
            Preparation::Format => {
                let made = lookup.make_ext4(&node).await;
                made.map_err(|cause| StorageError::Format { mount_point, cause })?;
            }
            Preparation::Encrypt => {
                let mounted = lookup.mount_encrypted(&node, &mount_point).await;
                mounted.map_err(|cause| StorageError::Encrypt { mount_point, cause })?;
            }
        }
        node.into_os_string().into_string().map_err(|node| {
            error(Arc::new(std::io::Error::other(format!("its node {node:?} has no readable name"))))
        })
    }

    fn attach(&self, work: &mut Work<'_>, _places: &Places) -> Result<(), StorageError> {
        if preparation(work.request)? == Preparation::Encrypt {
            return attach_encrypted(work);
        }
        check_device(work)?;
        if work.request.fstype.is_empty() {
            return Err(work.request.refuse("fstype", "it is empty"));
        }
        let options = work.request.options_without(is_the_hosts);
        if work.request.fstype == BIND {
            return attach_node(work, options);
        }
        let fstype = work.request.fstype.clone();
        match Verity::wanted(work.request)? {
            Some(verity) => {
                let node = work.verify(&verity)?;
                work.mount_node(&node.to_string_lossy(), &fstype, &options)?;
            }
            None => work.mount_node(work.source, &fstype, &options)?,
        }
        work.give_to_group()
    }
}

/// What the Go shim tells itself by among the options of a mount, and then leaves there.
fn is_the_hosts(option: &str) -> bool {
    ["io.katacontainers.fs-opt.block_device=file", "io.katacontainers.fs-opt.is-layer"].contains(&option)
}

/// A device that the host has mounted as a file: the container gets its node.
fn attach_node(work: &mut Work<'_>, mut options: Vec<String>) -> Result<(), StorageError> {
    if Verity::wanted(work.request)?.is_some() {
        return Err(work.request.unsupported("a checked device as a file"));
    }
    let at = StorageError::at("opening", work.source);
    let node = open(work.source, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).map_err(at)?;
    if !options.iter().any(|option| matches!(option.as_str(), "bind" | "rbind")) {
        options.insert(0, "bind".to_owned());
    }
    work.bind(&node, &options)?;
    work.give_to_group()
}

fn partition_number(option: &str) -> Option<&str> {
    option.strip_prefix(PARTITION)?.strip_prefix('=')
}

/// The node of a disk's partition: after a digit there is a letter between the two.
fn partition_of(disk: &Path, number: &str) -> PathBuf {
    let ends_with_digit = disk.as_os_str().as_encoded_bytes().last().is_some_and(u8::is_ascii_digit);
    let mut node = disk.as_os_str().to_owned();
    node.push(if ends_with_digit { "p" } else { "" });
    node.push(number);
    node.into()
}

/// What the driver options ask for. Nobody's data may be lost by it: so it is for whole ext4 disks only, and what is
/// asked for beside that is refused.
fn preparation(request: &StorageRequest) -> Result<Preparation, StorageError> {
    let refuse = |reason: &str| Err(request.refuse("driver_options", reason));
    let has = |wanted: &str| request.driver_options.iter().any(|option| option == wanted);
    let formats = has("create_filesystem");
    let key = request.driver_options.iter().find_map(|option| option.strip_prefix("encryption_key="));
    let wanted = match key {
        None if !formats => return Ok(Preparation::Nothing),
        None => Preparation::Format,
        Some(key) if key != "ephemeral" => return refuse("encryption_key: there is ephemeral only"),
        Some(_) if !formats => return refuse("encryption_key is without create_filesystem"),
        Some(_) => Preparation::Encrypt,
    };
    if request.fstype != "ext4" {
        return Err(request.refuse("fstype", format!("{:?} can't be made, only ext4", request.fstype)));
    }
    if Verity::wanted(request)?.is_some() {
        return refuse("create_filesystem is together with a hash");
    }
    Ok(wanted)
}

/// Takes over what the hub has mounted.
fn attach_encrypted(work: &mut Work<'_>) -> Result<(), StorageError> {
    if !work.adopt_mount()? {
        let cause = Arc::new(std::io::Error::other("the confidential data hub has mounted nothing"));
        return Err(StorageError::Encrypt { mount_point: work.request.target(), cause });
    }
    let options = work.request.options_without(|_| false);
    if !options.is_empty() {
        work.change_mount("ext4", options)?;
    }
    work.give_to_group()
}

fn check_device(work: &Work<'_>) -> Result<(), StorageError> {
    let climbs = || work.request.refuse("source", format!("{:?} is not a path in /dev", work.source));
    let path = crate::ids::GuestPath::try_from(work.source).map_err(|_| climbs())?;
    if !path.as_path().starts_with("/dev") {
        return Err(climbs());
    }
    let bits = work.ops.file_type(path.as_path());
    match kind(bits.map_err(StorageError::at("looking at", path.as_path()))?) {
        "block device" => Ok(()),
        found => Err(StorageError::NotBlockDevice { device: Path::new(work.source).to_owned(), found }),
    }
}

/// What a file is, from the type bits of its mode. The bits are a number, not flags.
fn kind(bits: libc::mode_t) -> &'static str {
    match bits {
        libc::S_IFBLK => "block device",
        libc::S_IFCHR => "character device",
        libc::S_IFDIR => "directory",
        libc::S_IFREG => "regular file",
        libc::S_IFIFO => "pipe",
        libc::S_IFSOCK => "socket",
        _ => "file of another kind",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_are_named_after_their_disk() {
        assert_eq!(partition_of(Path::new("/dev/vda"), "2"), Path::new("/dev/vda2"));
        assert_eq!(partition_of(Path::new("/dev/nvme0n1"), "12"), Path::new("/dev/nvme0n1p12"));
    }
}
