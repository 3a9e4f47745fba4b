//! A guest whose mounts exist on paper only, and which notes every call.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};

use nakai_protocols::agent;
use nix::errno::Errno;
use nix::libc;
use slog::{Discard, Logger, o};
use tokio::sync::Semaphore;

use super::*;
use crate::guest::bulkhead::Bulkhead;
use crate::records::Records;

#[derive(Debug, Default)]
struct State {
    calls: Vec<String>,
    mounted: Vec<PathBuf>,
    /// What the calls to this function fail with.
    failing: HashMap<&'static str, &'static str>,
}

/// The recording double of [`MountOps`] and [`BlockLookup`].
pub(super) struct FakeGuest {
    pub(super) dir: tempfile::TempDir,
    state: Mutex<State>,
    /// A device is found, or an image pulled, for each permit.
    pub(super) devices: Semaphore,
    /// Where mounting and unmounting hang.
    hanging: (Mutex<Vec<PathBuf>>, Condvar),
    /// The hub's last act at what was given up waits for a permit, if it is there.
    pub(super) late: Mutex<Option<Arc<Semaphore>>>,
    /// Called before anything is mounted.
    pub(super) before_mount: Mutex<Option<Box<dyn Fn() + Send>>>,
}

/// Lets all go on that hang when it is dropped.
pub(super) struct Hanging<'a>(&'a FakeGuest);

impl Drop for Hanging<'_> {
    fn drop(&mut self) {
        self.0.hanging.0.lock().unwrap().clear();
        self.0.hanging.1.notify_all();
    }
}

fn real(path: &Path) -> PathBuf {
    match (fs::read_link(path), path.parent(), path.file_name()) {
        (Ok(target), _, _) => target,
        (Err(_), Some(parent), Some(name)) => fs::canonicalize(parent).unwrap().join(name),
        _ => path.to_owned(),
    }
}

impl FakeGuest {
    pub(super) fn new() -> Arc<Self> {
        let dir = tempfile::tempdir().unwrap();
        let (state, hanging, late, before_mount) = Default::default();
        Arc::new(Self { dir, state, devices: Semaphore::new(0), hanging, late, before_mount })
    }

    pub(super) fn storages(self: &Arc<Self>) -> Storages {
        self.storages_with(None)
    }

    pub(super) fn storages_with(self: &Arc<Self>, records: Option<Arc<Records>>) -> Storages {
        let log = Logger::root(Discard, o!());
        Storages::new(self.dir.path(), self.clone(), self.clone(), Bulkhead::of_pool(64), log, records)
    }

    pub(super) fn path(&self, relative: &str) -> PathBuf {
        self.dir.path().join(relative)
    }

    pub(super) fn request(&self, driver: &str, source: &str, mount_point: &str) -> agent::Storage {
        let fstype = match driver {
            "ephemeral" => "tmpfs",
            "virtio-fs" => "virtiofs",
            "overlayfs" => "overlay",
            _ => "ext4",
        };
        agent::Storage {
            driver: driver.to_owned(),
            source: source.to_owned(),
            fstype: fstype.to_owned(),
            mount_point: self.path(mount_point).to_str().unwrap().to_owned(),
            ..Default::default()
        }
    }

    pub(super) fn fail(&self, call: &'static str, with: &'static str) {
        self.state.lock().unwrap().failing.insert(call, with);
    }

    pub(super) fn succeed(&self, call: &'static str) {
        self.state.lock().unwrap().failing.remove(call);
    }

    /// Mounting and unmounting there hangs.
    pub(super) fn hang<const N: usize>(&self, relative: [&str; N]) -> Hanging<'_> {
        self.hanging.0.lock().unwrap().extend(relative.map(|relative| self.path(relative)));
        Hanging(self)
    }

    fn wait_until_free(&self, at: &PathBuf) {
        let (hanging, freed) = &self.hanging;
        drop(freed.wait_while(hanging.lock().unwrap(), |hanging| hanging.contains(at)).unwrap());
    }

    pub(super) fn pretend_mounted(&self, relative: &str) {
        self.state.lock().unwrap().mounted.push(self.path(relative));
    }

    /// The calls so far, with paths relative to the base.
    pub(super) fn calls(&self) -> Vec<String> {
        let base = format!("{}/", self.dir.path().display());
        self.state.lock().unwrap().calls.iter().map(|call| call.replace(&base, "")).collect()
    }

    pub(super) fn mounted(&self) -> Vec<PathBuf> {
        let base = self.dir.path();
        let state = self.state.lock().unwrap();
        state.mounted.iter().map(|path| path.strip_prefix(base).unwrap().to_owned()).collect()
    }

    /// Nothing is left: no mount and no file.
    pub(super) fn assert_clean(&self) {
        assert_eq!(self.mounted(), Vec::<PathBuf>::new());
        let left: Vec<_> = fs::read_dir(self.dir.path()).unwrap().map(|e| e.unwrap().path()).collect();
        assert_eq!(left, Vec::<PathBuf>::new());
    }

    fn note(&self, name: &'static str, call: String) -> Result<(), Cause> {
        let mut state = self.state.lock().unwrap();
        state.calls.push(call);
        match state.failing.get(name) {
            Some(error) => Err(Arc::new(std::io::Error::other(*error))),
            None => Ok(()),
        }
    }
}

