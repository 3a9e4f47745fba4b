//! One process of a container: its init, or one that was exec'd.
//!
//! ```text
//! launching -> running -> exited(status) -> waited -> gone
//! ```
//!
//! - *launching*: only the launch knows it; its exec id is taken.
//! - *running*: in its container's directory; signals go to its pidfd, so never to a stranger.
//! - *exited*: its status is kept until someone waits for it.
//! - *waited*: signals and further waits find nothing. The streams of an exec'd process can be read until their
//!   end, for a while; init's until the container is removed.
//! - *gone*: the last holder of the [`Process`] drops its descriptors.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use tokio::sync::watch;

use super::pidfd;
use crate::stdio::Streams;
use crate::supervisor::ExitStatus;
use crate::supervisor::client::StartedProcess;

/// A process that has been started.
#[derive(Debug)]
pub struct Process {
    pid: nix::unistd::Pid,
    pidfd: OwnedFd,
    exit: watch::Receiver<Option<ExitStatus>>,
    waited: AtomicBool,
    streams: Streams,
}

impl Process {
    /// Takes over what a worker started.
    pub(super) fn new(started: StartedProcess, pidfd: OwnedFd, streams: Streams) -> Self {
        Self { pid: started.pid, pidfd, exit: started.exit, waited: AtomicBool::new(false), streams }
    }

    /// Its pid in the agent's namespace; only good for looking at /proc while it lives.
    pub fn pid(&self) -> nix::unistd::Pid {
        self.pid
    }

    /// Its streams.
    pub fn streams(&self) -> &Streams {
        &self.streams
    }

    /// Becomes `Some` when it has ended.
    pub fn exit(&self) -> &watch::Receiver<Option<ExitStatus>> {
        &self.exit
    }

    /// How it ended, if it has.
    pub fn exit_status(&self) -> Option<ExitStatus> {
        *self.exit.borrow()
    }

    /// Waits for its end.
    pub async fn wait(&self) -> Option<ExitStatus> {
        let mut exit = self.exit.clone();
        exit.wait_for(Option::is_some).await.ok().and_then(|status| *status)
    }

    /// Whether someone has been told how it ended.
    pub fn is_waited(&self) -> bool {
        self.waited.load(Ordering::Relaxed)
    }

    /// Marks that someone has been told how it ended; true for the first.
    pub(super) fn set_waited(&self) -> bool {
        !self.waited.swap(true, Ordering::Relaxed)
    }

    /// Sends a signal; that it has ended already is no error.
    pub(super) fn signal(&self, signal: u32) -> Result<(), Errno> {
        match pidfd::send_signal(&self.pidfd, signal) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(errno) => Err(errno),
        }
    }
}

/// Whether a process does something of its own with SIGTERM, by the text of its `/proc/<pid>/status`: an init
/// of a pid namespace never sees a signal that it neither handles, blocks nor ignores (pid_namespaces(7)).
pub(super) fn handles_sigterm(status: &str) -> bool {
    const SIGTERM_BIT: u64 = 1 << 14;
    status
        .lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(key, _)| matches!(*key, "SigBlk" | "SigIgn" | "SigCgt"))
        .filter_map(|(_, mask)| u64::from_str_radix(mask.trim(), 16).ok())
        .any(|mask| mask & SIGTERM_BIT != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sigterm_is_handled_when_any_mask_has_it() {
        let status = |blk, ign, cgt| {
            format!("Name:\tx\nSigBlk:\t{blk:016x}\nSigIgn:\t{ign:016x}\nSigCgt:\t{cgt:016x}\n")
        };
        for (text, handled) in [
            (status(0, 0, 0), false),
            (status(1 << 14, 0, 0), true),
            (status(0, 1 << 14, 0), true),
            (status(0, 0, 1 << 14), true),
            (status(!(1 << 14), 0, 0), false),
            (String::new(), false),
            ("SigCgt: zz\n".to_owned(), false),
        ] {
            assert_eq!(handles_sigterm(&text), handled, "{text}");
        }
    }
}
