//! Passed-through devices on trees of files. What a kernel does when it is told to, a thread does here.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use slog::{Discard, Logger, o};

use super::*;
use crate::device::uevent::Uevents;
use crate::device::{DeviceKind, DeviceRequest, Devices, Drivers, FoundDevices, Node, Nodes, Wanted};

struct Paper;

impl Nodes for Paper {
    fn look(&self, path: &Path) -> Result<Node, Errno> {
        let text = fs::read_to_string(path).map_err(|_| Errno::ENOENT)?;
        let (major, minor) = text.split_once(':').unwrap();
        let (major, minor) = (major.parse().unwrap(), minor.parse().unwrap());
        Ok(Node { kind: Some(DeviceKind::Char), major, minor })
    }
}

impl Drivers for Paper {
    fn load(&self, _: &str) -> Result<(), String> {
        Ok(())
    }
}

struct Guest {
    dir: tempfile::TempDir,
}

impl Guest {
    fn new() -> Self {
        let guest = Self { dir: tempfile::tempdir().unwrap() };
        for dir in ["sys/devices/pci0000:00/0000:00:02.0", "sys/bus/pci/devices", "dev/vfio"] {
            fs::create_dir_all(guest.path(dir)).unwrap();
        }
        for driver in ["vfio-pci", "virtio-pci"] {
            fs::create_dir_all(guest.path("sys/bus/pci/drivers").join(driver)).unwrap();
        }
        fs::write(guest.path("sys/bus/pci/drivers_probe"), "").unwrap();
        fs::write(guest.path("sys/bus/pci/drivers/virtio-pci/unbind"), "").unwrap();
        guest
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    /// A function behind the bridge at 02, with a driver and a group.
    fn function(&self, address: &str, driver: &str, group: Option<&str>) {
        let directory = self.path("sys/devices/pci0000:00/0000:00:02.0").join(address);
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("driver_override"), "").unwrap();
        symlink(self.path("sys/bus/pci/drivers").join(driver), directory.join("driver")).unwrap();
        if let Some(group) = group {
            symlink(self.path("sys/kernel/iommu_groups").join(group), directory.join("iommu_group")).unwrap();
        }
        symlink(&directory, self.path("sys/bus/pci/devices").join(address)).unwrap();
    }

    fn group(&self, name: &str, number: &str) {
        fs::create_dir_all(self.path("sys/class/vfio").join(name)).unwrap();
        fs::write(self.path("sys/class/vfio").join(name).join("dev"), number).unwrap();
        fs::write(self.path("dev/vfio").join(name), number).unwrap();
    }

    async fn find(&self, options: &[&str], usage: Use) -> Result<FoundDevices, DeviceError> {
        let tree = Tree::new(&self.path("sys"), &self.path("dev"), Arc::new(Paper));
        let (log, limit) = (Logger::root(Discard, o!()), Duration::from_millis(10));
        let devices = Devices::assemble(tree, Uevents::new(), Arc::new(Paper), limit, log, None);
        let functions = options.iter().map(|option| Passed::parse(option).unwrap().unwrap()).collect();
        let request = DeviceRequest {
            wanted: Wanted::Passed(functions, usage),
            container_path: Some("/dev/vfio/3".try_into().unwrap()),
        };
        devices.find_all(&[request]).await
    }
}

fn run<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test)
}

#[test]
fn a_container_gets_the_node_of_the_group() {
    let guest = Guest::new();
    guest.function("0000:01:00.0", "vfio-pci", Some("7"));
    guest.function("0000:01:00.1", "vfio-pci", Some("7"));
    guest.group("7", "511:0");
    let options = ["0000:1a:02.0=02/00", "0000:1a:02.1=02/00.1"];
    let found = run(guest.find(&options, Use::Container)).unwrap();
    let node = found.nodes.first().unwrap();
    assert_eq!((node.kind, node.major, node.minor), (DeviceKind::Char, 511, 0));
    assert_eq!(node.container_path, Path::new("/dev/vfio/3"));
    assert_eq!(node.final_path.as_deref(), Some(&*guest.path("dev/vfio/7")));
    let pci: Vec<_> = found.pci.iter().map(|(host, guest)| format!("{host} {guest}")).collect();
    assert_eq!(pci, ["0000:1a:02.0 0000:01:00.0", "0000:1a:02.1 0000:01:00.1"]);
}

