//! A container's root filesystem as a disk of the machine: plugged in behind a PCI root port, named to the agent as a
//! storage, and pulled out again.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nakai_protocols::agent::Storage;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::qmp::{Qmp, QmpError};

/// Why there is no disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// QEMU does not take or give it.
    #[error("disk {file}: {source}", file = .file.display())]
    Qmp {
        /// The image.
        file: PathBuf,
        /// What QEMU says.
        source: QmpError,
    },
    /// Every root port has a device.
    #[error("disk {file}: all {ports} ports of the machine are taken", file = .file.display())]
    NoPort {
        /// The image.
        file: PathBuf,
        /// The ports of the machine.
        ports: u8,
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
    #[serde(default)]
    fstype: String,
    #[serde(default)]
    options: Vec<String>,
}

impl RootDisk {
    /// Plugs the image `file` into the machine with the control socket `qmp`, at the first port that is free.
    ///
    /// # Errors
    ///
    /// See [`DiskError`]. An image of the container's own is removed then.
    pub async fn plug(qmp: &Path, file: PathBuf, access: Access) -> Result<Self, DiskError> {
        let plugged = find_port(qmp, &file, access != Access::Own).await;
        if plugged.is_err() && access != Access::Shared {
            let _ = fs::remove_file(&file);
        }
        let (device, pci_path) = plugged?;
        let qmp = qmp.to_owned();
        Ok(Self { file, qmp, device, pci_path, access, ..Self::default() })
    }

    /// With what the agent is to do with it: mount it there, or make it a part of what is mounted there.
    #[must_use]
    pub fn mounted(self, mount_point: &str, fstype: &str, options: &[&str]) -> Self {
        let options = options.iter().map(|&option| option.to_owned()).collect();
        Self { mount_point: mount_point.to_owned(), fstype: fstype.to_owned(), options, ..self }
    }

    /// The storage for the agent.
    pub fn storage(&self) -> Storage {
        Storage {
            driver: "blk".to_owned(),
            source: self.pci_path.clone(),
            fstype: self.fstype.clone(),
            options: self.options.clone(),
            mount_point: self.mount_point.clone(),
            ..Default::default()
        }
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
        if self.access == Access::Shared {
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

/// The device's name and its PCI path: the slot of the port, and the only one behind it.
async fn find_port(qmp: &Path, file: &Path, read_only: bool) -> Result<(String, String), DiskError> {
    let failed = |source| DiskError::Qmp { file: file.to_owned(), source };
    let mut qmp = Qmp::connect(qmp).await.map_err(failed)?;
    for port in 0..u8::MAX {
        let bus = format!("rp{port}");
        let Ok(slot) = qmp.pci_slot(&bus).await else {
            return Err(DiskError::NoPort { file: file.to_owned(), ports: port });
        };
        let device = format!("root{port}");
        match qmp.plug_image(&device, file, read_only, "virtio-blk-pci", json!({ "bus": bus })).await {
            Ok(()) => return Ok((device, format!("{slot:02x}/00"))),
            // Another client's disk has the port, and the name of its image.
            Err(QmpError::Refused { description, .. }) if description.contains("Duplicate") => {}
            Err(error) => {
                let node = json!({ "node-name": format!("node-{device}") });
                // If there was none, that is what was wanted.
                let _ = qmp.execute("blockdev-del", node).await;
                // QEMU tells by words alone that another device is there.
                if !matches!(&error, QmpError::Refused { description, .. } if description.contains("occupied"))
                {
                    return Err(failed(error));
                }
            }
        }
    }
    Err(DiskError::NoPort { file: file.to_owned(), ports: u8::MAX })
}
