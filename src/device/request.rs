//! A device as the host asks for it, checked, and turned into where to look for it.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use nakai_protocols::agent;

use super::DeviceError;
use super::pci::PciPath;
use super::vfio::{Passed, Use};
use crate::ids::GuestPath;

/// The device types that can be found, for `GetGuestDetails`.
pub const TYPES: &[&str] = &["blk", "mmioblk", "nvdimm", "scsi", "vfio-pci", "vfio-pci-gk"];

/// A disk of some SCSI host: which host it is depends on the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ScsiAddress {
    /// The target.
    pub id: u32,
    /// The unit in the target.
    pub lun: u32,
}

impl FromStr for ScsiAddress {
    type Err = DeviceError;

    fn from_str(address: &str) -> Result<Self, DeviceError> {
        let number =
            |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten();
        let parse = || {
            let (id, lun) = address.split_once(':')?;
            Some(Self { id: number(id)?, lun: number(lun)? })
        };
        parse().ok_or_else(|| DeviceError::Scsi { address: address.to_owned() })
    }
}

impl fmt::Display for ScsiAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.id, self.lun)
    }
}

/// Where a block device is to be found.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// Behind a PCI function.
    Pci(PciPath),
    /// On one of the SCSI hosts.
    Scsi(ScsiAddress),
    /// A disk of virtio-mmio, by the node that it gets.
    Mmio(GuestPath),
    /// Persistent memory, by the node that it gets.
    Pmem(GuestPath),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pci(path) => write!(f, "PCI path {path}"),
            Self::Scsi(address) => write!(f, "SCSI address {address}"),
            Self::Mmio(path) | Self::Pmem(path) => write!(f, "{path}"),
        }
    }
}

impl Address {
    /// The address that `text` means for a device type, or for the storage driver of the same name.
    ///
    /// # Errors
    ///
    /// The type is none that can be found, or `text` is no such address.
    pub fn parse(kind: &str, text: &str) -> Result<Self, DeviceError> {
        match kind {
            "blk" => Ok(Self::Pci(text.parse()?)),
            "scsi" => Ok(Self::Scsi(text.parse()?)),
            "mmioblk" => Ok(Self::Mmio(in_dev(text)?)),
            "nvdimm" => Ok(Self::Pmem(in_dev(text)?)),
            "blk-ccw" | "vfio-ap" | "vfio-ap-cold" => Err(unsupported(kind, "it exists on s390x only")),
            "vfio-pci" | "vfio-pci-gk" => Err(unsupported(kind, "it is no block device")),
            _ => Err(DeviceError::UnknownType { kind: kind.to_owned(), known: TYPES }),
        }
    }
}

fn unsupported(kind: &str, reason: &'static str) -> DeviceError {
    DeviceError::UnsupportedType { kind: kind.to_owned(), reason }
}

/// A path strictly beneath `/dev`.
fn in_dev(text: &str) -> Result<GuestPath, DeviceError> {
    let path = GuestPath::try_from(text).ok();
    path.filter(|path| path.as_path().starts_with("/dev") && path.as_path() != Path::new("/dev"))
        .ok_or_else(|| DeviceError::NotInDev { path: text.to_owned() })
}

/// What is to be found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// A disk.
    Block(Address),
    /// PCI functions that the host has passed through.
    Passed(Vec<Passed>, Use),
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Block(address) => address.fmt(f),
            Self::Passed(functions, _) => {
                let paths: Vec<_> = functions.iter().map(|passed| passed.guest.to_string()).collect();
                write!(f, "PCI paths {}", paths.join(", "))
            }
        }
    }
}

/// A device to find, from the wire's `Device` message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceRequest {
    /// What, and where to look.
    pub wanted: Wanted,
    /// The path of its node in the container's spec. Without one it is only waited for.
    pub container_path: Option<GuestPath>,
}

impl TryFrom<&agent::Device> for DeviceRequest {
    type Error = DeviceError;

    fn try_from(wire: &agent::Device) -> Result<Self, DeviceError> {
        let kind = wire.type_.as_str();
        let missing = |missing| DeviceError::Missing {
            kind: kind.to_owned(),
            container_path: wire.container_path.clone(),
            missing,
        };
        if kind.is_empty() {
            return Err(missing("type"));
        }
        let wanted = match (kind, wire.id.as_str(), wire.vm_path.as_str()) {
            ("vfio-pci", ..) => Wanted::Passed(passed(wire)?, Use::Container),
            ("vfio-pci-gk", ..) => Wanted::Passed(passed(wire)?, Use::Guest),
            // A disk that was there at boot.
            ("blk", "", path) if !path.is_empty() => Wanted::Block(Address::Mmio(in_dev(path)?)),
            ("mmioblk" | "nvdimm", _, "") => return Err(missing("path in the guest")),
            ("mmioblk" | "nvdimm", _, path) => Wanted::Block(Address::parse(kind, path)?),
            ("blk" | "scsi", "", _) => return Err(missing("id")),
            (_, id, _) => Wanted::Block(Address::parse(kind, id)?),
        };
        if matches!(&wanted, Wanted::Passed(functions, Use::Container) if functions.is_empty()) {
            return Err(missing("option with a path in the guest"));
        }
        let container_path = match wire.container_path.as_str() {
            "" => None,
            path => Some(GuestPath::try_from(path).map_err(|source| DeviceError::ContainerPath {
                kind: kind.to_owned(),
                id: wanted.to_string(),
                source,
            })?),
        };
        Ok(Self { wanted, container_path })
    }
}

