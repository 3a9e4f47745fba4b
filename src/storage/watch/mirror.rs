//! The copy of a watched directory or file.
//!
//! Invariants: what is new is copied aside and put in its place by rename(2), so that a reader sees the old
//! or the new and nothing between; what is gone is removed last. A Kubernetes volume's `..data` link changes
//! after all that it leads to is there, and before anything goes. A copy during which the source changed is not
//! put in place. Every path is reached without following a link, on both sides: neither the host's tree nor
//! what a container plants in the copy leads elsewhere.
//!
//! A single file can't be replaced, because containers have that very file mounted: it is written over.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat, renameat};
use nix::libc;
use nix::sys::stat::{Mode, fchmod, fstat, futimens, mkdirat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, fchownat, ftruncate, symlinkat, unlinkat};

use super::super::StorageError;
use super::super::places::Place;
use super::scan::{At, Kind, Seen, Stamp, TOO_MUCH, Tree, at, open, scan};
use crate::guest::tree::{file_type, remove_contents};

/// The link by which a volume of Kubernetes changes as a whole.
const DATA: &str = "..data";

/// What is copied at most. A ConfigMap or Secret of Kubernetes is below 1 MiB; a volume may be made of several.
const MAX_BYTES: u64 = 32 << 20;
const MAX_ENTRIES: usize = 4096;

/// What a single file is called aside, for a moment.
const WHOLE: &str = "whole";

/// How often a copy is begun anew at once when the source changes meanwhile.
const ATTEMPTS: usize = 4;

/// The copy, and what it was made from.
pub(in super::super) struct Mirror {
    source: Place,
    target: Place,
    /// A directory on the copy's filesystem, where new things are made.
    aside: Place,
    done: Done,
}

/// What the copy is known to hold.
enum Done {
    /// Nothing is known.
    Unknown,
    Tree {
        tree: Tree,
        /// The source's root, when it was looked at.
        root: Stamp,
    },
    File(Seen),
}

impl Mirror {
    /// A copy of `source` at `target`, which are both directories or both files. `aside` is an empty directory on
    /// the same filesystem as `target`.
    pub(in super::super) fn new(source: Place, target: Place, aside: Place) -> Self {
        Self { source, target, aside, done: Done::Unknown }
    }

    /// Where the copy is.
    pub(super) fn path(&self) -> PathBuf {
        self.target.path()
    }

    /// What it is made from, where it is, and where new things are made.
    pub(super) fn places(&self) -> [PathBuf; 3] {
        [&self.source, &self.target, &self.aside].map(Place::path)
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
        let of_source = |error: At| located(&self.source, error);
        let of_target = |error: At| located(&self.target, error);
        let old = match &self.done {
            Done::Tree { tree, root: before } if *before == root && is_same_volume(tree, source) => {
                return Ok(false);
            }
            Done::Tree { tree, .. } => tree.clone(),
            // Whatever is there is taken to differ.
            Done::Unknown | Done::File(_) => {
                let mut tree = scan(&target, usize::MAX).map_err(of_target)?;
                for seen in tree.values_mut().filter(|seen| !seen.is_directory()) {
                    seen.kind = Kind::File(Stamp::default());
                }
                tree
            }
        };
        let new = scan(source, MAX_ENTRIES).map_err(of_source)?;
        check_size(&new).map_err(of_source)?;
        if matches!(self.done, Done::Tree { .. }) && old == new {
            self.done = Done::Tree { tree: new, root };
            return Ok(false);
        }
        empty(&aside).map_err(|cause| StorageError::at("emptying", self.aside.path())(cause))?;
        let step = Step { source, target: &target, aside: &aside, old: &old, new: &new };
        let changes = step.prepare().map_err(of_source)?;
        if link(source) != link_in(&new) {
            return Err(located(
                &self.source,
                At { step: "copying", path: DATA.into(), cause: Errno::EAGAIN },
            ));
        }
        // From here on the copy is neither the old nor the new.
        self.done = Done::Unknown;
        step.commit(changes).map_err(of_target)?;
        self.done = Done::Tree { tree: new, root };
        Ok(true)
    }

