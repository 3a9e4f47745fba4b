//! Which namespaces a container's init has been made in.
//!
//! A further process enters the namespaces that init is in *then* (`worker::exec`). An init with the right to do so may
//! have moved to others meanwhile, of its own making. So they are noted before it runs anything of the image, and each
//! further process is compared with them before it becomes its program (`worker::executor`).

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open};
use nix::sys::stat::{Mode, fstatat};
use nix::unistd::Pid;

use super::error::SandboxError;
use crate::spec::NamespaceId;

const KINDS: [&str; 8] = ["mnt", "pid", "ipc", "uts", "net", "cgroup", "time", "user"];

/// A namespace's device and inode.
type Id = (u64, u64);

/// The namespaces of `init`, which waits for its start; blocks.
pub(super) fn of(init: Pid) -> Result<Vec<NamespaceId>, SandboxError> {
    /// The server's, which it never leaves.
    static GUESTS: OnceLock<[Option<Id>; KINDS.len()]> = OnceLock::new();
    let guests = GUESTS.get_or_init(|| {
        let own = Namespaces::of("self").ok();
        KINDS.map(|kind| own.as_ref()?.look(kind).ok()?)
    });
    let init = Namespaces::of(&init.to_string())?;
    let note = |(kind, guests): (&str, &Option<Id>)| {
        let id = init.look(kind)?;
        // An init that makes itself a user namespace has left nothing: it is within the container's.
        let id = id.filter(|id| kind != "user" || *guests != Some(*id));
        Ok(id.map(|id| {
            let (device, inode) = id;
            NamespaceId { kind: kind.to_owned(), device, inode, own: *guests != Some(id) }
        }))
    };
    KINDS.into_iter().zip(guests).filter_map(|pair| note(pair).transpose()).collect()
}

/// A process's, by their directory: to come there takes longer than to look at one of them.
struct Namespaces {
    directory: OwnedFd,
    path: PathBuf,
}

impl Namespaces {
    fn of(process: &str) -> Result<Self, SandboxError> {
        let path = PathBuf::from(format!("/proc/{process}/ns"));
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let directory = open(&path, flags, Mode::empty()).map_err(|errno| failed(&path, errno))?;
        Ok(Self { directory, path })
    }

    fn look(&self, kind: &str) -> Result<Option<Id>, SandboxError> {
        match fstatat(&self.directory, kind, AtFlags::empty()) {
            Ok(file) => Ok(Some((file.st_dev, file.st_ino))),
            // A kernel without them.
            Err(Errno::ENOENT) if matches!(kind, "time" | "user") => Ok(None),
            Err(errno) => Err(failed(&self.path.join(kind), errno)),
        }
    }
}

fn failed(path: &Path, errno: Errno) -> SandboxError {
    SandboxError::file("look at", path)(errno.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_shares_the_namespaces_of_the_guest_has_none_of_its_own() {
        let pins = of(Pid::this()).unwrap();
        assert!(pins.len() >= 6, "{pins:?}");
        assert!(pins.iter().all(|pin| !pin.own), "{pins:?}");
    }
}
