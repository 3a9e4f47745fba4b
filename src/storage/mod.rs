//! Storages: what the host lends the sandbox to mount. Shares, block devices, layers, memory, directories.
//!
//! [`Storages`] is the sandbox's set of them. A request ([`StorageRequest`], from the wire's `Storage`) goes
//! to the driver it names, which finds the source and mounts it; every step is on record, so it can be taken
//! back whatever happens. Whoever needs the storage gets a [`StorageHandle`].
//!
//! Who trusts whom: the host says what is mounted and where, but only beneath one directory of the guest, and
//! it can't be led out of there by links that a container planted. Errors name the mount point and the step.
//!
//! Everything here that touches the kernel goes through [`MountOps`] and [`BlockLookup`].

mod attachment;
mod driver;
mod error;
mod format;
mod hub;
mod huge_pages;
mod layers;
#[cfg(test)]
mod layers_tests;
mod lookup;
mod ops;
mod ownership;
mod pause_bundle;
mod places;
mod registry;
mod request;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod verity;
mod watch;

pub use error::{Cause, StorageError};
pub use format::FormatError;
pub use hub::{Hub, HubError, HubLimits};
pub use layers::unfold;
pub use lookup::Lookup;
pub use ops::{BlockLookup, KernelMounts, MountOps, MountOrder, Target};
pub use pause_bundle::PauseBundle;
pub use registry::{StorageHandle, Storages};
pub use request::{FsGroup, FsGroupPolicy, LentNode, StorageRequest};
pub use verity::Verity;