    fn update_file(&mut self, source: OwnedFd, seen: Seen) -> Result<bool, StorageError> {
        if matches!(&self.done, Done::File(done) if *done == seen) {
            return Ok(false);
        }
        let target = self.open(&self.target, OFlag::O_WRONLY)?;
        let aside = self.open(&self.aside, OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
        let whole = read_aside(source, &aside, &seen).map_err(|error| located(&self.source, error))?;
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

fn link(root: &OwnedFd) -> Option<std::ffi::OsString> {
    readlinkat(root, DATA).ok()
}

fn link_in(tree: &Tree) -> Option<std::ffi::OsString> {
    match &tree.get(Path::new(DATA))?.kind {
        Kind::Link(target) => Some(target.clone()),
        _ => None,
    }
}

/// A volume of Kubernetes changes by its link only, and with it its root directory.
fn is_same_volume(tree: &Tree, source: &OwnedFd) -> bool {
    link_in(tree).is_some_and(|before| link(source) == Some(before))
}

fn empty(directory: &OwnedFd) -> Result<(), Errno> {
    let again =
        openat(directory, ".", OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    remove_contents(again).map_err(|error| error.cause)
}

fn check_size(tree: &Tree) -> Result<(), At> {
    let mut left = MAX_BYTES;
    for (path, seen) in tree {
        if let Kind::File(stamp) = &seen.kind {
            let fits = left.checked_sub(stamp.size());
            left = fits.ok_or_else(|| At { step: "copying", path: path.clone(), cause: TOO_MUCH })?;
        }
    }
    Ok(())
}

/// One way from the old to the new.
struct Step<'a> {
    source: &'a OwnedFd,
    target: &'a OwnedFd,
    aside: &'a OwnedFd,
    old: &'a Tree,
    new: &'a Tree,
}

/// Something that lies aside, and where it belongs.
struct Change {
    aside: PathBuf,
    path: PathBuf,
}

/// What was prepared: replaced in this order.
#[derive(Default)]
struct Changes {
    trees: Vec<Change>,
    files: Vec<Change>,
    links: Vec<Change>,
}

impl Step<'_> {
    /// Makes all that is new or different, aside.
    fn prepare(&self) -> Result<Changes, At> {
        let mut changes = Changes::default();
        for (number, (path, seen)) in self.new.iter().enumerate() {
            if path.as_os_str().is_empty() || self.old.get(path) == Some(seen) {
                continue;
            }
            // What is in a directory that is new itself goes where that lies.
            let within = changes.trees.last().and_then(|tree| {
                let rest = path.strip_prefix(&tree.path).ok()?;
                Some(tree.aside.join(rest))
            });
            let aside = within.clone().unwrap_or_else(|| PathBuf::from(number.to_string()));
            match &seen.kind {
                // One that was there keeps its place.
                Kind::Directory if within.is_none() && self.was_directory(path) => continue,
                Kind::Directory => self.make_directory(&aside).map_err(at("making", path))?,
                Kind::File(stamp) => self.copy(path, stamp, seen, &aside)?,
                Kind::Link(to) => self.make_link(to, seen, &aside).map_err(at("making", path))?,
            }
            if within.is_none() {
                let list = match seen.kind {
                    Kind::Directory => &mut changes.trees,
                    Kind::File(_) => &mut changes.files,
                    Kind::Link(_) => &mut changes.links,
                };
                list.push(Change { aside, path: path.clone() });
            }
        }
        // Owner and mode of new directories last: they may forbid to write.
        for tree in &changes.trees {
            let beneath =
                self.new.range(tree.path.clone()..).take_while(|(path, _)| path.starts_with(&tree.path));
            for (path, seen) in beneath.filter(|(_, seen)| seen.is_directory()) {
                // Joining nothing would add a slash, which does no harm.
                let aside = tree.aside.join(path.strip_prefix(&tree.path).unwrap_or(path));
                own_directory(self.aside, &aside, seen).map_err(at("setting owner and mode of", path))?;
            }
        }
        changes.links.sort_by_key(|link| link.path != Path::new(DATA));
        Ok(changes)
    }

    fn was_directory(&self, path: &Path) -> bool {
        self.old.get(path).is_some_and(Seen::is_directory)
    }

    fn make_directory(&self, aside: &Path) -> Result<(), Errno> {
        let (parent, name) = parent(self.aside, aside)?;
        mkdirat(&parent, name, Mode::S_IRWXU)
    }

    fn make_link(&self, to: &OsStr, seen: &Seen, aside: &Path) -> Result<(), Errno> {
        let (parent, name) = parent(self.aside, aside)?;
        symlinkat(to, &parent, name)?;
        let (uid, gid) = owner(seen);
        fchownat(&parent, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)
    }

    fn copy(&self, path: &Path, stamp: &Stamp, seen: &Seen, aside: &Path) -> Result<(), At> {
        let source = open(self.source, path, OFlag::O_RDONLY).map_err(at("opening", path))?;
        let (parent, name) = parent(self.aside, aside).map_err(at("copying", path))?;
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
        let copy = openat(&parent, name, flags, Mode::S_IRUSR).map_err(at("copying", path))?;
        let (from, mut to) = (File::from(source), File::from(copy));
        copy_unchanged(from, &mut to, stamp, path)?;
        own(&to, seen).map_err(at("setting owner and mode of", path))
    }

    /// Puts all in place, and removes what is gone.
    fn commit(&self, changes: Changes) -> Result<(), At> {
        let Changes { trees, files, links } = changes;
        for change in trees.into_iter().chain(files).chain(links) {
            self.put(&change).map_err(at("replacing", &change.path))?;
        }
        for (path, seen) in
            self.new.iter().filter(|(path, seen)| seen.is_directory() && self.was_directory(path))
        {
            if self.old.get(path) != Some(seen) {
                own_directory(self.target, path, seen).map_err(at("setting owner and mode of", path))?;
            }
        }
        // Those beneath come first.
        for (path, seen) in self.old.iter().rev().filter(|(path, _)| !self.new.contains_key(*path)) {
            remove(self.target, path, seen).map_err(at("removing", path))?;
        }
        Ok(())
    }

    fn put(&self, change: &Change) -> Result<(), Errno> {
        let (to, name) = parent(self.target, &change.path)?;
        let was_directory = self.was_directory(&change.path);
        let is_directory = self.new.get(&change.path).is_some_and(Seen::is_directory);
        // Neither takes the other's place by itself.
        if was_directory && !is_directory {
            self.clear(&change.path)?;
        } else if is_directory && self.old.contains_key(&change.path) {
            unlinkat(&to, name, UnlinkatFlags::NoRemoveDir)?;
        }
        renameat(self.aside, &change.aside, &to, name)
    }

    fn clear(&self, path: &Path) -> Result<(), Errno> {
        let directory = open(self.target, path, OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
        remove_contents(directory).map_err(|error| error.cause)?;
        let (parent, name) = parent(self.target, path)?;
        unlinkat(&parent, name, UnlinkatFlags::RemoveDir)
    }
}

/// The open directory around a path, and the name in it.
fn parent<'a>(root: &OwnedFd, path: &'a Path) -> Result<(OwnedFd, &'a OsStr), Errno> {
    let name = path.file_name().ok_or(Errno::EINVAL)?;
    let directory = path.parent().unwrap_or_else(|| Path::new(""));
    Ok((open(root, directory, OFlag::O_PATH | OFlag::O_DIRECTORY)?, name))
}

fn remove(root: &OwnedFd, path: &Path, seen: &Seen) -> Result<(), Errno> {
    let flag = if seen.is_directory() { UnlinkatFlags::RemoveDir } else { UnlinkatFlags::NoRemoveDir };
    let removed = parent(root, path).and_then(|(parent, name)| unlinkat(&parent, name, flag));
    match removed {
        // It went with what was around it.
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => Ok(()),
        other => other,
    }
}

fn owner(seen: &Seen) -> (Uid, Gid) {
    (Uid::from_raw(seen.owner.0), Gid::from_raw(seen.owner.1))
}

fn own_directory(root: &OwnedFd, path: &Path, seen: &Seen) -> Result<(), Errno> {
    own(open(root, path, OFlag::O_RDONLY | OFlag::O_DIRECTORY)?, seen)
}

/// Owner, mode and, of a file, the time of its last change.
fn own(file: impl AsFd, seen: &Seen) -> Result<(), Errno> {
    let (uid, gid) = owner(seen);
    fchown(&file, Some(uid), Some(gid))?;
    fchmod(&file, Mode::from_bits_truncate(seen.mode))?;
    if let Kind::File(stamp) = &seen.kind {
        let (seconds, nanoseconds) = stamp.modified();
        futimens(&file, &TimeSpec::UTIME_NOW, &TimeSpec::new(seconds, nanoseconds))?;
    }
    Ok(())
}

/// Copies a file that does not change meanwhile.
fn copy_unchanged(from: File, to: &mut File, stamp: &Stamp, path: &Path) -> Result<(), At> {
    // One that grows is not followed to where it leads.
    let mut from = from.take(stamp.size().saturating_add(1));
    std::io::copy(&mut from, to).map_err(errno).map_err(at("copying", path))?;
    let now = fstat(from.get_ref()).map_err(at("looking at", path))?;
    if Stamp::of(&now) != *stamp {
        return Err(At { step: "copying", path: path.to_owned(), cause: Errno::EAGAIN });
    }
    Ok(())
}

/// The whole content of a file, in one without a name.
fn read_aside(source: OwnedFd, aside: &OwnedFd, seen: &Seen) -> Result<File, At> {
    let here = Path::new("");
    let Kind::File(stamp) = &seen.kind else { return Err(at("copying", here)(Errno::EINVAL)) };
    if stamp.size() > MAX_BYTES {
        return Err(at("copying", here)(TOO_MUCH));
    }
    let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
    let whole = empty(aside)
        .and_then(|()| openat(aside, WHOLE, flags, Mode::S_IRUSR))
        .and_then(|whole| unlinkat(aside, WHOLE, UnlinkatFlags::NoRemoveDir).map(|()| whole));
    let mut whole = File::from(whole.map_err(at("copying", here))?);
    copy_unchanged(File::from(source), &mut whole, stamp, here)?;
    Ok(whole)
}

fn write_over(mut whole: File, target: OwnedFd, seen: &Seen) -> Result<(), At> {
    let here = Path::new("");
    let mut to = File::from(target);
    let written = whole.seek(SeekFrom::Start(0)).and_then(|_| std::io::copy(&mut whole, &mut to));
    let length = written.map_err(errno).map_err(at("writing", here))?;
    let length = libc::off_t::try_from(length).unwrap_or(libc::off_t::MAX);
    ftruncate(&to, length).map_err(at("writing", here))?;
    own(&to, seen).map_err(at("setting owner and mode of", here))
}

fn errno(error: std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}
