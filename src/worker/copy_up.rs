//! Fills a memory filesystem with what it hides of the image (`tmpcopyup`), between create and start.
//!
//! The image is somebody else's, and a host that shares it can change it meanwhile: nothing here follows a link.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, lchown, symlink};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, SFlag, mknod};
use nix::unistd::Pid;

use super::job::Failure;
use crate::guest::beneath::{Root, fd_path};

const DIRECTORY: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// Copies what is at each of `destinations` in the image at `rootfs` to the same place in the container of `init`.
pub(super) fn apply(init: Pid, rootfs: &Path, destinations: &[PathBuf]) -> Result<(), Failure> {
    for destination in destinations {
        fill(init, rootfs, destination).map_err(|error| {
            Failure::internal(format!(
                "fill the tmpfs on {} with what the image has there: {error}",
                destination.display()
            ))
        })?;
    }
    Ok(())
}

fn fill(init: Pid, rootfs: &Path, destination: &Path) -> io::Result<()> {
    let open = |root: &Path| {
        let root = Root::open(root).map_err(io::Error::other)?;
        root.open_path(destination, DIRECTORY, Mode::empty()).map_err(io::Error::other)
    };
    // The container's own mounts are seen through its init only.
    copy(&open(rootfs)?, &open(Path::new(&format!("/proc/{init}/root")))?)
}

/// Copies all that is in one directory into another, with owners and permissions.
fn copy(from: &OwnedFd, to: &OwnedFd) -> io::Result<()> {
    let (from, to) = (fd_path(from.as_fd()), fd_path(to.as_fd()));
    for entry in fs::read_dir(&from)? {
        let name = entry?.file_name();
        let (source, target) = (from.join(&name), to.join(&name));
        let metadata = fs::symlink_metadata(&source)?;
        let kind = metadata.file_type();
        if kind.is_symlink() {
            symlink(fs::read_link(&source)?, &target)?;
        } else if kind.is_dir() {
            fs::create_dir(&target)?;
            copy(&open(&source, DIRECTORY, Mode::empty())?, &open(&target, DIRECTORY, Mode::empty())?)?;
        } else if kind.is_file() {
            let mut source = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(&source)?;
            io::copy(&mut source, &mut OpenOptions::new().write(true).create_new(true).open(&target)?)?;
        } else if !kind.is_socket() {
            let file_type = SFlag::from_bits_truncate(metadata.mode() & libc::S_IFMT);
            mknod(&target, file_type, Mode::empty(), metadata.rdev())?;
        } else {
            continue;
        }
        lchown(&target, Some(metadata.uid()), Some(metadata.gid()))?;
        if !kind.is_symlink() {
            fs::set_permissions(&target, metadata.permissions())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_tree_is_copied_and_no_link_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir_all(from.join("deep/er")).unwrap();
        fs::create_dir(&to).unwrap();
        fs::write(from.join("deep/er/file"), "text").unwrap();
        fs::set_permissions(from.join("deep/er/file"), fs::Permissions::from_mode(0o640)).unwrap();
        symlink("/etc/passwd", from.join("link")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(from.join("socket")).unwrap();
        let open = |path: &Path| open(path, DIRECTORY, Mode::empty()).unwrap();
        copy(&open(&from), &open(&to)).unwrap();
        assert_eq!(fs::read_to_string(to.join("deep/er/file")).unwrap(), "text");
        assert_eq!(fs::metadata(to.join("deep/er/file")).unwrap().mode() & 0o777, 0o640);
        assert_eq!(fs::read_link(to.join("link")).unwrap(), Path::new("/etc/passwd"));
        assert!(!to.join("socket").exists(), "nobody listens on the copy of a socket");
    }
}
