//! A process that the supervisor forks into a container, without a worker: what the server asks for, and the fork.
//!
//! Descriptors of [`Kind::Enter`](super::channel::Kind::Enter): a socket, a handle of the container's init, the cgroup to
//! be born in ([`IN_CGROUP`]), those of the process, and the server's own ends of its streams, to be held. The job waits
//! in the socket, and is as long as the header's `pid` says; the process says there what goes wrong. The socket closes
//! when it has become its program. So the supervisor waits for nothing: all that it does is to fork.
//!
//! What can't be forked is refused with the errno, and nothing has happened: a worker may be asked, who can wait, look
//! for another place and say what is wrong.

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::unistd::Pid;

use super::channel::Header;
use super::fork::{Born, Forked};
use super::home::Home;

/// Flags in the header's `status`. The container has a PID namespace of its own.
pub(super) const OWN_PIDS: i32 = 1;
/// The third descriptor is the cgroup (v2) that it is born in.
pub(super) const IN_CGROUP: i32 = 2;
/// How many descriptors, the last ones, are to be held: three, or none.
pub(super) const HELD: i32 = 4;
/// Number of those descriptors.
pub(super) const HELD_COUNT: usize = 3;

/// A process that has been forked.
#[derive(Debug)]
pub(super) struct Entered {
    pub(super) pid: Pid,
    pub(super) pidfd: OwnedFd,
    /// The server's ends of its streams.
    pub(super) ours: Vec<OwnedFd>,
}

/// One that is asked for.
#[derive(Debug)]
pub(super) struct Entry {
    own_pids: bool,
    cgroup: Option<OwnedFd>,
    /// The server's ends.
    held: Vec<OwnedFd>,
    /// For the process: socket, handle of init, and its own.
    process: Vec<OwnedFd>,
    job_len: usize,
}

impl Entry {
    /// `None` if it is not as the module says.
    pub(super) fn read(header: Header, mut fds: Vec<OwnedFd>) -> Option<Self> {
        let is = |flag| header.status & flag != 0;
        let held = if is(HELD) { fds.split_off(fds.len().checked_sub(HELD_COUNT)?) } else { Vec::new() };
        if fds.len() < if is(IN_CGROUP) { 3 } else { 2 } {
            return None;
        }
        let cgroup = is(IN_CGROUP).then(|| fds.remove(2));
        let job_len = usize::try_from(header.pid).ok()?;
        Some(Self { own_pids: is(OWN_PIDS), cgroup, held, process: fds, job_len })
    }

    /// Forks the process. In the child, `leave` closes what is not named to it.
    ///
    /// # Errors
    /// As [`Home::fork_inside`].
    pub(super) fn start(self, home: &mut Home, leave: impl FnOnce(&mut [RawFd])) -> Result<Entered, Errno> {
        let init = self.process.get(1).filter(|_| self.own_pids);
        let born = home.fork_inside(init.map(AsFd::as_fd), self.cgroup.as_ref().map(AsFd::as_fd))?;
        match born {
            Born { forked: Forked::Child, .. } => {
                let mut keep: Vec<RawFd> = self.process.iter().map(AsRawFd::as_raw_fd).collect();
                leave(&mut keep);
                // Closed by now.
                std::mem::forget((self.cgroup, self.held));
                crate::worker::enter(self.process, self.job_len)
            }
            Born { forked: Forked::Parent(pid), pidfd: Some(pidfd) } => {
                Ok(Entered { pid, pidfd, ours: self.held })
            }
            Born { pidfd: None, .. } => Err(Errno::EBADF),
        }
    }
}
