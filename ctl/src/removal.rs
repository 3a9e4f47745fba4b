//! Removing a directory with all that is in it, whatever a guest or an image has made of it.
//!
//! Invariants: no link is followed, no mount is entered, and neither descriptors nor stack grow with the depth. Only the
//! innermost directory is open, and the way back up is checked. What can't be removed keeps nothing else from it, and
//! is told by its path.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Permissions};
use std::io::{self, Write as _};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::{Mode, fstatat};
use nix::unistd::{UnlinkatFlags, geteuid, unlinkat};

use crate::tree::by_descriptor;

/// Something that is still there.
#[derive(Debug, thiserror::Error)]
#[error("{path} stays: {source}", path = .path.display())]
pub struct RemovalError {
    /// What could not be removed; of several, the first.
    pub path: PathBuf,
    /// The system's reason.
    pub source: io::Error,
}

impl From<RemovalError> for io::Error {
    fn from(error: RemovalError) -> Self {
        Self::new(error.source.kind(), error)
    }
}

/// Says on standard error what stays, where nobody is left to be given the error: in guards.
pub(crate) fn tell(removed: Result<(), RemovalError>) {
    if let Err(error) = removed {
        // Nobody may read that.
        let _ = writeln!(io::stderr(), "nakai-ctl: {error}");
    }
}

/// Removes the directory at `path`, which is this host's own up to its last name. None there is no failure.
///
/// # Errors
///
/// Something stays.
pub(crate) fn remove(path: &Path) -> Result<(), RemovalError> {
    let failed = |source| RemovalError { path: path.to_owned(), source };
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(failed(io::ErrorKind::InvalidInput.into()));
    };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    match File::open(parent) {
        Ok(open) => {
            remove_at(&open, name).map_err(|left| RemovalError { path: parent.join(&left.path), ..left })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(error)),
    }
}

/// Removes the directory `name` in `parent`. None there is no failure.
///
/// # Errors
///
/// Something stays; its path begins with `name`.
pub(crate) fn remove_at(parent: impl AsFd, name: &OsStr) -> Result<(), RemovalError> {
    let mut removal = Removal { levels: Vec::new(), left: None };
    match enter(&parent, name) {
        Ok(directory) => removal.go(directory, name),
        Err(Errno::ENOENT) => return Ok(()),
        Err(errno) => removal.stays(name, errno),
    }
    if removal.left.is_none()
        && let Err(errno) = unlinkat(&parent, name, UnlinkatFlags::RemoveDir)
    {
        removal.stays(name, errno);
    }
    removal.left.map_or(Ok(()), Err)
}

/// A directory on the way down.
struct Level {
    name: OsString,
    id: (u64, u64),
    /// The directories in it that are still to be removed.
    directories: Vec<OsString>,
}

struct Removal {
    /// The way to the open directory, which is the last.
    levels: Vec<Level>,
    left: Option<RemovalError>,
}

impl Removal {
    /// Empties the directory, which is called `name`.
    fn go(&mut self, mut directory: File, name: &OsStr) {
        self.scan(&directory, name.to_owned());
        while let Some(level) = self.levels.last_mut() {
            if let Some(name) = level.directories.pop() {
                match enter(&directory, &name) {
                    Ok(child) => {
                        self.scan(&child, name);
                        directory = child;
                    }
                    Err(Errno::ENOENT) => {}
                    Err(errno) => self.stays(&name, errno),
                }
                continue;
            }
            let Some(done) = self.levels.pop() else { return };
            let Some(above) = self.levels.last() else { return };
            match ascend(&directory, above) {
                Ok(parent) => directory = parent,
                // It has been moved away, and with it the way back to what is left.
                Err(errno) => return self.stays(&done.name, errno),
            }
            if let Err(errno) = unlinkat(&directory, &*done.name, UnlinkatFlags::RemoveDir) {
                self.stays(&done.name, errno);
            }
        }
    }

    /// Removes what is no directory from the next one down, and notes what is.
    fn scan(&mut self, directory: &File, name: OsString) {
        let id = directory.metadata().map_or((0, 0), |directory| (directory.dev(), directory.ino()));
        self.levels.push(Level { name, id, directories: Vec::new() });
        let names = fs::read_dir(by_descriptor(directory))
            .and_then(|entries| entries.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>());
        let names = match names {
            Ok(names) => names,
            Err(error) => return self.stays_for(OsStr::new(""), error),
        };
        let mut directories = Vec::new();
        for name in names {
            match unlinkat(directory, &*name, UnlinkatFlags::NoRemoveDir) {
                Ok(()) | Err(Errno::ENOENT) => {}
                // EISDIR, or EPERM as POSIX has it.
                Err(_) if is_directory(directory, &name) => directories.push(name),
                Err(errno) => self.stays(&name, errno),
            }
        }
        if let Some(level) = self.levels.last_mut() {
            level.directories = directories;
        }
    }

