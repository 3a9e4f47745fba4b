//! Copies that follow, on ordinary directories.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::unistd::getgid;

use super::super::ownership::Giver;
use super::super::places::Places;
use super::super::request::{FsGroup, FsGroupPolicy};
use super::Mirror;

struct Volume {
    base: tempfile::TempDir,
    mirror: Mirror,
}

impl Volume {
    fn directory() -> Self {
        Self::directory_of(None)
    }

    fn directory_of(group: Option<Giver>) -> Self {
        Self::new(|base| ["from", "to"].map(|name| fs::create_dir(base.join(name)).unwrap()), group)
    }

    fn file() -> Self {
        Self::new(|base| fs::write(base.join("to"), "").unwrap(), None)
    }

    fn new<T>(make: impl FnOnce(&Path) -> T, group: Option<Giver>) -> Self {
        let base = tempfile::tempdir().unwrap();
        make(base.path());
        fs::create_dir(base.path().join("aside")).unwrap();
        let places = Places::new(base.path());
        let place = |name: &str| places.locate(&base.path().join(name)).unwrap();
        let mirror = Mirror::new(place("from"), place("to"), place("aside"), group);
        Self { base, mirror }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.base.path().join(path)
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap()
    }

    fn update(&mut self) -> bool {
        let changed = self.mirror.update().unwrap();
        // What is not in a volume any more goes at the next look.
        assert!(!changed || !self.mirror.update().unwrap());
        assert_eq!(fs::read_dir(self.path("aside")).unwrap().count(), 0);
        assert_eq!(listing(&self.path("from")), listing(&self.path("to")));
        changed
    }

    /// What Kubernetes does: a new directory, and one link to it.
    fn publish(&self, version: &str, files: &[(&str, &str)]) {
        for (name, text) in files {
            self.write(&format!("from/..{version}/{name}"), text);
        }
        symlink(format!("..{version}"), self.path("from/..data_tmp")).unwrap();
        let old = fs::read_link(self.path("from/..data"));
        fs::rename(self.path("from/..data_tmp"), self.path("from/..data")).unwrap();
        for (name, _) in files {
            let _there_already = symlink(format!("..data/{name}"), self.path("from").join(name));
        }
        if let Ok(old) = old {
            fs::remove_dir_all(self.path("from").join(old)).unwrap();
        }
    }
}

/// Every path with its mode and its content.
fn listing(directory: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let metadata = fs::symlink_metadata(&path).unwrap();
        let content = if metadata.is_symlink() {
            fs::read_link(&path).unwrap().display().to_string()
        } else if metadata.is_dir() {
            listing(&path).join(" ")
        } else {
            fs::read_to_string(&path).unwrap()
        };
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        lines.push(format!("{name} {:o} [{content}]", metadata.mode()));
    }
    lines.sort();
    lines
}

#[test]
fn what_comes_changes_and_goes_is_followed() {
    let mut volume = Volume::directory();
    volume.write("from/a", "1");
    volume.write("from/d/e/f", "deep");
    fs::set_permissions(volume.path("from/d"), Permissions::from_mode(0o500)).unwrap();
    symlink("/etc/passwd", volume.path("from/link")).unwrap();
    assert!(volume.update());
    assert!(!volume.update());
    volume.write("from/a", "22");
    fs::set_permissions(volume.path("from/d"), Permissions::from_mode(0o750)).unwrap();
    fs::remove_file(volume.path("from/link")).unwrap();
    volume.write("from/link/now", "a directory");
    assert!(volume.update());
    fs::remove_dir_all(volume.path("from/d")).unwrap();
    volume.write("from/d", "now a file");
    fs::remove_dir_all(volume.path("from/link")).unwrap();
    symlink("elsewhere", volume.path("from/link")).unwrap();
    assert!(volume.update());
    for name in ["a", "d", "link"] {
        fs::remove_file(volume.path("from").join(name)).unwrap();
    }
    assert!(volume.update());
    assert!(!volume.update());
}

#[test]
fn a_kubernetes_volume_changes_by_its_link() {
    let mut volume = Volume::directory();
    volume.publish("1", &[("key", "one"), ("other", "one")]);
    assert!(volume.update());
    assert_eq!(volume.read("to/key"), "one");
    let opened = fs::File::open(volume.path("to/..data/key")).unwrap();
    volume.publish("2", &[("key", "two"), ("other", "two"), ("new", "two")]);
    assert!(volume.mirror.update().unwrap());
    assert_eq!(volume.read("to/key") + &volume.read("to/other") + &volume.read("to/new"), "twotwotwo");
    // Who has just read the link still finds the old version, and who has it open keeps it whole.
    assert_eq!(volume.read("to/..1/key"), "one");
    assert!(!volume.update());
    assert_eq!(std::io::read_to_string(opened).unwrap(), "one");
    assert!(!volume.path("to/..1").exists());
    assert!(!volume.update());
    // The next version is nobody's before the link leads to it.
    volume.write("from/..3/key", "thr");
    assert!(!volume.mirror.update().unwrap());
    assert!(!volume.path("to/..3").exists());
    volume.publish("3", &[("key", "three"), ("more", "three")]);
    assert!(volume.update());
    assert_eq!(volume.read("to/key") + &volume.read("to/more"), "threethree");
}

