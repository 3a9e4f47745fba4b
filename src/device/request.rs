//! A device as the host asks for it, checked, and turned into where to look for it.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use nakai_protocols::agent;

use super::DeviceError;
use super::pci::PciPath;
use crate::ids::GuestPath;

/// The device types that can be found, for `GetGuestDetails`.
pub const TYPES: &[&str] = &["blk", "mmioblk", "nvdimm", "scsi"];

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
            "vfio-pci" | "vfio-pci-gk" => {
                Err(unsupported(kind, "VFIO devices can't be passed to containers"))
            }
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

/// A device to find, from the wire's `Device` message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceRequest {
    /// Where to look.
    pub address: Address,
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
        let address = match (kind, wire.id.as_str(), wire.vm_path.as_str()) {
            // A disk that was there at boot.
            ("blk", "", path) if !path.is_empty() => Address::Mmio(in_dev(path)?),
            ("mmioblk" | "nvdimm", _, "") => return Err(missing("path in the guest")),
            ("mmioblk" | "nvdimm", _, path) => Address::parse(kind, path)?,
            ("blk" | "scsi", "", _) => return Err(missing("id")),
            (_, id, _) => Address::parse(kind, id)?,
        };
        let container_path = match wire.container_path.as_str() {
            "" => None,
            path => Some(GuestPath::try_from(path).map_err(|source| DeviceError::ContainerPath {
                kind: kind.to_owned(),
                id: address.to_string(),
                source,
            })?),
        };
        Ok(Self { address, container_path })
    }
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
            assert_eq!(request.address.to_string(), address);
            assert_eq!(request.container_path.unwrap().to_string(), "/dev/x");
        }
        assert_eq!(DeviceRequest::try_from(&wire("blk", "02", "", "")).unwrap().container_path, None);
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
            ("vfio-pci", "", "", "/dev/x", "vfio-pci is not supported"),
            ("vfio-pci-gk", "", "", "/dev/x", "vfio-pci-gk is not supported"),
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
