//! Where storages may live: beneath one directory, `/run/kata-containers` by default, or what stands for it with a host
//! that runs [as a user](crate::guest::kata_dir).
//!
//! Invariant: everything that is opened, made or removed here is reached from that directory by openat2(2)
//! without following any symbolic link. So a link that somebody planted in a shared directory redirects
//! nothing, and two different mount points are two different places.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat, openat2};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::StorageError;
use crate::guest::{kata_dir, tree};
use crate::ids::ContainerId;

/// How often a path is made anew when a parent is removed at the same time.
const MAKE_ATTEMPTS: usize = 4;

/// The directory beneath which storages live.
#[derive(Debug, Clone)]
pub(super) struct Places {
    base: Arc<Base>,
    /// For the paths of a rootless host (`/run/user/UID/...`): it exists, and directories made beneath it are removed
    /// when empty.
    run: Arc<Base>,
}

#[derive(Debug)]
struct Base {
    path: PathBuf,
    /// Directories that were made on the way to others. They go when the last thing in them does.
    parents: Mutex<BTreeSet<PathBuf>>,
}

/// A path beneath it.
#[derive(Debug, Clone)]
pub(super) struct Place {
    base: Arc<Base>,
    relative: PathBuf,
}

impl Places {
    pub(super) fn new(path: &Path) -> Self {
        let base = |path: &Path| Arc::new(Base { path: path.to_owned(), parents: Mutex::default() });
        Self { base: base(path), run: base(Path::new(kata_dir::RUN)) }
    }

    /// The place of a path, if it is strictly beneath the base and doesn't climb.
    pub(super) fn locate(&self, path: &Path) -> Result<Place, StorageError> {
        let outside = || StorageError::Outside { path: path.to_owned(), allowed: self.base.path.clone() };
        let base = if kata_dir::of_user(path).is_some() { &self.run } else { &self.base };
        let relative = path.strip_prefix(&base.path).map_err(|_| outside())?;
        let plain = relative.components().all(|part| matches!(part, Component::Normal(_)));
        if relative.as_os_str().is_empty() || !plain {
            return Err(outside());
        }
        Ok(Place { base: Arc::clone(base), relative: relative.to_owned() })
    }

    /// A place in a container's own directory.
    pub(super) fn of_container(&self, container: &ContainerId, name: &str) -> Place {
        Place { base: Arc::clone(&self.base), relative: Path::new(container.as_str()).join(name) }
    }
}

fn beneath(dir: impl AsFd, path: &Path, flags: OFlag) -> Result<OwnedFd, Errno> {
    // Without O_NOFOLLOW: with it, a handle to a link itself would be allowed.
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
    openat2(dir, path, how)
}

/// The link through which a path call reaches exactly what is open.
pub(super) fn fd_path(fd: impl AsFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()))
}

impl Place {
    /// The absolute path, for messages and look-ups in tables. Never to be opened.
    pub(super) fn path(&self) -> PathBuf {
        self.base.path.join(&self.relative)
    }

    /// Which of the directories above were made on the way to something, relative to the base.
    pub(super) fn made_parents(&self) -> Vec<PathBuf> {
        let parents = self.base.parents();
        self.relative
            .ancestors()
            .skip(1)
            .filter(|above| parents.contains(*above))
            .map(Path::to_owned)
            .collect()
    }

    /// Takes charge of directories that an earlier server has made on the way to it.
    pub(super) fn adopt_parents(&self, made: Vec<PathBuf>) {
        self.base.parents().extend(made);
    }

    /// A handle to what is there (`O_PATH`).
    pub(super) fn handle(&self) -> Result<OwnedFd, Errno> {
        beneath(self.open_base()?, &self.relative, OFlag::O_PATH)
    }

    /// Opens what is there.
    pub(super) fn open(&self, flags: OFlag) -> Result<OwnedFd, Errno> {
        beneath(self.open_base()?, &self.relative, flags)
    }

