//! What the host lends one container: bind mounts and files in the shared directory, as a guard.
//!
//! ```text
//! <share>/<container>/mounts/<number>      a directory or file of the host's
//! <share>/<container>/files/<name>         hostname, hosts, resolv.conf
//! <share>/<container>/rootfs               where its size is limited: an overlay
//! <state>/disks/<container>/               what that overlay writes to: a tmpfs of that size
//! ```
//!
//! Dropping the guard takes all of it away, and never reaches through a mount: what is still mounted is an error of
//! the removal, and stays. The guest writes to the shared directory, too: nothing in it is reached by a path that it
//! could have changed (`tree.rs`, `mounting.rs`).

use std::fs::{self, Permissions};
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::CriError;
use super::extras::Volume;
use super::mounts::{Bind, Places};
use crate::mounting;
use crate::tree::{Tree, by_descriptor};

/// How often the place of a volume is looked at.
const VOLUME_POLL: std::time::Duration = std::time::Duration::from_millis(200);

/// The guard.
#[derive(Debug)]
pub struct Lent {
    /// `<share>`
    share: PathBuf,
    /// `<container>`
    name: PathBuf,
    /// Where the writable layer is, if it is limited.
    disk: Option<PathBuf>,
}

impl Lent {
    /// Begins with nothing.
    pub fn new(places: &Places, container: &str) -> Self {
        Self::kept(places.host(), container, None)
    }

    /// A root filesystem of `layers`, the lowest first, whose changes are limited to `bytes`; in memory.
    ///
    /// # Errors
    ///
    /// It can't be mounted.
    pub fn limited_root(
        &mut self,
        layers: &[PathBuf],
        disk: PathBuf,
        bytes: u64,
    ) -> Result<OwnedFd, CriError> {
        let at = |path: &Path| CriError::io(format!("disk limit, {}", path.display()));
        let (upper, work) = (disk.join("upper"), disk.join("work"));
        fs::create_dir_all(&disk).map_err(at(&disk))?;
        self.disk = Some(disk.clone());
        let size = format!("size={bytes},mode=755");
        let mounted = mount(Some("nakai-disk"), &disk, Some("tmpfs"), MsFlags::empty(), Some(&*size));
        mounted.map_err(|errno| at(&disk)(errno.into()))?;
        for directory in [&upper, &work] {
            fs::create_dir(directory).map_err(at(directory))?;
        }
        // overlayfs wants the highest first.
        let lower: Vec<_> = layers.iter().rev().map(|layer| layer.display().to_string()).collect();
        let (upper, work) = (upper.display(), work.display());
        let options = format!("lowerdir={},upperdir={upper},workdir={work}", lower.join(":"));
        let rootfs = self.name.join("rootfs");
        let root = self.tree().and_then(|tree| {
            let place = tree.place(&rootfs)?;
            place.make_open_directory()?;
            let below = place.open()?;
            let target = by_descriptor(&below);
            mount(Some("overlay"), &target, Some("overlay"), MsFlags::empty(), Some(&*options))?;
            place.open()
        });
        root.map_err(at(&self.share.join(&rootfs)))
    }

    /// Binds what `binds` says.
    ///
    /// # Errors
    ///
    /// A source can't be made or bound. What has been bound goes with the guard.
    pub fn bind(&mut self, binds: &[Bind]) -> Result<(), CriError> {
        binds.iter().try_for_each(|bind| {
            let bound = self.bind_one(bind);
            bound.map_err(CriError::io(format!("mount of {} for the guest", bind.source.display())))
        })
    }

    fn bind_one(&self, bind: &Bind) -> io::Result<()> {
        let Bind { source, target, readonly, recursive } = bind;
        if !source.exists() {
            // As containerd and Docker do.
            fs::create_dir_all(source)?;
        }
        let place = self.tree()?.place(self.beneath(target)?)?;
        if source.is_dir() {
            place.make_open_directory()?;
        } else {
            place.create_file()?;
        }
        let target = place.open()?;
        let copy = mounting::copy_of(source, *recursive)?;
        if *readonly {
            mounting::make_readonly(&copy)?;
        }
        let kind = if *recursive { MsFlags::MS_SLAVE } else { MsFlags::MS_PRIVATE };
        mounting::propagate(&copy, kind, *recursive)?;
        mounting::attach(&copy, &target)?;
        // Below a mount that is shared it has become so again.
        mounting::propagate(&copy, kind, *recursive)
    }

