//! Mounts: the one place where mount options are parsed and where the server mounts and unmounts.
//!
//! mount(2) does one thing at a time; what callers ask for at once (a bind mount that is read-only and a
//! slave) takes up to three calls. If a later one fails the mount is taken away again, so a failed mount
//! leaves nothing behind. Errors name the source, the target, the type, the flags and the cause; never the
//! file system's data, which may hold secrets.
//!
//! Targets that somebody else chose go through [`mount_beneath`], which no symbolic link can lead astray.

mod options;

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2};
use nix::mount::{MntFlags, MsFlags, umount2};
use nix::sys::stat::Mode;
use nix::sys::statvfs::{FsFlags, statvfs};

use self::options::{ATIME, NOSYMFOLLOW};
pub use self::options::{MountOptions, OptionsError};
use super::beneath::{BeneathError, Root, fd_path};

/// Why a mount failed.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// mount(2) refused.
    #[error("{step} {origin:?} on {target} (type {fstype:?}, flags {flags}): {source}{hint}",
        target = target.display(), flags = Names(*flags), hint = hint(source))]
    Mount {
        /// Which of the calls: `mount`, `remount`, `set propagation of`.
        step: &'static str,
        /// What was to be mounted.
        origin: String,
        /// Where.
        target: PathBuf,
        /// The kind of file system, empty for a bind mount.
        fstype: String,
        /// The flags of the call.
        flags: MsFlags,
        /// Why not.
        source: io::Error,
    },
    /// The target beneath its root can't be had.
    #[error(transparent)]
    Target(#[from] BeneathError),
    /// umount2(2) refused.
    #[error("unmount {target}: {source}", target = target.display())]
    Unmount {
        /// The mount point.
        target: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl MountError {
    /// The system's error number, if it is an error of the system.
    pub fn raw_os_error(&self) -> Option<i32> {
        match self {
            Self::Mount { source, .. } | Self::Unmount { source, .. } => source.raw_os_error(),
            Self::Target(error) => error.raw_os_error(),
        }
    }
}

/// Flags by their names in mount(2).
struct Names(MsFlags);

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none");
        }
        let names: Vec<&str> = self.0.iter_names().map(|(name, _)| name).collect();
        f.write_str(&names.join("|"))
    }
}

/// What the error number of a mount(2) usually means.
fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENODEV) => ", the kernel knows no such file system",
        Some(Errno::EINVAL) => ", a wrong option or no such file system there: see the kernel's log",
        Some(Errno::ENOTBLK) => ", the source is no block device",
        _ => "",
    }
}

/// Where to mount. What follows the first call looks the place up anew, because then the new mount is there.
#[derive(Clone, Copy)]
enum Place<'a> {
    Path(&'a Path),
    Beneath(&'a Root, &'a Path),
}

/// A place as a path for mount(2), and what keeps that path valid.
struct Located<'a> {
    path: Cow<'a, Path>,
    _fd: Option<OwnedFd>,
}

impl<'a> Place<'a> {
    fn locate(self) -> Result<Located<'a>, BeneathError> {
        match self {
            Self::Path(path) => Ok(Located { path: Cow::Borrowed(path), _fd: None }),
            Self::Beneath(root, relative) => {
                let fd = root.open_path(relative, OFlag::O_PATH, Mode::empty())?;
                Ok(Located { path: Cow::Owned(fd_path(fd.as_fd())), _fd: Some(fd) })
            }
        }
    }

    /// The place as a person knows it.
    fn shown(self) -> PathBuf {
        match self {
            Self::Path(path) => path.to_owned(),
            Self::Beneath(root, relative) => root.path().join(relative.strip_prefix("/").unwrap_or(relative)),
        }
    }
}

