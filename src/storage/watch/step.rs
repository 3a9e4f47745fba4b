//! One way from what the copy holds to what the source holds.
//!
//! Invariants: what is new is made aside and put in its place by rename(2), so that a reader sees the old or the new and
//! nothing between, also where a file takes the place of a directory. The link of a Kubernetes volume changes after all
//! that it leads to is there. Nothing is removed here. No link is followed, on both sides.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, RenameFlags, openat, renameat2};
use nix::libc;
use nix::sys::stat::{Mode, fchmod, fstat, futimens, mkdirat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, fchownat, ftruncate, symlinkat, unlinkat};

use super::mirror::{DATA, empty};
use super::scan::{At, Kind, Seen, Stamp, Tree, at, open};
use super::share::Share;

/// What a single file is called aside, for a moment.
const WHOLE: &str = "whole";

/// What is read of a file at a time.
const BLOCK: usize = 64 << 10;

/// From the old to the new.
pub(super) struct Step<'a> {
    source: &'a Share<'a>,
    target: &'a OwnedFd,
    aside: &'a OwnedFd,
    old: &'a Tree,
    new: &'a Tree,
    /// The directories that were last used of the source and aside: most files lie beside each other.
    near: [Near; 2],
}

type Near = RefCell<Option<(PathBuf, Rc<OwnedFd>)>>;

/// Something that lies aside, and where it belongs.
struct Change {
    aside: PathBuf,
    path: PathBuf,
}

/// What was prepared: replaced in this order.
#[derive(Default)]
pub(super) struct Changes {
    trees: Vec<Change>,
    files: Vec<Change>,
    links: Vec<Change>,
}

impl<'a> Step<'a> {
    /// `aside` is empty.
    pub(super) fn new(
        source: &'a Share<'a>,
        [target, aside]: [&'a OwnedFd; 2],
        [old, new]: [&'a Tree; 2],
    ) -> Self {
        Self { source, target, aside, old, new, near: Default::default() }
    }

    /// Makes all that is new or different, aside.
    pub(super) fn prepare(&self) -> Result<Changes, At> {
        let mut changes = Changes::default();
        let mut block = vec![0; BLOCK];
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
                Kind::File(stamp) => self.copy(path, stamp, seen, &aside, &mut block)?,
                Kind::Link(to, _) => self.make_link(to, seen, &aside).map_err(at("making", path))?,
            }
            if within.is_none() {
                let list = match seen.kind {
                    Kind::Directory => &mut changes.trees,
                    Kind::File(_) => &mut changes.files,
                    Kind::Link(..) => &mut changes.links,
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
        let (parent, name) = self.parent_aside(aside)?;
        symlinkat(to, &*parent, name)?;
        let (uid, gid) = owner(seen);
        fchownat(&*parent, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)
    }

    fn copy(
        &self,
        path: &Path,
        stamp: &Stamp,
        seen: &Seen,
        aside: &Path,
        block: &mut [u8],
    ) -> Result<(), At> {
        let [near, _] = &self.near;
        let source = self.source.patiently(|| {
            let (directory, name) = near_parent(near, self.source.root, path)?;
            open(&*directory, Path::new(name), OFlag::O_RDONLY)
        });
        let source = source.map_err(at("opening", path))?;
        let (parent, name) = self.parent_aside(aside).map_err(at("copying", path))?;
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
        let copy = openat(&*parent, name, flags, Mode::S_IRUSR).map_err(at("copying", path))?;
        let mut to = File::from(copy);
        copy_unchanged(File::from(source), &mut to, stamp, path, block)?;
        own(&to, seen).map_err(at("setting owner and mode of", path))
    }

    fn parent_aside<'p>(&self, path: &'p Path) -> Result<(Rc<OwnedFd>, &'p OsStr), Errno> {
        let [_, near] = &self.near;
        near_parent(near, self.aside, path)
    }

    /// Puts all in place.
    pub(super) fn commit(&self, changes: Changes) -> Result<(), At> {
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
        Ok(())
    }

    fn put(&self, change: &Change) -> Result<(), Errno> {
        let (to, name) = parent(self.target, &change.path)?;
        let is_directory = self.new.get(&change.path).is_some_and(Seen::is_directory);
        let was = self.old.get(&change.path);
        // Neither can be renamed onto the other. What was there lies aside then.
        let flags = match was {
            Some(was) if was.is_directory() != is_directory => RenameFlags::RENAME_EXCHANGE,
            _ => RenameFlags::empty(),
        };
        renameat2(self.aside, &change.aside, &to, name, flags)
    }

    /// The topmost paths that have disappeared.
    pub(super) fn gone(&self) -> Vec<PathBuf> {
        let mut gone: Vec<PathBuf> = Vec::new();
        for path in self.old.keys().filter(|path| !self.new.contains_key(*path)) {
            if gone.last().is_none_or(|above| !path.starts_with(above)) {
                gone.push(path.clone());
            }
        }
        gone
    }
}

/// The open directory around a path, and the name in it.
pub(super) fn parent<'a>(root: &OwnedFd, path: &'a Path) -> Result<(OwnedFd, &'a OsStr), Errno> {
    let (directory, name) = split(path)?;
    Ok((open(root, directory, OFlag::O_PATH | OFlag::O_DIRECTORY)?, name))
}

/// The same, from the last one if it is that.
fn near_parent<'a>(near: &Near, root: &OwnedFd, path: &'a Path) -> Result<(Rc<OwnedFd>, &'a OsStr), Errno> {
    let (directory, name) = split(path)?;
    if let Some((last, fd)) = &*near.borrow()
        && last == directory
    {
        return Ok((Rc::clone(fd), name));
    }
    let fd = Rc::new(open(root, directory, OFlag::O_PATH | OFlag::O_DIRECTORY)?);
    near.replace(Some((directory.to_owned(), Rc::clone(&fd))));
    Ok((fd, name))
}