    /// Writes the pod's files.
    ///
    /// # Errors
    ///
    /// One can't be written.
    pub fn write(&mut self, files: &[(PathBuf, String)]) -> Result<(), CriError> {
        files.iter().try_for_each(|(path, text)| {
            self.write_one(path, text).map_err(CriError::io(path.display().to_string()))
        })
    }

    fn write_one(&self, path: &Path, text: &str) -> io::Result<()> {
        // An agent on this host has a directory that nobody may have made yet.
        fs::create_dir_all(&self.share)?;
        let place = self.tree()?.place(self.beneath(path)?)?;
        place.clear()?;
        let mut file = place.create_file()?;
        file.write_all(text.as_bytes())?;
        file.set_permissions(Permissions::from_mode(0o644))
    }

    fn tree(&self) -> io::Result<Tree> {
        Tree::strict(&self.share)
    }

    fn beneath<'a>(&self, path: &'a Path) -> io::Result<&'a Path> {
        path.strip_prefix(&self.share).map_err(io::Error::other)
    }

    /// Leaves everything beyond this process; [`Lent::kept`] finds it again.
    pub fn keep(self) {
        std::mem::forget(self);
    }

    /// What was kept for a container in `share`, and where its limited layer is.
    pub fn kept(share: &Path, container: &str, disk: Option<PathBuf>) -> Self {
        Self { share: share.to_owned(), name: container.into(), disk }
    }

    /// Where the writable layer is, if it is limited.
    pub fn disk(&self) -> Option<&Path> {
        self.disk.as_deref()
    }

    fn take_away(&self, tree: &Tree) {
        let mounts = self.name.join("mounts");
        for name in tree.names(&mounts).unwrap_or_default() {
            take_down(tree, &mounts.join(name));
        }
        let files = self.name.join("files");
        for name in tree.names(&files).unwrap_or_default() {
            let _ = tree.existing(&files.join(name)).and_then(|place| place.remove_file());
        }
        if self.disk.is_some() {
            take_down(tree, &self.name.join("rootfs"));
        }
        for empty in [&mounts, &files, &self.name] {
            let _ = tree.existing(empty).and_then(|place| place.remove_directory());
        }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        // What is not as it was made stays where it is.
        if let Ok(tree) = self.tree() {
            self.take_away(&tree);
        }
        if let Some(disk) = &self.disk {
            // In a directory of the host's own.
            let _ = umount2(disk, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
            let _ = fs::remove_dir(disk);
        }
    }
}

/// Detaches a mount and removes the empty file or directory below it.
fn take_down(tree: &Tree, path: &Path) {
    let Ok(place) = tree.existing(path) else { return };
    if mounting::detach(&place).is_ok() {
        // Refused where something is mounted.
        let _ = place.remove_file().or_else(|_| place.remove_directory());
    }
}

