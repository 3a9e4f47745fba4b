//! A container's root filesystem in the directory that the guest shares, as a guard.
//!
//! ```text
//! host   <share>/<container>/rootfs        bind mount (root), copy, or unpacked archive
//! guest  /run/kata-containers/shared/containers/<container>/rootfs
//! ```
//!
//! Dropping the guard takes away what it made, and never reaches through a mount: a bind mount is
//! detached first, and its mount point is then removed as the empty directory that it must be. With a
//! bind mount, what the container writes to its root is written to the original.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::sandbox::guest_rootfs;
use crate::unpack::{UnpackError, unpack};

/// Why a root filesystem is not shared.
#[derive(Debug, thiserror::Error)]
pub enum RootfsError {
    /// A container id that is no plain file name.
    #[error("container id {0:?} can't name a directory")]
    Id(String),
    /// Neither a directory nor a tar file.
    #[error("root filesystem {path}: {source}", path = .path.display())]
    Source {
        /// What was given.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The place in the share is taken or can't be made.
    #[error("share {path}: {source}", path = .path.display())]
    Target {
        /// The place.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A file can't be copied.
    #[error("copy {path}: {source}", path = .path.display())]
    Copy {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The archive is not unpacked.
    #[error(transparent)]
    Unpack(#[from] UnpackError),
}

/// A root filesystem that the guest can see.
#[derive(Debug)]
pub struct SharedRootfs {
    /// `<share>/<container>`.
    directory: PathBuf,
    guest: String,
    mounted: bool,
}

impl SharedRootfs {
    /// Shares `source`, a directory or a tar file, for `container`. Blocks: a copy takes its time.
    ///
    /// # Errors
    ///
    /// See [`RootfsError`]. Nothing is left in the share then.
    pub fn share(source: &Path, share: &Path, container: &str) -> Result<Self, RootfsError> {
        if container.is_empty() || container == "." || container == ".." || container.contains(['/', '\0']) {
            return Err(RootfsError::Id(container.to_owned()));
        }
        let kind = fs::metadata(source)
            .map_err(|error| RootfsError::Source { path: source.to_owned(), source: error })?;
        let directory = share.join(container);
        let taken = |source| RootfsError::Target { path: directory.clone(), source };
        fs::create_dir(&directory).map_err(taken)?;
        // From here on dropping it cleans up.
        let mut shared =
            Self { directory: directory.clone(), guest: guest_rootfs(container), mounted: false };
        let target = shared.host_path();
        fs::create_dir(&target).map_err(taken)?;
        if kind.is_file() {
            unpack(source, &target)?;
        } else if nix::unistd::geteuid().is_root() && bind(source, &target) {
            shared.mounted = true;
        } else {
            copy_tree(source, &target)?;
        }
        Ok(shared)
    }

    /// Where the host sees it.
    pub fn host_path(&self) -> PathBuf {
        self.directory.join("rootfs")
    }

    /// Where the guest sees it: the specification's root path.
    pub fn guest_path(&self) -> &str {
        &self.guest
    }

    /// Leaves it in the share beyond this process; [`unshare`] takes it away.
    pub fn keep(self) {
        std::mem::forget(self);
    }
}

impl Drop for SharedRootfs {
    fn drop(&mut self) {
        let rootfs = self.host_path();
        if self.mounted {
            // The guest may still have files open there.
            let _ = umount2(&rootfs, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
            // Not recursive: if the mount is still there, this refuses.
            let _ = fs::remove_dir(&rootfs);
            let _ = fs::remove_dir(&self.directory);
        } else {
            let _ = fs::remove_dir_all(&self.directory);
        }
    }
}

/// Takes away what a kept [`SharedRootfs`] of `container` left in `share`.
pub fn unshare(share: &Path, container: &str) {
    let directory = share.join(container);
    let rootfs = directory.join("rootfs");
    let mounted =
        umount2(&rootfs, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW).is_ok() || is_mount(&rootfs);
    drop(SharedRootfs { directory, guest: String::new(), mounted });
}

/// Whether a path is on another mount than its parent, as far as device numbers tell.
fn is_mount(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let device = |path: &Path| fs::symlink_metadata(path).map(|metadata| metadata.dev()).ok();
    path.parent().is_some_and(|parent| device(path) != device(parent))
}

/// A bind mount; false where this process may not mount. It is not recursive: detaching the copy of a
/// mount below could detach the original too, where both are in one peer group
/// (mount_namespaces(7)).
fn bind(source: &Path, target: &Path) -> bool {
    mount(Some(source), target, None::<&str>, MsFlags::MS_BIND, None::<&str>).is_ok()
}

/// Copies files, directories and symbolic links with their modes; sockets and nodes are left out.
fn copy_tree(source: &Path, target: &Path) -> Result<(), RootfsError> {
    let failed = |source| RootfsError::Copy { path: target.to_owned(), source };
    for entry in fs::read_dir(source).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let (from, to) = (entry.path(), target.join(entry.file_name()));
        let kind = entry.file_type().map_err(failed)?;
        let copied = if kind.is_symlink() {
            fs::read_link(&from).and_then(|link| symlink(link, &to))
        } else if kind.is_dir() {
            fs::create_dir(&to).map_err(failed)?;
            copy_tree(&from, &to)?;
            // Behind the contents: it may forbid to write.
            entry.metadata().and_then(|metadata| {
                fs::set_permissions(&to, fs::Permissions::from_mode(metadata.permissions().mode()))
            })
        } else if kind.is_file() {
            fs::copy(&from, &to).map(drop)
        } else {
            Ok(())
        };
        copied.map_err(|source| RootfsError::Copy { path: from, source })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn original() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("bin")).unwrap();
        fs::write(dir.path().join("bin/sh"), "#!").unwrap();
        fs::set_permissions(dir.path().join("bin/sh"), fs::Permissions::from_mode(0o755)).unwrap();
        symlink("bin/sh", dir.path().join("init")).unwrap();
        dir
    }

    #[test]
    fn shared_directory_goes_and_the_original_stays() {
        let (original, share) = (original(), tempfile::tempdir().unwrap());
        let shared = SharedRootfs::share(original.path(), share.path(), "web").unwrap();
        assert_eq!(shared.guest_path(), "/run/kata-containers/shared/containers/web/rootfs");
        assert_eq!(fs::read_to_string(shared.host_path().join("init")).unwrap(), "#!");
        let error = SharedRootfs::share(original.path(), share.path(), "web").unwrap_err().to_string();
        assert!(error.contains("web: File exists"), "{error}");
        drop(shared);
        assert_eq!(fs::read_dir(share.path()).unwrap().count(), 0);
        assert!(original.path().join("bin/sh").exists());
    }

    #[test]
    fn kept_share_is_taken_away_by_name() {
        let (original, share) = (original(), tempfile::tempdir().unwrap());
        SharedRootfs::share(original.path(), share.path(), "web").unwrap().keep();
        assert!(share.path().join("web/rootfs/init").exists());
        unshare(share.path(), "web");
        assert_eq!(fs::read_dir(share.path()).unwrap().count(), 0);
        assert!(original.path().join("bin/sh").exists());
    }

    #[test]
    fn copy_keeps_modes_and_links() {
        let (original, target) = (original(), tempfile::tempdir().unwrap());
        copy_tree(original.path(), target.path()).unwrap();
        let mode = fs::metadata(target.path().join("bin/sh")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o755);
        assert_eq!(fs::read_link(target.path().join("init")).unwrap(), Path::new("bin/sh"));
    }

    #[test]
    fn bad_sources_and_ids_leave_nothing() {
        let share = tempfile::tempdir().unwrap();
        for id in ["", ".", "..", "a/b"] {
            assert!(matches!(SharedRootfs::share(share.path(), share.path(), id), Err(RootfsError::Id(_))));
        }
        assert!(SharedRootfs::share(Path::new("/nonexistent"), share.path(), "a").is_err());
        let not_tar = share.path().join("x.tar");
        fs::write(&not_tar, [b'x'; 600]).unwrap();
        let error = SharedRootfs::share(&not_tar, share.path(), "a").unwrap_err().to_string();
        assert!(error.contains("x.tar"), "{error}");
        assert!(!share.path().join("a").exists());
    }
}
