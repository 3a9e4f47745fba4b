//! The directory of a VM's sockets, logs and own share; it goes with the VM.
//!
//! Invariant: its removal never reaches through a mount. Containers' root filesystems are bound into
//! the share, and a recursive removal would empty the originals. So what is mounted below is taken
//! off first, and if anything stays mounted, the directory stays too.

use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, umount2};

/// A guard of the directory.
#[derive(Debug)]
pub(crate) struct RunDirectory {
    /// None once dropped.
    directory: Option<tempfile::TempDir>,
    path: PathBuf,
}

impl RunDirectory {
    /// Makes one in the temporary directory, unless that path is too long for sockets' names
    /// (unix(7)).
    pub(crate) fn new() -> io::Result<Self> {
        let parent = Some(std::env::temp_dir()).filter(|dir| dir.as_os_str().len() < 60);
        let parent = parent.unwrap_or_else(|| PathBuf::from("/tmp"));
        let directory = tempfile::Builder::new().prefix("nakai-vm-").tempdir_in(parent)?;
        // The table of mounts has no symbolic links in its paths.
        let path = directory.path().canonicalize()?;
        Ok(Self { directory: Some(directory), path })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for RunDirectory {
    fn drop(&mut self) {
        let Some(directory) = self.directory.take() else { return };
        for mount in mounts_below(&self.path).unwrap_or_default().iter().rev() {
            // What can't be taken off is found by the next look.
            let _ = umount2(mount, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
        }
        match mounts_below(&self.path) {
            // An error leaves files in the temporary directory, where they may stay.
            Ok(mounts) if mounts.is_empty() => drop(directory.close()),
            _ => drop(directory.keep()),
        }
    }
}

/// The mount points below `directory`, in the order of mounting (proc_pid_mountinfo(5)).
fn mounts_below(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(unescaped);
    Ok(points.filter(|point| point != directory && point.starts_with(directory)).collect())
}

/// Undoes the table's `\040` for space, tab, line-feed and backslash.
fn unescaped(field: &str) -> PathBuf {
    let escapes = [(r"\040", " "), (r"\011", "\t"), (r"\012", "\n"), (r"\134", "\\")];
    PathBuf::from(escapes.iter().fold(field.to_owned(), |text, (from, to)| text.replace(from, to)))
}

#[cfg(test)]
mod tests {
    use super::*;

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
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let original = tempfile::tempdir().unwrap();
        std::fs::write(original.path().join("precious"), "x").unwrap();
        let run = RunDirectory::new().unwrap();
        let path = run.path().join("a b");
        std::fs::create_dir(&path).unwrap();
        let bind = nix::mount::MsFlags::MS_BIND;
        if nix::mount::mount(Some(original.path()), &path, None::<&str>, bind, None::<&str>).is_err() {
            return; // A container without CAP_SYS_ADMIN.
        }
        assert!(path.join("precious").exists());
        drop(run);
        assert!(!path.exists());
        assert!(original.path().join("precious").exists());
    }
}