    /// The place in the same directory whose name has `prefix` before it.
    pub(super) fn beside(&self, prefix: &str) -> Self {
        let mut name = OsString::from(prefix);
        name.push(self.relative.file_name().unwrap_or_default());
        Self { base: Arc::clone(&self.base), relative: self.relative.with_file_name(name) }
    }

    /// The directory around it and its name there.
    pub(super) fn parent(&self) -> Result<(OwnedFd, &OsStr), Errno> {
        let name = self.relative.file_name().ok_or(Errno::EINVAL)?;
        let base = self.open_base()?;
        match self.relative.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => {
                Ok((beneath(base, parent, OFlag::O_PATH | OFlag::O_DIRECTORY)?, name))
            }
            _ => Ok((base, name)),
        }
    }

    /// Makes the directories above, as far as they are missing.
    pub(super) fn make_around(&self) -> Result<(), Errno> {
        self.retry(|| self.make_parents()).map(drop)
    }

    /// Makes the directory, 0755, and those above it, as far as they are missing. Says whether it was.
    pub(super) fn make_directory(&self) -> Result<(OwnedFd, bool), Errno> {
        self.retry(|| {
            let parent = self.make_parents()?;
            let name = self.relative.file_name().ok_or(Errno::EINVAL)?;
            make_one(&parent, Path::new(name))
        })
    }

    /// Makes an empty file, 0644, to mount a file on, and the directories above it. Says whether it was
    /// missing.
    pub(super) fn make_file(&self) -> Result<bool, Errno> {
        let made = self.retry(|| {
            let parent = self.make_parents()?;
            let name = self.relative.file_name().ok_or(Errno::EINVAL)?;
            let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            match openat(&parent, name, flags, Mode::from_bits_truncate(0o644)) {
                Ok(_) => Ok(true),
                Err(Errno::EEXIST) => Ok(false),
                Err(errno) => Err(errno),
            }
        })?;
        // Whatever was there must be reachable without a link.
        self.handle().map(|_| made)
    }

    /// The undo of another storage may remove a common parent, empty as it is, between our steps.
    fn retry<T>(&self, make: impl Fn() -> Result<T, Errno>) -> Result<T, Errno> {
        let mut outcome = Err(Errno::ENOENT);
        for _ in 0..MAKE_ATTEMPTS {
            outcome = make();
            if !matches!(outcome, Err(Errno::ENOENT)) {
                break;
            }
        }
        outcome
    }

    fn make_parents(&self) -> Result<OwnedFd, Errno> {
        let mut dir = self.open_base()?;
        let mut so_far = PathBuf::new();
        for name in self.relative.parent().into_iter().flatten() {
            so_far.push(name);
            let (next, made) = make_one(&dir, Path::new(name))?;
            dir = next;
            if made {
                self.base.parents().insert(so_far.clone());
            }
        }
        Ok(dir)
    }

    /// Removes the directories above that were made on the way to something, as far as nothing is in them any
    /// more.
    pub(super) fn remove_parents(&self) {
        for parent in self.relative.ancestors().skip(1) {
            if !self.base.parents().contains(parent) {
                continue;
            }
            let place = Self { base: Arc::clone(&self.base), relative: parent.to_owned() };
            match place.remove_directory() {
                Ok(()) => self.base.parents().remove(parent),
                Err(_) => break,
            };
        }
    }

    /// Removes the directory with all that is in it, as far as it is on the same mount.
    pub(super) fn remove_tree(&self) -> Result<(), Errno> {
        let dir = match beneath(self.open_base()?, &self.relative, OFlag::O_RDONLY | OFlag::O_DIRECTORY) {
            Err(Errno::ENOENT) => return Ok(()),
            other => other?,
        };
        tree::remove_contents(dir).map_err(|error| error.cause)?;
        self.remove_directory()
    }

    /// Removes the directory, which must be empty. One that is gone already is as good.
    pub(super) fn remove_directory(&self) -> Result<(), Errno> {
        self.unlink(UnlinkatFlags::RemoveDir)
    }

    /// Removes the file. One that is gone already is as good.
    pub(super) fn remove_file(&self) -> Result<(), Errno> {
        self.unlink(UnlinkatFlags::NoRemoveDir)
    }

    fn unlink(&self, flag: UnlinkatFlags) -> Result<(), Errno> {
        let unlinked = self.parent().and_then(|(parent, name)| unlinkat(&parent, name, flag));
        match unlinked {
            Err(Errno::ENOENT) => Ok(()),
            other => other,
        }
    }

    fn open_base(&self) -> Result<OwnedFd, Errno> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        open(&self.base.path, flags, Mode::empty())
    }
}

