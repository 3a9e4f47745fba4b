//! What the kernel says of its devices, read from sysfs(5) and `/dev`.
//!
//! Every look is a fresh one. A device counts as there when its node is there too, with the number that sysfs
//! tells: the kernel makes the two one after the other. And it must still answer: another that is just leaving the
//! same place is not the one that is looked for.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::libc;
use nix::sys::stat::{Mode, major, minor, stat};

use super::pci::{PciAddress, PciPath};
use super::request::{Address, ScsiAddress};
use super::{DeviceError, FoundDevice};

/// How many devices an error message lists.
const LISTED: usize = 32;

/// Whether a device is accessed by blocks or as a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceKind {
    /// A block device.
    Block,
    /// A character device.
    Char,
}

/// What a path in `/dev` leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Node {
    /// Its kind, if it is a device at all.
    pub kind: Option<DeviceKind>,
    /// Number of the driver.
    pub major: u64,
    /// Number of the device.
    pub minor: u64,
}

/// Looks at device nodes: what only root could make for a test.
pub trait Nodes: Send + Sync {
    /// What `path` leads to.
    ///
    /// # Errors
    ///
    /// That of stat(2).
    fn look(&self, path: &Path) -> Result<Node, Errno>;

    /// Whether the device behind the node still answers. One that is just leaving has its node, and its
    /// entry in sysfs, a little longer.
    fn is_alive(&self, _path: &Path) -> bool {
        true
    }
}

/// The nodes of the guest.
#[derive(Debug, Clone, Copy)]
pub struct DeviceNodes;

impl Nodes for DeviceNodes {
    fn look(&self, path: &Path) -> Result<Node, Errno> {
        let stat = stat(path)?;
        let kind = match stat.st_mode & libc::S_IFMT {
            libc::S_IFBLK => Some(DeviceKind::Block),
            libc::S_IFCHR => Some(DeviceKind::Char),
            _ => None,
        };
        Ok(Node { kind, major: major(stat.st_rdev), minor: minor(stat.st_rdev) })
    }

    fn is_alive(&self, path: &Path) -> bool {
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        !matches!(open(path, flags, Mode::empty()), Err(Errno::ENXIO | Errno::ENODEV | Errno::ENOENT))
    }
}

/// A block device that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) path: PathBuf,
    pub(super) major: u64,
    pub(super) minor: u64,
}

/// Whole disk in sysfs.
#[derive(Debug)]
struct Disk {
    name: String,
    /// Its directory, without links.
    directory: PathBuf,
}

/// Where to look.
pub(super) struct Tree {
    sys: PathBuf,
    dev: PathBuf,
    nodes: Arc<dyn Nodes>,
}

/// The names in a directory, sorted; none if it can't be read.
fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort_unstable();
    names
}

impl Tree {
    pub(super) fn new(sys: &Path, dev: &Path, nodes: Arc<dyn Nodes>) -> Self {
        Self { sys: sys.to_owned(), dev: dev.to_owned(), nodes }
    }

    pub(super) fn sys(&self) -> &Path {
        &self.sys
    }

    /// The block device at the address, if it is there by now. Blocks, for some file reads.
    pub(super) fn look(&self, address: &Address) -> Result<Option<Found>, DeviceError> {
        let disk = match address {
            Address::Pci(path) => {
                let Some((function, _)) = self.resolve(path) else { return Ok(None) };
                self.disks().into_iter().find(|disk| disk.is_right_behind(&function))
            }
            Address::Scsi(address) => self.disks().into_iter().find(|disk| disk.is_at(*address)),
            Address::Mmio(path) | Address::Pmem(path) => return self.look_at_node(path.as_path()),
        };
        Ok(disk.and_then(|disk| self.node_of(&disk)))
    }

    /// The directory of the PCI function that a path leads to, and its address.
    pub(super) fn resolve(&self, path: &PciPath) -> Option<(PathBuf, PciAddress)> {
        let root_bus = path.root_bus();
        let root = format!("pci0000:{root_bus:02x}");
        let devices = self.sys.join("devices");
        // Where the firmware describes the host bridge by device tree, it is a platform device.
        let platform = devices.join("platform");
        let bridges = names(&platform).into_iter().map(|bridge| platform.join(bridge));
        let mut directory =
            std::iter::once(devices).chain(bridges).map(|d| d.join(&root)).find(|d| d.is_dir())?;
        let mut bus = (0, root_bus);
        let mut found = None;
        for step in path.steps() {
            if found.is_some() {
                bus = bus_behind(&directory)?;
            }
            let address = PciAddress { domain: bus.0, bus: bus.1, at: *step };
            directory.push(address.to_string());
            found = directory.is_dir().then_some(address);
            found?;
        }
        Some((fs::canonicalize(directory).ok()?, found?))
    }

    /// All whole disks, by name.
    fn disks(&self) -> Vec<Disk> {
        let class = self.sys.join("class/block");
        let disk = |name: String| {
            let directory = fs::canonicalize(class.join(&name)).ok()?;
            (!directory.join("partition").exists()).then_some(Disk { name, directory })
        };
        names(&class).into_iter().filter_map(disk).collect()
    }

    /// The node of a disk, once it is there and has the disk's number.
    fn node_of(&self, disk: &Disk) -> Option<Found> {
        // A slash in a name can't be in sysfs.
        let path = self.dev.join(disk.name.replace('!', "/"));
        let found = self.node_with(&disk.directory, &path, DeviceKind::Block)?;
        self.nodes.is_alive(&path).then_some(found)
    }

