//! Where the programs are that a VM needs: QEMU, virtiofsd, vhost-device-vsock.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// A program that a VM needs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tool {
    /// The file's name.
    pub(crate) name: &'static str,
    /// The environment variable that names the file.
    variable: &'static str,
    /// Directories that are looked into after `PATH`.
    directories: &'static [&'static str],
    /// Where it comes from, for the error message.
    hint: &'static str,
}

/// The emulator.
pub(crate) const QEMU: Tool = Tool {
    name: "qemu-system-x86_64",
    variable: "NAKAI_QEMU",
    directories: &[],
    hint: "Debian: qemu-system-x86",
};

/// The virtio-fs daemon.
pub(crate) const VIRTIOFSD: Tool = Tool {
    name: "virtiofsd",
    variable: "NAKAI_VIRTIOFSD",
    directories: &["/usr/lib/qemu", "/usr/libexec"],
    hint: "Debian: qemu-system-common or virtiofsd",
};

/// The vhost-user vsock daemon.
pub(crate) const VHOST_DEVICE_VSOCK: Tool = Tool {
    name: "vhost-device-vsock",
    variable: "NAKAI_VHOST_DEVICE_VSOCK",
    directories: &[],
    hint: "cargo install vhost-device-vsock --version 0.3.0 --locked",
};

/// What makes a disk of a directory.
pub(crate) const MKFS_EXT4: Tool = Tool {
    name: "mkfs.ext4",
    variable: "NAKAI_MKFS_EXT4",
    // Debian keeps it out of a user's PATH.
    directories: &["/usr/sbin", "/sbin"],
    hint: "Debian: e2fsprogs",
};

/// What makes a read-only disk of a directory.
pub(crate) const MKFS_EROFS: Tool = Tool {
    name: "mkfs.erofs",
    variable: "NAKAI_MKFS_EROFS",
    directories: &["/usr/sbin", "/sbin"],
    hint: "Debian: erofs-utils",
};

/// A program that is nowhere to be found.
#[derive(Debug, thiserror::Error)]
#[error("{name} is not installed ({hint}; or name it in {variable})")]
pub struct ToolMissing {
    /// The file's name.
    pub name: &'static str,
    /// The environment variable that could name it.
    pub variable: &'static str,
    /// Where it comes from.
    pub hint: &'static str,
}

impl Tool {
    /// The program's path: the environment variable's value, else the first hit in `PATH`, in
    /// `.cache/tools/bin` of the working directory or one above it, or in the tool's own places.
    pub(crate) fn find(&self) -> Result<PathBuf, ToolMissing> {
        let cwd = std::env::current_dir().unwrap_or_default();
        self.find_in(std::env::var_os(self.variable), std::env::var_os("PATH"), &cwd).ok_or(ToolMissing {
            name: self.name,
            variable: self.variable,
            hint: self.hint,
        })
    }

    fn find_in(&self, named: Option<OsString>, path: Option<OsString>, cwd: &Path) -> Option<PathBuf> {
        if let Some(named) = named.filter(|named| !named.is_empty()) {
            // Named but not there is an error, not a reason to take another one.
            return Some(PathBuf::from(named)).filter(|named| named.is_file());
        }
        let path = path.unwrap_or_default();
        let in_path = std::env::split_paths(&path);
        let in_cache = cwd.ancestors().map(|dir| dir.join(".cache/tools/bin"));
        let own = self.directories.iter().map(PathBuf::from);
        in_path.chain(in_cache).chain(own).map(|dir| dir.join(self.name)).find(|file| file.is_file())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variable_then_path_then_cache() {
        let dir = tempfile::tempdir().unwrap();
        let (bin, cache) = (dir.path().join("bin"), dir.path().join(".cache/tools/bin"));
        let cwd = dir.path().join("a/b");
        let tool = Tool { name: "daemon", variable: "X", directories: &[], hint: "nowhere" };
        for place in [&bin, &cache, &cwd] {
            std::fs::create_dir_all(place).unwrap();
        }
        let path = Some(OsString::from(&bin));
        assert_eq!(tool.find_in(None, path.clone(), &cwd), None);
        std::fs::write(cache.join("daemon"), "").unwrap();
        assert_eq!(tool.find_in(None, path.clone(), &cwd), Some(cache.join("daemon")));
        std::fs::write(bin.join("daemon"), "").unwrap();
        assert_eq!(tool.find_in(None, path.clone(), &cwd), Some(bin.join("daemon")));
        let named = cache.join("daemon");
        assert_eq!(tool.find_in(Some(named.clone().into()), path.clone(), &cwd), Some(named));
        assert_eq!(tool.find_in(Some("/nonexistent".into()), path, &cwd), None);
    }
}