/// Mounts `origin` (a device, a tag, a directory to bind, or any word) on `target`, which exists.
///
/// A bind mount keeps the flags that its source has, but for those that `options` set or clear by name.
/// `fstype` is not looked at for bind mounts. `options` with `remount` change what is mounted on `target`.
///
/// # Errors
///
/// [`MountError::Mount`]; nothing is mounted then.
pub fn mount(origin: &str, target: &Path, fstype: &str, options: &MountOptions) -> Result<(), MountError> {
    mount_at(&Order { origin, fstype, options, place: Place::Path(target) })
}

/// As [`mount`], on what `relative` names within `root` whatever links there are on the way.
///
/// # Errors
///
/// [`MountError::Target`] and [`MountError::Mount`]; nothing is mounted then.
pub fn mount_beneath(
    origin: &str,
    root: &Root,
    relative: &Path,
    fstype: &str,
    options: &MountOptions,
) -> Result<(), MountError> {
    mount_at(&Order { origin, fstype, options, place: Place::Beneath(root, relative) })
}

/// Unmounts what is mounted on `target` last. A symbolic link is not followed (in the last component).
///
/// With `lazy` it leaves the tree at once and ends with its last user; else it fails with EBUSY if there is
/// one.
///
/// # Errors
///
/// [`MountError::Unmount`]; EINVAL means that nothing is mounted there.
pub fn unmount(target: &Path, lazy: bool) -> Result<(), MountError> {
    let detach = if lazy { MntFlags::MNT_DETACH } else { MntFlags::empty() };
    umount2(target, MntFlags::UMOUNT_NOFOLLOW | detach)
        .map_err(|errno| MountError::Unmount { target: target.to_owned(), source: errno.into() })
}

/// Detaches the mount whose root is at `path`, which goes with its last user. A container may have changed the
/// directories around it meanwhile: no link is followed.
///
/// # Errors
///
/// [`MountError::Unmount`]; EINVAL means that nothing is mounted there.
pub fn detach(path: &Path) -> Result<(), MountError> {
    let how =
        OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC).resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
    openat2(AT_FDCWD, path, how)
        .and_then(|mount| umount2(&fd_path(mount.as_fd()), MntFlags::MNT_DETACH))
        .map_err(|errno| MountError::Unmount { target: path.to_owned(), source: errno.into() })
}

/// One request to mount.
struct Order<'a> {
    origin: &'a str,
    fstype: &'a str,
    options: &'a MountOptions,
    place: Place<'a>,
}

impl Order<'_> {
    /// One call of mount(2).
    fn call(
        &self,
        step: &'static str,
        flags: MsFlags,
        with_source: bool,
        data: &str,
    ) -> Result<(), MountError> {
        let located = self.place.locate()?;
        let optional = |text| if with_source { Some(text) } else { None };
        let data = if data.is_empty() { None } else { Some(data) };
        nix::mount::mount(optional(self.origin), located.path.as_ref(), optional(self.fstype), flags, data)
            .map_err(|errno| MountError::Mount {
                step,
                origin: self.origin.to_owned(),
                target: self.place.shown(),
                fstype: self.fstype.to_owned(),
                flags,
                source: errno.into(),
            })
    }

    fn remount_bind(&self) -> Result<(), MountError> {
        let wanted = self.options.flags - (MsFlags::MS_BIND | MsFlags::MS_REC);
        if wanted.is_empty() && self.options.cleared.is_empty() {
            return Ok(());
        }
        let inherited = self.place.locate()?;
        // Without statvfs there is nothing to inherit; the remount then says what is wrong.
        let inherited =
            statvfs(inherited.path.as_ref()).map_or(MsFlags::empty(), |stat| mount_flags(stat.flags()));
        let flags = merge(inherited, wanted, self.options.cleared);
        self.call("remount", flags | MsFlags::MS_BIND | MsFlags::MS_REMOUNT, true, "")
    }

    /// Takes away what the first call has mounted.
    fn undo(&self) {
        if let Ok(located) = self.place.locate() {
            // The path ends in a magic link if it is one of ours: follow it.
            let _ = umount2(located.path.as_ref(), MntFlags::MNT_DETACH);
        }
    }
}

