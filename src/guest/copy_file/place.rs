//! Where a file goes: the directory around it, open, and its name there.
//!
//! Whatever is copied is made under a name of its own and renamed when it is whole. So a reader sees the old
//! file or the new one, and a copy that fails leaves the old one. The directory is held open: who renames it
//! or puts a link in its place meanwhile changes nothing.

use std::ffi::{CStr, CString, OsStr, OsString};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, RenameFlags, openat, renameat, renameat2};
use nix::sys::stat::{Mode, fchmod, mkdirat};
use nix::unistd::{UnlinkatFlags, fchown, fchownat, symlinkat, unlinkat};

use super::CopyError;
use super::request::{CopyRequest, Owner};
use crate::guest::beneath::Root;
use crate::guest::tree;

/// How often a directory is made again that somebody else makes, and removes, at the same time.
const ATTEMPTS: usize = 8;
/// To read a directory, and not what a link of its name leads to.
const DIRECTORY: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// A directory and a name in it.
#[derive(Debug)]
pub(super) struct Place {
    directory: OwnedFd,
    name: OsString,
    /// For messages.
    path: PathBuf,
}

/// Something that is not yet, or no longer, of use under its temporary name: removed unless it was renamed.
#[derive(Debug)]
struct Temporary<'a> {
    place: &'a Place,
    name: CString,
    flag: UnlinkatFlags,
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        // If it has been renamed, there is nothing of that name.
        let _ = unlinkat(&self.place.directory, self.name.as_c_str(), self.flag);
    }
}

