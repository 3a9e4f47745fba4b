//! The one place that forks.

#![expect(unsafe_code, reason = "fork(2) is unsafe: the child of a threaded process may only do little")]

use nix::errno::Errno;
use nix::unistd::{ForkResult, Pid};

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
