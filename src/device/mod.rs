//! Devices: finding in the guest what the host plugs into it.
//!
//! The host names a device by where it sits (a PCI path, a SCSI address) or by the node it will get.
//! [`Devices`] looks for it in sysfs, asks the buses to look again, and waits for the kernel's events, up to
//! the hot-plug time-out. Nothing polls. What the kernel knows already is found even if its event was lost or
//! came before the agent listened.
//!
//! [`pci`] has the names of PCI devices, [`uevent`] the kernel's events; the rest is behind [`Devices`].
//!
//! Who trusts whom: addresses come from the host and are parsed into types before they meet a file name.
//! Events count only if the kernel sent them, and even then they are only the cue to look in sysfs.

mod error;
pub mod pci;
mod request;
mod rescan;
mod sysfs;
#[cfg(test)]
mod tests;
pub mod uevent;
mod wait;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use slog::{Logger, info, warn};

pub use self::error::DeviceError;
pub use self::request::{Address, DeviceRequest, ScsiAddress, TYPES};
pub use self::rescan::Drivers;
pub use self::sysfs::{DeviceKind, DeviceNodes, Node, Nodes};
use self::sysfs::{Found, Tree};
use self::uevent::{Listener, Uevents};

/// A device of a container, where it appeared in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundDevice {
    /// Its node's path in the container's spec.
    pub container_path: PathBuf,
    /// Its node's path in the guest.
    pub guest_path: PathBuf,
    /// How it is accessed.
    pub kind: DeviceKind,
    /// The guest's number of its driver.
    pub major: u64,
    /// The guest's number of the device among its driver's.
    pub minor: u64,
}

/// The guest's devices. Clones are the same.
#[derive(Clone)]
pub struct Devices {
    inner: Arc<Inner>,
}

struct Inner {
    tree: Arc<Tree>,
    uevents: Uevents,
    drivers: Arc<dyn Drivers>,
    hotplug_timeout: Duration,
    log: Logger,
    /// Listens as long as anybody looks for devices.
    listener: Option<Listener>,
}

impl fmt::Debug for Devices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Devices")
            .field("hotplug_timeout", &self.inner.hotplug_timeout)
            .finish_non_exhaustive()
    }
}

impl Devices {
    /// The devices of this guest; listens for the kernel's events from now on, in a task of the current
    /// runtime. Where there are none to be had (an unusual kernel, a confined service) it goes on without: a
    /// device that comes late is then seen only when the time is over.
    ///
    /// `hotplug_timeout` is how long a device is waited for; `drivers` loads the drivers that a device may
    /// need.
    pub fn start(hotplug_timeout: Duration, drivers: Arc<dyn Drivers>, log: Logger) -> Self {
        let uevents = Uevents::new();
        let listener = match uevents.listen(log.clone()) {
            Ok(listener) => Some(listener),
            Err(error) => {
                warn!(log, "no events of devices"; "cause" => %error);
                None
            }
        };
        let tree = Tree::new(Path::new("/sys"), Path::new("/dev"), Arc::new(DeviceNodes));
        Self::assemble(tree, uevents, drivers, hotplug_timeout, log, listener)
    }

    fn assemble(
        tree: Tree,
        uevents: Uevents,
        drivers: Arc<dyn Drivers>,
        hotplug_timeout: Duration,
        log: Logger,
        listener: Option<Listener>,
    ) -> Self {
        let tree = Arc::new(tree);
        Self { inner: Arc::new(Inner { tree, uevents, drivers, hotplug_timeout, log, listener }) }
    }

    /// The kernel's events, for others who want to hear of them.
    pub fn uevents(&self) -> &Uevents {
        &self.inner.uevents
    }

    /// Whether the kernel's events are heard.
    pub fn is_listening(&self) -> bool {
        self.inner.listener.is_some()
    }

    /// Finds the devices, one after the other, waiting for each up to the hot-plug time-out. A request
    /// without a container path is only waited for: it is not in the answer.
    ///
    /// # Errors
    ///
    /// The first that is not found. Finding changes nothing in the guest, so there is nothing to undo.
    pub async fn find_all(&self, requests: &[DeviceRequest]) -> Result<Vec<FoundDevice>, DeviceError> {
        let mut all = Vec::with_capacity(requests.len());
        for request in requests {
            let found = self.find(&request.address).await?;
            info!(self.inner.log, "device found"; "address" => %request.address,
                "node" => %found.path.display(), "number" => format_args!("{}:{}", found.major, found.minor));
            if let Some(container_path) = &request.container_path {
                all.push(FoundDevice {
                    container_path: container_path.as_path().to_owned(),
                    guest_path: found.path,
                    kind: DeviceKind::Block,
                    major: found.major,
                    minor: found.minor,
                });
            }
        }
        Ok(all)
    }

    /// The path in `/dev` of the block device at an address, waited for up to the hot-plug time-out.
    ///
    /// # Errors
    ///
    /// It did not appear, or something else is there.
    pub async fn find_block(&self, address: &Address) -> Result<PathBuf, DeviceError> {
        self.find(address).await.map(|found| found.path)
    }

    async fn find(&self, address: &Address) -> Result<Found, DeviceError> {
        wait::wait_for(&self.inner, address).await
    }
}
