//! A container's root filesystem as a disk of the machine: plugged in behind a PCI root port, named to the agent as a
//! storage, and pulled out again.

use std::fs;
use std::io;
use std::path::PathBuf;

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

/// A plugged disk. It is not a guard: who has plugged it may end before it is pulled, and writes this down.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct RootDisk {
    file: PathBuf,
    qmp: PathBuf,
    device: String,
    /// Where the agent finds it.
    pci_path: String,
}

impl RootDisk {
    /// Plugs the image `file` into the machine with the control socket `qmp`, at the first port that is free.
    ///
    /// # Errors
    ///
    /// See [`DiskError`]. The image is removed then.
    pub async fn plug(qmp: PathBuf, file: PathBuf) -> Result<Self, DiskError> {
        let plugged = find_port(&qmp, &file).await;
        if plugged.is_err() {
            let _ = fs::remove_file(&file);
        }
        let (device, pci_path) = plugged?;
        Ok(Self { file, qmp, device, pci_path })
    }

    /// The storage that mounts it, at a place for `container`.
    pub fn storage(&self, container: &str) -> Storage {
        Storage {
            driver: "blk".to_owned(),
            source: self.pci_path.clone(),
            fstype: "ext4".to_owned(),
            mount_point: format!("/run/kata-containers/sandbox/storage/{container}-root"),
            ..Default::default()
        }
    }

    /// Pulls it, when the guest has unmounted it, and removes the image.
    ///
    /// # Errors
    ///
    /// The guest does not let go of it, or the machine is gone. The image is removed only when it is nobody's.
    pub async fn unplug(&self) -> Result<(), DiskError> {
        let failed = |source| DiskError::Qmp { file: self.file.clone(), source };
        let mut qmp = Qmp::connect(&self.qmp).await.map_err(failed)?;
        qmp.unplug_disk(&self.device).await.map_err(failed)?;
        fs::remove_file(&self.file).map_err(|source| DiskError::Remove { file: self.file.clone(), source })
    }
}

/// The device's name and its PCI path: the slot of the port, and the only one behind it.
async fn find_port(qmp: &std::path::Path, file: &std::path::Path) -> Result<(String, String), DiskError> {
    let failed = |source| DiskError::Qmp { file: file.to_owned(), source };
    let mut qmp = Qmp::connect(qmp).await.map_err(failed)?;
    for port in 0..u8::MAX {
        let bus = format!("rp{port}");
        let Ok(slot) = qmp.pci_slot(&bus).await else {
            return Err(DiskError::NoPort { file: file.to_owned(), ports: port });
        };
        let device = format!("root{port}");
        match qmp.plug_disk(&device, file, "virtio-blk-pci", json!({ "bus": bus })).await {
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
