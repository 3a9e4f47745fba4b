//! Network cards: finding the link that a PCI function became, and helping one along.
//!
//! A link is known by its number, which stays when its name changes. As with disks: subscribe, look, have the buses
//! scanned and drivers loaded, look again at each event.

use std::fs;
use std::path::Path;

use slog::debug;
use tokio::time::sleep;

use super::pci::{PciAddress, PciPath};
use super::request::Address;
use super::sysfs::Tree;
use super::uevent::{Action, Notice};
use super::{DeviceError, Devices, rescan};

/// The driver of a virtio network card.
const VIRTIO_NET: &str = "virtio_net";
/// What such a card says it is in `device` of its directory in sysfs (virtio specification, 5).
const VIRTIO_NET_ID: &str = "0x0001";

impl Devices {
    /// The number of the link of the card at a PCI path, waited for up to the hot-plug time-out.
    ///
    /// # Errors
    ///
    /// It did not appear.
    pub async fn find_link(&self, path: &PciPath) -> Result<u32, DeviceError> {
        let mut notices = self.inner.uevents.subscribe();
        // The limit of the wait for events below.
        let expiry = sleep(self.inner.hotplug_timeout);
        tokio::pin!(expiry);
        if let Some(index) = self.look_for_link(path).await? {
            return Ok(index);
        }
        let (devices, uevents) = (self.clone(), self.inner.uevents.clone());
        tokio::task::spawn_blocking(move || {
            devices.look_for_links();
            uevents.publish(Notice::Scanned);
        });
        let mut in_time = true;
        while in_time {
            in_time = tokio::select! {
                () = &mut expiry => false,
                notice = notices.next() => match notice {
                    Notice::Look | Notice::Scanned => true,
                    Notice::Event(event) if event.subsystem == "net" && event.action != Action::Remove => true,
                    // A card that has come without its driver.
                    Notice::Event(event) if event.subsystem == "virtio" && event.action == Action::Add => {
                        let devices = self.clone();
                        tokio::task::spawn_blocking(move || devices.load_link_drivers());
                        continue;
                    }
                    Notice::Event(_) => continue,
                },
            };
            if let Some(index) = self.look_for_link(path).await? {
                return Ok(index);
            }
        }
        let (tree, address) = (self.inner.tree.clone(), Address::Pci(path.clone()));
        let there = blocking(path, move || tree.surroundings(&address)).await?;
        let timeout = self.inner.hotplug_timeout;
        Err(DeviceError::NoLink { wanted: path.to_string(), timeout, there })
    }

    async fn look_for_link(&self, path: &PciPath) -> Result<Option<u32>, DeviceError> {
        let (tree, wanted) = (self.inner.tree.clone(), path.clone());
        blocking(path, move || tree.link_at(&wanted)).await
    }

    /// Loads the drivers of network cards and has the PCI bus scanned. Blocks.
    pub fn look_for_links(&self) {
        let inner = &self.inner;
        for module in ["virtio_pci", VIRTIO_NET] {
            self.load_driver(module);
        }
        if let Err(cause) = rescan::scan_pci(inner.tree.sys()) {
            debug!(inner.log, "the PCI bus was not scanned"; "cause" => %cause);
        }
    }

    /// Loads the driver of network cards if there is one without. Blocks.
    pub fn load_link_drivers(&self) {
        if self.inner.tree.has_idle_virtio(VIRTIO_NET_ID) {
            self.load_driver(VIRTIO_NET);
        }
    }

    fn load_driver(&self, module: &str) {
        if let Err(cause) = self.inner.drivers.load(module) {
            debug!(self.inner.log, "driver not loaded"; "module" => module, "cause" => cause);
        }
    }
}

/// Reads sysfs off the runtime.
async fn blocking<T: Send + 'static>(
    wanted: &PciPath,
    read: impl FnOnce() -> T + Send + 'static,
) -> Result<T, DeviceError> {
    let cut_short = |error: tokio::task::JoinError| DeviceError::CutShort {
        wanted: wanted.to_string(),
        reason: error.to_string(),
    };
    tokio::task::spawn_blocking(read).await.map_err(cut_short)
}