fn mount_at(order: &Order<'_>) -> Result<(), MountError> {
    let options = order.options;
    if options.is_bind() && !options.is_remount() {
        order.call("mount", options.flags & (MsFlags::MS_BIND | MsFlags::MS_REC), true, "")?;
        order.remount_bind().inspect_err(|_| order.undo())?;
    } else {
        order.call("mount", options.flags, true, &options.data)?;
    }
    if !options.propagation.is_empty() {
        let set = order.call("set propagation of", options.propagation, false, "");
        set.inspect_err(|_| {
            if !options.is_remount() {
                order.undo()
            }
        })?;
    }
    Ok(())
}

fn merge(inherited: MsFlags, wanted: MsFlags, cleared: MsFlags) -> MsFlags {
    let replaced = if wanted.intersects(ATIME) { ATIME } else { MsFlags::empty() };
    ((inherited - cleared) - replaced) | wanted
}

/// `ST_NOSYMFOLLOW` of linux/statfs.h.
const NOSYMFOLLOW_SHOWN: FsFlags = FsFlags::from_bits_retain(0x2000);

/// The flags of a mount, as statvfs(3) gives them, as flags for mount(2).
fn mount_flags(flags: FsFlags) -> MsFlags {
    [
        (FsFlags::ST_RDONLY, MsFlags::MS_RDONLY),
        (FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
        (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
        (FsFlags::ST_NOATIME, MsFlags::MS_NOATIME),
        (FsFlags::ST_NODIRATIME, MsFlags::MS_NODIRATIME),
        (FsFlags::ST_RELATIME, MsFlags::MS_RELATIME),
        (NOSYMFOLLOW_SHOWN, NOSYMFOLLOW),
    ]
    .into_iter()
    .filter(|(shown, _)| flags.contains(*shown))
    .map(|(_, flag)| flag)
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bind_mount_keeps_what_its_source_has() {
        let (ro, nosuid, noexec) = (MsFlags::MS_RDONLY, MsFlags::MS_NOSUID, MsFlags::MS_NOEXEC);
        let (rel, no) = (MsFlags::MS_RELATIME, MsFlags::MS_NOATIME);
        let none = MsFlags::empty();
        for (inherited, wanted, cleared, merged) in [
            (nosuid | rel, ro, none, ro | nosuid | rel),
            (ro | noexec, none, ro, noexec),
            (rel, no, none, no),
            (none, none, ro, none),
        ] {
            assert_eq!(merge(inherited, wanted, cleared), merged);
        }
    }

    #[test]
    fn the_flags_of_a_source_are_read_as_they_are_set() {
        let shown = FsFlags::ST_NOSUID | FsFlags::from_bits_retain(0x2000);
        assert_eq!(
            mount_flags(shown),
            MsFlags::MS_NOSUID | MountOptions::parse(&["nosymfollow"]).unwrap().flags
        );
    }

    #[test]
    fn errors_tell_what_was_tried_but_not_the_data() {
        let options = MountOptions::parse(&["ro", "nosuid", "password=secret"]).unwrap();
        let error = mount("tag", Path::new("/nonexistent/target"), "virtiofs", &options).unwrap_err();
        let text = error.to_string();
        assert!(
            text.starts_with(
                "mount \"tag\" on /nonexistent/target (type \"virtiofs\", flags MS_RDONLY|MS_NOSUID): "
            ),
            "{text}"
        );
        assert!(!text.contains("secret"));
        let error = unmount(Path::new("/nonexistent/target"), false).unwrap_err().to_string();
        assert!(error.starts_with("unmount /nonexistent/target: "), "{error}");
    }

    #[test]
    fn a_target_beneath_a_root_is_shown_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        assert_eq!(Place::Beneath(&root, Path::new("/a/b")).shown(), dir.path().join("a/b"));
        let error =
            mount_beneath("x", &root, Path::new("none"), "tmpfs", &MountOptions::default()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOENT), "{error}");
    }
}
