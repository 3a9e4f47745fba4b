//! Going through a directory tree that somebody else may be changing: removing it, or visiting every file.
//!
//! Invariants: no symbolic link is followed, no mount point is crossed, and the number of open descriptors
//! does not grow with the depth of the tree, so that a hostile tree can neither lead elsewhere nor exhaust
//! them.

use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::libc;
use nix::sys::stat::{FileStat, Mode, fstat, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};

/// What is done on the way. A directory's contents come before the directory itself.
pub trait Visitor {
    /// Anything but a directory.
    fn file(&mut self, parent: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno>;

    /// A directory whose contents are done, the root included.
    fn directory(&mut self, dir: BorrowedFd<'_>) -> Result<(), Errno>;

    /// The same directory (not the root), seen from the one around it.
    fn left(&mut self, parent: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno>;
}

/// Where in the tree it went wrong.
#[derive(Debug)]
pub struct TreeError {
    /// Path of the directory, relative to the root of the tree.
    pub directory: PathBuf,
    /// What the kernel said.
    pub cause: Errno,
}

/// A directory on the way down. Only the innermost is open.
struct Level {
    name: CString,
    id: (libc::dev_t, libc::ino_t),
    subdirectories: Vec<CString>,
}

/// Visits everything in the directory, then the directory.
pub fn walk(root: OwnedFd, visitor: &mut dyn Visitor) -> Result<(), TreeError> {
    let mut levels = Vec::new();
    walk_levels(root, visitor, &mut levels).map_err(|cause| {
        let names = levels.iter().map(|level| OsStr::from_bytes(level.name.to_bytes()));
        TreeError { directory: names.collect(), cause }
    })
}

fn walk_levels(root: OwnedFd, visitor: &mut dyn Visitor, levels: &mut Vec<Level>) -> Result<(), Errno> {
    let mut dir = root;
    levels.push(scan(&dir, CString::default(), visitor)?);
    while let Some(level) = levels.last_mut() {
        if let Some(name) = level.subdirectories.pop() {
            match open_child(&dir, &name, OFlag::O_RDONLY | OFlag::O_DIRECTORY) {
                Ok(child) => {
                    levels.push(scan(&child, name, visitor)?);
                    dir = child;
                }
                // A mount point, or gone, or no directory any more.
                Err(Errno::EXDEV | Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => {}
                Err(errno) => return Err(errno),
            }
            continue;
        }
        visitor.directory(dir.as_fd())?;
        let done = levels.pop();
        if let (Some(around), Some(done)) = (levels.last(), done) {
            dir = ascend(&dir, around)?;
            visitor.left(dir.as_fd(), &done.name)?;
        }
    }
    Ok(())
}

/// Visits the files of a directory and notes its subdirectories.
fn scan(dir: &OwnedFd, name: CString, visitor: &mut dyn Visitor) -> Result<Level, Errno> {
    let stat = fstat(dir)?;
    let mut level = Level { name, id: (stat.st_dev, stat.st_ino), subdirectories: Vec::new() };
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    for entry in Dir::openat(dir, c".", flags, Mode::empty())?.iter() {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        match fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) if file_type(&stat) == libc::S_IFDIR => level.subdirectories.push(name.to_owned()),
            Ok(_) => visitor.file(dir.as_fd(), name)?,
            Err(Errno::ENOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(level)
}

/// Opens an entry of a directory, if it is on the same mount.
pub fn open_child(dir: impl AsFd, name: &CStr, flags: OFlag) -> Result<OwnedFd, Errno> {
    let resolve =
        ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_XDEV | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    openat2(dir, name, OpenHow::new().flags(flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC).resolve(resolve))
}

/// Opens the directory around `dir`, which must still be the one that we came from.
fn ascend(dir: &OwnedFd, around: &Level) -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let parent = openat(dir, c"..", flags, Mode::empty())?;
    let stat = fstat(&parent)?;
    if (stat.st_dev, stat.st_ino) == around.id { Ok(parent) } else { Err(Errno::ESTALE) }
}

/// The type bits of a file's mode (inode(7)).
pub fn file_type(stat: &FileStat) -> libc::mode_t {
    stat.st_mode & libc::S_IFMT
}

struct Remover;

impl Visitor for Remover {
    fn file(&mut self, parent: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
        match unlinkat(parent, name, UnlinkatFlags::NoRemoveDir) {
            Err(Errno::ENOENT) => Ok(()),
            other => other,
        }
    }

    fn directory(&mut self, _dir: BorrowedFd<'_>) -> Result<(), Errno> {
        Ok(())
    }

    fn left(&mut self, parent: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
        unlinkat(parent, name, UnlinkatFlags::RemoveDir)
    }
}

/// Removes all that is in the directory.
pub fn remove_contents(root: OwnedFd) -> Result<(), TreeError> {
    walk(root, &mut Remover)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn removal_takes_everything_and_follows_nothing() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("keep"), "").unwrap();
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("a/b/c")).unwrap();
        fs::create_dir(root.path().join("a/d")).unwrap();
        fs::write(root.path().join("a/b/file"), "").unwrap();
        symlink(outside.path(), root.path().join("a/b/c/link")).unwrap();
        symlink(outside.path().join("keep"), root.path().join("link")).unwrap();
        remove_contents(fs::File::open(root.path()).unwrap().into()).unwrap();
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
        assert!(outside.path().join("keep").exists());
    }

    #[test]
    fn depth_costs_no_descriptors() {
        let root = tempfile::tempdir().unwrap();
        let mut dir: OwnedFd = fs::File::open(root.path()).unwrap().into();
        for _ in 0..1500 {
            nix::sys::stat::mkdirat(&dir, c"d", Mode::S_IRWXU).unwrap();
            dir = open_child(&dir, c"d", OFlag::O_RDONLY).unwrap();
        }
        remove_contents(fs::File::open(root.path()).unwrap().into()).unwrap();
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }
}