#[test]
fn what_infiniband_has_comes_with_it() {
    let guest = Guest::new();
    guest.function("0000:01:00.0", "mlx5_core", None);
    fs::create_dir(guest.path("dev/infiniband")).unwrap();
    fs::write(guest.path("dev/infiniband/uverbs0"), "231:192").unwrap();
    let added = run(guest.find(&["0000:1a:02.0=02/00"], Use::Guest)).unwrap().added;
    let node = added.first().unwrap();
    assert_eq!((node.container_path.to_str().unwrap(), node.major), ("/dev/infiniband/uverbs0", 231));
}

#[test]
fn the_guests_driver_keeps_what_is_the_guests() {
    let guest = Guest::new();
    guest.function("0000:01:00.0", "virtio-pci", None);
    let found = run(guest.find(&["0000:1a:02.0=02/00"], Use::Guest)).unwrap();
    assert_eq!((found.nodes.len(), found.pci.len()), (0, 1));
    assert_eq!(fs::read_to_string(guest.path("sys/bus/pci/drivers_probe")).unwrap(), "");
}

#[test]
fn another_driver_has_to_let_go() {
    let guest = Guest::new();
    guest.function("0000:01:00.0", "virtio-pci", Some("7"));
    // Nobody does what is written here.
    let error = run(guest.find(&["0000:1a:02.0=02/00"], Use::Container)).unwrap_err().to_string();
    assert_eq!(error, "vfio-pci did not take 0000:01:00.0, whose driver is virtio-pci");
    let function = guest.path("sys/bus/pci/devices/0000:01:00.0");
    // And gets it back: that is written over the name of the other one.
    assert_eq!(fs::read_to_string(function.join("driver_override")).unwrap(), "\nfio-pci");
    assert_eq!(fs::read_to_string(function.join("driver/unbind")).unwrap(), "0000:01:00.0");
    assert_eq!(fs::read_to_string(guest.path("sys/bus/pci/drivers_probe")).unwrap(), "0000:01:00.0");
}

#[test]
fn a_function_is_given_back_wherever_it_failed() {
    for missing in ["sys/bus/pci/devices/0000:01:00.0/driver/unbind", "sys/bus/pci/drivers_probe"] {
        let guest = Guest::new();
        guest.function("0000:01:00.0", "virtio-pci", Some("7"));
        fs::remove_file(guest.path(missing)).unwrap();
        let error = run(guest.find(&["0000:1a:02.0=02/00"], Use::Container)).unwrap_err().to_string();
        assert!(error.contains("0000:01:00.0"), "{error}");
        let named = guest.path("sys/bus/pci/devices/0000:01:00.0/driver_override");
        assert_eq!(fs::read_to_string(named).unwrap(), "\nfio-pci", "{missing}");
    }
}

#[test]
fn without_vfio_pci_nobody_loses_a_function() {
    let guest = Guest::new();
    guest.function("0000:01:00.0", "virtio-pci", Some("7"));
    fs::remove_dir(guest.path("sys/bus/pci/drivers/vfio-pci")).unwrap();
    let error = run(guest.find(&["0000:1a:02.0=02/00"], Use::Container)).unwrap_err().to_string();
    assert_eq!(error, "vfio-pci did not take 0000:01:00.0, whose driver is virtio-pci");
    let function = guest.path("sys/bus/pci/devices/0000:01:00.0");
    for file in ["driver_override", "driver/unbind"] {
        assert_eq!(fs::read_to_string(function.join(file)).unwrap(), "");
    }
}

#[test]
fn what_no_container_can_have_is_told() {
    let guest = Guest::new();
    guest.function("0000:01:00.0", "virtio-pci", None);
    guest.function("0000:01:00.1", "vfio-pci", Some("7"));
    guest.function("0000:01:00.2", "vfio-pci", Some("8"));
    for (options, message) in [
        (&["0000:1a:02.0=02/00"][..], "0000:01:00.0 is in no IOMMU group"),
        (&["0000:1a:02.1=02/00.1", "0000:1a:02.2=02/00.2"], "0000:01:00.1 and 0000:01:00.2 of one device"),
        (
            &["0000:1a:02.1=02/00.1"],
            "no VFIO group appeared at /dev/vfio/7 within 10ms; the VFIO groups are: nothing",
        ),
        (
            &["0000:1a:02.1=02/01"],
            "no PCI device appeared at PCI path 02/01 within 10ms; the bus has: 0000:01:00.0",
        ),
    ] {
        let error = run(guest.find(options, Use::Container)).unwrap_err().to_string();
        assert!(error.starts_with(message), "{error}");
    }
    let unbound = guest.path("sys/bus/pci/devices/0000:01:00.0/driver_override");
    assert_eq!(fs::read_to_string(unbound).unwrap(), "", "it was changed for nothing");
}
