//! The directory of a VM's sockets, logs and own share; it goes with the VM.
//!
//! Invariant: its removal never reaches through a mount. Containers' root filesystems are bound into
//! the share, and a recursive removal would empty the originals. So what is mounted below is taken
//! off first, and if anything stays mounted, the directory stays too.

use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, umount2};

use crate::mounts::below;
use crate::removal::{self, RemovalError};
use crate::rootfs;

/// What these directories are called.
const PREFIX: &str = "nakai-vm-";

/// A guard of the directory.
#[derive(Debug)]
pub(crate) struct RunDirectory {
    path: PathBuf,
}

impl RunDirectory {
    /// Makes one in the temporary directory, unless that path is too long for sockets' names
    /// (unix(7)).
    pub(crate) fn new() -> io::Result<Self> {
        let parent = Some(std::env::temp_dir()).filter(|dir| dir.as_os_str().len() < 60);
        let parent = parent.unwrap_or_else(|| PathBuf::from("/tmp"));
        let directory = tempfile::Builder::new().prefix(PREFIX).tempdir_in(parent)?;
        // The table of mounts has no symbolic links in its paths.
        let path = directory.path().canonicalize()?;
        let _ = directory.keep();
        Ok(Self { path })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// Removes the directory of a VM that ended with its keeper.
pub(crate) fn remove_left(path: &Path) {
    let ours = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PREFIX));
    if ours && path.is_dir() {
        drop(RunDirectory { path: path.to_owned() });
    }
}

impl Drop for RunDirectory {
    fn drop(&mut self) {
        for mount in below(&self.path).unwrap_or_default().iter().rev() {
            let writable = mount.upper.as_deref().and_then(rootfs::writable);
            // What can't be taken off is found by the next look.
            let _ = umount2(&mount.point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
            if let Some(writable) = writable {
                removal::tell(removal::remove(&writable));
            }
        }
        if below(&self.path).is_ok_and(|mounts| mounts.is_empty()) {
            removal::tell(removal::remove(&self.path));
        } else {
            let source = io::Error::other("something is mounted in it");
            removal::tell(Err(RemovalError { path: self.path.clone(), source }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::where_it_may_mount;

    #[test]
    fn directory_goes_with_its_guard() {
        let run = RunDirectory::new().unwrap();
        let path = run.path().to_owned();
        std::fs::write(path.join("file"), "x").unwrap();
        drop(run);
        assert!(!path.exists());
    }

    #[test]
    fn removal_does_not_reach_through_a_mount() {
        where_it_may_mount(module_path!(), "removal_does_not_reach_through_a_mount", || {
            let original = tempfile::tempdir().unwrap();
            std::fs::write(original.path().join("precious"), "x").unwrap();
            let run = RunDirectory::new().unwrap();
            let path = run.path().join("a b");
            std::fs::create_dir(&path).unwrap();
            let bind = nix::mount::MsFlags::MS_BIND;
            nix::mount::mount(Some(original.path()), &path, None::<&str>, bind, None::<&str>).unwrap();
            assert!(path.join("precious").exists());
            drop(run);
            assert!(!path.exists());
            assert!(original.path().join("precious").exists());
        });
    }
}
