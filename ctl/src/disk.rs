//! A container's disk of the machine: plugged in behind a PCI root port, named to the agent as a storage, and pulled out
//! again.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nakai_protocols::agent::{Device, Storage};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::plug::{Machine, PlugError, Pluggable, Plugged, Port};
use crate::qmp::{Qmp, QmpError};

/// Why there is no disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// It can't be plugged in.
    #[error("disk {file}: {source}", file = .file.display())]
    Plug {
        /// The image.
        file: PathBuf,
        /// Why.
        source: PlugError,
    },
    /// QEMU does not give it back.
    #[error("disk {file}: {source}", file = .file.display())]
    Qmp {
        /// The image.
        file: PathBuf,
        /// What QEMU says.
        source: QmpError,
    },
    /// The image of a disk that is pulled can't be removed.
    #[error("disk {file}: {source}", file = .file.display())]
    Remove {
        /// The image.
        file: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

/// Whose an image is, and what the guest may do with it.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// The container's own, to write to; it goes with the disk.
    #[default]
    Own,
    /// The container's own, to read; it goes with the disk.
    OwnReadOnly,
    /// Another may have it plugged in too: it is only read, and stays.
    Shared,
    /// It is a device of this host's, to write to, and stays.
    Device,
}

impl Access {
    /// It is not this client's to remove.
    fn stays(self) -> bool {
        matches!(self, Self::Shared | Self::Device)
    }

    fn is_read_only(self) -> bool {
        matches!(self, Self::Shared | Self::OwnReadOnly)
    }
}

/// A plugged disk. It is not a guard: who has plugged it may end before it is pulled, and writes this down.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct RootDisk {
    file: PathBuf,
    qmp: PathBuf,
    device: String,
    /// Where the agent finds it.
    pci_path: String,
    #[serde(default)]
    access: Access,
    #[serde(default)]
    mount_point: String,
    /// Where the container has it as a device; none if it is a filesystem.
    #[serde(default)]
    container_path: Option<String>,
    #[serde(default)]
    fstype: String,
    #[serde(default)]
    options: Vec<String>,
}

impl RootDisk {
    /// Plugs the image `file` into the machine for container `id`, at the first port that is free.
    ///
    /// # Errors
    ///
    /// See [`DiskError`]. An image of the container's own is removed then.
    pub async fn plug(machine: &Machine, id: &str, file: PathBuf, access: Access) -> Result<Self, DiskError> {
        let plugged = machine.plug("root", id, Image { file: &file, read_only: access.is_read_only() });
        let plugged = plugged.await.map_err(|source| DiskError::Plug { file: file.clone(), source });
        if plugged.is_err() && !access.stays() {
            let _ = fs::remove_file(&file);
        }
        let Plugged { device, pci_path } = plugged?;
        Ok(Self { file, qmp: machine.qmp.clone(), device, pci_path, access, ..Self::default() })
    }

    /// With what the agent is to do with it: mount it there, or make it a part of what is mounted there.
    #[must_use]
    pub fn mounted(self, mount_point: &str, fstype: &str, options: &[&str]) -> Self {
        let options = options.iter().map(|&option| option.to_owned()).collect();
        Self { mount_point: mount_point.to_owned(), fstype: fstype.to_owned(), options, ..self }
    }

    /// As a device that the container has there.
    #[must_use]
    pub fn at(self, container_path: &str) -> Self {
        Self { container_path: Some(container_path.to_owned()), ..self }
    }

    /// The device for the agent, if it is one.
    pub fn wire_device(&self) -> Option<Device> {
        Some(Device {
            type_: "blk".to_owned(),
            id: self.pci_path.clone(),
            container_path: self.container_path.clone()?,
            ..Default::default()
        })
    }

    /// The storage for the agent, unless it is a device.
    pub fn storage(&self) -> Option<Storage> {
        if self.container_path.is_some() {
            return None;
        }
        Some(Storage {
            driver: "blk".to_owned(),
            source: self.pci_path.clone(),
            fstype: self.fstype.clone(),
            options: self.options.clone(),
            mount_point: self.mount_point.clone(),
            ..Default::default()
        })
    }

    /// Pulls it, when the guest has unmounted it, and removes the image if nobody else has it.
    ///
    /// # Errors
    ///
    /// The guest does not let go of it, or the machine is gone. The image is removed only when it is nobody's.
    pub async fn unplug(&self) -> Result<(), DiskError> {
        let failed = |source| DiskError::Qmp { file: self.file.clone(), source };
        let mut qmp = Qmp::connect(&self.qmp).await.map_err(failed)?;
        qmp.unplug_disk(&self.device).await.map_err(failed)?;
        if self.access.stays() {
            return Ok(());
        }
        match fs::remove_file(&self.file) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(DiskError::Remove { file: self.file.clone(), source })
            }
            _ => Ok(()),
        }
    }
}

/// An image that is to be a disk.
struct Image<'a> {
    file: &'a Path,
    read_only: bool,
}

impl Pluggable for Image<'_> {
    async fn plug_at(&mut self, qmp: &mut Qmp, port: &Port) -> Result<(), QmpError> {
        let (device, place) = (&*port.device, port.place.clone());
        let plugged = qmp.plug_image(device, self.file, self.read_only, "virtio-blk-pci", place).await;
        if plugged.is_err() {
            // If there was none, that is what was wanted.
            let _ = qmp.execute("blockdev-del", json!({ "node-name": format!("node-{device}") })).await;
        }
        plugged
    }
}
