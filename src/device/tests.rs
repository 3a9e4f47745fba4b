//! Devices that come and go on trees of files.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nakai_protocols::agent;
use nix::errno::Errno;
use slog::{Discard, Logger, o};

use super::sysfs::Tree;
use super::uevent::{Notice, Uevent, Uevents};
use super::*;

/// Nodes are files that say what they would be: `b 254 16`, and if it has left, `b 254 16 dead`.
struct PaperNodes;

impl Nodes for PaperNodes {
    fn look(&self, path: &Path) -> Result<Node, Errno> {
        let text = fs::read_to_string(path).map_err(|_| Errno::ENOENT)?;
        let mut words = text.split_whitespace();
        let kind = match words.next() {
            Some("b") => Some(DeviceKind::Block),
            Some("c") => Some(DeviceKind::Char),
            _ => None,
        };
        let mut number = || words.next().and_then(|word| word.parse().ok()).unwrap_or(0);
        Ok(Node { kind, major: number(), minor: number() })
    }

    fn is_alive(&self, path: &Path) -> bool {
        !fs::read_to_string(path).unwrap().ends_with("dead")
    }
}

#[derive(Default)]
struct PaperDrivers {
    loaded: Mutex<Vec<String>>,
}

impl Drivers for PaperDrivers {
    fn load(&self, module: &str) -> Result<(), String> {
        self.loaded.lock().unwrap().push(module.to_owned());
        Err("there are no modules on paper".to_owned())
    }
}

struct Guest {
    dir: tempfile::TempDir,
    drivers: Arc<PaperDrivers>,
}

impl Guest {
    fn new() -> Self {
        let guest = Self { dir: tempfile::tempdir().unwrap(), drivers: Arc::default() };
        for dir in
            ["dev", "sys/class/block", "sys/class/scsi_host", "sys/bus/pci/devices", "sys/devices/pci0000:00"]
        {
            fs::create_dir_all(guest.path(dir)).unwrap();
        }
        fs::write(guest.path("sys/bus/pci/rescan"), "").unwrap();
        guest
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn tree(&self) -> Tree {
        Tree::new(&self.path("sys"), &self.path("dev"), Arc::new(PaperNodes))
    }

    fn devices(&self, hotplug_timeout: Duration) -> Devices {
        let log = Logger::root(Discard, o!());
        Devices::assemble(self.tree(), Uevents::new(), self.drivers.clone(), hotplug_timeout, log, None)
    }

    /// A PCI function and all above it, named by its path beneath `sys/devices`.
    fn pci(&self, path: &str) {
        fs::create_dir_all(self.path("sys/devices").join(path)).unwrap();
        let name = path.rsplit('/').next().unwrap();
        let _ = symlink(self.path("sys/devices").join(path), self.path("sys/bus/pci/devices").join(name));
    }

    /// A disk in sysfs, without its node.
    fn disk(&self, path: &str, number: &str) {
        let directory = self.path("sys/devices").join(path);
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("dev"), format!("{number}\n")).unwrap();
        symlink(&directory, self.path("sys/class/block").join(directory.file_name().unwrap())).unwrap();
    }

    /// At once, as the kernel does: somebody may be looking.
    fn node(&self, name: &str, text: &str) {
        fs::write(self.path("aside"), text).unwrap();
        fs::rename(self.path("aside"), self.path("dev").join(name)).unwrap();
    }
}

fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
}

fn request(kind: &str, address: &str, container_path: &str) -> DeviceRequest {
    let wire = agent::Device {
        type_: kind.to_owned(),
        id: address.to_owned(),
        vm_path: if address.starts_with('/') { address.to_owned() } else { String::new() },
        container_path: container_path.to_owned(),
        ..Default::default()
    };
    DeviceRequest::try_from(&wire).unwrap()
}

/// As long as nobody would wait in vain.
const LONG: Duration = Duration::from_secs(60);
/// For what is not to come.
const SHORT: Duration = Duration::from_millis(10);

#[test]
fn pci_paths_lead_over_bridges() {
    let guest = Guest::new();
    guest.pci("pci0000:00/0000:00:04.0/0000:01:00.0");
    guest.pci("pci0000:00/0000:00:05.0/0000:02:00.0/0000:03:1f.1");
    fs::create_dir_all(guest.path("sys/devices/pci0000:00/0000:00:05.0/pci_bus/0000:02")).unwrap();
    guest.pci("pci0000:20/0000:20:00.0/0000:21:02.0");
    guest.pci("platform/4010000000.pcie/pci0000:30/0000:30:01.0/0000:31:00.0");
    // Two buses behind one bridge: no telling which.
    guest.pci("pci0000:00/0000:00:06.0/0000:04:00.0");
    guest.pci("pci0000:00/0000:00:06.0/0000:05:00.0");
    let tree = guest.tree();
    for (path, address) in [
        ("04", Some("0000:00:04.0")),
        ("04/00", Some("0000:01:00.0")),
        ("05/00/1f.1", Some("0000:03:1f.1")),
        ("20/00/02", Some("0000:21:02.0")),
        ("30/01/00", Some("0000:31:00.0")),
        ("04/01", None),
        ("07/00", None),
        ("04/00/00", None),
        ("06/00", None),
        ("40/00/00", None),
    ] {
        let found = tree.resolve(&path.parse().unwrap()).map(|(_, address)| address.to_string());
        assert_eq!(found.as_deref(), address, "{path}");
    }
}

