//! Asking the kernel to look for devices again, and to load the drivers that they need.
//!
//! All of it is help, none of it a condition: hot-plug controllers announce most devices themselves, and
//! drivers may be built in. So a failure is only logged; whether the device comes is what counts.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use slog::{Logger, debug, warn};

use super::request::Address;
use crate::guest::modules::Modules;

/// Loads drivers.
pub trait Drivers: Send + Sync {
    /// Makes sure that the module is loaded or built in. Blocks.
    ///
    /// # Errors
    ///
    /// Why it is not there, in words.
    fn load(&self, module: &str) -> Result<(), String>;
}

impl Drivers for Modules {
    fn load(&self, module: &str) -> Result<(), String> {
        Self::load(self, module, &[]).map_err(|error| error.to_string())
    }
}

fn modules(address: &Address) -> &'static [&'static str] {
    match address {
        Address::Pci(_) => &["virtio_pci", "virtio_blk"],
        Address::Scsi(_) => &["virtio_scsi", "sd_mod"],
        Address::Mmio(path) if path.as_path().starts_with("/dev/pmem") => &["nfit", "nd_pmem"],
        Address::Mmio(path) if is_scsi_disk(path.as_path()) => &["virtio_pci", "virtio_scsi", "sd_mod"],
        Address::Mmio(_) => &["virtio_mmio", "virtio_pci", "virtio_blk"],
        Address::Pmem(_) => &["nfit", "nd_pmem"],
    }
}

fn is_scsi_disk(node: &Path) -> bool {
    node.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"sd"))
}

/// Does what may bring the device to light. Blocks, for as long as the kernel takes.
pub(super) fn rescan(sys: &Path, address: &Address, drivers: &dyn Drivers, log: &Logger) {
    for module in modules(address) {
        if let Err(cause) = drivers.load(module) {
            debug!(log, "driver not loaded"; "module" => module, "cause" => cause);
        }
    }
    let scanned = match address {
        Address::Pci(_) => scan_pci(sys),
        Address::Scsi(address) => {
            let scan = format!("0 {} {}", address.id, address.lun);
            scan_scsi(&sys.join("class/scsi_host"), &scan)
        }
        Address::Mmio(_) | Address::Pmem(_) => Ok(()),
    };
    if let Err(cause) = scanned {
        warn!(log, "the bus was not scanned"; "for" => %address, "cause" => %cause);
    }
}

/// Has the PCI buses scanned.
pub(super) fn scan_pci(sys: &Path) -> io::Result<()> {
    write(&sys.join("bus/pci/rescan"), "1")
}

/// Writes to a file of sysfs, which must exist.
fn write(file: &Path, text: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(file)?.write_all(text.as_bytes())
}

/// Has every host look for one unit.
fn scan_scsi(hosts: &Path, unit: &str) -> io::Result<()> {
    let mut outcome = Ok(());
    for host in fs::read_dir(hosts)? {
        let scanned = host.and_then(|host| write(&host.path().join("scan"), unit));
        outcome = outcome.and(scanned);
    }
    outcome
}
