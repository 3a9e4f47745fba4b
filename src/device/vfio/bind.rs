//! Giving a PCI function to vfio-pci: Documentation/ABI/testing/sysfs-bus-pci of the kernel.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::Path;

use super::Group;
use crate::device::DeviceError;
use crate::device::pci::PciAddress;

const DRIVER: &str = "vfio-pci";

/// Gives the function to vfio-pci, whoever has it now. Blocks.
pub(super) fn bind(sys: &Path, address: PciAddress) -> Result<Group, DeviceError> {
    let bus = sys.join("bus/pci");
    let device = bus.join("devices").join(address.to_string());
    // Before anything is changed: without an IOMMU no container can have it.
    let group = link_name(&device.join("iommu_group")).ok_or(DeviceError::NoIommuGroup { address })?;
    let driver = link_name(&device.join("driver"));
    if driver.as_deref() != Some(DRIVER) {
        let not_bound = |driver: Option<String>| DeviceError::NotBound {
            address,
            driver: driver.unwrap_or_else(|| "none".to_owned()),
        };
        // Nor without the driver: nobody else should have lost the function then.
        if !bus.join("drivers").join(DRIVER).exists() {
            return Err(not_bound(driver));
        }
        let failed = |step| move |source| DeviceError::Bind { address, step, source };
        let name = address.to_string();
        let give = || {
            write(&device.join("driver_override"), DRIVER).map_err(failed("name the driver vfio-pci for"))?;
            if driver.is_some() {
                write(&device.join("driver/unbind"), &name).map_err(failed("take the driver from"))?;
            }
            write(&bus.join("drivers_probe"), &name).map_err(failed("probe the driver for"))?;
            let driver = link_name(&device.join("driver"));
            if driver.as_deref() == Some(DRIVER) { Ok(()) } else { Err(not_bound(driver)) }
        };
        give().inspect_err(|_| {
            // Back to whoever had it. What can't be done of that is not why this failed.
            let _ = write(&device.join("driver_override"), "\n");
            let _ = write(&bus.join("drivers_probe"), &name);
        })?;
    }
    Ok(Group(group))
}

/// The last part of what a link leads to.
fn link_name(link: &Path) -> Option<String> {
    fs::read_link(link).ok()?.file_name()?.to_str().map(str::to_owned)
}

/// Writes to a file of sysfs, which must exist.
fn write(file: &Path, text: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(file)?.write_all(text.as_bytes())
}
