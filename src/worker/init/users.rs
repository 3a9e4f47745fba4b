//! The container's user namespace: how init, which makes the container as the guest's root, comes to be nobody in the
//! guest.
//!
//! Everything is made first, with the guest's rights: mounts, nodes and covers, of which a process in the namespace may
//! make few. What comes to be belongs to the container's root all the same ([`create_as_root`]). Then init begins the
//! namespace, which takes all its rights over the guest for good, and the worker, who has them still, writes down its ids
//! ([`map`]). Last comes a copy of the mounts that belongs to the namespace: the container may mount in it what the
//! kernel lets anybody mount, and undo nothing of what is there (mount_namespaces(7), "locked").
//!
//! Other namespaces than those of mounts and cgroups belong to the guest: most are the sandbox's, and the PID
//! namespace is older than the container's users.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{MsgFlags, send};
use nix::unistd::{Gid, Pid, Uid, setfsgid, setfsuid};
use oci_spec::runtime::{Linux, LinuxIdMapping};

use super::super::child::{self, failed};
use super::super::job::{Failure, FailureKind};
use super::super::{sys, user};
use crate::spec::map_text;

/// What init says when its namespace is to get its ids.
pub(super) const BEGUN: &[u8] = b"users";
const MAPPED: &[u8] = b"mapped";

/// In init: what it makes from here on belongs to the container's root. It keeps all its rights.
pub(super) fn create_as_root(linux: &Linux) -> Result<(), Failure> {
    let root = |ranges: &Option<Vec<LinuxIdMapping>>| {
        let first = ranges.iter().flatten().find(|range| range.container_id() == 0);
        first.map(LinuxIdMapping::host_id).ok_or_else(|| Failure::internal("a user namespace without root"))
    };
    let (uid, gid) = (root(linux.uid_mappings())?, root(linux.gid_mappings())?);
    sys::keep_capabilities_whoever_it_is().map_err(|errno| failed("keep the capabilities", errno))?;
    setfsgid(Gid::from_raw(gid));
    setfsuid(Uid::from_raw(uid));
    // A change of user takes that back.
    child::hide()
}

/// In init: begins the namespace, waits until the worker has written its ids, and becomes its root. `also` begins
/// then, too.
pub(super) fn enter(worker: &OwnedFd, also: CloneFlags) -> Result<(), Failure> {
    unshare(CloneFlags::CLONE_NEWUSER).map_err(|errno| match errno {
        Errno::ENOSPC => Failure {
            kind: FailureKind::Exhausted,
            message: "begin a user namespace: there are no more (user.max_user_namespaces)".to_owned(),
        },
        _ => failed("begin a user namespace", errno),
    })?;
    say(worker, BEGUN).map_err(|errno| failed("tell the worker", errno))?;
    let mut answer = [0; MAPPED.len()];
    if nix::unistd::read(worker, &mut answer) != Ok(MAPPED.len()) {
        return Err(Failure::internal("the user namespace got no ids"));
    }
    user::become_root_inside()?;
    unshare(CloneFlags::CLONE_NEWNS | also)
        .map_err(|errno| failed("begin a mount namespace of its users", errno))
}

/// In the worker: gives the namespace that `init` has begun its ids, and lets it go on.
pub(super) fn map(init: Pid, child: &OwnedFd, linux: &Linux) -> Result<(), Failure> {
    for (file, ranges) in [("uid_map", linux.uid_mappings()), ("gid_map", linux.gid_mappings())] {
        let text = map_text(ranges.as_deref().unwrap_or_default());
        std::fs::write(format!("/proc/{init}/{file}"), &text).map_err(|error| {
            let message = format!("write {file}, {}: {error}", text.replace('\n', "; "));
            Failure { kind: FailureKind::InvalidSpec, message }
        })?;
    }
    say(child, MAPPED).map_err(|errno| failed("answer the init", errno))
}

fn say(socket: &OwnedFd, word: &[u8]) -> Result<(), Errno> {
    send(socket.as_raw_fd(), word, MsgFlags::MSG_NOSIGNAL).map(drop)
}
