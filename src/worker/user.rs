//! Whose process it is: what both a container's init and a further process do once they are in the container.
//!
//! Order: security labels and umask, as root; working directory, groups and ids; capabilities. Of libcontainer only
//! the part is used that makes capabilities effective again.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use libcontainer::syscall::syscall::create_syscall;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Uid, chdir, getcwd};
use oci_spec::runtime::Process;

use super::job::{Failure, FailureKind};
use super::{capabilities, chain, sys};
use crate::spec::CapabilitySets;

fn failed(step: &str, errno: Errno) -> Failure {
    Failure::internal(format!("{step}: {}", errno.desc()))
}

/// What the process is confined by from its program on, and its umask. `proc` is the agent's `/proc`.
pub(super) fn confine(process: &Process, proc: &OwnedFd) -> Result<(), Failure> {
    if process.no_new_privileges() == Some(true) {
        prctl::set_no_new_privs().map_err(|errno| failed("set no_new_privs", errno))?;
    }
    if let Some(profile) = process.apparmor_profile().as_ref().filter(|profile| !profile.is_empty()) {
        set_apparmor_profile(proc, profile)?;
    }
    if let Some(mask) = process.user().umask() {
        umask(Mode::from_bits_truncate(mask));
    }
    Ok(())
}

/// For the next execve(2), by the file of Linux 5.8 or else by the one that all security modules share.
fn set_apparmor_profile(proc: &OwnedFd, profile: &str) -> Result<(), Failure> {
    let write = |file: &str| {
        let flags = OFlag::O_WRONLY | OFlag::O_CLOEXEC;
        let file = nix::fcntl::openat(proc, file, flags, Mode::empty())?;
        File::from(file).write_all(format!("exec {profile}").as_bytes())
    };
    write("thread-self/attr/apparmor/exec")
        .or_else(|_| write("thread-self/attr/exec"))
        .map_err(|error| Failure::internal(format!("set the AppArmor profile {profile:?}: {error}")))
}

/// The user, its directory, and what it may do. From here on execve(2) closes all descriptors but the standard ones.
pub(super) fn become_user(process: &Process, allowed: &CapabilitySets) -> Result<(), Failure> {
    let (user, cwd) = (process.user(), process.cwd());
    // As root, who may enter more; but root may be kept out where the user is not.
    let denied = match chdir(cwd) {
        Err(Errno::EPERM | Errno::EACCES) => true,
        other => other.map(|()| false).map_err(|errno| about_cwd(cwd, errno))?,
    };
    let groups: Vec<Gid> = user.additional_gids().iter().flatten().map(|gid| Gid::from_raw(*gid)).collect();
    nix::unistd::setgroups(&groups).map_err(|errno| failed("set the supplementary groups", errno))?;
    let (uid, gid) = (user.uid(), user.gid());
    become_id(uid, gid)?;
    sys::close_later(3).map_err(|errno| failed("close descriptors", errno))?;
    capabilities::set(allowed)?;
    if denied {
        chdir(cwd).map_err(|errno| about_cwd(cwd, errno))?;
    }
    // A directory outside of the root has no path (CVE-2024-21626).
    match getcwd() {
        Ok(path) if path.is_absolute() => Ok(()),
        Ok(_) => Err(about_cwd(cwd, Errno::ENOENT)),
        Err(errno) => Err(about_cwd(cwd, errno)),
    }
}

/// The ids, with all capabilities kept for now.
fn become_id(uid: u32, gid: u32) -> Result<(), Failure> {
    let (user, group) = (Uid::from_raw(uid), Gid::from_raw(gid));
    prctl::set_keepcaps(true)
        .and_then(|()| nix::unistd::setresgid(group, group, group))
        .and_then(|()| nix::unistd::setresuid(user, user, user))
        .map_err(|errno| failed(&format!("become user {uid} of group {gid}"), errno))?;
    if uid != 0 {
        libcontainer::capabilities::reset_effective(create_syscall().as_ref())
            .map_err(|error| Failure::internal(format!("keep the capabilities: {}", chain(&error))))?;
    }
    prctl::set_keepcaps(false).map_err(|errno| failed("stop keeping capabilities", errno))
}

/// From here on the child ends with its parent. A change of user takes that back (prctl(2)).
pub(super) fn depend_on(waiting: &OwnedFd) -> Result<(), Failure> {
    let _ = prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL);
    // A worker or server that had ended by then has closed its end of the socket.
    let mut watched = [PollFd::new(waiting.as_fd(), PollFlags::empty())];
    match poll(&mut watched, PollTimeout::ZERO) {
        Ok(0) => Ok(()),
        _ => Err(Failure::internal("nobody waits for the process any more")),
    }
}

fn about_cwd(cwd: &Path, errno: Errno) -> Failure {
    let message = format!("enter the working directory {}: {}", cwd.display(), errno.desc());
    Failure { kind: FailureKind::WorkingDirectory, message }
}
