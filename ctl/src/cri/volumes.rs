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
//! the removal, and stays.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::CriError;
use super::extras::Volume;
use super::mounts::{Bind, Places};

/// How often the place of a volume is looked at.
const VOLUME_POLL: std::time::Duration = std::time::Duration::from_millis(200);

/// The guard.
#[derive(Debug)]
pub struct Lent {
    /// `<share>/<container>`
    directory: PathBuf,
    /// Where the writable layer is, if it is limited.
    disk: Option<PathBuf>,
}

impl Lent {
    /// Begins with nothing.
    pub fn new(places: &Places, container: &str) -> Self {
        Self { directory: places.directory(container).0, disk: None }
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
    ) -> Result<PathBuf, CriError> {
        let at = |path: &Path| CriError::io(format!("disk limit, {}", path.display()));
        let (upper, work, root) = (disk.join("upper"), disk.join("work"), self.directory.join("rootfs"));
        fs::create_dir_all(&disk).map_err(at(&disk))?;
        self.disk = Some(disk.clone());
        let size = format!("size={bytes},mode=755");
        let mounted = mount(Some("nakai-disk"), &disk, Some("tmpfs"), MsFlags::empty(), Some(&*size));
        mounted.map_err(|errno| at(&disk)(errno.into()))?;
        for directory in [&upper, &work] {
            fs::create_dir(directory).map_err(at(directory))?;
        }
        fs::create_dir_all(&root).map_err(at(&root))?;
        // overlayfs wants the highest first.
        let lower: Vec<_> = layers.iter().rev().map(|layer| layer.display().to_string()).collect();
        let (upper, work) = (upper.display(), work.display());
        let options = format!("lowerdir={},upperdir={upper},workdir={work}", lower.join(":"));
        let mounted = mount(Some("overlay"), &root, Some("overlay"), MsFlags::empty(), Some(&*options));
        mounted.map_err(|errno| at(&root)(errno.into()))?;
        Ok(root)
    }

    /// Binds what `binds` says.
    ///
    /// # Errors
    ///
    /// A source can't be made or bound. What has been bound goes with the guard.
    pub fn bind(&mut self, binds: &[Bind]) -> Result<(), CriError> {
        binds.iter().try_for_each(|bind| {
            bind_one(bind).map_err(CriError::io(format!("mount of {} for the guest", bind.source.display())))
        })
    }

    /// Writes the pod's files.
    ///
    /// # Errors
    ///
    /// One can't be written.
    pub fn write(&mut self, files: &[(PathBuf, String)]) -> Result<(), CriError> {
        for (path, text) in files {
            let directory = path.parent().unwrap_or(path);
            let written = fs::create_dir_all(directory).and_then(|()| fs::write(path, text));
            written.map_err(CriError::io(path.display().to_string()))?;
        }
        Ok(())
    }

    /// Leaves everything beyond this process; [`Lent::kept`] finds it again.
    pub fn keep(self) {
        std::mem::forget(self);
    }

    /// What was kept for a container in `share`, and where its limited layer is.
    pub fn kept(share: &Path, container: &str, disk: Option<PathBuf>) -> Self {
        Self { directory: share.join(container), disk }
    }

    /// Where the writable layer is, if it is limited.
    pub fn disk(&self) -> Option<&Path> {
        self.disk.as_deref()
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mounts = self.directory.join("mounts");
        for entry in fs::read_dir(&mounts).into_iter().flatten().flatten() {
            take_down(&entry.path());
        }
        let _ = fs::remove_dir(&mounts);
        let files = self.directory.join("files");
        for entry in fs::read_dir(&files).into_iter().flatten().flatten() {
            let _ = fs::remove_file(entry.path());
        }
        let _ = fs::remove_dir(&files);
        if let Some(disk) = &self.disk {
            take_down(&self.directory.join("rootfs"));
            take_down(disk);
        }
        let _ = fs::remove_dir(&self.directory);
    }
}

/// Detaches a mount and removes the empty file or directory below it.
fn take_down(target: &Path) {
    // Else the mounts below it would be detached from their originals too (mount_namespaces(7)).
    let _ = mount(None::<&str>, target, None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>);
    let _ = umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
    if target.is_dir() {
        let _ = fs::remove_dir(target);
    } else if target.metadata().is_ok_and(|metadata| metadata.len() == 0) {
        let _ = fs::remove_file(target);
    }
}

fn bind_one(bind: &Bind) -> io::Result<()> {
    let Bind { source, target, readonly, recursive } = bind;
    if !source.exists() {
        // As containerd and Docker do.
        fs::create_dir_all(source)?;
    }
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    if source.is_dir() {
        fs::create_dir(target)?;
    } else {
        fs::File::create_new(target)?;
    }
    let none = None::<&str>;
    let depth = if *recursive { MsFlags::MS_REC } else { MsFlags::empty() };
    mount(Some(source), target, none, MsFlags::MS_BIND | depth, none)?;
    let kind = if *recursive { MsFlags::MS_SLAVE } else { MsFlags::MS_PRIVATE };
    mount(none, target, none, kind | depth, none)?;
    if *readonly {
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
        mount(none, target, none, flags, none)?;
    }
    Ok(())
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
}
