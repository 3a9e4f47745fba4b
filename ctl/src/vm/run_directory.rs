//! The directory of a VM's sockets, logs and own share; it goes with the VM.
//!
//! Invariant: its removal never reaches through a mount. Containers' root filesystems are bound into
//! the share, and a recursive removal would empty the originals. So what is mounted below is taken
//! off first, and if anything stays mounted, the directory stays too.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, umount2};

use crate::mounts::below;
use crate::removal::{self, RemovalError};
use crate::rootfs;

/// What these directories are called.
const PREFIX: &str = "nakai-vm-";

/// In each directory: locked for as long as its guard lives, however that ends.
const HELD: &str = "held";

/// A guard of the directory.
#[derive(Debug)]
pub(crate) struct RunDirectory {
    path: PathBuf,
    /// None when it is another's that has gone.
    _held: Option<Flock<File>>,
}

impl RunDirectory {
    /// Makes one in the temporary directory, unless that path is too long for sockets' names
    /// (unix(7)).
    pub(crate) fn new() -> io::Result<Self> {
        let parent = Some(std::env::temp_dir()).filter(|dir| dir.as_os_str().len() < 60);
        Self::within(&parent.unwrap_or_else(|| PathBuf::from("/tmp")))
    }

    pub(crate) fn within(parent: &Path) -> io::Result<Self> {
        let directory = tempfile::Builder::new().prefix(PREFIX).tempdir_in(parent)?;
        // Under its name only when it is locked: who finds it free removes the directory.
        let (new, held) = (directory.path().join("new"), directory.path().join(HELD));
        let lock = Flock::lock(File::create_new(&new)?, FlockArg::LockExclusiveNonblock);
        let lock = lock.map_err(|(_, errno)| errno)?;
        fs::rename(new, held)?;
        // The table of mounts has no symbolic links in its paths.
        let path = directory.path().canonicalize()?;
        let _ = directory.keep();
        Ok(Self { path, _held: Some(lock) })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What a guard leaves that is killed.
    #[cfg(test)]
    pub(crate) fn abandon(mut self) -> PathBuf {
        self._held = None;
        let path = self.path.clone();
        std::mem::forget(self);
        path
    }
}

/// Removes the directory of a VM that ended with its keeper.
pub(crate) fn remove_left(path: &Path) {
    let ours = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PREFIX));
    if ours && path.is_dir() {
        drop(RunDirectory { path: path.to_owned(), _held: None });
    }
}

/// Whether the guard of a directory lives.
pub(crate) fn is_held(path: &Path) -> bool {
    let held = File::options().read(true).custom_flags(libc::O_NOFOLLOW).open(path.join(HELD));
    held.is_ok_and(|held| Flock::lock(held, FlockArg::LockSharedNonblock).is_err())
}

/// Removes this user's directories in `parent` whose guards are gone.
pub(crate) fn remove_all_left(parent: &Path) {
    let mine = nix::unistd::geteuid().as_raw();
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let is_mine = |entry: &fs::DirEntry| entry.metadata().is_ok_and(|at| at.is_dir() && at.uid() == mine);
        if entry.file_name().to_string_lossy().starts_with(PREFIX) && is_mine(&entry) {
            let path = entry.path();
            // One without the file is just being made, or no longer ours.
            if path.join(HELD).exists() && !is_held(&path) {
                remove_left(&path);
            }
        }
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