#[test]
fn no_number_of_keys_ends_the_watching() {
    let mut volume = Volume::directory();
    let names: Vec<String> = (0..4200).map(|number| format!("key-{number}")).collect();
    for version in ["1", "2"] {
        let keys: Vec<_> = names.iter().map(|name| (name.as_str(), version)).collect();
        volume.publish(version, &keys);
        assert!(volume.update());
        assert_eq!(volume.read("to/key-0") + &volume.read("to/key-4199"), version.repeat(2));
    }
    fs::remove_file(volume.path("from/..data")).unwrap();
    volume.write("from/..2/key-7", "changed");
    assert!(volume.update());
    assert_eq!(volume.read("to/..2/key-7"), "changed");
}

/// Says that it is over, also if something fails before.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A file that becomes a directory is never missing.
#[test]
fn what_changes_its_kind_changes_at_once() {
    let mut volume = Volume::directory();
    volume.write("from/x", "file");
    volume.update();
    let (path, done) = (volume.path("to/x"), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let over = Over(&done);
        let reader = scope.spawn(|| {
            let mut kinds = [0_u32; 2];
            while !done.load(Ordering::Relaxed) {
                kinds[usize::from(fs::symlink_metadata(&path).unwrap().is_dir())] += 1;
            }
            kinds
        });
        for _ in 0..50 {
            fs::remove_file(volume.path("from/x")).unwrap();
            volume.write("from/x/y", "in a directory");
            assert!(volume.update());
            fs::remove_dir_all(volume.path("from/x")).unwrap();
            volume.write("from/x", "file");
            assert!(volume.update());
        }
        drop(over);
        reader.join().unwrap();
    });
}

#[test]
fn a_copy_is_given_to_its_group_each_time() {
    let giver = |policy| Giver::new(FsGroup { gid: getgid(), policy }, false);
    let mode = |path: PathBuf| fs::metadata(path).unwrap().mode() & 0o7777;
    let set = |path: PathBuf, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    let mut volume = Volume::directory_of(Some(giver(FsGroupPolicy::OnRootMismatch)));
    volume.write("from/dir/file", "1");
    set(volume.path("from"), 0o700);
    set(volume.path("from/dir"), 0o700);
    set(volume.path("from/dir/file"), 0o600);
    assert!(volume.mirror.update().unwrap());
    assert!(!volume.mirror.update().unwrap());
    for (path, expected) in [("to", 0o2770), ("to/dir", 0o2770), ("to/dir/file", 0o660), ("from", 0o700)] {
        assert_eq!(mode(volume.path(path)), expected, "{path}");
    }
    volume.write("from/dir/file", "another");
    volume.write("from/new", "");
    set(volume.path("from/new"), 0o400);
    assert!(volume.mirror.update().unwrap());
    assert_eq!((mode(volume.path("to/dir/file")), mode(volume.path("to/new"))), (0o660, 0o660));

    // A root that fits saves the rest, as elsewhere.
    nix::unistd::chown(&volume.path("from"), None, Some(getgid())).unwrap();
    set(volume.path("from"), 0o2770);
    assert!(volume.mirror.update().unwrap());
    assert_eq!(mode(volume.path("to/new")), 0o400);
}

#[test]
fn a_single_file_stays_the_same_file() {
    let mut volume = Volume::file();
    volume.write("from", "a long text");
    assert!(volume.mirror.update().unwrap());
    let inode = fs::metadata(volume.path("to")).unwrap().ino();
    volume.write("from", "short");
    fs::set_permissions(volume.path("from"), Permissions::from_mode(0o600)).unwrap();
    assert!(volume.mirror.update().unwrap());
    assert!(!volume.mirror.update().unwrap());
    let metadata = fs::metadata(volume.path("to")).unwrap();
    assert_eq!((volume.read("to").as_str(), metadata.mode() & 0o777), ("short", 0o600));
    assert_eq!(metadata.ino(), inode);
}

#[test]
fn a_link_that_the_container_plants_is_not_followed() {
    let mut volume = Volume::directory();
    let outside = tempfile::tempdir().unwrap();
    volume.write("from/sub/file", "1");
    volume.update();
    fs::remove_dir_all(volume.path("to/sub")).unwrap();
    symlink(outside.path(), volume.path("to/sub")).unwrap();
    volume.write("from/sub/more", "2");
    let _refused = volume.mirror.update();
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    let _heals = volume.mirror.update();
    assert_eq!(listing(&volume.path("from")), listing(&volume.path("to")));
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
}

#[test]
fn a_file_that_becomes_too_large_is_not_followed() {
    let mut volume = Volume::file();
    volume.write("from", "small");
    volume.mirror.update().unwrap();
    fs::OpenOptions::new().write(true).open(volume.path("from")).unwrap().set_len(1 << 40).unwrap();
    assert!(super::can_not_be_copied(&volume.mirror.update().unwrap_err()));
    assert_eq!(volume.read("to"), "small");
    volume.write("from", "small again");
    assert!(volume.mirror.update().unwrap());
    assert_eq!(volume.read("to"), "small again");
}