/// The functions that the host could place.
fn passed(wire: &agent::Device) -> Result<Vec<Passed>, DeviceError> {
    wire.options.iter().filter_map(|option| Passed::parse(option).transpose()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(kind: &str, id: &str, vm_path: &str, container_path: &str) -> agent::Device {
        agent::Device {
            type_: kind.to_owned(),
            id: id.to_owned(),
            vm_path: vm_path.to_owned(),
            container_path: container_path.to_owned(),
            ..Default::default()
        }
    }

    #[test]
    fn each_type_is_looked_for_in_its_way() {
        for (kind, id, vm_path, address) in [
            ("blk", "02/03", "", "PCI path 02/03"),
            ("blk", "02", "/dev/vda", "PCI path 02"),
            ("blk", "", "/dev/vda", "/dev/vda"),
            ("scsi", "0:12", "", "SCSI address 0:12"),
            ("mmioblk", "x", "/dev/vdb", "/dev/vdb"),
            ("nvdimm", "", "/dev/pmem0", "/dev/pmem0"),
        ] {
            let request = DeviceRequest::try_from(&wire(kind, id, vm_path, "/dev/x")).unwrap();
            assert_eq!(request.wanted.to_string(), address);
            assert_eq!(request.container_path.unwrap().to_string(), "/dev/x");
        }
        assert_eq!(DeviceRequest::try_from(&wire("blk", "02", "", "")).unwrap().container_path, None);
    }

    #[test]
    fn passed_through_functions_are_in_the_options() {
        let request = |kind: &str, options: &[&str]| {
            let options = options.iter().map(|option| (*option).to_owned()).collect();
            let wire = agent::Device { options, ..wire(kind, "", "", "/dev/vfio/3") };
            DeviceRequest::try_from(&wire).map_err(|error| error.to_string())
        };
        let found = request("vfio-pci", &["0000:1a:00.1=02/00.1", "0000:1a:00.0=02/00"]).unwrap();
        assert_eq!(found.wanted.to_string(), "PCI paths 02/00.1, 02/00");
        let unplaced = request("vfio-pci-gk", &["0000:1a:00.0="]).unwrap();
        assert_eq!(unplaced.wanted, Wanted::Passed(Vec::new(), Use::Guest));
        for (option, reason) in [
            ("0000:1a:00.0", "host address=path"),
            ("1a:00.0=02", "\"1a:00.0\""),
            ("0000:1a:00.0=zz", "\"zz\""),
        ] {
            let error = request("vfio-pci", &[option]).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn what_names_no_device_is_refused_with_the_reason() {
        for (kind, id, vm_path, container_path, reason) in [
            ("", "02", "", "/dev/x", "has no type"),
            ("blk", "", "", "/dev/x", "has no id"),
            ("scsi", "", "/dev/sda", "/dev/x", "has no id"),
            ("nvdimm", "0", "", "/dev/x", "no path in the guest"),
            ("blk", "zz", "", "/dev/x", "\"zz\""),
            ("blk", "02", "", "dev/x", "container path"),
            ("scsi", "0:0:1", "", "/dev/x", "\"0:0:1\""),
            ("scsi", "0:+1", "", "/dev/x", "\"0:+1\""),
            ("scsi", ":1", "", "/dev/x", "\":1\""),
            ("mmioblk", "", "/etc/shadow", "/dev/x", "not a path in /dev"),
            ("mmioblk", "", "/dev/../etc", "/dev/x", "not a path in /dev"),
            ("mmioblk", "", "/dev", "/dev/x", "not a path in /dev"),
            ("vfio-pci", "", "", "/dev/x", "no option with a path"),
            ("blk-ccw", "0.0.0001", "", "/dev/x", "s390x"),
            ("vfio-ap", "", "", "/dev/x", "s390x"),
            ("floppy", "a", "", "/dev/x", "known are blk"),
        ] {
            let refused = DeviceRequest::try_from(&wire(kind, id, vm_path, container_path));
            let message = refused.expect_err("it was accepted").to_string();
            assert!(message.contains(reason), "{message:?} does not tell {reason:?}");
        }
    }
}
