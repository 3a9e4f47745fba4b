//! A cgroup's directory: its files, its sub-cgroups, its processes.
//!
//! Everything is opened relative to the fd of the directory, so a cgroup that is removed and made anew
//! meanwhile is never taken for the old one. Owns one fd.

use super::CgroupError;
use nix::dir::{Dir as DirStream, Type};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};
use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// How many levels of sub-cgroups are followed.
pub const MAX_DEPTH: usize = 256;

/// More than any file of a cgroup has; a list of all processes of a guest is the longest.
const MAX_FILE: usize = 32 << 20;

const DIRECTORY: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);

/// See the module.
#[derive(Debug)]
pub(super) struct Dir {
    fd: OwnedFd,
    path: PathBuf,
}

impl Dir {
    /// `None` if there is no such directory.
    pub(super) fn open(path: PathBuf) -> Result<Option<Self>, CgroupError> {
        match openat(AT_FDCWD, &path, DIRECTORY, Mode::empty()) {
            Ok(fd) => Ok(Some(Self { fd, path })),
            Err(Errno::ENOENT | Errno::ENODEV) => Ok(None),
            Err(source) => Err(CgroupError::Open { path, source }),
        }
    }

    pub(super) fn path(&self) -> &PathBuf {
        &self.path
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn child(&self, name: &CStr) -> Result<Option<Self>, CgroupError> {
        let path = self.path.join(OsStr::from_bytes(name.to_bytes()));
        match openat(&self.fd, name, DIRECTORY | OFlag::O_NOFOLLOW, Mode::empty()) {
            Ok(fd) => Ok(Some(Self { fd, path })),
            Err(Errno::ENOENT | Errno::ENODEV) => Ok(None),
            Err(source) => Err(CgroupError::Open { path, source }),
        }
    }

    /// Makes a sub-cgroup, if it is missing.
    pub(super) fn make_child(&self, name: &str) -> Result<(), CgroupError> {
        match mkdirat(&self.fd, name, Mode::from_bits_truncate(0o755)) {
            Ok(()) | Err(Errno::EEXIST) => Ok(()),
            Err(source) => Err(CgroupError::Open { path: self.path.join(name), source }),
        }
    }

    /// The names of what is in the directory, with whether each is a sub-cgroup.
    pub(super) fn list(&self) -> Result<Vec<(CString, bool)>, CgroupError> {
        let fail = |source| CgroupError::Open { path: self.path.clone(), source };
        let mut stream = match DirStream::openat(&self.fd, ".", DIRECTORY, Mode::empty()) {
            Ok(stream) => stream,
            Err(Errno::ENOENT | Errno::ENODEV) => return Ok(Vec::new()),
            Err(source) => return Err(fail(source)),
        };
        let mut names = Vec::new();
        for entry in stream.iter() {
            let entry = entry.map_err(fail)?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                names.push((entry.file_name().to_owned(), entry.file_type() == Some(Type::Directory)));
            }
        }
        Ok(names)
    }

    fn sub_cgroups(&self) -> Result<impl Iterator<Item = CString> + use<>, CgroupError> {
        Ok(self.list()?.into_iter().filter_map(|(name, is_dir)| is_dir.then_some(name)))
    }

    /// The sub-cgroups right below, with their names.
    pub(super) fn children(&self) -> Result<Vec<(CString, Self)>, CgroupError> {
        let mut children = Vec::new();
        for name in self.sub_cgroups()? {
            if let Some(child) = self.child(&name)? {
                children.push((name, child));
            }
        }
        Ok(children)
    }