impl Tree {
    /// The number of the link that belongs to the PCI function itself, not to one on a bus behind it.
    fn link_at(&self, path: &PciPath) -> Option<u32> {
        let (function, _) = self.resolve(path)?;
        let class = self.sys().join("class/net");
        let entries = fs::read_dir(&class).ok()?;
        let is_right_behind = |link: &Path| {
            let rest = fs::canonicalize(link).ok();
            let rest = rest.as_ref().and_then(|link| link.strip_prefix(&function).ok());
            rest.is_some_and(|rest| {
                !rest.iter().any(|part| part.to_str().is_some_and(|part| part.parse::<PciAddress>().is_ok()))
            })
        };
        let link = entries.flatten().map(|entry| entry.path()).find(|link| is_right_behind(link))?;
        fs::read_to_string(link.join("ifindex")).ok()?.trim().parse().ok()
    }

    /// Whether there is a virtio device of that kind that no driver has taken.
    fn has_idle_virtio(&self, kind: &str) -> bool {
        let entries = fs::read_dir(self.sys().join("bus/virtio/devices"));
        entries.into_iter().flatten().flatten().any(|device| {
            let device = device.path();
            let is_kind = fs::read_to_string(device.join("device")).is_ok_and(|id| id.trim() == kind);
            is_kind && !device.join("driver").exists()
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::device::uevent::{Uevent, Uevents};
    use crate::device::{DeviceNodes, Drivers};

    struct NoDrivers;

    impl Drivers for NoDrivers {
        fn load(&self, _: &str) -> Result<(), String> {
            Err("none".to_owned())
        }
    }

    fn devices(sys: &Path, uevents: &Uevents, timeout: Duration) -> Devices {
        let tree = Tree::new(sys, Path::new("/dev"), Arc::new(DeviceNodes));
        let log = slog::Logger::root(slog::Discard, slog::o!());
        Devices::assemble(tree, uevents.clone(), Arc::new(NoDrivers), timeout, log, None)
    }

    /// A bridge at 02 with a function at slot 0 behind it.
    const FUNCTION: &str = "devices/pci0000:00/0000:00:02.0/0000:01:00.0";

    fn plug(sys: &Path, at: &str, name: &str, index: u32) {
        let link = sys.join(at).join("net").join(name);
        fs::create_dir_all(&link).unwrap();
        fs::create_dir_all(sys.join("class/net")).unwrap();
        fs::write(link.join("ifindex"), format!("{index}\n")).unwrap();
        symlink(&link, sys.join("class/net").join(name)).unwrap();
    }

    #[tokio::test]
    async fn a_card_is_found_by_its_path_and_not_by_the_bridge_above_it() {
        let dir = tempfile::tempdir().unwrap();
        plug(dir.path(), "devices/virtual", "lo", 1);
        plug(dir.path(), &format!("{FUNCTION}/virtio3"), "eth7", 9);
        let devices = devices(dir.path(), &Uevents::new(), Duration::from_millis(1));
        assert_eq!(devices.find_link(&"02/00".parse().unwrap()).await.unwrap(), 9);
        let error = devices.find_link(&"02".parse().unwrap()).await.unwrap_err().to_string();
        assert!(error.starts_with("no network card appeared at PCI path 02"), "{error}");
    }

    #[tokio::test]
    async fn a_card_that_comes_late_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join(FUNCTION)).unwrap();
        let uevents = Uevents::new();
        let devices = devices(dir.path(), &uevents, Duration::from_secs(60));
        let path = "02/00".parse().unwrap();
        let (found, ()) = tokio::join!(devices.find_link(&path), async {
            plug(dir.path(), FUNCTION, "eth0", 4);
            let event = b"add@/x\0ACTION=add\0DEVPATH=/x\0SUBSYSTEM=net\0INTERFACE=eth0\0";
            uevents.publish(Notice::Event(Uevent::parse(event).unwrap().into()));
        });
        assert_eq!(found.unwrap(), 4);
    }

    #[test]
    fn a_card_without_a_driver_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let device = dir.path().join("bus/virtio/devices/virtio0");
        fs::create_dir_all(&device).unwrap();
        fs::write(device.join("device"), "0x0001\n").unwrap();
        let devices = devices(dir.path(), &Uevents::new(), Duration::ZERO);
        assert!(devices.inner.tree.has_idle_virtio(VIRTIO_NET_ID));
        assert!(!devices.inner.tree.has_idle_virtio("0x0002"));
        fs::create_dir(device.join("driver")).unwrap();
        assert!(!devices.inner.tree.has_idle_virtio(VIRTIO_NET_ID));
    }
}