#[test]
fn a_disk_that_is_there_is_found_without_any_event() {
    run(async {
        let guest = Guest::new();
        let devices = guest.devices(LONG);
        // The disk behind the bridge at 04 comes first by name, and isn't the bridge's own.
        guest.disk("pci0000:00/0000:00:04.0/0000:01:00.0/virtio1/block/vda", "254:0");
        guest.disk("pci0000:00/0000:00:04.0/0000:01:00.0/virtio1/block/vda/vda1", "254:1");
        fs::write(guest.path("sys/class/block/vda1/partition"), "1").unwrap();
        guest.disk("pci0000:00/0000:00:04.0/virtio2/block/vdb", "254:16");
        guest.node("vda", "b 254 0");
        guest.node("vdb", "b 254 16");
        let requests =
            [request("blk", "04", "/dev/x"), request("blk", "04/00", ""), request("blk", "04/00", "/dev/y")];
        let found = devices.find_all(&requests).await.unwrap().nodes;
        let found: Vec<_> =
            found.iter().map(|d| (d.container_path.to_str().unwrap(), &d.guest_path, d.minor)).collect();
        assert_eq!(found, [("/dev/x", &guest.path("dev/vdb"), 16), ("/dev/y", &guest.path("dev/vda"), 0)]);
        assert_eq!(*guest.drivers.loaded.lock().unwrap(), [""; 0], "drivers were loaded for nothing");
        assert_eq!(fs::read_to_string(guest.path("sys/bus/pci/rescan")).unwrap(), "");
    });
}

#[test]
fn a_disk_counts_once_its_node_is_there() {
    let guest = Guest::new();
    let tree = guest.tree();
    let address = Address::parse("blk", "04").unwrap();
    assert_eq!(tree.look(&address).unwrap(), None);
    guest.disk("pci0000:00/0000:00:04.0/virtio2/block/vdb", "254:16");
    assert_eq!(tree.look(&address).unwrap(), None);
    guest.node("vdb", "b 254 0");
    assert_eq!(tree.look(&address).unwrap(), None, "the node of a disk that is gone was taken for it");
    guest.node("vdb", "b 254 16");
    assert_eq!(tree.look(&address).unwrap().unwrap().path, guest.path("dev/vdb"));
}

/// Looks for a device, then does something, and expects the device.
async fn comes_with(guest: &Guest, kind: &str, address: &str, plug: impl FnOnce(&Devices)) -> FoundDevice {
    let devices = guest.devices(LONG);
    let waiting = tokio::spawn({
        let (devices, request) = (devices.clone(), request(kind, address, "/dev/x"));
        async move { devices.find_all(&[request]).await }
    });
    // Let it get to the waiting: its first look and the scan are over.
    let mut notices = devices.uevents().subscribe();
    while !matches!(notices.next().await, Notice::Scanned) {}
    assert!(!waiting.is_finished());
    plug(&devices);
    waiting.await.unwrap().unwrap().nodes.remove(0)
}

fn event(devpath: &str) -> Notice {
    let text = format!("add@{devpath}\0ACTION=add\0DEVPATH={devpath}\0SUBSYSTEM=block\0");
    Notice::Event(Uevent::parse(text.as_bytes()).unwrap().into())
}

#[test]
fn a_disk_that_is_plugged_later_is_found_by_its_event() {
    run(async {
        let guest = Guest::new();
        let found = comes_with(&guest, "blk", "04/00", |devices| {
            guest.disk("pci0000:00/0000:00:04.0/0000:01:00.0/virtio1/block/vda", "254:0");
            guest.node("vda", "b 254 0");
            devices.uevents().publish(event("/devices/whatever/block/vda"));
        })
        .await;
        assert_eq!((found.kind, found.major, found.minor), (DeviceKind::Block, 254, 0));
        assert_eq!(fs::read_to_string(guest.path("sys/bus/pci/rescan")).unwrap(), "1");
        assert!(guest.drivers.loaded.lock().unwrap().contains(&"virtio_blk".to_owned()));
    });
}