fn split(path: &Path) -> Result<(&Path, &OsStr), Errno> {
    let name = path.file_name().ok_or(Errno::EINVAL)?;
    Ok((path.parent().unwrap_or_else(|| Path::new("")), name))
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
fn copy_unchanged(from: File, to: &mut File, stamp: &Stamp, path: &Path, block: &mut [u8]) -> Result<(), At> {
    // One that grows is not followed to where it leads.
    let mut from = from.take(stamp.size().saturating_add(1));
    loop {
        let read = from.read(block).map_err(errno).map_err(at("copying", path))?;
        let Some(bytes) = block.get(..read).filter(|bytes| !bytes.is_empty()) else { break };
        to.write_all(bytes).map_err(errno).map_err(at("copying", path))?;
    }
    let now = fstat(from.get_ref()).map_err(at("looking at", path))?;
    if Stamp::of(&now) != *stamp {
        return Err(At { step: "copying", path: path.to_owned(), cause: Errno::EAGAIN });
    }
    Ok(())
}

/// The whole content of a file, in one without a name.
pub(super) fn read_aside(source: OwnedFd, aside: &OwnedFd, seen: &Seen) -> Result<File, At> {
    let here = Path::new("");
    let Kind::File(stamp) = &seen.kind else { return Err(at("copying", here)(Errno::EINVAL)) };
    let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
    let whole = empty(aside)
        .and_then(|()| openat(aside, WHOLE, flags, Mode::S_IRUSR))
        .and_then(|whole| unlinkat(aside, WHOLE, UnlinkatFlags::NoRemoveDir).map(|()| whole));
    let mut whole = File::from(whole.map_err(at("copying", here))?);
    copy_unchanged(File::from(source), &mut whole, stamp, here, &mut vec![0; BLOCK])?;
    Ok(whole)
}

/// Puts what is in one file into the other.
pub(super) fn write_over(mut whole: File, target: OwnedFd, seen: &Seen) -> Result<(), At> {
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
