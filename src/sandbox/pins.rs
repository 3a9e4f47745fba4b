//! Which namespaces a container's init has been made in.
//!
//! libcontainer puts a further process into the namespaces that init is in *then*. An init with the right to do so may
//! have moved to others meanwhile, of its own making. So they are noted before it runs anything of the image, and each
//! further process is compared with them before it becomes its program (`worker::executor`).

use std::os::unix::fs::MetadataExt;

use nix::unistd::Pid;

use super::error::SandboxError;
use crate::spec::NamespaceId;

/// Those that a process can move between by itself. (The one for clocks is for children only.)
const KINDS: [&str; 6] = ["mnt", "pid", "ipc", "uts", "net", "cgroup"];

/// The namespaces of `init`, which waits for its start; blocks.
pub(super) fn of(init: Pid) -> Result<Vec<NamespaceId>, SandboxError> {
    let note = move |kind: &str| {
        let path = std::path::PathBuf::from(format!("/proc/{init}/ns/{kind}"));
        let file = std::fs::metadata(&path).map_err(SandboxError::file("look at", &path))?;
        Ok(NamespaceId { kind: kind.to_owned(), device: file.dev(), inode: file.ino() })
    };
    KINDS.into_iter().map(note).collect()
}
