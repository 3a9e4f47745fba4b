//! What there is beneath a directory, as far as it tells that something has changed.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2, readlinkat};
use nix::libc;
use nix::sys::stat::{FileStat, Mode, fstat, fstatat};

use super::super::ownership::Giver;
use super::mirror::DATA;
use super::share::Share;
use crate::guest::tree::file_type;

/// One thing in the tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) kind: Kind,
    pub(super) mode: libc::mode_t,
    pub(super) owner: (libc::uid_t, libc::gid_t),
}

/// What it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    Directory,
    File(Stamp),
    /// Where it leads, and what tells that it is still the same one.
    Link(OsString, Stamp),
}

/// What changes when a file does: inode, size, and the times of its last changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Stamp {
    inode: libc::ino_t,
    size: libc::off_t,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    pub(super) fn of(stat: &FileStat) -> Self {
        Self {
            inode: stat.st_ino,
            size: stat.st_size,
            modified: (stat.st_mtime, stat.st_mtime_nsec),
            changed: (stat.st_ctime, stat.st_ctime_nsec),
        }
    }

    pub(super) fn size(&self) -> u64 {
        u64::try_from(self.size).unwrap_or_default()
    }

    pub(super) fn modified(&self) -> (i64, i64) {
        self.modified
    }
}

/// Everything in a tree by its path, the root included as the empty path. Those above come before those beneath.
pub(super) type Tree = BTreeMap<PathBuf, Seen>;

/// Why a tree could not be looked at or copied: the path in it, and the reason.
#[derive(Debug)]
pub(super) struct At {
    pub(super) step: &'static str,
    pub(super) path: PathBuf,
    pub(super) cause: Errno,
}

/// For `map_err`: what was done with which path of the tree.
pub(super) fn at(step: &'static str, path: &Path) -> impl FnOnce(Errno) -> At {
    let path = path.to_owned();
    move |cause| At { step, path, cause }
}

impl Seen {
    pub(super) fn of(stat: &FileStat, kind: Kind) -> Self {
        Self { kind, mode: stat.st_mode & 0o7777, owner: (stat.st_uid, stat.st_gid) }
    }

    pub(super) fn is_directory(&self) -> bool {
        self.kind == Kind::Directory
    }

    /// As it is once it belongs to the group.
    pub(super) fn give(&mut self, group: &Giver) {
        if !matches!(self.kind, Kind::Link(..)) {
            (self.owner.1, self.mode) = group.given(self.is_directory(), self.mode);
        }
    }
}

/// There is more than is copied.
pub(in super::super) const TOO_MUCH: Errno = Errno::EFBIG;

/// Opens what a path in the tree leads to, without any link.
pub(super) fn open(root: impl AsFd, path: &Path, flags: OFlag) -> Result<OwnedFd, Errno> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    // A pipe that takes a file's place must not hold us. A mere handle is never held.
    let more =
        if flags.contains(OFlag::O_PATH) { OFlag::O_CLOEXEC } else { OFlag::O_CLOEXEC | OFlag::O_NONBLOCK };
    let how = OpenHow::new()
        .flags(flags | more)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
    openat2(root, path, how)
}

/// Which version of a Kubernetes volume it is.
pub(super) fn link_in(tree: &Tree) -> Option<&OsStr> {
    match &tree.get(Path::new(DATA))?.kind {
        Kind::Link(target, _) => Some(target),
        _ => None,
    }
}

/// The tree as it is once it belongs to the group.
pub(super) fn give(tree: &mut Tree, group: &Giver) {
    let root = tree.get(Path::new(""));
    if root.is_some_and(|root| group.leaves(root.owner.1, root.mode)) {
        return;
    }
    tree.values_mut().for_each(|seen| seen.give(group));
}

/// Looks at all that is in a directory: that must not be more than `limit` things. What is neither file, directory nor
/// link is left out. Links that were there the `last` time are not read again. Of a volume with this `version` no other
/// is looked at: it is being made, or being removed; and it is not looked at itself if it was there the last time.
pub(super) fn scan(
    share: &Share<'_>,
    limit: usize,
    last: &Tree,
    version: Option<&OsStr>,
) -> Result<Tree, At> {
    let root = share.root;
    let is_other = |directory: &Path, name: &OsStr| {
        let is_reserved = |name: &OsStr| name.as_bytes().starts_with(b"..");
        let is_volume = directory.as_os_str().is_empty() && version.is_some_and(is_reserved);
        is_volume && is_reserved(name) && Some(name) != version && name != DATA
    };
    let is_known = version.is_some() && link_in(last) == version;
    let mut tree = Tree::new();
    let stat = fstat(root).map_err(at("looking at", Path::new("")))?;
    tree.insert(PathBuf::new(), Seen::of(&stat, Kind::Directory));
    let mut waiting = vec![PathBuf::new()];
    while let Some(directory) = waiting.pop() {
        let fd = share.patiently(|| open(root, &directory, OFlag::O_RDONLY | OFlag::O_DIRECTORY));
        let fd = fd.map_err(at("opening", &directory))?;
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let listing = share.patiently(|| Dir::openat(&fd, c".", flags, Mode::empty()));
        let mut listing = listing.map_err(at("opening", &directory))?;
        let mut entries = listing.iter();
        // Each name is looked at before the next are read: then the kernel has the host tell of those as well.
        while let Some(entry) =
            share.patiently(|| entries.next().transpose()).map_err(at("reading", &directory))?
        {
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if matches!(name.as_bytes(), b"." | b"..") || is_other(&directory, name) {
                continue;
            }
            let path = directory.join(name);
            if tree.len() > limit {
                return Err(At { step: "copying", path: PathBuf::new(), cause: TOO_MUCH });
            }
            match share.patiently(|| look(&fd, name, last.get(&path))) {
                Ok(Some(seen)) => {
                    if seen.is_directory() && is_known && Some(path.as_os_str()) == version {
                        let beneath = last.range(path.clone()..).take_while(|(at, _)| at.starts_with(&path));
                        tree.extend(beneath.map(|(path, seen)| (path.clone(), seen.clone())));
                    } else if seen.is_directory() {
                        waiting.push(path.clone());
                    }
                    tree.insert(path, seen);
                }
                Ok(None) | Err(Errno::ENOENT) => {}
                Err(cause) => return Err(At { step: "looking at", path, cause }),
            }
        }
    }
    Ok(tree)
}

fn look(directory: &OwnedFd, name: &OsStr, last: Option<&Seen>) -> Result<Option<Seen>, Errno> {
    let stat = fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    let kind = match file_type(&stat) {
        libc::S_IFDIR => Kind::Directory,
        libc::S_IFREG => Kind::File(Stamp::of(&stat)),
        libc::S_IFLNK => {
            let stamp = Stamp::of(&stat);
            match last.map(|last| &last.kind) {
                Some(same @ Kind::Link(_, last)) if *last == stamp => same.clone(),
                _ => Kind::Link(readlinkat(directory, name)?, stamp),
            }
        }
        _ => return Ok(None),
    };
    Ok(Some(Seen::of(&stat, kind)))
}
