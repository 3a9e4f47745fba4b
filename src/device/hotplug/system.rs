//! CPUs and memory blocks, as `/sys/devices/system` shows them and takes orders.
//!
//! Sources: Documentation/ABI/testing/sysfs-devices-system-cpu, Documentation/admin-guide/mm/memory-hotplug.rst
//! of the kernel. A CPU without a file `online` can't be taken offline, so it is online.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use crate::device::DeviceError;

/// CPUs that are online, and why others are not.
#[derive(Debug, Default)]
pub(super) struct Cpus {
    pub(super) online: u32,
    /// What the kernel said of the last one that did not come online.
    pub(super) refused: Option<String>,
}

/// What was done to memory blocks.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Blocks {
    /// Those that are online now and were not before.
    pub(super) onlined: Vec<String>,
    /// Those that did not come online, with the reason.
    pub(super) refused: Vec<String>,
}

/// The directory `/sys/devices/system`. Everything blocks.
#[derive(Debug, Clone)]
pub(super) struct System {
    directory: PathBuf,
}

impl System {
    pub(super) fn new(sys: &Path) -> Self {
        Self { directory: sys.join("devices/system") }
    }

    /// Brings CPUs online, the lowest first, until `total` are.
    pub(super) fn online_cpus(&self, total: u32) -> Result<Cpus, DeviceError> {
        let directory = self.directory.join("cpu");
        let mut cpus = Cpus::default();
        let mut offline = Vec::new();
        for number in numbered(&directory, "cpu")? {
            let cpu = directory.join(format!("cpu{number}"));
            match fs::read_to_string(cpu.join("online")) {
                Ok(text) if text.trim() == "0" => offline.push(cpu.join("online")),
                // Gone since it was listed.
                Err(_) if !cpu.exists() => {}
                Ok(_) | Err(_) => cpus.online = cpus.online.saturating_add(1),
            }
        }
        for file in offline {
            if cpus.online >= total {
                break;
            }
            match write(&file, "1") {
                Ok(()) => cpus.online = cpus.online.saturating_add(1),
                Err(error) => cpus.refused = Some(format!("{}: {error}", file.display())),
            }
        }
        Ok(cpus)
    }

    /// The list of CPUs that are `present`, or that are `possible`: the kernel's own text.
    pub(super) fn cpu_list(&self, name: &str) -> String {
        let text = fs::read_to_string(self.directory.join("cpu").join(name)).unwrap_or_default();
        text.trim().to_owned()
    }

    /// Brings every memory block online. A kernel without memory hot-plug has none.
    pub(super) fn online_memory(&self) -> Result<Blocks, DeviceError> {
        let directory = self.directory.join("memory");
        let mut blocks = Blocks::default();
        if directory.exists() {
            for number in numbered(&directory, "memory")? {
                self.online_block(&format!("memory{number}"), &mut blocks);
            }
        }
        Ok(blocks)
    }

    /// Brings one memory block online, if it is not.
    pub(super) fn online_block(&self, name: &str, blocks: &mut Blocks) {
        let state = self.directory.join("memory").join(name).join("state");
        // One that is gone, or on its way, is nobody's memory.
        if !fs::read_to_string(&state).is_ok_and(|text| text.trim() == "offline") {
            return;
        }
        match write(&state, "online") {
            Ok(()) => blocks.onlined.push(name.to_owned()),
            Err(error) => blocks.refused.push(format!("{name}: {error}")),
        }
    }

    /// Tells the kernel of a memory block at a physical address.
    pub(super) fn probe_memory(&self, address: u64) -> Result<(), DeviceError> {
        let file = self.directory.join("memory/probe");
        write(&file, &format!("{address:#x}")).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => DeviceError::NoMemoryProbe { path: file },
            _ => DeviceError::MemoryProbe { address, source },
        })
    }
}

/// Writes to a file of sysfs, which must exist.
fn write(file: &Path, text: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(file)?.write_all(text.as_bytes())
}

/// The numbers of all entries `<prefix><number>`, in order.
fn numbered(directory: &Path, prefix: &str) -> Result<Vec<u32>, DeviceError> {
    let failed = |source| DeviceError::List { path: directory.to_owned(), source };
    let entries = fs::read_dir(directory).map_err(failed)?;
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let mut numbers: Vec<u32> = names.filter_map(|name| number_in(&name, prefix)).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// The number in `cpu7`, and none in `cpufreq` or `cpu+7`.
pub(super) fn number_in(name: &str, prefix: &str) -> Option<u32> {
    let digits = name.strip_prefix(prefix)?;
    if digits.bytes().all(|byte| byte.is_ascii_digit()) { digits.parse().ok() } else { None }
}
