//! What a container has of this host, so that whoever removes it can take it back.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::CriError;
use super::volumes::Lent;
use crate::disk::RootDisk;
use crate::rootfs;

/// All of it; the default is nothing.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct Holdings {
    /// The directory in which, beneath its name, lies what is lent to it.
    pub share: Option<PathBuf>,
    /// Its root filesystem lies there too.
    pub root: bool,
    /// What it writes to, where the size of that is limited.
    pub limit: Option<PathBuf>,
    /// Disks of its own, the first one plugged first.
    pub disks: Vec<RootDisk>,
    /// The layers of its image, which must stay as long as it does.
    pub layers: Vec<PathBuf>,
}

impl Holdings {
    /// Takes back what is on this host's filesystems. What is not there is no failure.
    pub fn take_back(&self, id: &str) {
        let Some(share) = &self.share else { return };
        drop(Lent::kept(share, id, self.limit.clone()));
        if self.root {
            rootfs::unshare(share, id);
        }
    }

    /// Pulls the disks, when the guest has let go of them. What is pulled is held no more: another may have its port.
    ///
    /// # Errors
    ///
    /// The first that can't be pulled; the others are pulled all the same.
    pub async fn unplug(&mut self) -> Result<(), CriError> {
        let (mut result, mut left) = (Ok(()), Vec::new());
        for disk in std::mem::take(&mut self.disks).into_iter().rev() {
            let pulled = disk.unplug().await;
            if pulled.is_err() {
                left.insert(0, disk);
            }
            result = result.and(pulled);
        }
        self.disks = left;
        Ok(result?)
    }
}
