//! The sandbox's DNS settings: a resolv.conf(5) of the host's lines, bound over the guest's own.
//!
//! [`apply`] writes `<kata_dir>/sandbox/resolv.conf` and, where the guest has a file to put it on, binds it
//! there. [`write_hostname`] writes the sandbox's name beside it, for containers to have it bound from there: without a
//! shared file system, the host has no file of its own to show them. [`ResolvConf`] holds the mount and takes it away
//! when it is closed or dropped. The guest's file itself is never written: it may be on a read-only root.
//!
//! The target may be a symbolic link, as systemd-resolved has it. It is followed once, without magic links,
//! and the mount is made on the file that was then open, so that nothing swapped in between is mounted over.
//! A target that is missing, or a link to nothing, is no error: the file is written, and containers bind it
//! from there. All calls block: not for an async thread.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{SFlag, fstat};

/// The guest's own file.
pub const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Why the DNS settings could not be put in place or taken away.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    /// The file could not be written.
    #[error("writing {path:?}: {source}")]
    Write {
        /// The file or its directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The place to bind it on, or the file itself, could not be opened.
    #[error("opening {path:?}: {source}")]
    Open {
        /// Its path.
        path: PathBuf,
        /// Why.
        #[source]
        source: Errno,
    },
    /// The place to bind it on is a directory or a device.
    #[error("{path:?} is not a regular file")]
    NotAFile {
        /// Its path.
        path: PathBuf,
    },
    /// The bind mount failed.
    #[error("binding {from:?} on {on:?}: {source}")]
    Bind {
        /// The file that was written.
        from: PathBuf,
        /// The guest's own.
        on: PathBuf,
        /// Why.
        #[source]
        source: Errno,
    },
    /// The bind mount could not be taken away.
    #[error("unmounting {path:?}: {source}")]
    Unmount {
        /// The guest's own file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Errno,
    },
}

/// The sandbox's DNS settings in place.
#[derive(Debug)]
pub struct ResolvConf {
    /// Where it is bound, if it is.
    bound: Option<Bound>,
}

/// A bind mount, and which file must be found there for it to be ours.
#[derive(Debug)]
struct Bound {
    on: PathBuf,
    file: Identity,
}

/// What tells two files apart, whatever their names: device and inode.
type Identity = (u64, u64);

impl ResolvConf {
    /// Takes the bind mount away; the file stays until its directory goes.
    ///
    /// # Errors
    /// [`DnsError`] when the mount is there and can't be taken away.
    pub fn close(mut self) -> Result<(), DnsError> {
        self.unbind()
    }

    fn unbind(&mut self) -> Result<(), DnsError> {
        self.bound.take().map_or(Ok(()), |bound| unbind(&bound))
    }
}

impl Drop for ResolvConf {
    fn drop(&mut self) {
        // The one who cares for the error calls close().
        let _ = self.unbind();
    }
}

/// Writes `lines` below `kata_dir` and binds the file on `target` (normally [`RESOLV_CONF`]). `None` when
/// there are no lines: then nothing is changed.
///
/// # Errors
/// [`DnsError`]; nothing is mounted then.
pub fn apply(lines: &[String], kata_dir: &Path, target: &Path) -> Result<Option<ResolvConf>, DnsError> {
    if lines.is_empty() {
        return Ok(None);
    }
    let file = write(&content(lines), path_in(kata_dir))?;
    let bound = bind(&file, target)?;
    Ok(Some(ResolvConf { bound }))
}

/// Writes the sandbox's name below `kata_dir`, if it has one.
///
/// # Errors
/// [`DnsError::Write`].
pub fn write_hostname(name: &str, kata_dir: &Path) -> Result<(), DnsError> {
    if name.is_empty() {
        return Ok(());
    }
    write(&format!("{name}\n"), kata_dir.join("sandbox").join("hostname")).map(drop)
}

/// Takes charge of what an earlier server put in place. `None` when there is no such file.
///
/// # Errors
/// [`DnsError`] when it can't be looked at.
pub fn recover(kata_dir: &Path, target: &Path) -> Result<Option<ResolvConf>, DnsError> {
    let file = path_in(kata_dir);
    let Some((_, written)) = open(&file)? else { return Ok(None) };
    let is_ours = open(target)?.is_some_and(|(_, found)| found == written);
    let bound = is_ours.then(|| Bound { on: target.to_owned(), file: written });
    Ok(Some(ResolvConf { bound }))
}

fn path_in(kata_dir: &Path) -> PathBuf {
    kata_dir.join("sandbox").join("resolv.conf")
}

fn content(lines: &[String]) -> String {
    lines.iter().flat_map(|line| [line.trim(), "\n"]).collect()
}

/// Writes the file under another name first, so that a reader sees all of it or none.
fn write(content: &str, path: PathBuf) -> Result<PathBuf, DnsError> {
    let mut fresh = path.clone().into_os_string();
    fresh.push(".new");
    let fresh = PathBuf::from(fresh);
    let directory = path.parent().unwrap_or(&path);
    let written = || -> std::io::Result<()> {
        std::fs::DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
        match std::fs::remove_file(&fresh) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // A new file, never one or a link that somebody put there.
        let mut file: File =
            std::fs::OpenOptions::new().write(true).create_new(true).mode(0o644).open(&fresh)?;
        file.write_all(content.as_bytes())?;
        std::fs::rename(&fresh, &path)
    };
    written().map_err(|source| DnsError::Write { path: path.clone(), source })?;
    Ok(path)
}

