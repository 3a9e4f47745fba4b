//! Which namespaces a container's init has been made in.
//!
//! A further process enters the namespaces that init is in *then* (`worker::exec`). An init with the right to do so may
//! have moved to others meanwhile, of its own making. So they are noted before it runs anything of the image, and each
//! further process is compared with them before it becomes its program (`worker::executor`).

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::OnceLock;

use nix::unistd::Pid;

use super::error::SandboxError;
use crate::spec::NamespaceId;

/// All but those of users, of which containers have none of their own.
const KINDS: [&str; 7] = ["mnt", "pid", "ipc", "uts", "net", "cgroup", "time"];

/// A namespace's device and inode.
type Id = (u64, u64);

/// The namespaces of `init`, which waits for its start; blocks.
pub(super) fn of(init: Pid) -> Result<Vec<NamespaceId>, SandboxError> {
    /// The server's, which it never leaves.
    static GUESTS: OnceLock<[Option<Id>; KINDS.len()]> = OnceLock::new();
    let guests = GUESTS.get_or_init(|| KINDS.map(|kind| look("self", kind).ok().flatten()));
    let init = init.to_string();
    let note = |(kind, guests): (&str, &Option<Id>)| {
        let id = look(&init, kind)?;
        Ok(id.map(|id| {
            let (device, inode) = id;
            NamespaceId { kind: kind.to_owned(), device, inode, own: *guests != Some(id) }
        }))
    };
    KINDS.into_iter().zip(guests).filter_map(|pair| note(pair).transpose()).collect()
}

fn look(process: &str, kind: &str) -> Result<Option<Id>, SandboxError> {
    let path = PathBuf::from(format!("/proc/{process}/ns/{kind}"));
    match std::fs::metadata(&path) {
        Ok(file) => Ok(Some((file.dev(), file.ino()))),
        // A kernel without them.
        Err(error) if kind == "time" && error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(SandboxError::file("look at", &path)(error)),
    }
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
