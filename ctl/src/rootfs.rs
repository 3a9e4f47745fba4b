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
//!
//! The guest can write to the share, too. So nothing there is reached by a path that it could have changed: what is made
//! is held open while it is filled or mounted on, and what is removed is removed without following a link (`tree.rs`).

use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};

use crate::image::{Image, Owners, merge};
use crate::removal::{self, RemovalError};
use crate::sandbox::guest_rootfs;
use crate::tree::{Place, Tree, by_descriptor};
use crate::unpack::{UnpackError, unpack};
use crate::{mounting, mounts};

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
    share: PathBuf,
    container: String,
    guest: String,
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
        let (shared, target) = Self::reserve(share, container)?;
        if kind.is_file() {
            unpack(source, &by_descriptor(&target))?;
        } else if !(nix::unistd::geteuid().is_root() && bind(source, &target)) {
            copy(&[source], &by_descriptor(&target), None)?;
        }
        Ok(shared)
    }

    /// Shares an image for `container`, which can write to its root and to no other's. Blocks.
    ///
    /// # Errors
    ///
    /// As for [`SharedRootfs::share`].
    pub fn share_image(image: &Image, share: &Path, container: &str) -> Result<Self, RootfsError> {
        let (shared, target) = Self::reserve(share, container)?;
        if !overlay(&image.layers, &by_descriptor(&target)) {
            copy(&image.layers, &by_descriptor(&target), None)?;
        }
        Ok(shared)
    }

    /// As [`SharedRootfs::share_image`] for an agent on this host, which may not see what is mounted here: always a
    /// copy. Its files may get other owners.
    ///
    /// # Errors
    ///
    /// As for [`SharedRootfs::share`].
    pub fn copy_image(
        image: &Image,
        directory: &Path,
        container: &str,
        owners: Option<Owners>,
    ) -> Result<Self, RootfsError> {
        let (shared, target) = Self::reserve(directory, container)?;
        copy(&image.layers, &by_descriptor(&target), owners)?;
        Ok(shared)
    }

    /// Makes the place in the share, which the guard takes away, and holds it open.
    fn reserve(share: &Path, container: &str) -> Result<(Self, OwnedFd), RootfsError> {
        if container.is_empty() || container == "." || container == ".." || container.contains(['/', '\0']) {
            return Err(RootfsError::Id(container.to_owned()));
        }
        let taken = |source| RootfsError::Target { path: share.join(container), source };
        let tree = Tree::strict(share).map_err(taken)?;
        let own = tree.place(Path::new(container)).and_then(|place| place.make_open_directory());
        own.map_err(taken)?;
        let shared =
            Self { share: share.to_owned(), container: container.to_owned(), guest: guest_rootfs(container) };
        let root = shared.place(&tree).and_then(|place| {
            place.make_open_directory()?;
            place.open()
        });
        Ok((shared, root.map_err(taken)?))
    }

    fn place(&self, tree: &Tree) -> io::Result<Place> {
        tree.existing(&Path::new(&self.container).join("rootfs"))
    }

    /// Where the host sees it, unless the guest has changed that.
    pub fn host_path(&self) -> PathBuf {
        self.share.join(&self.container).join("rootfs")
    }

    /// Opens it (`O_PATH`).
    ///
    /// # Errors
    ///
    /// There is no directory (any more), or a link in its place.
    pub fn open(&self) -> io::Result<OwnedFd> {
        self.place(&Tree::strict(&self.share)?)?.open()
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

impl SharedRootfs {
    fn take_away(&self) -> Result<(), RemovalError> {
        let Ok(tree) = Tree::strict(&self.share) else { return Ok(()) };
        let mut taken = Ok(());
        if let Ok(place) = self.place(&tree) {
            let upper = place.open().and_then(|root| mounts::overlay_upper(&root));
            // The guest may still have files open there. A mount that stays is not reached through.
            let cleared = mounting::detach(&place).and_then(|()| place.clear());
            taken = cleared.map_err(|source| RemovalError { path: self.host_path(), source });
            if let Ok(Some(writable)) = upper.map(|upper| upper.and_then(|upper| writable(&upper))) {
                taken = taken.and(removal::remove(&writable));
            }
        }
        // Not with what is in it: beside the root there may be mounts of the host's directories.
        let _ = tree.existing(Path::new(&self.container)).and_then(|place| place.remove_directory());
        taken
    }
}

impl Drop for SharedRootfs {
    fn drop(&mut self) {
        removal::tell(self.take_away());
    }
}

/// Opens (`O_PATH`) what a kept [`SharedRootfs`] of `container` is in `share`.
///
/// # Errors
///
/// There is none.
pub fn open(share: &Path, container: &str) -> io::Result<OwnedFd> {
    Tree::strict(share)?.existing(&Path::new(container).join("rootfs"))?.open()
}

/// Takes away what a kept [`SharedRootfs`] of `container` left in `share`.
///
/// # Errors
///
/// Something of it stays.
pub fn unshare(share: &Path, container: &str) -> Result<(), RemovalError> {
    let left =
        SharedRootfs { share: share.to_owned(), container: container.to_owned(), guest: String::new() };
    let taken = left.take_away();
    left.keep();
    taken
}

/// The directory of ours that the upper directory of an overlay is in.
pub(crate) fn writable(upper: &Path) -> Option<PathBuf> {
    let writable = upper.parent()?;
    let ours = writable.file_name()?.to_string_lossy().starts_with(WRITABLE);
    ours.then(|| writable.to_owned())
}

/// A bind mount; false where this process may not mount. It is neither recursive nor takes part in what is mounted and
/// detached below the original.
fn bind(source: &Path, target: &impl AsFd) -> bool {
    let bound = mounting::copy_of(source, false).and_then(|copy| {
        mounting::attach(&copy, target)?;
        mounting::propagate(&copy, MsFlags::MS_PRIVATE, false)
    });
    bound.is_ok()
}

/// What the directories of overlays are called.
const WRITABLE: &str = "nakai-writable-";

/// The longest text of options that mount(2) takes, and a reserve.
const OPTIONS_MAX: usize = 4000;

/// Mounts the layers, the lowest first, and a directory of their own for what is written; false where that can't be
/// done: this process may not mount, or the temporary directory can't be an upper one.
fn overlay(layers: &[PathBuf], target: &Path) -> bool {
    mount_layers(layers, target).is_some()
}

fn mount_layers(layers: &[PathBuf], target: &Path) -> Option<()> {
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
    let _ = writable.keep();
    Some(())
}

fn copy<P: AsRef<Path>>(layers: &[P], target: &Path, owners: Option<Owners>) -> Result<(), RootfsError> {
    merge(layers, target, owners).map_err(|(path, source)| RootfsError::Copy { path, source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{deepen, where_it_may_mount};
    use nix::mount::{MntFlags, umount2};
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
        unshare(share.path(), "web").unwrap();
        assert_eq!(fs::read_dir(share.path()).unwrap().count(), 0);
        assert!(original.path().join("bin/sh").exists());
    }

    #[test]
    fn copy_keeps_modes_and_links() {
        let (original, target) = (original(), tempfile::tempdir().unwrap());
        copy(&[original.path()], target.path(), None).unwrap();
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
        let upper = mounts::overlay_upper(&one.open().unwrap()).unwrap();
        let writable = upper.and_then(|upper| writable(&upper));
        one.keep();
        unshare(share.path(), "one").unwrap();
        drop(two);
        assert_eq!(fs::read_dir(share.path()).unwrap().count(), 0);
        assert!(writable.is_none_or(|writable| !writable.exists()));
        assert!(original.path().join("bin/sh").exists() && top.path().join("bin").exists());
    }

    #[test]
    fn what_a_container_has_written_goes_however_deep_it_is() {
        where_it_may_mount(module_path!(), "what_a_container_has_written_goes_however_deep_it_is", || {
            // Nothing else's files, and never an overlay itself, which is no upper directory of another.
            mount(None::<&str>, &std::env::temp_dir(), Some("tmpfs"), MsFlags::empty(), None::<&str>)
                .unwrap();
            let (original, share) = (original(), tempfile::tempdir().unwrap());
            let layers = vec![original.path().to_owned()];
            let image = Image { config: Default::default(), layers, id: None };
            let shared = SharedRootfs::share_image(&image, share.path(), "web").unwrap();
            let upper = mounts::overlay_upper(&shared.open().unwrap()).unwrap().unwrap();
            deepen(&shared.host_path(), 1500);
            assert!(upper.join("d/d/file").exists());
            shared.keep();
            unshare(share.path(), "web").unwrap();
            assert!(!upper.parent().unwrap().exists() && !share.path().join("web").exists());
        });
    }

    #[test]
    fn what_lies_beside_a_root_is_not_removed_with_it() {
        let (original, share) = (original(), tempfile::tempdir().unwrap());
        let image = Image { config: Default::default(), layers: vec![original.path().to_owned()], id: None };
        let shared = SharedRootfs::copy_image(&image, share.path(), "web", None).unwrap();
        let beside = share.path().join("web/mounts/0");
        fs::create_dir_all(&beside).unwrap();
        fs::write(beside.join("precious"), "x").unwrap();
        drop(shared);
        assert!(beside.join("precious").exists() && !share.path().join("web/rootfs").exists());
    }

    #[test]
    fn links_that_a_guest_plants_lead_no_removal_out() {
        for planted in ["web", "web/rootfs"] {
            let (original, share) = (original(), tempfile::tempdir().unwrap());
            let outside = tempfile::tempdir().unwrap();
            fs::create_dir(outside.path().join("rootfs")).unwrap();
            fs::write(outside.path().join("rootfs/precious"), "x").unwrap();
            let image = Image { config: Default::default(), layers: vec![original.path().into()], id: None };
            SharedRootfs::copy_image(&image, share.path(), "web", None).unwrap().keep();
            fs::remove_dir_all(share.path().join(planted)).unwrap();
            symlink(outside.path(), share.path().join(planted)).unwrap();
            unshare(share.path(), "web").unwrap();
            assert!(outside.path().join("rootfs/precious").exists(), "{planted}");
        }
    }

    #[test]
    fn removal_of_a_copy_does_not_reach_through_a_mount_that_a_guest_moves_there() {
        where_it_may_mount(
            module_path!(),
            "removal_of_a_copy_does_not_reach_through_a_mount_that_a_guest_moves_there",
            || {
                let (original, share, host) =
                    (original(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
                fs::write(host.path().join("precious"), "x").unwrap();
                let image =
                    Image { config: Default::default(), layers: vec![original.path().to_owned()], id: None };
                let shared = SharedRootfs::copy_image(&image, share.path(), "web", None).unwrap();
                let at = |path: &str| share.path().join(path);
                fs::create_dir_all(at("other/mounts/0")).unwrap();
                let none = None::<&str>;
                mount(Some(host.path()), &at("other/mounts/0"), none, MsFlags::MS_BIND, none).unwrap();
                fs::rename(at("other/mounts"), shared.host_path().join("x")).unwrap();
                drop(shared);
                let precious = host.path().join("precious").exists();
                umount2(&at("web/rootfs/x/0"), MntFlags::MNT_DETACH).unwrap();
                assert!(precious);
            },
        );
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
