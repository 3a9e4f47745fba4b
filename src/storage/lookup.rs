//! Where the sources of storages come from: block devices are found as devices are, images and encrypted volumes come
//! from the hub, file systems from the guest's own mkfs.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::libc;
use nix::sys::stat::stat;

use super::error::Cause;
use super::format::{self, FormatError};
use super::hub::Hub;
use super::ops::BlockLookup;
use crate::device::{Address, Devices};
use crate::guest::bulkhead::Bulkhead;
use crate::supervisor::client::Launcher;

/// The guest's devices, its hub and its tools.
#[derive(Debug)]
pub struct Lookup {
    /// The devices.
    pub devices: Devices,
    /// The hub.
    pub hub: Hub,
    /// Runs tools.
    pub launcher: Launcher,
    /// Turns to look at a disk.
    pub bulkhead: Bulkhead,
}

fn cause(error: impl std::error::Error + Send + Sync + 'static) -> Cause {
    Arc::new(error)
}

/// Refuses to write to what is no disk.
fn check_disk(disk: &Path) -> Result<(), Cause> {
    let failed = |errno: Errno| cause(FormatError::Read { disk: disk.to_owned(), source: errno.into() });
    match stat(disk).map_err(failed)?.st_mode & libc::S_IFMT {
        libc::S_IFBLK => Ok(()),
        _ => Err(failed(Errno::ENOTBLK)),
    }
}

#[async_trait::async_trait]
impl BlockLookup for Lookup {
    async fn find_block(&self, driver: &'static str, address: &str) -> Result<PathBuf, Cause> {
        let address = Address::parse(driver, address).map_err(cause)?;
        self.devices.find_block(&address).await.map_err(cause)
    }

    async fn pull_image(&self, image: &str, bundle: &Path) -> Result<(), Cause> {
        self.hub.pull(image, bundle).await.map_err(cause)
    }

    async fn make_ext4(&self, disk: &Path) -> Result<(), Cause> {
        check_disk(disk)?;
        format::ext4(&self.launcher, &self.bulkhead, disk).await.map_err(cause)
    }

    async fn mount_encrypted(&self, disk: &Path, mount_point: &Path) -> Result<(), Cause> {
        check_disk(disk)?;
        self.hub.mount_encrypted(disk, mount_point).await.map_err(cause)
    }

    async fn ended(&self, mount_point: &Path) {
        self.hub.ended(mount_point).await;
    }
}