impl Base {
    fn parents(&self) -> MutexGuard<'_, BTreeSet<PathBuf>> {
        // A set is whole between any two of its calls.
        self.parents.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Opens a directory, after making it if it is missing.
fn make_one(dir: &OwnedFd, name: &Path) -> Result<(OwnedFd, bool), Errno> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
    match beneath(dir, name, flags) {
        Err(Errno::ENOENT) => {}
        found => return found.map(|fd| (fd, false)),
    }
    let made = match mkdirat(dir, name, Mode::from_bits_truncate(0o755)) {
        Ok(()) => true,
        Err(Errno::EEXIST) => false,
        Err(errno) => return Err(errno),
    };
    Ok((beneath(dir, name, flags)?, made))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn only_paths_beneath_the_base_are_places() {
        let places = Places::new(Path::new("/run/kata-containers"));
        let path = Path::new("/run/kata-containers/shared/containers");
        assert_eq!(places.locate(path).unwrap().path(), path);
        for bad in ["/", "/proc", "/etc/x", "/run/kata-containers", "/run/kata-containers-2/x", "/run"] {
            let message = places.locate(Path::new(bad)).unwrap_err().to_string();
            assert!(message.contains("/run/kata-containers"), "{message:?} does not name the allowed place");
        }
        assert!(places.locate(Path::new("/run/kata-containers/../../etc")).is_err());
        let of_user = Path::new("/run/user/1000/run/kata-containers/sandbox/shm");
        assert_eq!(places.locate(of_user).unwrap().path(), of_user);
        for bad in
            ["/run/user/1000/x", "/run/user/0/run/kata-containers/x", "/run/user/1/run/kata-containers/../x"]
        {
            assert!(places.locate(Path::new(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_was_made_goes_and_what_was_there_stays() {
        let base = tempfile::tempdir().unwrap();
        let places = Places::new(base.path());
        fs::create_dir(base.path().join("a")).unwrap();
        let place = |path: &str| places.locate(&base.path().join(path)).unwrap();
        let (first, second) = (place("a/b/c"), place("a/b/d/file"));
        assert!(first.make_directory().unwrap().1);
        assert!(!first.make_directory().unwrap().1);
        assert!(second.make_file().unwrap());
        assert!(base.path().join("a/b/d/file").is_file());
        first.remove_directory().unwrap();
        first.remove_parents();
        assert!(base.path().join("a/b/d/file").exists());
        second.remove_file().unwrap();
        second.remove_parents();
        assert_eq!(fs::read_dir(base.path().join("a")).unwrap().count(), 0);
    }

    #[test]
    fn a_planted_link_redirects_nothing() {
        let base = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        fs::create_dir(base.path().join("other")).unwrap();
        symlink(elsewhere.path(), base.path().join("out")).unwrap();
        symlink("other", base.path().join("within")).unwrap();
        let places = Places::new(base.path());
        for path in ["out", "out/x", "within", "within/x"] {
            let place = places.locate(&base.path().join(path)).unwrap();
            assert!(place.make_directory().is_err(), "{path} was followed");
            assert!(place.make_file().is_err(), "{path} was followed");
            assert!(place.handle().is_err(), "{path} was followed");
        }
        assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 0);
        assert_eq!(fs::read_dir(base.path().join("other")).unwrap().count(), 0);
    }
}
