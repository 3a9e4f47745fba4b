//! What a container has of this host, so that whoever removes it can take it back.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::CriError;
use super::volumes::Lent;
use crate::disk::RootDisk;
use crate::nets::{Card, Function};
use crate::plug::{Machine, PlugError};
use crate::removal::RemovalError;
use crate::rootfs;

/// All of it; the default is nothing.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
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
    /// Network cards.
    pub cards: Vec<Card>,
    /// PCI functions: claimed, and plugged in for the most part.
    pub functions: Vec<Function>,
    /// The machine into which things are being plugged for it: there may be more than is noted.
    pub plugging: Option<Machine>,
    /// The layers of its image, which must stay as long as it does.
    pub layers: Vec<PathBuf>,
}

impl Holdings {
    /// Takes back what is on this host's filesystems. What is not there is no failure.
    ///
    /// # Errors
    ///
    /// Something of the root filesystem stays: nobody looks for it again.
    pub fn take_back(&self, id: &str) -> Result<(), RemovalError> {
        let Some(share) = &self.share else { return Ok(()) };
        drop(Lent::kept(share, id, self.limit.clone()));
        if self.root { rootfs::unshare(share, id) } else { Ok(()) }
    }

    /// What is on this host's filesystems has been taken back.
    pub fn forget_files(&mut self) {
        (self.share, self.root, self.limit) = (None, false, None);
        self.layers.clear();
    }

    /// Whether there is something in the machine, or may be.
    pub fn is_plugged(&self) -> bool {
        let nothing = self.disks.is_empty() && self.cards.is_empty() && self.functions.is_empty();
        !nothing || self.plugging.is_some()
    }

    /// Pulls cards, functions and disks, when the guest has let go of them. What is pulled is held no more: another may
    /// have its port.
    ///
    /// # Errors
    ///
    /// The first that can't be pulled; the others are pulled all the same.
    pub async fn unplug(&mut self, id: &str) -> Result<(), CriError> {
        let mut result = Ok(());
        let mut left = Vec::new();
        for card in std::mem::take(&mut self.cards) {
            if let Err(error) = card.unplug().await {
                let what = format!("network card {}", card.name);
                result = result.and(Err(CriError::Unplug { what, source: error.into() }));
                left.push(card);
            }
        }
        self.cards = left;
        let mut left = Vec::new();
        for function in std::mem::take(&mut self.functions) {
            if let Err(error) = function.unplug().await {
                let what = format!("PCI function {}", function.address);
                result = result.and(Err(CriError::Unplug { what, source: error.into() }));
                left.push(function);
            }
        }
        self.functions = left;
        let mut left = Vec::new();
        for disk in std::mem::take(&mut self.disks).into_iter().rev() {
            let pulled = disk.unplug().await;
            if pulled.is_err() {
                left.insert(0, disk);
            }
            result = result.and(pulled.map_err(CriError::from));
        }
        self.disks = left;
        if let Some(machine) = &self.plugging {
            let swept = machine.sweep(id).await;
            let failed =
                |source: PlugError| CriError::Unplug { what: "devices of the container".to_owned(), source };
            if swept.is_ok() {
                self.plugging = None;
            }
            result = result.and(swept.map_err(failed));
        }
        result
    }
}
