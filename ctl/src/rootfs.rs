//! A container's root filesystem in the directory that the guest shares, as a guard.
//!
//! ```text
//! host   <share>/<container>/rootfs        bind mount (root), overlay of an image's layers (root), copy, or unpacked
//!                                          archive
//! guest  /run/kata-containers/shared/containers/<container>/rootfs
//! ```
//!
//! Dropping the guard takes away what it made, and never reaches through a mount: a mount is
//! detached first, and its mount point is then removed as the empty directory that it must be. With a
//! bind mount, what the container writes to its root is written to the original. With an overlay it is written to a
//! directory that goes with the guard and that the guest doesn't see; the layers are never written to.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::image::{Image, merge};
use crate::mounts;
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
    /// What an overlay is written to.
    writable: Option<PathBuf>,
}

impl SharedRootfs {
    /// Shares `source`, a directory or a tar file, for `container`. Blocks: a copy takes its time.
    ///
    /// # Errors
    ///
    /// See [`RootfsError`]. Nothing is left in the share then.
    pub fn share(source: &Path, share: &Path, container: &str) -> Result<Self, RootfsError> {
        let kind = fs::metadata(source)
            .map_err(|error| RootfsError::Source { path: source.to_owned(), source: error })?;
        let mut shared = Self::reserve(share, container)?;
        let target = shared.host_path();
        if kind.is_file() {
            unpack(source, &target)?;
        } else if nix::unistd::geteuid().is_root() && bind(source, &target) {
            shared.mounted = true;
        } else {
            copy(&[source], &target)?;
        }
        Ok(shared)
    }

    /// Shares an image for `container`, which can write to its root and to no other's. Blocks.
    ///
    /// # Errors
    ///
    /// As for [`SharedRootfs::share`].
    pub fn share_image(image: &Image, share: &Path, container: &str) -> Result<Self, RootfsError> {
        let mut shared = Self::reserve(share, container)?;
        let target = shared.host_path();
        shared.writable = overlay(&image.layers, &target);
        shared.mounted = shared.writable.is_some();
        if !shared.mounted {
            copy(&image.layers, &target)?;
        }
        Ok(shared)
    }

    /// As [`SharedRootfs::share_image`] for an agent on this host, which may not see what is mounted here: always a
    /// copy.
    ///
    /// # Errors
    ///
    /// As for [`SharedRootfs::share`].
    pub fn copy_image(image: &Image, directory: &Path, container: &str) -> Result<Self, RootfsError> {
        let shared = Self::reserve(directory, container)?;
        copy(&image.layers, &shared.host_path())?;
        Ok(shared)
    }

    /// Makes the place in the share; the guard takes it away.
    fn reserve(share: &Path, container: &str) -> Result<Self, RootfsError> {
        if container.is_empty() || container == "." || container == ".." || container.contains(['/', '\0']) {
            return Err(RootfsError::Id(container.to_owned()));
        }
        let directory = share.join(container);
        let taken = |source| RootfsError::Target { path: directory.clone(), source };
        fs::create_dir(&directory).map_err(taken)?;
        let guest = guest_rootfs(container);
        let shared = Self { directory: directory.clone(), guest, mounted: false, writable: None };
        fs::create_dir(shared.host_path()).map_err(taken)?;
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
        } else {
            let _ = fs::remove_dir_all(&rootfs);
        }
        // Nor is this: beside the root there may be mounts of the host's directories.
        let _ = fs::remove_dir(&self.directory);
        if let Some(writable) = &self.writable {
            let _ = fs::remove_dir_all(writable);
        }
    }
}

/// Takes away what a kept [`SharedRootfs`] of `container` left in `share`.
pub fn unshare(share: &Path, container: &str) {
    let directory = share.join(container);
    let rootfs = directory.join("rootfs");
    let writable = writable(&rootfs);
    let mounted =
        umount2(&rootfs, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW).is_ok() || is_mount(&rootfs);
    drop(SharedRootfs { directory, guest: String::new(), mounted, writable });
}