/// Opens a regular file to mount or be mounted on; `None` when there is none.
fn open(path: &Path) -> Result<Option<(OwnedFd, Identity)>, DnsError> {
    let how =
        OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC).resolve(ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let error = |source| DnsError::Open { path: path.to_owned(), source };
    let fd = match openat2(AT_FDCWD, path, how) {
        Ok(fd) => fd,
        Err(Errno::ENOENT) => return Ok(None),
        Err(source) => return Err(error(source)),
    };
    let stat = fstat(fd.as_fd()).map_err(error)?;
    if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT != SFlag::S_IFREG {
        return Err(DnsError::NotAFile { path: path.to_owned() });
    }
    Ok(Some((fd, (stat.st_dev, stat.st_ino))))
}

/// The name by which mount(2) gets at an open file.
fn by_fd(fd: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// Binds `file`; `None` when there is nothing to bind it on.
fn bind(file: &Path, target: &Path) -> Result<Option<Bound>, DnsError> {
    let Some((on, _)) = open(target)? else { return Ok(None) };
    let error = |source| DnsError::Bind { from: file.to_owned(), on: target.to_owned(), source };
    let (from, identity) = open(file)?.ok_or_else(|| error(Errno::ENOENT))?;
    let none = None::<&str>;
    mount(Some(&by_fd(&from)), &by_fd(&on), none, MsFlags::MS_BIND, none).map_err(error)?;
    Ok(Some(Bound { on: target.to_owned(), file: identity }))
}

/// Unmounts it if it is still our file that is there.
fn unbind(bound: &Bound) -> Result<(), DnsError> {
    let on = match open(&bound.on)? {
        Some((on, found)) if found == bound.file => on,
        _ => return Ok(()),
    };
    // Detached, as our own descriptor keeps it busy.
    match umount2(&by_fd(&on), MntFlags::MNT_DETACH) {
        // Not a mount point: somebody was faster.
        Ok(()) | Err(Errno::EINVAL) => Ok(()),
        Err(source) => Err(DnsError::Unmount { path: bound.on.clone(), source }),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn lines() -> Vec<String> {
        ["nameserver 10.0.0.1 ", "search a.example b.example"].map(str::to_owned).to_vec()
    }

    #[test]
    fn the_lines_are_written_where_containers_look_for_them() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("no-such-file");
        for _ in 0..2 {
            let dns = apply(&lines(), dir.path(), &missing).unwrap().unwrap();
            assert!(dns.bound.is_none());
            let file = dir.path().join("sandbox/resolv.conf");
            assert_eq!(
                fs::read_to_string(&file).unwrap(),
                "nameserver 10.0.0.1\nsearch a.example b.example\n"
            );
            assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o644);
            dns.close().unwrap();
        }
        assert!(!missing.exists(), "a missing target is not made");
    }

    #[test]
    fn the_name_is_written_beside_them() {
        let dir = tempfile::tempdir().unwrap();
        write_hostname("", dir.path()).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        write_hostname("pod-1", dir.path()).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("sandbox/hostname")).unwrap(), "pod-1\n");
    }

    #[test]
    fn no_lines_change_nothing() {
        let dir = tempfile::tempdir().unwrap();
        assert!(apply(&[], dir.path(), Path::new(RESOLV_CONF)).unwrap().is_none());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(recover(dir.path(), Path::new(RESOLV_CONF)).unwrap().is_none());
    }

    #[test]
    fn a_dangling_link_is_no_place_and_a_directory_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        symlink("nowhere", &link).unwrap();
        assert!(apply(&lines(), dir.path(), &link).unwrap().unwrap().bound.is_none());
        assert!(!dir.path().join("nowhere").exists());
        assert!(matches!(apply(&lines(), dir.path(), dir.path()), Err(DnsError::NotAFile { .. })));
    }

    #[test]
    fn a_link_in_the_files_place_is_replaced_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sandbox")).unwrap();
        let victim = dir.path().join("victim");
        fs::write(&victim, "mine").unwrap();
        for name in ["resolv.conf", "resolv.conf.new"] {
            symlink(&victim, dir.path().join("sandbox").join(name)).unwrap();
        }
        let _dns = apply(&lines(), dir.path(), &dir.path().join("none")).unwrap().unwrap();
        assert_eq!(fs::read_to_string(&victim).unwrap(), "mine");
        assert!(fs::symlink_metadata(dir.path().join("sandbox/resolv.conf")).unwrap().is_file());
    }

    #[test]
    fn an_earlier_servers_file_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("none");
        drop(apply(&lines(), dir.path(), &target).unwrap());
        let found = recover(dir.path(), &target).unwrap().unwrap();
        assert!(found.bound.is_none());
    }

    #[test]
    fn closing_leaves_alone_what_is_not_ours() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("target");
        fs::write(&target, "theirs").unwrap();
        let mut dns = apply(&lines(), dir.path(), &dir.path().join("none")).unwrap().unwrap();
        dns.bound = Some(Bound { on: target.clone(), file: (0, 0) });
        dns.close().unwrap();
        assert_eq!(fs::read_to_string(&target).unwrap(), "theirs");
    }
}