impl Place {
    /// Makes the directories around it, as far as they are missing, for the owner and with the permissions
    /// that the request wants.
    pub(super) fn prepare(request: &CopyRequest) -> Result<Self, CopyError> {
        let base = &request.base;
        std::fs::create_dir_all(base).map_err(|error| CopyError::Step {
            path: base.to_owned(),
            step: "make the shared directory",
            source: Errno::try_from(error).unwrap_or(Errno::UnknownErrno),
        })?;
        let root = Root::open(base)?;
        let parent = request.path.parent().unwrap_or_else(|| Path::new(""));
        let directory = root.create_dir_with(parent, request.dir_mode, &mut |made| {
            give(&made, request.owner, request.dir_mode)
        })?;
        let name = request.path.file_name().unwrap_or_default().to_owned();
        Ok(Self { directory, name, path: request.path.clone() })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn step(&self, step: &'static str) -> impl Fn(Errno) -> CopyError {
        move |source| CopyError::Step { path: self.path.clone(), step, source }
    }

    /// An empty file under a temporary name.
    pub(super) fn temporary_file(&self) -> Result<(File, CString), CopyError> {
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mode = Mode::S_IRUSR | Mode::S_IWUSR;
        self.under_fresh_name(|name| openat(&self.directory, name, flags, mode))
            .map(|(file, name)| (File::from(file), name))
            .map_err(self.step("make a temporary file"))
    }

    /// Removes a file that was abandoned under its temporary name.
    pub(super) fn remove_temporary(&self, name: &CStr) {
        let _ = unlinkat(&self.directory, name, UnlinkatFlags::NoRemoveDir);
    }

    /// Gives the whole file its owner, permissions and name.
    pub(super) fn finish(&self, file: &File, name: &CStr, owner: Owner, mode: u32) -> Result<(), CopyError> {
        give(file, owner, mode).map_err(self.step("set owner and permissions"))?;
        self.replace(name).map_err(self.step("put it in its place"))
    }

    /// Makes the directory, or sets owner and permissions of the one that there is: what is in it stays.
    pub(super) fn directory(&self, owner: Owner, mode: u32) -> Result<(), CopyError> {
        let set = self.step("set owner and permissions");
        for _ in 0..ATTEMPTS {
            match openat(&self.directory, &*self.name, DIRECTORY, Mode::empty()) {
                Ok(directory) => return give(&directory, owner, mode).map_err(set),
                Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => {}
                Err(errno) => return Err(self.step("open")(errno)),
            }
            let make = |name: &CStr| mkdirat(&self.directory, name, Mode::S_IRWXU);
            let ((), name) = self.under_fresh_name(make).map_err(self.step("make a directory"))?;
            let made = Temporary { place: self, name, flag: UnlinkatFlags::RemoveDir };
            openat(&self.directory, made.name.as_c_str(), DIRECTORY, Mode::empty())
                .and_then(|directory| give(&directory, owner, mode))
                .map_err(&set)?;
            match self.replace_by_directory(&made.name) {
                // Somebody else has made it meanwhile.
                Err(Errno::EEXIST) => {}
                done => return done.map_err(self.step("put it in its place")),
            }
        }
        Err(self.step("make a directory")(Errno::EEXIST))
    }

    /// Makes a symbolic link.
    pub(super) fn link(&self, target: &CStr, owner: Owner) -> Result<(), CopyError> {
        let ((), name) = self
            .under_fresh_name(|name| symlinkat(target, &self.directory, name))
            .map_err(self.step("make a symbolic link"))?;
        let made = Temporary { place: self, name, flag: UnlinkatFlags::NoRemoveDir };
        let (uid, gid) = (Some(owner.uid), Some(owner.gid));
        fchownat(&self.directory, made.name.as_c_str(), uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW)
            .map_err(self.step("set the owner"))?;
        self.replace(&made.name).map_err(self.step("put it in its place"))
    }

    /// Makes something under a name that nobody has.
    fn under_fresh_name<T>(&self, make: impl Fn(&CStr) -> nix::Result<T>) -> nix::Result<(T, CString)> {
        let mut failure = Errno::EEXIST;
        for _ in 0..ATTEMPTS {
            let name = CString::new(format!(".nakai-{:016x}", fastrand::u64(..))).unwrap_or_default();
            match make(&name) {
                Ok(made) => return Ok((made, name)),
                Err(Errno::EEXIST) => {}
                Err(errno) => {
                    failure = errno;
                    break;
                }
            }
        }
        Err(failure)
    }

    /// Renames a file or a link to the place's name, whatever is there now.
    fn replace(&self, temporary: &CStr) -> nix::Result<()> {
        match renameat(&self.directory, temporary, &self.directory, &*self.name) {
            Err(Errno::EISDIR) => self.exchange(temporary),
            other => other,
        }
    }

    /// Renames a directory to the place's name, if there is not another directory.
    fn replace_by_directory(&self, temporary: &CStr) -> nix::Result<()> {
        let no_replace = RenameFlags::RENAME_NOREPLACE;
        match renameat2(&self.directory, temporary, &self.directory, &*self.name, no_replace) {
            Err(Errno::EEXIST) if !self.is_directory() => self.exchange(temporary),
            // Not every file system knows the flag. Without it a directory takes the place of an empty one only.
            Err(Errno::EINVAL) => match renameat(&self.directory, temporary, &self.directory, &*self.name) {
                Err(Errno::ENOTDIR) => self.exchange(temporary),
                Err(Errno::ENOTEMPTY) => Err(Errno::EEXIST),
                other => other,
            },
            other => other,
        }
    }

    fn is_directory(&self) -> bool {
        openat(&self.directory, &*self.name, DIRECTORY | OFlag::O_PATH, Mode::empty()).is_ok()
    }

    /// Changes places with what is of another type, and removes that.
    fn exchange(&self, temporary: &CStr) -> nix::Result<()> {
        let exchange = RenameFlags::RENAME_EXCHANGE;
        match renameat2(&self.directory, temporary, &self.directory, &*self.name, exchange) {
            Ok(()) => self.remove(OsStr::from_bytes(temporary.to_bytes())),
            Err(Errno::EINVAL) => {
                self.remove(&self.name)?;
                renameat(&self.directory, temporary, &self.directory, &*self.name)
            }
            Err(errno) => Err(errno),
        }
    }

    fn remove(&self, name: &OsStr) -> nix::Result<()> {
        match openat(&self.directory, name, DIRECTORY, Mode::empty()) {
            Ok(directory) => {
                tree::remove_contents(directory).map_err(|error| error.cause)?;
                unlinkat(&self.directory, name, UnlinkatFlags::RemoveDir)
            }
            Err(_) => unlinkat(&self.directory, name, UnlinkatFlags::NoRemoveDir),
        }
    }
}

/// The owner first: a change of it takes set-id bits away.
fn give(file: &impl std::os::fd::AsFd, owner: Owner, mode: u32) -> nix::Result<()> {
    fchown(file.as_fd(), Some(owner.uid), Some(owner.gid))?;
    fchmod(file.as_fd(), Mode::from_bits_truncate(mode))
}
