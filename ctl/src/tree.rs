//! A directory that is written to while somebody else has a say in it: by untrusted paths, or because a guest writes
//! there too. Whatever links there are in it, nothing outside is reached: each parent is opened with openat2(2), for
//! which the directory is the root, the last name is never followed, and no mount is crossed, unless a mount is what is
//! asked for ([`Place::open`]).

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{FileStat, Mode, SFlag, fstatat, mkdirat, mknodat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, linkat, symlinkat, unlinkat};

use crate::removal::remove_at;

/// The directory.
#[derive(Debug)]
pub(crate) struct Tree {
    root: OwnedFd,
    resolve: ResolveFlag,
}

/// A name in an open directory of the tree.
#[derive(Debug)]
pub(crate) struct Place {
    parent: OwnedFd,
    name: OsString,
}

const DIRECTORY: OFlag = OFlag::O_PATH.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);

/// No link leads anywhere.
const STRICT: ResolveFlag =
    ResolveFlag::RESOLVE_BENEATH.union(ResolveFlag::RESOLVE_NO_SYMLINKS).union(ResolveFlag::RESOLVE_NO_XDEV);

/// Links lead to where they would if the directory were the root.
const WITHIN: ResolveFlag = ResolveFlag::RESOLVE_IN_ROOT
    .union(ResolveFlag::RESOLVE_NO_MAGICLINKS)
    .union(ResolveFlag::RESOLVE_NO_XDEV);

impl Tree {
    /// A directory with links of its own, as a root filesystem has.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { root: nix::fcntl::open(path, DIRECTORY, Mode::empty())?, resolve: WITHIN })
    }

    /// A directory in which no link is followed.
    pub(crate) fn strict(path: &Path) -> io::Result<Self> {
        Ok(Self { resolve: STRICT, ..Self::open(path)? })
    }

    fn resolve(&self, path: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(self.resolve);
        loop {
            match openat2(&self.root, path, how) {
                // A rename anywhere disturbed the way over a link's `..` (openat2(2)).
                Err(Errno::EAGAIN) => {}
                result => return result,
            }
        }
    }

    /// A directory that is there, to set what it has. No link is followed for its last name.
    pub(crate) fn directory(&self, path: &Path) -> io::Result<File> {
        Ok(self.resolve(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW)?.into())
    }

    /// Lets its owner write to a directory that forbids it.
    pub(crate) fn allow(&self, path: &Path) -> io::Result<()> {
        let directory = self.resolve(path, DIRECTORY | OFlag::O_NOFOLLOW)?;
        fs::set_permissions(by_descriptor(&directory), Permissions::from_mode(0o700))
    }

    /// The names in a directory that is there; none where there is no such directory.
    pub(crate) fn names(&self, path: &Path) -> io::Result<Vec<OsString>> {
        match self.directory(path) {
            Ok(directory) => fs::read_dir(by_descriptor(&directory))?
                .map(|entry| entry.map(|entry| entry.file_name()))
                .collect(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// The place of a path with a name at its end; what is missing above it is made.
    pub(crate) fn place(&self, path: &Path) -> io::Result<Place> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
        let above = path.parent().unwrap_or(Path::new(""));
        let parent = match self.resolve(above, DIRECTORY) {
            Err(nix::Error::ENOENT) => self.make(above)?,
            parent => parent?,
        };
        Ok(Place { parent, name })
    }

    /// The place of a path whose parents are all there.
    pub(crate) fn existing(&self, path: &Path) -> io::Result<Place> {
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
    pub(crate) fn name(&self) -> &OsStr {
        &self.name
    }

    /// The same directory, another name.
    pub(crate) fn sibling(self, name: &OsStr) -> Self {
        Self { name: name.to_owned(), ..self }
    }

    pub(crate) fn stat(&self) -> Option<FileStat> {
        fstatat(&self.parent, &*self.name, AtFlags::AT_SYMLINK_NOFOLLOW).ok()
    }

    pub(crate) fn is_directory(&self) -> bool {
        self.stat().is_some_and(|stat| stat.st_mode & libc::S_IFMT == libc::S_IFDIR)
    }

    /// Whether it is overlayfs's mark for something that is not there.
    pub(crate) fn is_whiteout(&self) -> bool {
        self.stat().is_some_and(|stat| stat.st_mode & libc::S_IFMT == libc::S_IFCHR && stat.st_rdev == 0)
    }

    /// What is there, without the right to read it: the root of a mount if something is mounted there, a link itself.
    pub(crate) fn open(&self) -> io::Result<OwnedFd> {
        let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC);
        let resolve = STRICT.difference(ResolveFlag::RESOLVE_NO_XDEV);
        Ok(openat2(&self.parent, &*self.name, how.resolve(resolve))?)
    }

    /// Removes what is there with all in it, but nothing that is mounted there or in it: that is an error.
    pub(crate) fn clear(&self) -> io::Result<()> {
        match self.remove_file() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            // EISDIR, or EPERM as POSIX has it.
            Err(_) if self.is_directory() => Ok(remove_at(&self.parent, &self.name)?),
            result => result,
        }
    }

    /// Removes what is no directory.
    pub(crate) fn remove_file(&self) -> io::Result<()> {
        Ok(unlinkat(&self.parent, &*self.name, UnlinkatFlags::NoRemoveDir)?)
    }

    /// Removes an empty directory.
    pub(crate) fn remove_directory(&self) -> io::Result<()> {
        Ok(unlinkat(&self.parent, &*self.name, UnlinkatFlags::RemoveDir)?)
    }

    /// Makes a directory, for its owner only until it gets what is its own.
    pub(crate) fn make_directory(&self) -> io::Result<()> {
        Ok(mkdirat(&self.parent, &*self.name, Mode::from_bits_truncate(0o700))?)
    }

    /// Makes a directory that all may look into.
    pub(crate) fn make_open_directory(&self) -> io::Result<()> {
        Ok(mkdirat(&self.parent, &*self.name, Mode::from_bits_truncate(0o755))?)
    }

    pub(crate) fn create_file(&self) -> io::Result<File> {
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mode = Mode::from_bits_truncate(0o600);
        Ok(nix::fcntl::openat(&self.parent, &*self.name, flags, mode)?.into())
    }

    pub(crate) fn make_symlink(&self, target: &OsStr) -> io::Result<()> {
        Ok(symlinkat(target, &self.parent, &*self.name)?)
    }

    pub(crate) fn make_link(&self, original: &Self) -> io::Result<()> {
        let flags = AtFlags::empty();
        Ok(linkat(&original.parent, &*original.name, &self.parent, &*self.name, flags)?)
    }

    pub(crate) fn make_whiteout(&self) -> io::Result<()> {
        Ok(mknodat(&self.parent, &*self.name, SFlag::S_IFCHR, Mode::empty(), 0)?)
    }

    /// Of a link itself.
    pub(crate) fn own(&self, uid: Uid, gid: Gid) -> io::Result<()> {
        let flags = AtFlags::AT_SYMLINK_NOFOLLOW;
        Ok(fchownat(self.parent.as_fd(), &*self.name, Some(uid), Some(gid), flags)?)
    }
}

/// A path to what a descriptor is open for, whatever names it has by now. Good for as long as that is open.
pub(crate) fn by_descriptor(descriptor: &impl AsFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", descriptor.as_fd().as_raw_fd()))
}
