//! Whose process it is: what both a container's init and a further process do once they are in the container.
//!
//! Order: security labels and umask, as root ([`confine`]); then the caller closes all descriptors that lead
//! anywhere; working directory, groups and ids; capabilities ([`become_user`]). Of libcontainer only the part is used
//! that makes capabilities effective again.
//!
//! Invariant: when a path of the container's is looked up, be it the working directory or the program, no descriptor of a
//! directory outside of it is open. A link to `/proc/self/fd/<number>/..` would lead there (CVE-2024-21626), and
//! execve(2) closes descriptors only after it has opened the program.

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
use nix::unistd::{Gid, Uid, chdir};
use oci_spec::runtime::Process;

use super::child::{self, failed};
use super::job::{Failure, FailureKind};
use super::{capabilities, chain, sys};
use crate::spec::CapabilitySets;

/// Sets what takes effect at execve(2), no_new_privs, the AppArmor profile and the SELinux label, and the umask.
/// `proc` is the agent's `/proc`: what is at that place in the container is not to be trusted.
pub(super) fn confine(process: &Process, selinux_label: Option<&str>, proc: &OwnedFd) -> Result<(), Failure> {
    if process.no_new_privileges() == Some(true) {
        prctl::set_no_new_privs().map_err(|errno| failed("set no_new_privs", errno))?;
    }
    if let Some(profile) = process.apparmor_profile().as_ref().filter(|profile| !profile.is_empty()) {
        set_apparmor_profile(proc, profile)?;
    }
    if let Some(label) = selinux_label {
        set_selinux_label(proc, label)?;
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

/// For the next execve(2) of this thread (proc_pid_attr(5)). The kernel refuses what its policy does not know.
pub(super) fn set_selinux_label(proc: &OwnedFd, label: &str) -> Result<(), Failure> {
    let flags = OFlag::O_WRONLY | OFlag::O_CLOEXEC;
    nix::fcntl::openat(proc, "thread-self/attr/exec", flags, Mode::empty())
        .map_err(std::io::Error::from)
        .and_then(|file| File::from(file).write_all(label.as_bytes()))
        .map_err(|error| Failure {
            kind: FailureKind::InvalidSpec,
            message: format!("set the SELinux label {label:?}: {error}"),
        })
}

/// Root of the user namespace that this process has entered, in which it may do anything, and nothing out of it.
pub(super) fn become_root_inside() -> Result<(), Failure> {
    let (user, group) = (Uid::from_raw(0), Gid::from_raw(0));
    nix::unistd::setresgid(group, group, group)
        .and_then(|()| nix::unistd::setresuid(user, user, user))
        .map_err(|errno| failed("become root of the user namespace", errno))?;
    child::hide()
}

/// The user, its directory, and what it may do.
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
    capabilities::set(allowed)?;
    if denied {
        chdir(cwd).map_err(|errno| about_cwd(cwd, errno))?;
    }
    check_directory(cwd)
}

/// Whether the working directory, which was entered as `cwd`, is in the container.
pub(super) fn check_directory(cwd: &Path) -> Result<(), Failure> {
    match sys::is_inside_root() {
        Ok(true) => Ok(()),
        Ok(false) => Err(not_entered(cwd, "it is outside of the container's root")),
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
    prctl::set_keepcaps(false).map_err(|errno| failed("stop keeping capabilities", errno))?;
    // A change of user sets it anew, to what the guest has in fs.suid_dumpable.
    child::hide()
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

pub(super) fn about_cwd(cwd: &Path, errno: Errno) -> Failure {
    not_entered(cwd, errno.desc())
}

fn not_entered(cwd: &Path, reason: &str) -> Failure {
    let message = format!("enter the working directory {}: {reason}", cwd.display());
    Failure { kind: FailureKind::WorkingDirectory, message }
}
