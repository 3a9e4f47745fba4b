//! The one place that forks.

#![expect(unsafe_code, reason = "fork(2) is unsafe: the child of a threaded process may only do little")]

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sched::CloneFlags;
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::unistd::{ForkResult, Pid};

use super::fds::{close_all_but, own};
use super::holds::Holds;
use crate::guest::rlimit::OpenFiles;

/// Which of the two processes this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forked {
    /// The new process.
    Child,
    /// The old process, and the pid of the new one.
    Parent(Pid),
}

/// Forks the calling process, which must be single-threaded: the supervisor, or a worker.
///
/// # Errors
/// What fork(2) says: no memory, or no pids left.
#[expect(clippy::disallowed_methods, reason = "this is the one place")]
pub fn fork() -> Result<Forked, Errno> {
    // SAFETY: supervisor and workers never start a thread, so the child has a whole, unlocked heap.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Child => Ok(Forked::Child),
        ForkResult::Parent { child } => Ok(Forked::Parent(child)),
    }
}

/// A process that [`fork_into`] has made.
#[derive(Debug)]
pub(crate) struct Born {
    /// Which of the two this is.
    pub(crate) forked: Forked,
    /// A handle of the child, in its parent.
    pub(crate) pidfd: Option<OwnedFd>,
}

/// The same for a child that is born in the cgroup (v2) of that directory, if one is given (clone(2),
/// `CLONE_INTO_CGROUP`). Its limit of processes counts the child before it is there, and nothing has to be moved.
///
/// # Errors
/// EAGAIN at a limit of processes, EBUSY for a cgroup that has been divided, and what fork(2) says.
pub(crate) fn fork_into(cgroup: Option<BorrowedFd<'_>>) -> Result<Born, Errno> {
    fork_apart(CloneFlags::empty(), cgroup)
}

/// The same for a child that is born in new namespaces of these kinds, too (clone(2), `CLONE_NEW*`).
///
/// # Errors
/// ENOMEM in a PID namespace whose init has ended, and as above.
pub(crate) fn fork_apart(namespaces: CloneFlags, cgroup: Option<BorrowedFd<'_>>) -> Result<Born, Errno> {
    /// As the kernel has it: libc's constant is too narrow.
    const CLONE_INTO_CGROUP: u64 = 1 << 33;
    let mut pidfd: libc::c_int = -1;
    let mut arguments = libc::clone_args {
        flags: u64::from(libc::CLONE_PIDFD.unsigned_abs()) | u64::from(namespaces.bits().cast_unsigned()),
        pidfd: (&raw mut pidfd).addr() as u64,
        child_tid: 0,
        parent_tid: 0,
        exit_signal: u64::from(libc::SIGCHLD.unsigned_abs()),
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: 0,
    };
    if let Some(cgroup) = cgroup {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = u64::try_from(cgroup.as_raw_fd()).map_err(|_| Errno::EBADF)?;
    }
    let size = size_of::<libc::clone_args>();
    // SAFETY: as above, and no memory is shared with the child, which returns from here on a copy of this stack. The
    // kernel writes a descriptor to `pidfd`, which is exposed by its address and outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size) };
    match Errno::result(result)? {
        0 => Ok(Born { forked: Forked::Child, pidfd: None }),
        child => {
            let child = Pid::from_raw(i32::try_from(child).map_err(|_| Errno::EOVERFLOW)?);
            Ok(Born { forked: Forked::Parent(child), pidfd: Some(own(pidfd)) })
        }
    }
}

/// In a child of the supervisor: leaves all but the descriptors `keep`, with the signals that the supervisor looks at and
/// the limit as they were. What is held must not get into a container: it would keep others' pipes open.
pub(super) fn leave(keep: &mut [RawFd], holds: &mut Holds, watched: &SigSet, open_files: Option<OpenFiles>) {
    close_all_but(keep);
    std::mem::forget(std::mem::take(holds));
    let _ = sigprocmask(SigmaskHow::SIG_UNBLOCK, Some(watched), None);
    if let Some(before) = open_files {
        let _ = before.apply();
    }
}
