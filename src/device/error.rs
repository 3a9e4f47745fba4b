//! Why a device is not there.

use std::path::PathBuf;
use std::time::Duration;

use nix::errno::Errno;

use super::pci::{PciAddress, PciError};
use crate::ids::IdError;

/// Why a device can't be asked for, or was not found.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// No device type of that name.
    #[error("unknown device type {kind:?}, known are {}", known.join(", "))]
    UnknownType {
        /// What was asked for.
        kind: String,
        /// What there is.
        known: &'static [&'static str],
    },
    /// A type of the protocol that this agent can't find in this guest.
    #[error("device type {kind} is not supported: {reason}")]
    UnsupportedType {
        /// The type.
        kind: String,
        /// Why not.
        reason: &'static str,
    },
    /// A request that names no device.
    #[error("{kind} device for {container_path:?} has no {missing}")]
    Missing {
        /// Its type.
        kind: String,
        /// The container path, as given.
        container_path: String,
        /// What it lacks.
        missing: &'static str,
    },
    /// A container path that is none.
    #[error("container path of the {kind} device {id:?}: {source}")]
    ContainerPath {
        /// Its type.
        kind: String,
        /// Its address.
        id: String,
        /// What is wrong.
        source: IdError,
    },
    /// A PCI path that is none.
    #[error(transparent)]
    Pci(#[from] PciError),
    /// A SCSI address that is none.
    #[error("SCSI address {address:?} is not ID:LUN, two decimal numbers")]
    Scsi {
        /// What was given.
        address: String,
    },
    /// A device path outside `/dev`.
    #[error("device path {path:?} is not a path in /dev")]
    NotInDev {
        /// What was given.
        path: String,
    },
    /// The node leads to something else.
    #[error("{path} is not a block device", path = path.display())]
    NotBlock {
        /// Its path.
        path: PathBuf,
    },
    /// The node can't be looked at.
    #[error("look at {path}: {source}", path = path.display())]
    Look {
        /// Its path.
        path: PathBuf,
        /// What the kernel said.
        source: Errno,
    },
    /// It did not come.
    #[error("no {what} appeared at {wanted} within {timeout:?}; {there}")]
    Timeout {
        /// What kind of thing.
        what: &'static str,
        /// Where it was waited for.
        wanted: String,
        /// How long.
        timeout: Duration,
        /// What is there instead.
        there: String,
    },
    /// An option that is none.
    #[error("option {option:?} of a passed-through device is not of the form host address=path in the guest")]
    Option {
        /// What was given.
        option: String,
    },
    /// A function that nobody can be given.
    #[error(
        "{address} is in no IOMMU group: the guest has no IOMMU for it, or does not use it (intel_iommu=on)"
    )]
    NoIommuGroup {
        /// Which.
        address: PciAddress,
    },
    /// Functions that can't be had by one node.
    #[error("{first} and {second} of one device are in different IOMMU groups")]
    Groups {
        /// One of them.
        first: PciAddress,
        /// Another.
        second: PciAddress,
    },
    /// A step on the way to vfio-pci.
    #[error("{step} {address}: {source}")]
    Bind {
        /// Which function.
        address: PciAddress,
        /// What was done.
        step: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// All writes succeeded, but vfio-pci is not the function's driver.
    #[error("vfio-pci did not take {address}, whose driver is {driver}")]
    NotBound {
        /// Which function.
        address: PciAddress,
        /// Who has it.
        driver: String,
    },
    /// CPUs did not come.
    #[error("{online} of {wanted} CPUs online after {timeout:?}; {there}")]
    Cpus {
        /// How many were waited for.
        wanted: u32,
        /// How many are online.
        online: u32,
        /// How long.
        timeout: Duration,
        /// What is there.
        there: String,
    },
    /// A directory of sysfs can't be listed.
    #[error("list {path}: {source}", path = path.display())]
    List {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The kernel is not to be told of memory.
    #[error("{path} is not there: this kernel finds hot-plugged memory by itself", path = path.display())]
    NoMemoryProbe {
        /// The file that it would be told by.
        path: PathBuf,
    },
    /// The kernel does not take memory.
    #[error("add the memory at {address:#x}: {source}")]
    MemoryProbe {
        /// The physical address.
        address: u64,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// A network card did not come.
    #[error("no network card appeared at PCI path {wanted} within {timeout:?}; {there}")]
    NoLink {
        /// Where it was waited for.
        wanted: String,
        /// How long.
        timeout: Duration,
        /// What is there instead.
        there: String,
    },
    /// The socket for the kernel's events.
    #[error("{step} the socket for kernel events: {source}")]
    Socket {
        /// What was done to it.
        step: &'static str,
        /// What the kernel said.
        source: Errno,
    },
    /// The task that did the look-up ended early.
    #[error("the look-up of {wanted} was cut short: {reason}")]
    CutShort {
        /// What was looked for.
        wanted: String,
        /// What the runtime said.
        reason: String,
    },
}