/// Waits until all volumes are there.
///
/// # Errors
///
/// One is not within its time.
pub async fn wait_for(volumes: &[Volume]) -> Result<(), CriError> {
    for volume in volumes {
        let limit = std::time::Duration::from_secs(volume.seconds);
        // Whatever attaches them tells nobody when it has.
        let there = async {
            while !volume.path.exists() {
                tokio::time::sleep(VOLUME_POLL).await;
            }
        };
        tokio::time::timeout(limit, there).await.map_err(|_| CriError::VolumeTimeout {
            volume: volume.name.clone(),
            path: volume.path.clone(),
            seconds: volume.seconds,
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::where_it_may_mount;
    use std::os::unix::fs::symlink;

    #[tokio::test]
    async fn a_volume_is_waited_for_and_named_when_it_does_not_come() {
        let dir = tempfile::tempdir().unwrap();
        let volume = |name: &str, seconds| Volume { name: name.into(), path: dir.path().join(name), seconds };
        let error = wait_for(&[volume("data", 0)]).await.unwrap_err().to_string();
        assert!(error.starts_with("volume data: not at ") && error.ends_with("after 0 s"), "{error}");
        let late = volume("late", 60);
        let path = late.path.clone();
        let (waited, ()) = tokio::join!(wait_for(std::slice::from_ref(&late)), async {
            tokio::task::yield_now().await;
            fs::create_dir(&path).unwrap();
        });
        waited.unwrap();
    }

    #[test]
    fn files_are_written_and_go_with_the_guard() {
        let dir = tempfile::tempdir().unwrap();
        let places = Places::Local(dir.path().to_owned());
        let mut lent = Lent::new(&places, "web");
        let file = dir.path().join("web/files/hosts");
        lent.write(&[(file.clone(), "localhost".into())]).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "localhost");
        lent.keep();
        drop(Lent::kept(dir.path(), "web", None));
        assert!(!dir.path().join("web").exists());
    }

    /// A directory of the host with a file in it and an empty one, that no guest is to reach.
    fn outside() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("hosts"), "precious").unwrap();
        fs::write(dir.path().join("0"), "").unwrap();
        dir
    }

    fn untouched(outside: &tempfile::TempDir) -> bool {
        fs::read_to_string(outside.path().join("hosts")).is_ok_and(|text| text == "precious")
            && outside.path().join("0").exists()
            && fs::read_dir(outside.path()).unwrap().count() == 2
    }

    #[test]
    fn links_that_a_guest_plants_lead_no_removal_out() {
        for planted in ["web/files", "web/mounts", "web"] {
            let (share, outside) = (tempfile::tempdir().unwrap(), outside());
            let places = Places::Shared(share.path().to_owned());
            let mut lent = Lent::new(&places, "web");
            lent.write(&[(share.path().join("web/files/hosts"), "x".into())]).unwrap();
            let place = share.path().join(planted);
            // The tests' guest is on this host.
            let _ = fs::remove_dir_all(&place);
            symlink(outside.path(), &place).unwrap();
            if planted == "web" {
                fs::create_dir(outside.path().join("files")).unwrap();
                fs::rename(outside.path().join("hosts"), outside.path().join("files/hosts")).unwrap();
            }
            lent.keep();
            drop(Lent::kept(share.path(), "web", None));
            if planted == "web" {
                fs::rename(outside.path().join("files/hosts"), outside.path().join("hosts")).unwrap();
                fs::remove_dir(outside.path().join("files")).unwrap();
            }
            assert!(untouched(&outside), "{planted}");
        }
    }

    #[test]
    fn links_that_a_guest_plants_lead_no_file_out() {
        for planted in ["web", "web/files", "web/files/hosts"] {
            let (share, outside) = (tempfile::tempdir().unwrap(), outside());
            let place = share.path().join(planted);
            fs::create_dir_all(place.parent().unwrap()).unwrap();
            let target = if planted.ends_with("hosts") { "hosts" } else { "" };
            symlink(outside.path().join(target), &place).unwrap();
            let places = Places::Shared(share.path().to_owned());
            let mut lent = Lent::new(&places, "web");
            let written = lent.write(&[(share.path().join("web/files/hosts"), "x".into())]);
            // A link in a file's own place is replaced; no other is followed.
            assert_eq!(written.is_ok(), planted == "web/files/hosts", "{planted}");
            assert!(untouched(&outside), "{planted}");
            drop(lent);
            assert!(untouched(&outside), "{planted}");
        }
    }

    #[test]
    fn a_mount_that_a_guest_moves_is_not_emptied() {
        where_it_may_mount(module_path!(), "a_mount_that_a_guest_moves_is_not_emptied", || {
            let (share, original) = (tempfile::tempdir().unwrap(), outside());
            let at = |path: &str| share.path().join(path);
            let places = Places::Shared(share.path().to_owned());
            let mut lent = Lent::new(&places, "web");
            let (source, target) = (original.path().to_owned(), at("web/mounts/0"));
            let bind = Bind { source, target, readonly: true, recursive: true };
            lent.bind(&[bind]).unwrap();
            assert!(fs::write(at("web/mounts/0/new"), "x").is_err());
            // Where another container's files are, and where a link would lead the detachment out.
            fs::create_dir(at("other")).unwrap();
            fs::rename(at("web/mounts"), at("other/files")).unwrap();
            symlink(at("other/files"), at("web/mounts")).unwrap();
            drop(Lent::kept(share.path(), "other", None));
            drop(lent);
            assert!(untouched(&original));
            fs::remove_file(at("web/mounts")).unwrap();
            fs::rename(at("other/files"), at("web/mounts")).unwrap();
            drop(Lent::kept(share.path(), "web", None));
            assert!(untouched(&original) && !at("web").exists());
        });
    }

    #[test]
    fn a_limited_root_shows_its_layers_and_goes_whole() {
        where_it_may_mount(module_path!(), "a_limited_root_shows_its_layers_and_goes_whole", || {
            let (share, notes) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            let layers = ["low", "high"].map(|name| notes.path().join(name));
            for layer in &layers {
                fs::create_dir(layer).unwrap();
                fs::write(layer.join("which"), layer.file_name().unwrap().as_encoded_bytes()).unwrap();
            }
            let mut lent = Lent::new(&Places::Shared(share.path().to_owned()), "web");
            let disk = notes.path().join("disks/web");
            let root = lent.limited_root(&layers, disk.clone(), 1 << 20).unwrap();
            let seen = share.path().join("web/rootfs/which");
            assert_eq!(fs::read_to_string(&seen).unwrap(), "high");
            assert_eq!(fs::read_to_string(by_descriptor(&root).join("which")).unwrap(), "high");
            let full = fs::write(&seen, vec![0; 2 << 20]).unwrap_err();
            assert_eq!(full.kind(), io::ErrorKind::StorageFull);
            lent.keep();
            drop(Lent::kept(share.path(), "web", Some(disk.clone())));
            assert!(!share.path().join("web").exists() && !disk.exists());
            assert_eq!(fs::read_to_string(layers[1].join("which")).unwrap(), "high");
        });
    }

    #[test]
    fn what_is_mounted_below_a_volume_later_is_seen_and_stays_when_the_volume_goes() {
        where_it_may_mount(
            module_path!(),
            "what_is_mounted_below_a_volume_later_is_seen_and_stays_when_the_volume_goes",
            || {
                let (share, original) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
                let (none, tmpfs) = (None::<&str>, Some("tmpfs"));
                mount(none, original.path(), tmpfs, MsFlags::empty(), none).unwrap();
                mount(none, original.path(), none, MsFlags::MS_SHARED, none).unwrap();
                let mut lent = Lent::new(&Places::Shared(share.path().to_owned()), "web");
                let (source, target) = (original.path().to_owned(), share.path().join("web/mounts/0"));
                lent.bind(&[Bind { source, target: target.clone(), readonly: false, recursive: true }])
                    .unwrap();
                let below = original.path().join("below");
                fs::create_dir(&below).unwrap();
                mount(none, &below, tmpfs, MsFlags::empty(), none).unwrap();
                fs::write(below.join("file"), "x").unwrap();
                let seen = fs::read_to_string(target.join("below/file"));
                drop(lent);
                let stays = fs::read_to_string(below.join("file"));
                umount2(&below, MntFlags::MNT_DETACH).unwrap();
                umount2(original.path(), MntFlags::MNT_DETACH).unwrap();
                assert_eq!((seen.unwrap(), stays.unwrap()), ("x".to_owned(), "x".to_owned()));
                assert!(!share.path().join("web").exists());
            },
        );
    }

    #[test]
    fn a_volume_keeps_what_its_mount_forbids() {
        where_it_may_mount(module_path!(), "a_volume_keeps_what_its_mount_forbids", || {
            let (share, original) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
            let none = None::<&str>;
            mount(none, original.path(), Some("tmpfs"), flags, none).unwrap();
            let mut lent = Lent::new(&Places::Shared(share.path().to_owned()), "web");
            let (source, target) = (original.path().to_owned(), share.path().join("web/mounts/0"));
            lent.bind(&[Bind { source, target: target.clone(), readonly: true, recursive: false }]).unwrap();
            let seen = nix::sys::statvfs::statvfs(&target).unwrap().flags();
            drop(lent);
            umount2(original.path(), MntFlags::MNT_DETACH).unwrap();
            use nix::sys::statvfs::FsFlags;
            let all = FsFlags::ST_NOSUID | FsFlags::ST_NODEV | FsFlags::ST_NOEXEC | FsFlags::ST_RDONLY;
            assert!(seen.contains(all), "{seen:?}");
            assert!(!share.path().join("web").exists());
        });
    }
}