    /// Opens a file for reading. `None` if the kernel has no such file, or the cgroup is gone.
    pub(super) fn file(&self, name: &str) -> Result<Option<OwnedFd>, CgroupError> {
        match openat(&self.fd, name, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::ENOENT | Errno::ENODEV) => Ok(None),
            Err(source) => Err(self.read_error(name, source)),
        }
    }

    /// The text of a file. `None` if the kernel has no such file, does not support it here, or the
    /// cgroup is gone.
    pub(super) fn read(&self, name: &str) -> Result<Option<String>, CgroupError> {
        let Some(file) = self.file(name)? else { return Ok(None) };
        match read_from_start(file.as_fd()) {
            Ok(text) => Ok(Some(text)),
            // A v1 controller says EOPNOTSUPP or EINVAL for what it was told not to account.
            Err(Errno::ENODEV | Errno::EOPNOTSUPP | Errno::EINVAL) => Ok(None),
            Err(source) => Err(self.read_error(name, source)),
        }
    }

    pub(super) fn read_error(&self, file: &str, source: Errno) -> CgroupError {
        CgroupError::Read { path: self.path.clone(), file: file.to_owned(), source }
    }

    /// Writes a file. False if the kernel has no such file, does not support it here, or the cgroup is gone.
    pub(super) fn write(&self, file: &str, value: &str) -> Result<bool, CgroupError> {
        match self.set(file, value) {
            Ok(()) => Ok(true),
            Err(Errno::ENOENT | Errno::ENODEV | Errno::EOPNOTSUPP) => Ok(false),
            Err(source) => {
                let (file, value) = (file.to_owned(), value.to_owned());
                Err(CgroupError::Write { path: self.path.clone(), file, value, source })
            }
        }
    }

    /// Writes a file, and tells what the kernel says.
    pub(super) fn set(&self, file: &str, value: &str) -> nix::Result<()> {
        let fd = openat(&self.fd, file, OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())?;
        // An empty list is said by an empty line: nothing at all would not be a write.
        let value = if value.is_empty() { "\n" } else { value };
        nix::unistd::write(fd, value.as_bytes()).map(drop)
    }

    /// Whether the cgroup was removed since it was opened: its files go with it.
    pub(super) fn is_gone(&self) -> bool {
        // faccessat(2) would make a copy of the caller's credentials first.
        fstatat(&self.fd, "cgroup.procs", AtFlags::empty()).is_err()
    }

    /// Calls `visit` for this cgroup and for every one below, parents first.
    pub(super) fn walk(
        &self,
        visit: &mut dyn FnMut(&Self) -> Result<(), CgroupError>,
    ) -> Result<(), CgroupError> {
        self.walk_levels(MAX_DEPTH, visit)
    }

    fn walk_levels(
        &self,
        levels: usize,
        visit: &mut dyn FnMut(&Self) -> Result<(), CgroupError>,
    ) -> Result<(), CgroupError> {
        visit(self)?;
        for name in self.sub_cgroups()? {
            let Some(child) = self.child(&name)? else { continue };
            child.walk_levels(self.one_less(levels)?, visit)?;
        }
        Ok(())
    }

    /// The processes of this cgroup and of every one below.
    pub(super) fn pids(&self) -> Result<Vec<i32>, CgroupError> {
        let mut pids = Vec::new();
        self.walk(&mut |dir| {
            // Threaded sub-cgroups have no list of processes: theirs are in the list of the cgroup above.
            let text = dir.read("cgroup.procs")?.unwrap_or_default();
            // A process that our pid namespace can't see is listed as 0.
            pids.extend(
                text.lines().filter_map(|line| line.trim().parse::<i32>().ok()).filter(|pid| *pid > 0),
            );
            Ok(())
        })?;
        Ok(pids)
    }

    /// Removes every cgroup below, the deepest first.
    pub(super) fn remove_sub_cgroups(&self) -> Result<(), CgroupError> {
        self.remove_levels(MAX_DEPTH)
    }

    fn remove_levels(&self, levels: usize) -> Result<(), CgroupError> {
        for name in self.sub_cgroups()? {
            let Some(child) = self.child(&name)? else { continue };
            child.remove_levels(self.one_less(levels)?)?;
            match unlinkat(&self.fd, name.as_c_str(), UnlinkatFlags::RemoveDir) {
                Ok(()) | Err(Errno::ENOENT | Errno::ENODEV) => {}
                Err(source) => return Err(CgroupError::Remove { path: child.path, source }),
            }
        }
        Ok(())
    }

    fn one_less(&self, levels: usize) -> Result<usize, CgroupError> {
        levels.checked_sub(1).ok_or_else(|| CgroupError::TooDeep { path: self.path.clone() })
    }
}

/// All of a file, from its start, however often it was read before.
pub(super) fn read_from_start(file: BorrowedFd<'_>) -> nix::Result<String> {
    let mut bytes = vec![0; 4096];
    let mut len: usize = 0;
    while len < MAX_FILE {
        if bytes.len() == len {
            bytes.resize(len.saturating_mul(2), 0);
        }
        let offset = libc::off_t::try_from(len).unwrap_or(libc::off_t::MAX);
        match nix::sys::uio::pread(file, bytes.get_mut(len..).unwrap_or_default(), offset) {
            Ok(0) => break,
            Ok(n) => len = len.saturating_add(n),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    bytes.truncate(len);
    Ok(String::from_utf8(bytes)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
}
