//! Paths that somebody else chose, resolved beneath a root.
//!
//! A share of the host or a container's root file system can hold a symbolic link at any place and any time.
//! So such a path is never handed to the kernel as text: it is opened with openat2(2), which resolves links
//! as if the root were `/` (`RESOLVE_IN_ROOT`) and follows no magic link, and what follows works on the
//! descriptor. Where something is made, a link whose target is missing leads to what is made, too: images have
//! `/var/run -> /run` without `/run`.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat, openat2, readlinkat};
use nix::sys::stat::{Mode, mkdirat};

/// Why a path beneath a root can't be had.
#[derive(Debug, thiserror::Error)]
pub enum BeneathError {
    /// The root itself can't be opened.
    #[error("root {root}: {source}", root = root.display())]
    Root {
        /// The root.
        root: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A path with `..` in it.
    #[error("path {path} climbs", path = path.display())]
    Climbs {
        /// The path.
        path: PathBuf,
    },
    /// A part of the path can't be opened or made.
    #[error("{step} {path} beneath {root}: {source}", path = path.display(), root = root.display())]
    Step {
        /// What was done to it.
        step: &'static str,
        /// The part, from the root.
        path: PathBuf,
        /// The root.
        root: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl BeneathError {
    /// The system's error number, if it is an error of the system.
    pub fn raw_os_error(&self) -> Option<i32> {
        match self {
            Self::Root { source, .. } | Self::Step { source, .. } => source.raw_os_error(),
            Self::Climbs { .. } => None,
        }
    }
}

/// A directory that nothing opened through it can leave.
#[derive(Debug)]
pub struct Root {
    fd: OwnedFd,
    path: PathBuf,
}

/// How many links without a target are followed, as the kernel has it for others (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// `O_PATH`: to stand on, not to read.
const STAND: OFlag = OFlag::O_PATH.union(OFlag::O_CLOEXEC);

impl Root {
    /// Opens a root that we chose ourselves.
    ///
    /// # Errors
    ///
    /// [`BeneathError::Root`].
    pub fn open(path: &Path) -> Result<Self, BeneathError> {
        let fd = open(path, STAND | OFlag::O_DIRECTORY, Mode::empty())
            .map_err(|errno| BeneathError::Root { root: path.to_owned(), source: errno.into() })?;
        Ok(Self { fd, path: path.to_owned() })
    }

    /// The root that `fd` stands on, which is called `path` in messages.
    pub fn of(fd: OwnedFd, path: &Path) -> Self {
        Self { fd, path: path.to_owned() }
    }

    /// The path it was opened by, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens what `relative` names, with any flags of open(2). A leading `/` means the root.
    ///
    /// # Errors
    ///
    /// [`BeneathError::Climbs`] and [`BeneathError::Step`].
    pub fn open_path(&self, relative: &Path, flags: OFlag, mode: Mode) -> Result<OwnedFd, BeneathError> {
        let relative = clean(relative)?;
        self.open_clean(&relative, flags, mode).map_err(|errno| self.step("open", &relative, errno))
    }

    /// The directory `relative`, made with its parents if missing, as an `O_PATH` descriptor.
    /// `mode` (less the umask) is for those that are made.
    ///
    /// # Errors
    ///
    /// [`BeneathError::Climbs`] and [`BeneathError::Step`].
    pub fn create_dir(&self, relative: &Path, mode: u32) -> Result<OwnedFd, BeneathError> {
        self.walk_down(&clean(relative)?, Last::Directory(mode), true, &mut |_| Ok(()))
    }

    /// The file `relative`, made empty with its parents if missing, as an `O_PATH` descriptor. `mode` (less
    /// the umask) is for a file that is made; directories get 0755.
    ///
    /// # Errors
    ///
    /// [`BeneathError::Climbs`] and [`BeneathError::Step`].
    pub fn create_file(&self, relative: &Path, mode: u32) -> Result<OwnedFd, BeneathError> {
        self.walk_down(&clean(relative)?, Last::File(mode), true, &mut |_| Ok(()))
    }

    /// As [`Root::create_dir`], but a link whose target is missing is an error; `made` is handed each directory that is
    /// made, open, before anything is in it.
    ///
    /// # Errors
    ///
    /// [`BeneathError::Climbs`] and [`BeneathError::Step`].
    pub fn create_dir_with(
        &self,
        relative: &Path,
        mode: u32,
        made: &mut dyn FnMut(OwnedFd) -> nix::Result<()>,
    ) -> Result<OwnedFd, BeneathError> {
        self.walk_down(&clean(relative)?, Last::Directory(mode), false, made)
    }

    /// Walks down from the root, and makes what is missing; with `beyond_links` also where a link leads that dangles.
    fn walk_down(
        &self,
        relative: &Path,
        last: Last,
        beyond_links: bool,
        made: &mut dyn FnMut(OwnedFd) -> nix::Result<()>,
    ) -> Result<OwnedFd, BeneathError> {
        match self.open_clean(relative, STAND | last.flags(), Mode::empty()) {
            Err(Errno::ENOENT) => {}
            found => return found.map_err(|errno| self.step("open", relative, errno)),
        }
        // Opened from the root each time: a link in `so_far` is resolved within it.
        let mut so_far = PathBuf::new();
        let mut to_come: Vec<OsString> = relative.iter().rev().map(OsStr::to_owned).collect();
        let stand = |path: &Path, flags| self.open_clean(path, STAND | flags, Mode::empty());
        let mut parent =
            stand(&so_far, OFlag::O_DIRECTORY).map_err(|errno| self.step("open", &so_far, errno))?;
        let mut links = 0_usize;
        while let Some(name) = to_come.pop() {
            so_far.push(&name);
            let wanted = if to_come.is_empty() { last } else { last.parent() };
            let failed = |errno| self.step("create", &so_far, errno);
            parent = match stand(&so_far, wanted.flags()) {
                Err(Errno::ENOENT) => match wanted.make(&parent, &name, made) {
                    // Somebody else may have made it first.
                    Err(Errno::EEXIST) if !beyond_links => stand(&so_far, wanted.flags()),
                    Err(Errno::EEXIST) => match readlinkat(&parent, name.as_os_str()) {
                        Ok(_) if links >= MAX_LINKS => return Err(failed(Errno::ELOOP)),
                        Ok(target) => {
                            links = links.saturating_add(1);
                            so_far.pop();
                            let target = PathBuf::from(target);
                            if target.is_absolute() {
                                so_far = PathBuf::new();
                            }
                            to_come.extend(names(&target).rev());
                            stand(&so_far, OFlag::O_DIRECTORY)
                        }
                        Err(_) => stand(&so_far, wanted.flags()),
                    },
                    made => made.and_then(|()| stand(&so_far, wanted.flags())),
                },
                found => found,
            }
            .map_err(|errno| self.step("create", &so_far, errno))?;
        }
        Ok(parent)
    }

    fn open_clean(&self, relative: &Path, flags: OFlag, mode: Mode) -> nix::Result<OwnedFd> {
        let how = OpenHow::new()
            .flags(flags | OFlag::O_CLOEXEC)
            .mode(mode)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        let path = if relative.as_os_str().is_empty() { Path::new(".") } else { relative };
        loop {
            match openat2(&self.fd, path, how) {
                // EAGAIN: a rename elsewhere disturbed the resolution; EINTR: a signal did.
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                result => return result,
            }
        }
    }

    fn step(&self, step: &'static str, path: &Path, errno: Errno) -> BeneathError {
        BeneathError::Step { step, path: path.to_owned(), root: self.path.clone(), source: errno.into() }
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// As [`Root::create_dir`], for a single use of `root`.
///
/// # Errors
///
/// [`BeneathError`].
pub fn create_dir_beneath(root: &Path, relative: &Path, mode: u32) -> Result<OwnedFd, BeneathError> {
    Root::open(root)?.create_dir(relative, mode)
}

/// A path by which system calls that take no descriptor (mount(2)) reach exactly what `fd` stands on. `/proc`
/// must be mounted. Valid as long as `fd` is open.
pub fn fd_path(fd: BorrowedFd<'_>) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// What a path that is walked down ends with, and the permissions that it is made with.
#[derive(Debug, Clone, Copy)]
enum Last {
    Directory(u32),
    File(u32),
}

impl Last {
    /// What the directories above it are made as.
    fn parent(self) -> Self {
        match self {
            Self::Directory(_) => self,
            Self::File(_) => Self::Directory(0o755),
        }
    }

    /// To stand on what is there.
    fn flags(self) -> OFlag {
        match self {
            Self::Directory(_) => OFlag::O_DIRECTORY,
            Self::File(_) => OFlag::empty(),
        }
    }

    /// EEXIST if anything of that name is there, a link that leads nowhere, too.
    fn make(
        self,
        parent: &OwnedFd,
        name: &OsStr,
        made: &mut dyn FnMut(OwnedFd) -> nix::Result<()>,
    ) -> nix::Result<()> {
        let bits = |mode: u32| Mode::from_bits_truncate(mode & 0o7777);
        match self {
            Self::Directory(mode) => {
                mkdirat(parent, name, bits(mode))?;
                made(open_made(parent, name)?)
            }
            Self::File(mode) => {
                let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
                openat(parent, name, flags, bits(mode)).map(drop)
            }
        }
    }
}

/// The parts of a link's text. What climbs is resolved within the root, as the kernel does.
fn names(target: &Path) -> impl DoubleEndedIterator<Item = OsString> {
    let names = target.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name),
        Component::ParentDir => Some(OsStr::new("..")),
        _ => None,
    });
    names.map(OsStr::to_owned)
}

/// Opens the directory that was just made, and not what somebody may have put in its place.
fn open_made(parent: &OwnedFd, name: &OsStr) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(parent, name, flags, Mode::empty())
}

/// The path without `/` at its start and without `.`; `..` is refused.
fn clean(path: &Path) -> Result<PathBuf, BeneathError> {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(BeneathError::Climbs { path: path.to_owned() });
            }
        }
    }
    Ok(clean)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    struct Place {
        _dir: tempfile::TempDir,
        root: PathBuf,
        outside: PathBuf,
    }

    fn place() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let (root, outside) = (dir.path().join("root"), dir.path().join("outside"));
        fs::create_dir(&root).unwrap();
        fs::create_dir(&outside).unwrap();
        Place { _dir: dir, root, outside }
    }

    fn target(fd: &OwnedFd) -> PathBuf {
        fs::read_link(fd_path(fd.as_fd())).unwrap()
    }

    #[test]
    fn directories_are_made_with_their_parents() {
        let place = place();
        let fd = create_dir_beneath(&place.root, Path::new("/a/./b//c"), 0o700).unwrap();
        assert_eq!(target(&fd), place.root.join("a/b/c"));
        assert_eq!(fs::metadata(place.root.join("a/b")).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(target(&create_dir_beneath(&place.root, Path::new("a/b/c"), 0o755).unwrap()), target(&fd));
        assert_eq!(target(&create_dir_beneath(&place.root, Path::new("/"), 0o755).unwrap()), place.root);
    }

    #[test]
    fn files_are_made_with_their_parents_and_kept() {
        let place = place();
        let fd = Root::open(&place.root).unwrap().create_file(Path::new("a/f"), 0o600).unwrap();
        assert_eq!(target(&fd), place.root.join("a/f"));
        fs::write(place.root.join("a/f"), "kept").unwrap();
        Root::open(&place.root).unwrap().create_file(Path::new("a/f"), 0o600).unwrap();
        assert_eq!(fs::read(place.root.join("a/f")).unwrap(), b"kept");
    }

    #[test]
    fn links_lead_nowhere_outside() {
        let place = place();
        symlink(&place.outside, place.root.join("abs")).unwrap();
        symlink("../outside", place.root.join("rel")).unwrap();
        symlink("/proc/self/root", place.root.join("magic")).unwrap();
        fs::create_dir_all(place.root.join("outside")).unwrap();
        // `..` at the root stays there, so the relative link finds the directory of that name inside.
        let fd = create_dir_beneath(&place.root, Path::new("rel/x"), 0o755).unwrap();
        assert_eq!(target(&fd), place.root.join("outside/x"));
        // What is missing there is made, within the root.
        let inside = place.root.join(place.outside.strip_prefix("/").unwrap());
        let fd = create_dir_beneath(&place.root, Path::new("abs/x"), 0o755).unwrap();
        assert_eq!(target(&fd), inside.join("x"));
        let fd = create_dir_beneath(&place.root, Path::new("magic/x"), 0o755).unwrap();
        assert_eq!(target(&fd), place.root.join("proc/self/root/x"));
        assert_eq!(fs::read_dir(&place.outside).unwrap().count(), 0);
    }

    #[test]
    fn what_a_dangling_link_leads_to_is_made() {
        let place = place();
        let links = [
            ("jump", "/tmp/foo/bar"),
            ("hosts", "/jump/./baz/hosts"),
            ("a", "../../b//c/../d"),
            ("round", "round"),
        ];
        for (link, to) in links {
            symlink(to, place.root.join(link)).unwrap();
        }
        let fd = Root::open(&place.root).unwrap().create_file(Path::new("hosts"), 0o640).unwrap();
        assert_eq!(target(&fd), place.root.join("tmp/foo/bar/baz/hosts"));
        assert_eq!(
            fs::metadata(place.root.join("tmp/foo/bar/baz/hosts")).unwrap().permissions().mode() & 0o777,
            0o640
        );
        // What is made stays a link for the next, and what was there is left alone.
        fs::write(place.root.join("tmp/foo/bar/baz/hosts"), "kept").unwrap();
        Root::open(&place.root).unwrap().create_file(Path::new("hosts"), 0o640).unwrap();
        assert_eq!(fs::read(place.root.join("tmp/foo/bar/baz/hosts")).unwrap(), b"kept");
        let fd = create_dir_beneath(&place.root, Path::new("a/x"), 0o755).unwrap();
        assert_eq!(target(&fd), place.root.join("b/d/x"));
        for path in ["round", "round/x"] {
            let error = create_dir_beneath(&place.root, Path::new(path), 0o755).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ELOOP), "{path}: {error}");
        }
    }

    #[test]
    fn a_path_that_climbs_is_refused() {
        let place = place();
        for path in ["..", "a/../b", "/.."] {
            let error = create_dir_beneath(&place.root, Path::new(path), 0o755).unwrap_err();
            assert!(matches!(error, BeneathError::Climbs { .. }), "{path}: {error}");
        }
    }

    #[test]
    fn errors_name_the_part_and_the_root() {
        let place = place();
        fs::write(place.root.join("file"), "").unwrap();
        let error = create_dir_beneath(&place.root, Path::new("file/x"), 0o755).unwrap_err().to_string();
        let root = place.root.display();
        assert_eq!(error, format!("open file/x beneath {root}: Not a directory (os error 20)"));
        let error = Root::open(&place.root.join("none")).unwrap_err().to_string();
        assert_eq!(error, format!("root {root}/none: No such file or directory (os error 2)"));
    }
}
