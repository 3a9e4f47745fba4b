//! The copy of a watched directory or file.
//!
//! Invariants: a reader sees the old or the new and nothing between ([`Step`]); what is gone is removed last. The old
//! version of a Kubernetes volume is removed at the next look only: who has just read the link to it still finds all
//! of it. A copy during which the source changed is not put in place. Every path is reached without following a link,
//! on both sides: neither the host's tree nor what a container plants in the copy leads elsewhere.
//!
//! A single file can't be replaced, because containers have that very file mounted: it is written over.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::libc;
use nix::sys::stat::{Mode, fstat, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::super::StorageError;
use super::super::ownership::Giver;
use super::super::places::Place;
use super::limit::Limit;
use super::scan::{At, Kind, Seen, Stamp, Tree, at, give, link_in, open, scan};
use super::share::Share;
use super::step::{Step, parent, read_aside, write_over};
use crate::guest::tree::{file_type, remove_contents};

/// The link by which a volume of Kubernetes changes as a whole.
pub(super) const DATA: &str = "..data";

/// How often a copy is begun anew at once when the source changes meanwhile.
const ATTEMPTS: usize = 4;

/// How often the guest's kernel is asked for something that the host has removed.
const LAST_LOOKS: u32 = 8;

/// The copy, and what it was made from.
pub(in super::super) struct Mirror {
    source: Place,
    target: Place,
    /// A directory on the copy's filesystem, where new things are made.
    aside: Place,
    /// Which group the files of the copy belong to.
    group: Option<Giver>,
    done: Done,
    /// What is to be removed from the copy at the next look.
    gone: Vec<PathBuf>,
    /// What the host has removed, and the guest's kernel may not have noticed.
    removed: Vec<(PathBuf, u32)>,
}

/// What the copy is known to hold.
enum Done {
    /// Nothing is known.
    Unknown,
    Tree {
        tree: Arc<Tree>,
        /// The source's root, when it was looked at.
        root: Stamp,
    },
    File(Seen),
}

impl Mirror {
    /// A copy of `source` at `target`, which are both directories or both files. `aside` is an empty directory on
    /// the same filesystem as `target`.
    pub(in super::super) fn new(source: Place, target: Place, aside: Place, group: Option<Giver>) -> Self {
        Self { source, target, aside, group, done: Done::Unknown, gone: Vec::new(), removed: Vec::new() }
    }

    /// Where the copy is.
    pub(super) fn path(&self) -> PathBuf {
        self.target.path()
    }

    /// What it is made from, where it is, and where new things are made.
    pub(super) fn places(&self) -> [PathBuf; 3] {
        [&self.source, &self.target, &self.aside].map(Place::path)
    }

    /// Which group it belongs to.
    pub(super) fn group(&self) -> Option<Giver> {
        self.group
    }

    /// Whether all of it changes by one link.
    pub(super) fn is_volume(&self) -> bool {
        matches!(&self.done, Done::Tree { tree, .. } if link_in(tree).is_some())
    }

    /// Looks at the source, and brings the copy up to date. Says whether there was anything to do.
    pub(in super::super) fn update(&mut self) -> Result<bool, StorageError> {
        for _ in 1..ATTEMPTS {
            match self.try_update() {
                // The host is just changing it.
                Err(StorageError::Path { cause: Errno::EAGAIN | Errno::ENOENT, .. }) => {}
                outcome => return outcome,
            }
        }
        self.try_update()
    }

    fn try_update(&mut self) -> Result<bool, StorageError> {
        let opening = StorageError::at("opening", self.source.path());
        let source = self.source.open(OFlag::O_RDONLY | OFlag::O_NONBLOCK).map_err(opening)?;
        let stat = fstat(&source).map_err(StorageError::at("looking at", self.source.path()))?;
        match file_type(&stat) {
            libc::S_IFDIR => self.update_tree(&source, Stamp::of(&stat)),
            libc::S_IFREG => self.update_file(source, Seen::of(&stat, Kind::File(Stamp::of(&stat)))),
            _ => Err(StorageError::at("copying", self.source.path())(Errno::EINVAL)),
        }
    }

    fn update_tree(&mut self, source: &OwnedFd, root: Stamp) -> Result<bool, StorageError> {
        let target = self.open(&self.target, OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
        let aside = self.open(&self.aside, OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
        self.remove_gone(&target)?;
        self.notice_removed(source);
        let of_source = |error: At| located(&self.source, error);
        let of_target = |error: At| located(&self.target, error);
        let old = match &self.done {
            Done::Tree { tree, root: before } if *before == root && is_same_volume(tree, source) => {
                return Ok(false);
            }
            Done::Tree { tree, .. } => Arc::clone(tree),
            // Whatever is there is taken to differ.
            Done::Unknown | Done::File(_) => {
                let here = scan(&Share::at(&target), usize::MAX, &Tree::new(), None);
                let mut tree = here.map_err(of_target)?;
                for seen in tree.values_mut().filter(|seen| !seen.is_directory()) {
                    seen.kind = Kind::File(Stamp::default());
                }
                Arc::new(tree)
            }
        };
        let limit = Limit::now(&old);
        let share = Share::at(source);
        let version = link(source);
        let mut new = scan(&share, limit.things(), &old, version.as_deref()).map_err(of_source)?;
        limit.check(&new).map_err(of_source)?;
        if let Some(group) = &self.group {
            give(&mut new, group);
        }
        if matches!(self.done, Done::Tree { .. }) && *old == new {
            self.done = Done::Tree { tree: Arc::new(new), root };
            return Ok(false);
        }
        let emptying = |cause| StorageError::at("emptying", self.aside.path())(cause);
        empty(&aside).map_err(emptying)?;
        let step = Step::new(&share, [&target, &aside], [&old, &new]);
        let changes = step.prepare().and_then(|changes| {
            let is_same = link(source) == version && version.as_deref() == link_in(&new);
            if is_same { Ok(changes) } else { Err(at("copying", Path::new(DATA))(Errno::EAGAIN)) }
        });
        let changes = changes.map_err(|error| {
            // It takes memory, and the first error counts.
            let _ = empty(&aside);
            of_source(error)
        })?;
        // From here on the copy is neither the old nor the new.
        self.done = Done::Unknown;
        step.commit(changes).map_err(of_target)?;
        // What has changed its kind has left the old one there.
        empty(&aside).map_err(emptying)?;
        self.gone = step.gone();
        self.removed.extend(self.gone.iter().map(|path| (path.clone(), LAST_LOOKS)));
        let is_volume = link_in(&new).is_some();
        if is_volume {
            share.leave(new.len());
        }
        self.done = Done::Tree { tree: Arc::new(new), root };
        if !is_volume {
            self.remove_gone(&target)?;
        }
        Ok(true)
    }

    fn remove_gone(&mut self, target: &OwnedFd) -> Result<(), StorageError> {
        while let Some(path) = self.gone.pop() {
            remove(target, &path).map_err(|cause| {
                // The next look finds it where it is.
                self.done = Done::Unknown;
                located(&self.target, at("removing", &path)(cause))
            })?;
        }
        Ok(())
    }

    /// Looks removed names up again, so that the guest's kernel drops its dentries and the host can free the inodes.
    /// It takes a few looks, because attributes are cached.
    fn notice_removed(&mut self, source: &OwnedFd) {
        self.removed.retain_mut(|(path, looks)| {
            *looks = looks.saturating_sub(1);
            let Ok((around, name)) = parent(source, path) else { return false };
            fstatat(&around, name, AtFlags::AT_SYMLINK_NOFOLLOW).is_ok() && *looks > 0
        });
    }

    fn update_file(&mut self, source: OwnedFd, mut seen: Seen) -> Result<bool, StorageError> {
        if let Some(group) = &self.group {
            seen.give(group);
        }
        if matches!(&self.done, Done::File(done) if *done == seen) {
            return Ok(false);
        }
        let of_source = |error| located(&self.source, error);
        Limit::now(&Tree::new()).check_file(&seen).map_err(of_source)?;
        let target = self.open(&self.target, OFlag::O_WRONLY)?;
        let aside = self.open(&self.aside, OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
        let whole = read_aside(source, &aside, &seen).map_err(of_source)?;
        // From here on the copy is neither the old nor the new.
        self.done = Done::Unknown;
        let written = write_over(whole, target, &seen);
        written.map_err(|error| located(&self.target, error))?;
        self.done = Done::File(seen);
        Ok(true)
    }

    fn open(&self, place: &Place, flags: OFlag) -> Result<OwnedFd, StorageError> {
        place.open(flags).map_err(StorageError::at("opening", place.path()))
    }
}

fn located(place: &Place, At { step, path, cause }: At) -> StorageError {
    let path = if path.as_os_str().is_empty() { place.path() } else { place.path().join(path) };
    StorageError::Path { step, path, cause }
}

fn link(root: &OwnedFd) -> Option<OsString> {
    readlinkat(root, DATA).ok()
}

/// A volume of Kubernetes changes by its link only, and with it its root directory.
fn is_same_volume(tree: &Tree, source: &OwnedFd) -> bool {
    link_in(tree).is_some_and(|before| link(source).as_deref() == Some(before))
}

/// Removes all that is in a directory.
pub(super) fn empty(directory: &OwnedFd) -> Result<(), Errno> {
    let again =
        openat(directory, ".", OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    remove_contents(again).map_err(|error| error.cause)
}

/// Removes something with all that is in it.
fn remove(root: &OwnedFd, path: &Path) -> Result<(), Errno> {
    let removed = parent(root, path).and_then(|(around, name)| {
        match unlinkat(&around, name, UnlinkatFlags::NoRemoveDir) {
            Err(Errno::EISDIR) => {}
            done => return done,
        }
        let directory = open(&around, Path::new(name), OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
        remove_contents(directory).map_err(|error| error.cause)?;
        unlinkat(&around, name, UnlinkatFlags::RemoveDir)
    });
    match removed {
        // It went with what was around it.
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => Ok(()),
        other => other,
    }
}
