//! Giving a volume's files to a group, as Kubernetes' `fsGroup` asks: the group owns every file and may read
//! it (and write it, unless the volume is read-only), and files made later in its directories belong to it
//! too (setgid).
//!
//! Everything is reached by descriptor; a symbolic link in the volume is neither changed nor followed. The
//! root directory is done last: a volume that was left half-way doesn't look finished to
//! [`OnRootMismatch`](super::request::FsGroupPolicy::OnRootMismatch).

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, open};
use nix::libc;
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat, fstat};
use nix::unistd::{Gid, fchownat};
use serde::{Deserialize, Serialize};

use super::StorageError;
use super::places::{Place, fd_path};
use super::request::{FsGroup, FsGroupPolicy};
use crate::guest::tree::{self, Visitor};

/// What the group may do with any file, and what it may besides do with a directory.
const READ_WRITE: libc::mode_t = 0o660;
const READ_ONLY: libc::mode_t = 0o440;
const SEARCH: libc::mode_t = 0o110;

/// Gives what is mounted at `place` to the group. A mount that is read-only stays as it is: nothing in it can
/// be changed, and whoever made it had it in hand.
pub(super) fn apply(place: &Place, group: FsGroup, read_only: bool) -> Result<(), StorageError> {
    let at = |cause| StorageError::Path { step: "giving to its group", path: place.path(), cause };
    let root = place.handle().map_err(at)?;
    let stat = fstat(&root).map_err(at)?;
    let mut giver = Giver::new(group, read_only);
    if tree::file_type(&stat) != libc::S_IFDIR {
        return ignore_read_only(giver.give(root.as_fd()), read_only).map_err(at);
    }
    if giver.leaves(stat.st_gid, stat.st_mode) {
        return Ok(());
    }
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let root = open(&fd_path(&root), flags, Mode::empty()).map_err(at)?;
    match tree::walk(root, &mut giver) {
        Err(error) if !(read_only && error.cause == Errno::EROFS) => Err(StorageError::Path {
            step: "giving to its group",
            path: place.path().join(error.directory),
            cause: error.cause,
        }),
        _ => Ok(()),
    }
}

fn ignore_read_only(outcome: Result<(), Errno>, read_only: bool) -> Result<(), Errno> {
    match outcome {
        Err(Errno::EROFS) if read_only => Ok(()),
        other => other,
    }
}

/// Changes the group and adds permissions, as far as they differ.
pub(super) fn give(file: BorrowedFd<'_>, gid: Gid, add: libc::mode_t) -> Result<(), Errno> {
    let stat = fstat(file)?;
    let mode = stat.st_mode & 0o7777;
    let chown = stat.st_gid != gid.as_raw();
    if chown {
        fchownat(file, c"", None, Some(gid), AtFlags::AT_EMPTY_PATH)?;
    }
    // A change of group clears the set-id bits of a file, so its mode is set again in any case.
    if chown || mode | add != mode {
        set_mode(file, mode | add)?;
    }
    Ok(())
}

/// Sets the permissions of what is open, also if only as a handle (`O_PATH`).
pub(super) fn set_mode(file: BorrowedFd<'_>, mode: libc::mode_t) -> Result<(), Errno> {
    let mode = Mode::from_bits_truncate(mode);
    fchmodat(AT_FDCWD, &fd_path(file), mode, FchmodatFlags::FollowSymlink)
}

/// How a volume is given to its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Giver {
    gid: libc::gid_t,
    mask: libc::mode_t,
    always: bool,
}

impl Giver {
    pub(super) fn new(group: FsGroup, read_only: bool) -> Self {
        let mask = if read_only { READ_ONLY } else { READ_WRITE };
        Self { gid: group.gid.as_raw(), mask, always: group.policy == FsGroupPolicy::Always }
    }

    /// Whether a volume with such a root stays as it is.
    pub(super) fn leaves(&self, gid: libc::gid_t, mode: libc::mode_t) -> bool {
        !self.always && gid == self.gid && mode | self.more(true) == mode
    }

    /// The group and the mode that a directory or file gets, which has this mode.
    pub(super) fn given(&self, is_directory: bool, mode: libc::mode_t) -> (libc::gid_t, libc::mode_t) {
        (self.gid, mode | self.more(is_directory))
    }

