//! What the host asks about the guest's hardware. All of it is in sysfs.

use std::io;
use std::path::PathBuf;

/// The hardware as `/sys/devices/system` shows it.
#[derive(Debug, Clone)]
pub struct Hardware {
    system: PathBuf,
}

/// Why the hardware can't be told.
#[derive(Debug, thiserror::Error)]
pub enum HardwareError {
    /// A file that can't be read.
    #[error("read {path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file with something else than expected.
    #[error("{path} holds {text:?}, no number to base 16", path = path.display())]
    Number {
        /// The file.
        path: PathBuf,
        /// What it holds.
        text: String,
    },
}

impl Default for Hardware {
    fn default() -> Self {
        Self::new("/sys".into())
    }
}

impl Hardware {
    /// The hardware as the sysfs on `sys` shows it.
    pub fn new(sys: PathBuf) -> Self {
        Self { system: sys.join("devices/system") }
    }

    /// The unit in which memory is plugged, in bytes; 0 if the kernel can't plug memory.
    ///
    /// # Errors
    ///
    /// [`HardwareError`], but not if the file is absent.
    pub fn memory_block_size(&self) -> Result<u64, HardwareError> {
        let path = self.system.join("memory/block_size_bytes");
        match self.read(path.clone()) {
            Ok(text) => u64::from_str_radix(text.trim_start_matches("0x"), 16)
                .map_err(|_| HardwareError::Number { path, text }),
            Err(HardwareError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// Whether memory that was plugged has to be told to the kernel by its address
    /// (Documentation/admin-guide/mm/memory-hotplug.rst, `probe`).
    pub fn has_memory_probe(&self) -> bool {
        self.system.join("memory/probe").exists()
    }

    /// The CPUs that run, as a list like `0-3,5`.
    ///
    /// # Errors
    ///
    /// [`HardwareError::Read`].
    pub fn online_cpus(&self) -> Result<String, HardwareError> {
        self.read(self.system.join("cpu/online"))
    }

    /// The memory nodes that are there, as a list like `0-1`; `None` where the kernel knows no NUMA.
    ///
    /// # Errors
    ///
    /// [`HardwareError::Read`], but not if the file is absent.
    pub fn online_memory_nodes(&self) -> Result<Option<String>, HardwareError> {
        match self.read(self.system.join("node/online")) {
            Ok(nodes) => Ok(Some(nodes)),
            Err(HardwareError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn read(&self, path: PathBuf) -> Result<String, HardwareError> {
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(text.trim().to_owned()),
            Err(source) => Err(HardwareError::Read { path, source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn sysfs_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let system = dir.path().join("devices/system");
        let hardware = Hardware::new(dir.path().into());
        assert_eq!(hardware.memory_block_size().unwrap(), 0, "no memory hot-plug");
        assert!(!hardware.has_memory_probe());
        assert!(hardware.online_cpus().is_err());

        fs::create_dir_all(system.join("memory")).unwrap();
        fs::create_dir_all(system.join("cpu")).unwrap();
        fs::write(system.join("memory/block_size_bytes"), "8000000\n").unwrap();
        fs::write(system.join("memory/probe"), "").unwrap();
        fs::write(system.join("cpu/online"), "0-3,5\n").unwrap();
        assert_eq!(hardware.memory_block_size().unwrap(), 128 << 20);
        assert!(hardware.has_memory_probe());
        assert_eq!(hardware.online_cpus().unwrap(), "0-3,5");

        fs::write(system.join("memory/block_size_bytes"), "many\n").unwrap();
        let error = hardware.memory_block_size().unwrap_err().to_string();
        assert!(error.ends_with("memory/block_size_bytes holds \"many\", no number to base 16"), "{error}");
    }
}