/// What the overlay of ours at `point` is written to.
pub(crate) fn writable(point: &Path) -> Option<PathBuf> {
    // The table of mounts has no symbolic links in its paths.
    let upper = mounts::overlay_upper(&point.canonicalize().ok()?)?;
    let writable = upper.parent()?;
    let ours = writable.file_name()?.to_string_lossy().starts_with(WRITABLE);
    ours.then(|| writable.to_owned())
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

/// What the directories of overlays are called.
const WRITABLE: &str = "nakai-writable-";

/// The longest text of options that mount(2) takes, and a reserve.
const OPTIONS_MAX: usize = 4000;

/// Mounts the layers, the lowest first, and a directory of their own for what is written; none where that can't be done:
/// this process may not mount, or the temporary directory can't be an upper one.
fn overlay(layers: &[PathBuf], target: &Path) -> Option<PathBuf> {
    if !nix::unistd::geteuid().is_root() {
        return None;
    }
    let top = fs::metadata(layers.last()?).ok()?;
    let writable = tempfile::Builder::new().prefix(WRITABLE).tempdir().ok()?;
    let (upper, work) = (writable.path().join("upper"), writable.path().join("work"));
    for directory in [&upper, &work] {
        fs::create_dir(directory).ok()?;
    }
    // The container's root has what the upper directory has.
    chown(&upper, Some(top.uid()), Some(top.gid())).ok()?;
    fs::set_permissions(&upper, Permissions::from_mode(top.mode() & 0o7777)).ok()?;
    let paths = layers.iter().rev().chain([&upper, &work]).map(|path| path.to_str());
    let paths = paths.collect::<Option<Vec<_>>>()?;
    let (lower, [upper, work]) = paths.split_last_chunk()?;
    let options = format!("lowerdir={},upperdir={upper},workdir={work}", lower.join(":"));
    if options.len() > OPTIONS_MAX || paths.iter().any(|path| path.contains([':', ',', '\\'])) {
        return None;
    }
    let flags = MsFlags::MS_NODEV;
    mount(Some("overlay"), target, Some("overlay"), flags, Some(&*options)).ok()?;
    Some(writable.keep())
}

fn copy<P: AsRef<Path>>(layers: &[P], target: &Path) -> Result<(), RootfsError> {
    merge(layers, target).map_err(|(path, source)| RootfsError::Copy { path, source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

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
        copy(&[original.path()], target.path()).unwrap();
        let mode = fs::metadata(target.path().join("bin/sh")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o755);
        assert_eq!(fs::read_link(target.path().join("init")).unwrap(), Path::new("bin/sh"));
    }

    #[test]
    fn containers_of_an_image_don_t_see_each_others_writes() {
        let (original, share) = (original(), tempfile::tempdir().unwrap());
        let top = tempfile::tempdir().unwrap();
        fs::write(top.path().join("bin"), "a file here").unwrap();
        let layers = vec![original.path().to_owned(), top.path().to_owned()];
        let image = Image { config: Default::default(), layers, id: None };
        let one = SharedRootfs::share_image(&image, share.path(), "one").unwrap();
        let two = SharedRootfs::share_image(&image, share.path(), "two").unwrap();
        assert_eq!(fs::read_to_string(one.host_path().join("bin")).unwrap(), "a file here");
        fs::write(one.host_path().join("new"), "x").unwrap();
        assert!(!two.host_path().join("new").exists() && !original.path().join("new").exists());
        let writable = writable(&one.host_path());
        one.keep();
        unshare(share.path(), "one");
        drop(two);
        assert_eq!(fs::read_dir(share.path()).unwrap().count(), 0);
        assert!(writable.is_none_or(|writable| !writable.exists()));
        assert!(original.path().join("bin/sh").exists() && top.path().join("bin").exists());
    }

    #[test]
    fn what_lies_beside_a_root_is_not_removed_with_it() {
        let (original, share) = (original(), tempfile::tempdir().unwrap());
        let image = Image { config: Default::default(), layers: vec![original.path().to_owned()], id: None };
        let shared = SharedRootfs::copy_image(&image, share.path(), "web").unwrap();
        let beside = share.path().join("web/mounts/0");
        fs::create_dir_all(&beside).unwrap();
        fs::write(beside.join("precious"), "x").unwrap();
        drop(shared);
        assert!(beside.join("precious").exists() && !share.path().join("web/rootfs").exists());
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
