//! Devices that the host has passed through to the guest, and that a container gets from it.
//!
//! A request lists PCI functions, each by its address on the host and its path in the guest. With `vfio-pci-gk`
//! the guest's own driver keeps them: they are waited for, and the container is told their addresses. With
//! `vfio-pci` they are given to the driver vfio-pci, and the container gets the node of their IOMMU group
//! (Documentation/driver-api/vfio.rst of the kernel).
//!
//! A function that was given to vfio-pci stays with it when the container goes: only the host knows what it is to
//! do next.

mod bind;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use slog::{debug, info, warn};

use self::bind::bind;
use super::pci::{PciAddress, PciPath};
use super::sysfs::{Found, Tree};
use super::uevent::{Action, Uevent};
use super::wait::{Target, blocking, wait_for};
use super::{DeviceError, Inner};

/// A PCI function that the host has passed through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Passed {
    /// Its address on the host.
    pub host: PciAddress,
    /// Where it is in the guest.
    pub guest: PciPath,
}

/// What becomes of the functions of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// The guest's driver has them.
    Guest,
    /// The container has them, through VFIO.
    Container,
}

impl Passed {
    /// From options of the protocol, `host address=path in the guest` each. `None` for a function that the host
    /// could not place.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Option`], or what is wrong with the address or path.
    pub fn parse(option: &str) -> Result<Option<Self>, DeviceError> {
        let (host, guest) =
            option.split_once('=').ok_or_else(|| DeviceError::Option { option: option.to_owned() })?;
        let host = host.parse()?;
        if guest.is_empty() {
            return Ok(None);
        }
        Ok(Some(Self { host, guest: guest.parse()? }))
    }
}

/// Waits for the functions. Returns the addresses, by those on the host, and the group's node if the container is
/// to have it.
pub(super) async fn find(
    inner: &Arc<Inner>,
    functions: &[Passed],
    usage: Use,
    pci: &mut BTreeMap<String, String>,
) -> Result<Option<Found>, DeviceError> {
    let mut group: Option<(PciAddress, Group)> = None;
    for passed in functions {
        let target = Function(passed.guest.clone());
        let (_, address) = wait_for(inner, &target).await?;
        info!(inner.log, "device found"; "host" => %passed.host, "path" => %passed.guest, "address" => %address);
        pci.insert(passed.host.to_string(), address.to_string());
        if usage == Use::Guest {
            continue;
        }
        load_drivers(inner, &target).await?;
        let own = blocking(inner, &target, move |_, inner| bind(inner.tree.sys(), address)).await??;
        match &group {
            Some((first, known)) if *known != own => {
                return Err(DeviceError::Groups { first: *first, second: address });
            }
            _ => group = Some((address, own)),
        }
    }
    match group {
        Some((_, group)) => wait_for(inner, &group).await.map(Some),
        None => Ok(None),
    }
}

/// Modules that are not there may be built in: whether the driver takes the device is what counts.
async fn load_drivers(inner: &Arc<Inner>, target: &Function) -> Result<(), DeviceError> {
    blocking(inner, target, |_, inner| {
        for module in ["vfio_pci", "vfio_iommu_type1"] {
            if let Err(cause) = inner.drivers.load(module) {
                warn!(inner.log, "driver not loaded"; "module" => module, "cause" => cause);
            }
        }
    })
    .await
}

/// A PCI function, whatever it is.
#[derive(Debug, Clone)]
struct Function(PciPath);

impl fmt::Display for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PCI path {}", self.0)
    }
}

impl Target for Function {
    type Found = (PathBuf, PciAddress);

    fn what(&self) -> &'static str {
        "PCI device"
    }

    fn look(&self, tree: &Tree) -> Result<Option<Self::Found>, DeviceError> {
        Ok(tree.resolve(&self.0))
    }

    fn is_cue(&self, event: &Uevent) -> bool {
        event.subsystem == "pci" && event.action == Action::Add
    }

    fn help(&self, inner: &Inner) {
        if let Err(cause) = std::fs::write(inner.tree.sys().join("bus/pci/rescan"), "1") {
            debug!(inner.log, "the bus was not scanned"; "for" => %self, "cause" => %cause);
        }
    }

    fn surroundings(&self, tree: &Tree) -> String {
        tree.pci_devices()
    }
}

/// The name of an IOMMU group, which its node in `/dev/vfio` has, too.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Group(String);

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/dev/vfio/{}", self.0)
    }
}

impl Target for Group {
    type Found = Found;

    fn what(&self) -> &'static str {
        "VFIO group"
    }

    fn look(&self, tree: &Tree) -> Result<Option<Found>, DeviceError> {
        Ok(tree.vfio_group(&self.0))
    }

    fn is_cue(&self, event: &Uevent) -> bool {
        event.subsystem == "vfio" && event.action == Action::Add
    }

    fn help(&self, _: &Inner) {}

    fn surroundings(&self, tree: &Tree) -> String {
        tree.vfio_groups()
    }
}
