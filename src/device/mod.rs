//! Devices: finding in the guest what the host plugs into it.
//!
//! The host names a device by where it sits (a PCI path, a SCSI address) or by the node it will get.
//! [`Devices`] looks for it in sysfs, asks the buses to look again, and waits for the kernel's events, up to
//! the hot-plug time-out. Nothing polls. What the kernel knows already is found even if its event was lost or
//! came before the agent listened.
//!
//! CPUs and memory that are plugged in are brought online here, too (`hotplug`).
//!
//! [`vfio`] has devices that the host has passed through, [`cdi`] those that have a name of the Container Device
//! Interface. [`pci`] has the names of PCI devices, [`uevent`] the kernel's events; the rest is behind [`Devices`].
//!
//! Who trusts whom: addresses come from the host and are parsed into types before they meet a file name.
//! Events count only if the kernel sent them, and even then they are only the cue to look in sysfs.

pub mod cdi;
mod error;
mod hotplug;
mod link;
pub mod pci;
mod request;
mod rescan;
mod sysfs;
#[cfg(test)]
mod tests;
pub mod uevent;
pub mod vfio;
mod wait;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use slog::{Logger, debug, info, warn};

pub use self::error::DeviceError;
use self::hotplug::MemoryWatch;
pub use self::request::{Address, DeviceRequest, ScsiAddress, TYPES, Wanted};
pub use self::rescan::Drivers;
pub use self::sysfs::{DeviceKind, DeviceNodes, Node, Nodes};
use self::sysfs::{Found, Tree};
use self::uevent::{Listener, Notice, Uevents};

/// A device of a container, where it appeared in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundDevice {
    /// Its node's path in the container's spec.
    pub container_path: PathBuf,
    /// Its node's path in the guest.
    pub guest_path: PathBuf,
    /// Its node's path in the container, where that is not the spec's: a VFIO group has the guest's number.
    pub final_path: Option<PathBuf>,
    /// How it is accessed.
    pub kind: DeviceKind,
    /// The guest's number of its driver.
    pub major: u64,
    /// The guest's number of the device among its driver's.
    pub minor: u64,
}

/// The devices of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FoundDevices {
    /// Those with a node in the container's spec.
    pub nodes: Vec<FoundDevice>,
    /// Those that the spec does not name: with a passed-through device come the nodes of InfiniBand, which the host
    /// does not know of.
    pub added: Vec<FoundDevice>,
    /// The addresses of passed-through PCI functions in the guest, by those on the host.
    pub pci: BTreeMap<String, String>,
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
    /// Whether the PCI buses are being scanned for nobody in particular.
    scanning: AtomicBool,
    /// Listens as long as anybody looks for devices.
    _listener: Option<Listening>,
}

/// What goes on while anybody looks for devices.
struct Listening {
    _events: Listener,
    _memory: MemoryWatch,
}

impl fmt::Debug for Devices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Devices")
            .field("hotplug_timeout", &self.inner.hotplug_timeout)
            .finish_non_exhaustive()
    }
}

impl Devices {
    /// The devices of this guest. Listens for the kernel's events from now on, in a task of the current runtime, and
    /// brings plugged-in memory online. Where events can't be heard (an unusual kernel, a confined service) it goes
    /// on without: a device that comes late is then seen only when the time is over.
    ///
    /// `hotplug_timeout` is how long a device is waited for; `drivers` loads the drivers that a device may
    /// need.
    pub fn start(hotplug_timeout: Duration, drivers: Arc<dyn Drivers>, log: Logger) -> Self {
        let uevents = Uevents::new();
        let sys = Path::new("/sys");
        let listener = match uevents.listen(log.clone()) {
            Ok(events) => {
                Some(Listening { _events: events, _memory: MemoryWatch::start(sys, &uevents, log.clone()) })
            }
            Err(error) => {
                warn!(log, "no events of devices"; "cause" => %error);
                None
            }
        };
        let tree = Tree::new(sys, Path::new("/dev"), Arc::new(DeviceNodes));
        Self::assemble(tree, uevents, drivers, hotplug_timeout, log, listener)
    }

    fn assemble(
        tree: Tree,
        uevents: Uevents,
        drivers: Arc<dyn Drivers>,
        hotplug_timeout: Duration,
        log: Logger,
        listener: Option<Listening>,
    ) -> Self {
        let (tree, scanning) = (Arc::new(tree), AtomicBool::new(false));
        Self {
            inner: Arc::new(Inner {
                tree,
                uevents,
                drivers,
                hotplug_timeout,
                log,
                scanning,
                _listener: listener,
            }),
        }
    }

    /// The kernel's events, for others who want to hear of them.
    pub fn uevents(&self) -> &Uevents {
        &self.inner.uevents
    }

    /// Has the PCI buses scanned for what nobody has announced, beside whatever goes on: nothing waits for it, and one
    /// such scan at a time is enough.
    pub fn scan_beside(&self) {
        if self.inner.scanning.swap(true, Ordering::AcqRel) {
            return;
        }
        let inner = Arc::clone(&self.inner);
        tokio::task::spawn_blocking(move || {
            if let Err(cause) = rescan::scan_pci(inner.tree.sys()) {
                // A machine may have no PCI at all.
                debug!(inner.log, "the PCI buses were not scanned"; "cause" => %cause);
            }
            inner.scanning.store(false, Ordering::Release);
            inner.uevents.publish(Notice::Scanned);
        });
    }

    /// Finds the devices, one after the other, waiting for each up to the hot-plug time-out. A request
    /// without a container path is only waited for: it is not in the answer.
    ///
    /// # Errors
    ///
    /// The first that is not found. Finding changes nothing in the guest, but for devices that vfio-pci gets, and
    /// keeps; so there is nothing to undo.
    pub async fn find_all(&self, requests: &[DeviceRequest]) -> Result<FoundDevices, DeviceError> {
        let mut all = FoundDevices::default();
        for request in requests {
            let (found, kind) = match &request.wanted {
                Wanted::Block(address) => (Some(self.find(address).await?), DeviceKind::Block),
                Wanted::Passed(functions, usage) => {
                    (vfio::find(&self.inner, functions, *usage, &mut all.pci).await?, DeviceKind::Char)
                }
            };
            let Some(found) = found else { continue };
            info!(self.inner.log, "device found"; "address" => %request.wanted,
                "node" => %found.path.display(), "number" => format_args!("{}:{}", found.major, found.minor));
            if let Some(container_path) = &request.container_path {
                all.nodes.push(FoundDevice {
                    container_path: container_path.as_path().to_owned(),
                    final_path: (kind == DeviceKind::Char).then(|| found.path.clone()),
                    guest_path: found.path,
                    kind,
                    major: found.major,
                    minor: found.minor,
                });
            }
        }
        if !all.pci.is_empty() {
            let inner = Arc::clone(&self.inner);
            let found = tokio::task::spawn_blocking(move || inner.tree.char_devices("infiniband")).await;
            all.added = found.unwrap_or_default();
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
