//! The supervisor's own PID namespace: out of it for one fork, and back.
//!
//! A process is born in the PID namespace that its parent has chosen for its children (setns(2)). The supervisor chooses a
//! container's for one fork, and its own again before it does anything else.
//!
//! Invariants: nothing else is ever forked while a container's namespace is chosen. Where the way back fails, for which
//! the kernel needs nothing but a little memory, every fork is refused until it has succeeded.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl;
use nix::sys::stat::Mode;

use super::fork::{Born, Forked, fork, fork_into};
use crate::observe::console;

/// Where the supervisor's children are born.
#[derive(Debug, Default)]
pub(super) struct Home {
    /// Nothing on a kernel without such namespaces: then there is no other place either.
    namespace: Option<OwnedFd>,
    /// Whether a container's is chosen: the way back has failed.
    away: bool,
}

impl Home {
    /// Gets hold of the calling process's own.
    pub(super) fn open() -> Self {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let namespace = nix::fcntl::open("/proc/self/ns/pid", flags, Mode::empty());
        Self { namespace: namespace.ok(), away: false }
    }

    /// Forks a process of the agent.
    ///
    /// # Errors
    /// What fork(2) says, or why it would be in a container.
    pub(super) fn fork(&mut self) -> Result<Forked, Errno> {
        self.come_back()?;
        fork()
    }

    /// Forks a process into the PID namespace of `init`, if one is given, and into a cgroup. From its first moment on it
    /// can be looked into by nobody who has no right to trace the agent.
    ///
    /// # Errors
    /// ESRCH if init has ended, and what [`fork_into`] says.
    pub(super) fn fork_inside(
        &mut self,
        init: Option<BorrowedFd<'_>>,
        cgroup: Option<BorrowedFd<'_>>,
    ) -> Result<Born, Errno> {
        self.come_back()?;
        let Some(init) = init else { return undumpable(|| fork_into(cgroup)) };
        if self.namespace.is_none() {
            return Err(Errno::ENOSYS);
        }
        setns(init, CloneFlags::CLONE_NEWPID)?;
        self.away = true;
        let born = undumpable(|| fork_into(cgroup));
        if let Ok(Born { forked: Forked::Parent(_), .. }) | Err(_) = &born
            && let Err(errno) = self.come_back()
        {
            console::say(format_args!(
                "the supervisor does not get back to its own PID namespace ({errno}): no process until it does"
            ));
        }
        born
    }

    fn come_back(&mut self) -> Result<(), Errno> {
        if let Some(namespace) = self.namespace.as_ref().filter(|_| self.away) {
            setns(namespace.as_fd(), CloneFlags::CLONE_NEWPID)?;
            self.away = false;
        }
        Ok(())
    }
}

/// Forks while the process is not dumpable, which its child inherits.
fn undumpable(fork: impl FnOnce() -> Result<Born, Errno>) -> Result<Born, Errno> {
    let before = prctl::get_dumpable()?;
    prctl::set_dumpable(false)?;
    let born = fork();
    if before && !matches!(&born, Ok(Born { forked: Forked::Child, .. })) {
        let _ = prctl::set_dumpable(true);
    }
    born
}