#[test]
fn a_scan_for_nobody_in_particular_keeps_nobody_waiting() {
    run(async {
        let guest = Guest::new();
        fs::remove_file(guest.path("sys/bus/pci/rescan")).unwrap();
        let rescan = guest.path("sys/bus/pci/rescan");
        nix::unistd::mkfifo(&rescan, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let devices = guest.devices(LONG);
        let mut notices = devices.uevents().subscribe();
        // A kernel that does not get on with it: the scan hangs as long as nobody reads, and a second is not begun.
        devices.scan_beside();
        devices.scan_beside();
        let text = tokio::task::spawn_blocking(move || fs::read_to_string(rescan)).await.unwrap().unwrap();
        assert_eq!(text, "1");
        while !matches!(notices.next().await, Notice::Scanned) {}
        assert!(!devices.inner.scanning.load(std::sync::atomic::Ordering::Acquire), "the next one can begin");
    });
}

#[test]
fn an_event_that_was_lost_does_no_harm() {
    run(async {
        let guest = Guest::new();
        let found = comes_with(&guest, "mmioblk", "/dev/vdc", |devices| {
            guest.node("vdc", "b 254 32");
            devices.uevents().publish(Notice::Look);
        })
        .await;
        assert_eq!(found.guest_path, guest.path("dev/vdc"));
    });
}

#[test]
fn a_scsi_disk_is_looked_for_on_every_host() {
    run(async {
        let guest = Guest::new();
        for host in ["host0", "host7"] {
            let dir = guest.path("sys/class/scsi_host").join(host);
            fs::create_dir(&dir).unwrap();
            fs::write(dir.join("scan"), "").unwrap();
        }
        let decoy = "pci0000:00/0000:00:03.0/virtio0/host7/target7:0:1/7:0:1:12/block/sda";
        guest.disk(decoy, "8:0");
        guest.node("sda", "b 8 0");
        let found = comes_with(&guest, "scsi", "1:2", |devices| {
            guest.disk("pci0000:00/0000:00:03.0/virtio0/host7/target7:0:1/7:0:1:2/block/sdb", "8:16");
            guest.node("sdb", "b 8 16");
            devices.uevents().publish(event("/devices/whatever/block/sdb"));
        })
        .await;
        assert_eq!(found.guest_path, guest.path("dev/sdb"));
        for host in ["host0", "host7"] {
            let scan = guest.path("sys/class/scsi_host").join(host).join("scan");
            assert_eq!(fs::read_to_string(scan).unwrap(), "0 1 2");
        }
    });
}

#[test]
fn one_that_is_just_leaving_is_not_taken_for_the_next() {
    run(async {
        let guest = Guest::new();
        guest.disk("pci0000:00/0000:00:03.0/virtio0/host7/target7:0:1/7:0:1:2/block/sda", "8:0");
        guest.node("sda", "b 8 0 dead");
        let found = comes_with(&guest, "scsi", "1:2", |devices| {
            fs::remove_file(guest.path("sys/class/block/sda")).unwrap();
            guest.disk("pci0000:00/0000:00:03.0/virtio0/host7/target7:0:1/7:0:1:2/block/sdb", "8:16");
            guest.node("sdb", "b 8 16");
            devices.uevents().publish(event("/devices/whatever/block/sdb"));
        })
        .await;
        assert_eq!(found.guest_path, guest.path("dev/sdb"));
    });
}

#[test]
fn what_does_not_come_is_named_with_what_is_there() {
    run(async {
        let guest = Guest::new();
        let devices = guest.devices(SHORT);
        guest.pci("pci0000:00/0000:00:01.0");
        guest.pci("pci0000:00/0000:00:04.0");
        guest.disk("virtual/block/loop0", "7:0");
        fs::create_dir_all(guest.path("sys/class/scsi_device/0:0:0:0")).unwrap();
        for (kind, address, message) in [
            (
                "blk",
                "02/03",
                "no block device appeared at PCI path 02/03 within 10ms; the bus has: 0000:00:01.0 0000:00:04.0",
            ),
            (
                "blk",
                "04",
                "no block device appeared at PCI path 04 within 10ms; 0000:00:04.0 is there but has no driver",
            ),
            (
                "scsi",
                "0:1",
                "no block device appeared at SCSI address 0:1 within 10ms; the SCSI hosts have: 0:0:0:0",
            ),
            (
                "nvdimm",
                "/dev/pmem0",
                "no block device appeared at /dev/pmem0 within 10ms; the disks are: loop0",
            ),
        ] {
            let error = devices.find_all(&[request(kind, address, "/dev/x")]).await.unwrap_err();
            assert_eq!(error.to_string(), message);
        }
    });
}

#[test]
fn a_node_that_is_no_disk_is_refused_at_once() {
    run(async {
        let guest = Guest::new();
        guest.node("null", "c 1 3");
        let error =
            guest.devices(LONG).find_all(&[request("mmioblk", "/dev/null", "/dev/x")]).await.unwrap_err();
        assert!(matches!(error, DeviceError::NotBlock { .. }), "{error}");
    });
}