    /// The node at `path`, if it has the number that `directory` tells.
    fn node_with(&self, directory: &Path, path: &Path, kind: DeviceKind) -> Option<Found> {
        let number = fs::read_to_string(directory.join("dev")).ok()?;
        let (major, minor) = number.trim().split_once(':')?;
        let (major, minor) = (major.parse().ok()?, minor.parse().ok()?);
        let node = self.nodes.look(path).ok()?;
        let wanted = Node { kind: Some(kind), major, minor };
        (node == wanted).then_some(Found { path: path.to_owned(), major, minor })
    }

    fn look_at_node(&self, path: &Path) -> Result<Option<Found>, DeviceError> {
        let path = self.dev.join(path.strip_prefix("/dev").unwrap_or(path));
        match self.nodes.look(&path) {
            Ok(Node { kind: Some(DeviceKind::Block), major, minor }) => {
                Ok(self.nodes.is_alive(&path).then_some(Found { path, major, minor }))
            }
            Ok(_) => Err(DeviceError::NotBlock { path }),
            Err(Errno::ENOENT) => Ok(None),
            Err(source) => Err(DeviceError::Look { path, source }),
        }
    }

    /// What there is where the address was looked for, for an error message.
    pub(super) fn surroundings(&self, address: &Address) -> String {
        match address {
            Address::Pci(path) => {
                if let Some((function, address)) = self.resolve(path) {
                    let driver = fs::read_link(function.join("driver")).ok();
                    let driver = driver.as_ref().and_then(|link| link.file_name()?.to_str());
                    return match driver {
                        Some(driver) => {
                            format!(
                                "{address} is there and has the driver {driver}, but nothing has come of it"
                            )
                        }
                        None => format!("{address} is there but has no driver"),
                    };
                }
                self.pci_devices()
            }
            Address::Scsi(_) => {
                format!("the SCSI hosts have: {}", list(names(&self.sys.join("class/scsi_device"))))
            }
            Address::Mmio(_) | Address::Pmem(_) => {
                format!("the disks are: {}", list(self.disks().into_iter().map(|disk| disk.name).collect()))
            }
        }
    }
}

impl Tree {
    /// All PCI functions, for an error message.
    pub(super) fn pci_devices(&self) -> String {
        format!("the bus has: {}", list(names(&self.sys.join("bus/pci/devices"))))
    }

    /// The node of a VFIO group, once it is there and has the group's number.
    pub(super) fn vfio_group(&self, name: &str) -> Option<Found> {
        let directory = self.sys.join("class/vfio").join(name);
        self.node_with(&directory, &self.dev.join("vfio").join(name), DeviceKind::Char)
    }

    /// The nodes of all character devices in a directory of `/dev`, at the same place in a container.
    pub(super) fn char_devices(&self, directory: &str) -> Vec<FoundDevice> {
        let directory = self.dev.join(directory);
        let found = names(&directory).into_iter().filter_map(|name| {
            let path = directory.join(name);
            let Node { kind: Some(DeviceKind::Char), major, minor } = self.nodes.look(&path).ok()? else {
                return None;
            };
            let container_path = Path::new("/dev").join(path.strip_prefix(&self.dev).ok()?);
            let kind = DeviceKind::Char;
            Some(FoundDevice { container_path, guest_path: path, final_path: None, kind, major, minor })
        });
        found.collect()
    }

    /// All VFIO groups, for an error message.
    pub(super) fn vfio_groups(&self) -> String {
        format!("the VFIO groups are: {}", list(names(&self.sys.join("class/vfio"))))
    }
}

fn list(names: Vec<String>) -> String {
    let more = names.len().saturating_sub(LISTED);
    let shown = names.into_iter().take(LISTED).collect::<Vec<_>>().join(" ");
    match (shown.is_empty(), more) {
        (true, _) => "nothing".to_owned(),
        (false, 0) => shown,
        (false, more) => format!("{shown} and {more} more"),
    }
}

/// Domain and number of the bus behind a bridge: the only one it says it has, or else the one of all that is
/// there.
fn bus_behind(bridge: &Path) -> Option<(u32, u8)> {
    let parse = |name: &String| {
        let address: PciAddress = format!("{name}:00.0").parse().ok()?;
        Some((address.domain, address.bus))
    };
    let buses: Vec<_> = names(&bridge.join("pci_bus")).iter().filter_map(parse).collect();
    if let [bus] = buses.as_slice() {
        return Some(*bus);
    }
    let children = names(bridge);
    let mut children = children.iter().filter_map(|name| name.parse::<PciAddress>().ok());
    let first = children.next()?;
    let bus = (first.domain, first.bus);
    children.all(|child| (child.domain, child.bus) == bus).then_some(bus)
}

impl Disk {
    /// Whether it belongs to the PCI function itself, not to one on a bus behind it.
    fn is_right_behind(&self, function: &Path) -> bool {
        let Ok(rest) = self.directory.strip_prefix(function) else { return false };
        !rest.iter().any(|part| part.to_str().is_some_and(|part| part.parse::<PciAddress>().is_ok()))
    }

    /// Whether it is at that address of some SCSI host: `.../H:0:ID:LUN/block/NAME`.
    fn is_at(&self, address: ScsiAddress) -> bool {
        let block = self.directory.parent();
        let unit = block.filter(|dir| dir.ends_with("block")).and_then(Path::parent);
        let unit = unit.and_then(|dir| dir.file_name()?.to_str());
        let rest = unit.and_then(|unit| unit.split_once(':'));
        rest.is_some_and(|(host, rest)| {
            !host.is_empty() && host.bytes().all(|b| b.is_ascii_digit()) && rest == format!("0:{address}")
        })
    }
}
