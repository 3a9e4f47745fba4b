//! `blk`, `scsi`, `mmioblk`, `nvdimm`: a filesystem on a block device. The four differ only in how the device
//! is found.
//!
//! Formatting and encryption need programs that this guest may not have; they are refused by name, because a
//! volume that is silently not encrypted is worse than none.

use std::path::Path;
use std::sync::Arc;

use nix::libc;

use super::super::ops::BlockLookup;
use super::{Driver, Places, StorageError, Work};
use crate::storage::StorageRequest;

#[derive(Debug)]
pub(super) struct Block {
    pub(super) name: &'static str,
}

#[async_trait::async_trait]
impl Driver for Block {
    async fn find_source(
        &self,
        request: &StorageRequest,
        lookup: &dyn BlockLookup,
    ) -> Result<String, StorageError> {
        refuse_unsupported(request)?;
        // A device that was there at boot is named by its node.
        if self.name == "blk" && request.source.starts_with("/dev/") {
            return Ok(request.source.clone());
        }
        let found = lookup.find_block(self.name, &request.source).await;
        let error = |cause| StorageError::Device { driver: self.name, device: request.source.clone(), cause };
        let node = found.map_err(error)?;
        node.into_os_string().into_string().map_err(|node| {
            error(Arc::new(std::io::Error::other(format!("its node {node:?} has no readable name"))))
        })
    }

    fn attach(&self, work: &mut Work<'_>, _places: &Places) -> Result<(), StorageError> {
        check_device(work)?;
        if work.request.fstype.is_empty() {
            return Err(work.request.refuse("fstype", "it is empty"));
        }
        let options = work.request.options_without(|_| false);
        work.mount(&work.request.fstype.clone(), &options)?;
        work.give_to_group()
    }
}

fn refuse_unsupported(request: &StorageRequest) -> Result<(), StorageError> {
    for option in &request.driver_options {
        let key = option.split_once('=').map_or(option.as_str(), |(key, _)| key);
        match key {
            "encryption_key" => return Err(request.unsupported("encryption (driver option encryption_key)")),
            "create_filesystem" => {
                return Err(request.unsupported("formatting (driver option create_filesystem)"));
            }
            _ => {}
        }
    }
    Ok(())
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
