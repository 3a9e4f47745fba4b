//! A directory that is written to by untrusted paths. Whatever links there are in it, nothing outside is reached:
//! each parent is opened with openat2(2), for which the directory is the root, and the last name is never followed.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{FileStat, Mode, SFlag, fstatat, mkdirat, mknodat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, linkat, symlinkat, unlinkat};

/// The directory.
#[derive(Debug)]
pub(super) struct Tree {
    root: OwnedFd,
}

/// A name in an open directory of the tree.
#[derive(Debug)]
pub(super) struct Place {
    parent: OwnedFd,
    name: OsString,
}

const DIRECTORY: OFlag = OFlag::O_PATH.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);

impl Tree {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { root: nix::fcntl::open(path, DIRECTORY, Mode::empty())? })
    }

    fn resolve(&self, path: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let resolve =
            ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS | ResolveFlag::RESOLVE_NO_XDEV;
        openat2(&self.root, path, OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(resolve))
    }

    /// A directory that is there, to set what it has. No link is followed for its last name.
    pub(super) fn directory(&self, path: &Path) -> io::Result<File> {
        Ok(self.resolve(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW)?.into())
    }

    /// The place of a path with a name at its end; what is missing above it is made.
    pub(super) fn place(&self, path: &Path) -> io::Result<Place> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
        let above = path.parent().unwrap_or(Path::new(""));
        let parent = match self.resolve(above, DIRECTORY) {
            Err(nix::Error::ENOENT) => self.make(above)?,
            parent => parent?,
        };
        Ok(Place { parent, name })
    }

    /// The place of a path whose parents are all there.
    pub(super) fn existing(&self, path: &Path) -> io::Result<Place> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
        Ok(Place { parent: self.resolve(path.parent().unwrap_or(Path::new("")), DIRECTORY)?, name })
    }

    fn make(&self, path: &Path) -> io::Result<OwnedFd> {
        let mut at = PathBuf::new();
        let mut parent = self.resolve(&at, DIRECTORY)?;
        for name in path {
            at.push(name);
            let next = match self.resolve(&at, DIRECTORY) {
                Err(nix::Error::ENOENT) => {
                    // A link that leads nowhere is not replaced: this fails then.
                    mkdirat(&parent, name, Mode::from_bits_truncate(0o755))?;
                    self.resolve(&at, DIRECTORY)?
                }
                next => next?,
            };
            parent = next;
        }
        Ok(parent)
    }
}

impl Place {
    pub(super) fn name(&self) -> &OsStr {
        &self.name
    }

    /// The same directory, another name.
    pub(super) fn sibling(self, name: &OsStr) -> Self {
        Self { name: name.to_owned(), ..self }
    }

    pub(super) fn stat(&self) -> Option<FileStat> {
        fstatat(&self.parent, &*self.name, AtFlags::AT_SYMLINK_NOFOLLOW).ok()
    }

    pub(super) fn is_directory(&self) -> bool {
        self.stat().is_some_and(|stat| stat.st_mode & libc::S_IFMT == libc::S_IFDIR)
    }

    /// Whether it is overlayfs's mark for something that is not there.
    pub(super) fn is_whiteout(&self) -> bool {
        self.stat().is_some_and(|stat| stat.st_mode & libc::S_IFMT == libc::S_IFCHR && stat.st_rdev == 0)
    }

    /// Removes what is there.
    pub(super) fn clear(&self) -> io::Result<()> {
        match unlinkat(&self.parent, &*self.name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(nix::Error::ENOENT) => Ok(()),
            // The removal of a tree follows no links, and its parent can't be replaced: it is open.
            Err(nix::Error::EISDIR | nix::Error::EPERM) if self.is_directory() => fs::remove_dir_all(
                Path::new(&format!("/proc/self/fd/{}", self.parent.as_raw_fd())).join(&self.name),
            ),
            Err(errno) => Err(errno.into()),
        }
    }

    pub(super) fn make_directory(&self) -> io::Result<()> {
        Ok(mkdirat(&self.parent, &*self.name, Mode::from_bits_truncate(0o700))?)
    }

    pub(super) fn create_file(&self) -> io::Result<File> {
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mode = Mode::from_bits_truncate(0o600);
        Ok(nix::fcntl::openat(&self.parent, &*self.name, flags, mode)?.into())
    }

    pub(super) fn make_symlink(&self, target: &OsStr) -> io::Result<()> {
        Ok(symlinkat(target, &self.parent, &*self.name)?)
    }

    pub(super) fn make_link(&self, original: &Self) -> io::Result<()> {
        let flags = AtFlags::empty();
        Ok(linkat(&original.parent, &*original.name, &self.parent, &*self.name, flags)?)
    }

    pub(super) fn make_whiteout(&self) -> io::Result<()> {
        Ok(mknodat(&self.parent, &*self.name, SFlag::S_IFCHR, Mode::empty(), 0)?)
    }

    /// Of a link itself.
    pub(super) fn own(&self, uid: Uid, gid: Gid) -> io::Result<()> {
        let flags = AtFlags::AT_SYMLINK_NOFOLLOW;
        Ok(fchownat(self.parent.as_fd(), &*self.name, Some(uid), Some(gid), flags)?)
    }
}