impl MountOps for FakeGuest {
    fn load_filesystem(&self, fstype: &str) -> Result<(), Cause> {
        self.note("load", format!("load {fstype}"))
    }

    fn is_without_device(&self, fstype: &str) -> bool {
        ["overlay", "proc", "tmpfs"].contains(&fstype)
    }

    fn mount(&self, order: &MountOrder<'_>, target: &Target<'_>) -> Result<(), Cause> {
        let from =
            if order.link.starts_with("/proc/") { real(Path::new(order.link)) } else { order.link.into() };
        let at = real(target.link);
        assert_eq!(at, target.path);
        let call =
            format!("mount {} {} {} {}", from.display(), at.display(), order.fstype, order.options.join(","));
        self.wait_until_free(&at);
        if let Some(before) = &*self.before_mount.lock().unwrap() {
            before();
        }
        self.note("mount", call)?;
        if !order.options.iter().any(|option| option == "remount") {
            self.state.lock().unwrap().mounted.push(at);
        }
        Ok(())
    }

    fn unmount(&self, target: &Target<'_>) -> Result<(), Cause> {
        let at = real(target.link);
        assert_eq!(at, target.path);
        self.wait_until_free(&at);
        self.note("unmount", format!("unmount {}", at.display()))?;
        let mut state = self.state.lock().unwrap();
        if state.mounted.iter().any(|path| *path != at && path.starts_with(&at)) {
            return Err(Arc::new(std::io::Error::other("busy: something is mounted beneath")));
        }
        let found = state.mounted.iter().rposition(|path| *path == at).expect("nothing is mounted there");
        state.mounted.remove(found);
        Ok(())
    }

    fn detach_beneath(&self, path: &Path, others: &[PathBuf]) -> bool {
        let mut state = self.state.lock().unwrap();
        let before = state.mounted.len();
        let is_known = |mounted: &PathBuf| others.iter().any(|other| mounted.starts_with(other));
        state.mounted.retain(|mounted| mounted == path || !mounted.starts_with(path) || is_known(mounted));
        before > state.mounted.len()
    }

    fn new_verity_name(&self) -> Result<String, Cause> {
        Ok("checked".to_owned())
    }

    fn add_verity(&self, name: &str, disk: &str, _verity: &Verity) -> Result<PathBuf, Cause> {
        self.note("verity", format!("verify {disk} as {name}"))?;
        Ok("/dev/dm-7".into())
    }

    fn remove_verity(&self, name: &str) -> Result<(), Cause> {
        self.note("remove", format!("remove {name}"))
    }

    fn reserve_huge_pages(&self, size: u64, count: u64) -> Result<(), Cause> {
        self.note("reserve", format!("reserve {count} of {size}"))
    }

    fn give_back_huge_pages(&self, size: u64, count: u64) -> Result<(), Cause> {
        self.note("give back", format!("give back {count} of {size}"))
    }

    fn is_mount_point(&self, path: &Path) -> Result<bool, Cause> {
        Ok(self.state.lock().unwrap().mounted.iter().any(|mounted| mounted == path))
    }

    fn file_type(&self, path: &Path) -> Result<libc::mode_t, Errno> {
        match path.to_str() {
            Some(path) if path.starts_with("/dev/vd") => Ok(libc::S_IFBLK),
            Some("/dev/null") => Ok(libc::S_IFCHR),
            Some("/dev/shm") => Ok(libc::S_IFDIR),
            _ => Err(Errno::ENOENT),
        }
    }
}

#[async_trait::async_trait]
impl BlockLookup for FakeGuest {
    async fn find_block(&self, driver: &'static str, address: &str) -> Result<PathBuf, Cause> {
        if address.starts_with("/dev/") {
            return Ok(address.into());
        }
        self.note("find", format!("find {driver} {address}"))?;
        self.devices.acquire().await.unwrap().forget();
        Ok(PathBuf::from(format!("/dev/vd-{}", address.replace(['/', ':'], "-"))))
    }

    async fn pull_image(&self, image: &str, bundle: &Path) -> Result<(), Cause> {
        fs::create_dir_all(bundle.join("rootfs/etc")).unwrap();
        self.note("pull", format!("pull {image} {}", bundle.display()))?;
        self.devices.acquire().await.unwrap().forget();
        self.state.lock().unwrap().mounted.push(bundle.join("rootfs"));
        Ok(())
    }

    /// The hub's last act.
    async fn ended(&self, mount_point: &Path) {
        let late = self.late.lock().unwrap().clone();
        if let Some(late) = late {
            late.acquire().await.unwrap().forget();
        }
        let is_refused = self.state.lock().unwrap().failing.get("pull") == Some(&"no hub");
        if mount_point.ends_with("rootfs") && !is_refused {
            fs::write(mount_point.join("late"), "").unwrap();
            self.state.lock().unwrap().mounted.push(mount_point.to_owned());
        }
    }

    async fn make_ext4(&self, disk: &Path) -> Result<(), Cause> {
        self.note("format", format!("format {}", disk.display()))
    }

    async fn mount_encrypted(&self, disk: &Path, mount_point: &Path) -> Result<(), Cause> {
        assert!(mount_point.is_dir());
        self.note("hub", format!("encrypt {} at {}", disk.display(), mount_point.display()))?;
        self.note("nothing", "mounted".to_owned())
            .map(|()| self.state.lock().unwrap().mounted.push(mount_point.to_owned()))
            .or(Ok(()))
    }
}