    /// Notes that `name` in the open directory stays, unless that follows from something that does.
    fn stays(&mut self, name: &OsStr, errno: Errno) {
        self.stays_for(name, errno.into());
    }

    fn stays_for(&mut self, name: &OsStr, source: io::Error) {
        if self.left.is_none() {
            let above = self.levels.iter().map(|level| &*level.name);
            self.left = Some(RemovalError { path: above.chain([name]).collect(), source });
        }
    }
}

/// Opens a directory that is no mount point. Where we are not root, its owner may first read and write it.
fn enter(parent: impl AsFd, name: &OsStr) -> Result<File, Errno> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let resolve =
        ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_XDEV | ResolveFlag::RESOLVE_NO_SYMLINKS;
    let how = |more| OpenHow::new().flags(flags | more).resolve(resolve);
    if !geteuid().is_root() {
        let closed = openat2(&parent, name, how(OFlag::O_PATH))?;
        // Not ours: what comes next tells.
        let _ = fs::set_permissions(by_descriptor(&closed), Permissions::from_mode(0o700));
    }
    Ok(openat2(&parent, name, how(OFlag::O_RDONLY))?.into())
}

/// Opens the directory above, if it still is the one that we came from.
fn ascend(directory: &File, above: &Level) -> Result<File, Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let parent = File::from(openat(directory, "..", flags, Mode::empty())?);
    let is_it = parent.metadata().is_ok_and(|parent| (parent.dev(), parent.ino()) == above.id);
    if is_it { Ok(parent) } else { Err(Errno::ESTALE) }
}

fn is_directory(parent: impl AsFd, name: &OsStr) -> bool {
    fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW)
        .is_ok_and(|stat| stat.st_mode & libc::S_IFMT == libc::S_IFDIR)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{deepen, where_it_may_mount};
    use nix::mount::{MsFlags, mount};
    use std::os::unix::fs::symlink;

    #[test]
    fn neither_depth_nor_a_closed_directory_keeps_anything() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().join("top");
        fs::create_dir(&top).unwrap();
        deepen(&top, 3000);
        fs::create_dir_all(top.join("closed/within")).unwrap();
        fs::set_permissions(top.join("closed"), Permissions::from_mode(0o000)).unwrap();
        // No level may take its part of the stack.
        let thread = std::thread::Builder::new().stack_size(128 << 10);
        thread.spawn(move || remove(&top)).unwrap().join().unwrap().unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        remove(&dir.path().join("top")).unwrap();
        remove(&dir.path().join("none/top")).unwrap();
    }

    #[test]
    fn links_lead_nowhere() {
        let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir(outside.path().join("within")).unwrap();
        fs::create_dir_all(dir.path().join("top/a/b")).unwrap();
        symlink(outside.path(), dir.path().join("top/a/b/link")).unwrap();
        symlink(outside.path(), dir.path().join("link")).unwrap();
        remove(&dir.path().join("top")).unwrap();
        let error = remove(&dir.path().join("link")).unwrap_err();
        assert_eq!(error.path, dir.path().join("link"));
        assert!(outside.path().join("within").exists() && !dir.path().join("top").exists());
    }

    #[test]
    fn a_directory_that_is_moved_away_ends_it_with_its_name() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("top/a/b")).unwrap();
        let at = |path: &str| File::open(dir.path().join(path)).unwrap();
        let mut removal = Removal { levels: Vec::new(), left: None };
        removal.scan(&at("top"), "top".into());
        removal.levels[0].directories.clear();
        removal.scan(&at("top/a"), "a".into());
        let moved = at("top/a");
        fs::rename(dir.path().join("top/a"), dir.path().join("elsewhere")).unwrap();
        assert_eq!(ascend(&moved, &removal.levels[0]).unwrap_err(), Errno::ESTALE);
        assert!(ascend(&at("elsewhere/b"), &removal.levels[1]).is_ok());
    }

    #[test]
    fn a_mount_is_not_entered_and_told_while_all_else_goes() {
        where_it_may_mount(module_path!(), "a_mount_is_not_entered_and_told_while_all_else_goes", || {
            let (dir, original) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            fs::write(original.path().join("precious"), "x").unwrap();
            let top = dir.path().join("top");
            for directory in ["a/b", "m/n/mount", "z/y"] {
                fs::create_dir_all(top.join(directory)).unwrap();
            }
            let none = None::<&str>;
            mount(Some(original.path()), &top.join("m/n/mount"), none, MsFlags::MS_BIND, none).unwrap();
            let error = remove(&top).unwrap_err();
            assert_eq!(error.path, top.join("m/n/mount"));
            assert!(error.to_string().contains("stays: "), "{error}");
            assert!(top.join("m/n/mount/precious").exists());
            assert!(!top.join("a").exists() && !top.join("z").exists());
        });
    }
}