    fn more(&self, is_directory: bool) -> libc::mode_t {
        self.mask | if is_directory { SEARCH | libc::S_ISGID } else { 0 }
    }

    fn give(&self, file: BorrowedFd<'_>) -> Result<(), Errno> {
        let is_directory = tree::file_type(&fstat(file)?) == libc::S_IFDIR;
        give(file, Gid::from_raw(self.gid), self.more(is_directory))
    }
}

impl Visitor for Giver {
    fn file(&mut self, parent: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
        let file = match tree::open_child(parent, name, OFlag::O_PATH) {
            // A file that is mounted there from elsewhere, or one that is gone.
            Err(Errno::EXDEV | Errno::ENOENT) => return Ok(()),
            other => other?,
        };
        if tree::file_type(&fstat(&file)?) == libc::S_IFLNK {
            return Ok(());
        }
        self.give(file.as_fd())
    }

    fn directory(&mut self, dir: BorrowedFd<'_>) -> Result<(), Errno> {
        self.give(dir)
    }

    fn left(&mut self, _parent: BorrowedFd<'_>, _name: &CStr) -> Result<(), Errno> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::Path;

    use nix::unistd::getgid;

    use super::super::places::Places;
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    fn set(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    struct Volume {
        base: tempfile::TempDir,
        outside: tempfile::TempDir,
    }

    impl Volume {
        fn new() -> Self {
            let volume = Self { base: tempfile::tempdir().unwrap(), outside: tempfile::tempdir().unwrap() };
            fs::create_dir_all(volume.path("v/sub")).unwrap();
            for file in [volume.path("v/sub/file"), volume.outside.path().join("file")] {
                fs::write(&file, "").unwrap();
                set(&file, 0o600);
            }
            for dir in [&volume.path("v"), &volume.path("v/sub"), volume.outside.path()] {
                set(dir, 0o700);
            }
            symlink(volume.outside.path(), volume.path("v/dir")).unwrap();
            symlink(volume.outside.path().join("file"), volume.path("v/sub/link")).unwrap();
            volume
        }

        fn path(&self, path: &str) -> std::path::PathBuf {
            self.base.path().join(path)
        }

        fn apply(&self, policy: FsGroupPolicy, read_only: bool) {
            let place = Places::new(self.base.path()).locate(&self.path("v")).unwrap();
            apply(&place, FsGroup { gid: getgid(), policy }, read_only).unwrap();
        }
    }

    #[test]
    fn the_group_gets_files_and_directories_but_nothing_behind_a_link() {
        let volume = Volume::new();
        volume.apply(FsGroupPolicy::Always, false);
        assert_eq!(mode(&volume.path("v")), 0o2770);
        assert_eq!(mode(&volume.path("v/sub")), 0o2770);
        assert_eq!(mode(&volume.path("v/sub/file")), 0o660);
        assert_eq!(mode(volume.outside.path()), 0o700);
        assert_eq!(mode(&volume.outside.path().join("file")), 0o600);
    }

    #[test]
    fn a_read_only_volume_is_only_made_readable() {
        let volume = Volume::new();
        volume.apply(FsGroupPolicy::Always, true);
        assert_eq!(mode(&volume.path("v/sub")), 0o2750);
        assert_eq!(mode(&volume.path("v/sub/file")), 0o640);
    }

    #[test]
    fn a_root_that_fits_saves_the_walk_if_the_policy_says_so() {
        for (policy, expected) in [(FsGroupPolicy::OnRootMismatch, 0o600), (FsGroupPolicy::Always, 0o660)] {
            let volume = Volume::new();
            nix::unistd::chown(&volume.path("v"), None, Some(getgid())).unwrap();
            set(&volume.path("v"), 0o2770);
            volume.apply(policy, false);
            assert_eq!(mode(&volume.path("v/sub/file")), expected, "{policy:?}");
        }
        let volume = Volume::new();
        volume.apply(FsGroupPolicy::OnRootMismatch, false);
        assert_eq!(mode(&volume.path("v/sub/file")), 0o660, "a root that does not fit");
    }
}
