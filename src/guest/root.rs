//! The first thing PID 1 does: a root that containers can be made in, and the file systems every program
//! expects.
//!
//! Called by the supervisor, which has one thread and no logger, before anything is mounted. Safe to call
//! when somebody mounted a part of it before. An error names the step; there is no way on then but
//! [`boot_failed`](super::power::boot_failed).

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, symlink};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{FsType, TMPFS_MAGIC, statfs};
use nix::unistd::{chdir, chroot};

/// `RAMFS_MAGIC` of linux/magic.h, which nix doesn't have.
const RAMFS_MAGIC: FsType = FsType(0x8584_58f6);
/// Where the root is bound to itself for a moment.
const NEW_ROOT: &str = "/.nakai-root";

/// A step of the early boot that failed.
#[derive(Debug, thiserror::Error)]
#[error("{step} {path}: {source}", path = path.display())]
pub struct RootError {
    /// What was done.
    pub step: &'static str,
    /// To what.
    pub path: PathBuf,
    /// Why it failed.
    pub source: io::Error,
}

fn failed(step: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(Errno) -> RootError {
    move |errno| RootError { step, path: path.into(), source: errno.into() }
}

/// A file system that is mounted at boot.
struct BaseMount {
    source: &'static str,
    target: &'static str,
    fstype: &'static str,
    flags: MsFlags,
    data: Option<&'static str>,
}

const SUID_DEV: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV);
const SUID_EXEC: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC);

#[rustfmt::skip]
const BASE: [BaseMount; 6] = [
    BaseMount { source: "proc", target: "/proc", fstype: "proc", flags: SUID_DEV.union(SUID_EXEC), data: None },
    BaseMount { source: "sysfs", target: "/sys", fstype: "sysfs", flags: SUID_DEV.union(SUID_EXEC), data: None },
    BaseMount { source: "dev", target: "/dev", fstype: "devtmpfs", flags: MsFlags::MS_NOSUID, data: Some("mode=0755") },
    // gid 5 is tty's by convention; the kernel doesn't ask for the group to exist.
    BaseMount { source: "devpts", target: "/dev/pts", fstype: "devpts", flags: SUID_EXEC, data: Some("gid=5,mode=0620,ptmxmode=0666") },
    BaseMount { source: "shm", target: "/dev/shm", fstype: "tmpfs", flags: SUID_DEV, data: Some("mode=1777") },
    BaseMount { source: "run", target: "/run", fstype: "tmpfs", flags: SUID_DEV, data: Some("mode=0755") },
];

/// What programs expect in `/dev`, and devtmpfs lacks.
const LINKS: [(&str, &str); 4] =
    [("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")];

/// Leaves the initramfs if need be, and makes the base mounts.
///
/// # Errors
///
/// The step that failed.
pub fn prepare() -> Result<(), RootError> {
    leave_initramfs()?;
    for base in &BASE {
        make(base)?;
    }
    // As systemd has it: what one container mounts in a volume reaches the others that ask for it through the guest's
    // mount of that volume, and a private one passes nothing on. Mounts made later are as their parents are.
    let shared = MsFlags::MS_REC | MsFlags::MS_SHARED;
    mount(None::<&str>, "/", None::<&str>, shared, None::<&str>)
        .map_err(failed("share the mounts of", "/"))?;
    make_links(Path::new("/dev"))
}

/// Puts the root on a mount of its own.
///
/// The initramfs lies on the kernel's first mount, which has no parent: pivot_root(2), by which a container
/// gets its root, fails there. A bind mount of `/`, moved over `/`, has a parent; nothing is copied. On a
/// disk's root nothing is done.
fn leave_initramfs() -> Result<(), RootError> {
    let kind = statfs("/").map_err(failed("statfs", "/"))?.filesystem_type();
    if kind != RAMFS_MAGIC && kind != TMPFS_MAGIC {
        return Ok(());
    }
    create_dir(Path::new(NEW_ROOT))?;
    let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some("/"), NEW_ROOT, None::<&str>, bind, None::<&str>).map_err(failed("bind / on", NEW_ROOT))?;
    chdir(NEW_ROOT).map_err(failed("enter", NEW_ROOT))?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)
        .map_err(failed("move to /", NEW_ROOT))?;
    chroot(".").map_err(failed("make the root", NEW_ROOT))?;
    chdir("/").map_err(failed("enter", "/"))?;
    // An empty directory is all that is left of it; if it stays, it does no harm.
    let _ = fs::remove_dir(NEW_ROOT);
    Ok(())
}

fn make(base: &BaseMount) -> Result<(), RootError> {
    let target = Path::new(base.target);
    create_dir(target)?;
    if is_mounted(target)? {
        return Ok(());
    }
    match mount(Some(base.source), target, Some(base.fstype), base.flags, base.data) {
        // The same file system is there already.
        Ok(()) | Err(Errno::EBUSY) => Ok(()),
        Err(errno) => Err(failed("mount", target)(errno)),
    }
}

fn create_dir(path: &Path) -> Result<(), RootError> {
    let made = fs::DirBuilder::new().mode(0o755).recursive(true).create(path);
    made.map_err(|source| RootError { step: "create directory", path: path.to_owned(), source })
}

/// Whether something is mounted on a directory, told without `/proc`: it is on another device than its
/// parent.
fn is_mounted(path: &Path) -> Result<bool, RootError> {
    let device = |path: &Path| {
        let found = fs::metadata(path).map(|metadata| metadata.dev());
        found.map_err(|source| RootError { step: "look at", path: path.to_owned(), source })
    };
    Ok(device(path)? != device(path.parent().unwrap_or(path))?)
}

/// Makes the links in `/dev`. What is there stays, but for `ptmx`: the node that devtmpfs has opens terminals
/// of the first devpts, the link those of the one that is mounted.
fn make_links(dev: &Path) -> Result<(), RootError> {
    for (name, target) in LINKS {
        link(target, &dev.join(name))?;
    }
    let ptmx = dev.join("ptmx");
    if fs::symlink_metadata(&ptmx).is_ok_and(|metadata| !metadata.is_symlink()) {
        let removed = fs::remove_file(&ptmx);
        removed.map_err(|source| RootError { step: "remove", path: ptmx.clone(), source })?;
    }
    link("pts/ptmx", &ptmx)
}

fn link(target: &str, path: &Path) -> Result<(), RootError> {
    match symlink(target, path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(RootError { step: "link", path: path.to_owned(), source: error })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_made_once_and_replace_only_ptmx() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("ptmx"), "a node").unwrap();
        fs::write(dir.path().join("stdin"), "kept").unwrap();
        for _ in 0..2 {
            make_links(dir.path()).unwrap();
        }
        let target = |name: &str| fs::read_link(dir.path().join(name)).unwrap();
        assert_eq!(target("fd"), Path::new("/proc/self/fd"));
        assert_eq!(target("stdout"), Path::new("fd/1"));
        assert_eq!(target("ptmx"), Path::new("pts/ptmx"));
        assert_eq!(fs::read(dir.path().join("stdin")).unwrap(), b"kept");
    }

    #[test]
    fn mounts_are_seen_without_proc() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("plain")).unwrap();
        assert!(!is_mounted(&dir.path().join("plain")).unwrap());
        assert!(is_mounted(Path::new("/proc")).unwrap());
        assert!(!is_mounted(Path::new("/")).unwrap());
    }

    #[test]
    fn an_error_names_the_step_and_the_path() {
        let error = failed("mount", "/proc")(Errno::EPERM);
        assert_eq!(error.to_string(), "mount /proc: Operation not permitted (os error 1)");
    }
}
