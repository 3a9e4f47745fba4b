//! The supervisor's loop.

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::MsgFlags;
use nix::unistd::Pid;

use super::channel::{Channel, ChannelError, Header, Kind};
use super::fork::{Forked, fork};
use super::reaper::{self, ExitStatus};

/// Why the supervisor could not be set up, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    /// Signals could not be routed to a descriptor.
    #[error("route signals to a descriptor")]
    Signals(#[source] Errno),
    /// There is no server.
    #[error("fork the server")]
    ForkServer(#[source] Errno),
    /// poll(2) failed.
    #[error("wait for signals and messages")]
    Poll(#[source] Errno),
    /// waitid(2) failed.
    #[error("wait for children")]
    Wait(#[source] Errno),
    /// The channel could not be made or used.
    #[error(transparent)]
    Channel(#[from] ChannelError),
}

/// Why the loop ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The server asked for it: the sandbox has been destroyed.
    ShutDown,
    /// The server is gone.
    Server(ExitStatus),
}

/// The signals that the loop looks at: children's ends, and the wish of the outside that we stop.
fn watched_signals() -> SigSet {
    [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT].into_iter().collect()
}

/// The state of the one process that reaps.
#[derive(Debug)]
pub struct Supervisor {
    channel: Channel,
    signals: SignalFd,
    server: Pid,
}

impl Supervisor {
    /// Forks the server, which runs `server` with its end of the channel and exits with what that returns.
    ///
    /// The calling process must be single-threaded.
    ///
    /// # Errors
    /// When the kernel has no descriptors or processes left.
    pub fn start(server: impl FnOnce(Channel) -> i32) -> Result<Self, SupervisorError> {
        let (ours, theirs) = Channel::pair()?;
        let mask = watched_signals();
        sigprocmask(SigmaskHow::SIG_BLOCK, Some(&mask), None).map_err(SupervisorError::Signals)?;
        match fork().map_err(SupervisorError::ForkServer)? {
            Forked::Child => {
                drop(ours);
                let unblocked = sigprocmask(SigmaskHow::SIG_UNBLOCK, Some(&mask), None);
                unblocked.map_err(SupervisorError::Signals)?;
                std::process::exit(server(theirs))
            }
            Forked::Parent(pid) => {
                drop(theirs);
                let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
                let signals = SignalFd::with_flags(&mask, flags).map_err(SupervisorError::Signals)?;
                Ok(Self { channel: ours, signals, server: pid })
            }
        }
    }

    /// Serves until the server has gone or asks for the end.
    ///
    /// # Errors
    /// Only for what a supervisor can't go on after.
    pub fn run(&self) -> Result<Ended, SupervisorError> {
        loop {
            if let Some(status) = self.report_dead_children()? {
                return Ok(Ended::Server(status));
            }
            let mut watched = [
                PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.channel.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut watched, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(SupervisorError::Poll(errno)),
            }
            self.take_signals();
            if self.serve_message() {
                return Ok(Ended::ShutDown);
            }
        }
    }

    /// Reports and reaps all that have ended; the server's own end is what the caller gets.
    fn report_dead_children(&self) -> Result<Option<ExitStatus>, SupervisorError> {
        let mut server = None;
        while let Some((pid, status)) = reaper::next_dead_child().map_err(SupervisorError::Wait)? {
            if pid == self.server {
                server = Some(status);
            } else {
                let exited =
                    Header { kind: Kind::Exited, request: 0, pid: pid.as_raw(), status: status.to_wire() };
                // A server that is gone needs no report; its own end comes up in this same loop.
                let _ = self.channel.send(exited, b"", &[], MsgFlags::empty());
            }
            reaper::reap(pid);
        }
        Ok(server)
    }

    /// Empties the signal descriptor; asks the server to stop if we are asked to.
    fn take_signals(&self) {
        while let Ok(Some(info)) = self.signals.read_signal() {
            if info.ssi_signo != Signal::SIGCHLD as u32 {
                let _ = kill(self.server, Signal::SIGTERM);
            }
        }
    }

    /// Takes one message, if there is one; true when it is the end.
    fn serve_message(&self) -> bool {
        // A closed channel is a dead server, and SIGCHLD tells of that.
        let Ok(message) = self.channel.receive(0, MsgFlags::MSG_DONTWAIT) else { return false };
        match message.header.kind {
            Kind::Launch => self.launch(message.header.request, message.fds),
            Kind::ShutDown => return true,
            Kind::Forked | Kind::ForkFailed | Kind::Exited | Kind::Reply => {}
        }
        false
    }

    fn launch(&self, request: u64, fds: Vec<OwnedFd>) {
        let answer = match fork() {
            Ok(Forked::Child) => self.become_worker(request, fds),
            Ok(Forked::Parent(pid)) => Header { kind: Kind::Forked, request, pid: pid.as_raw(), status: 0 },
            Err(errno) => Header { kind: Kind::ForkFailed, request, pid: 0, status: errno as i32 },
        };
        let _ = self.channel.send(answer, b"", &[], MsgFlags::empty());
    }

    /// In the forked child: hands over to the worker, with the signals as they were.
    fn become_worker(&self, request: u64, fds: Vec<OwnedFd>) -> ! {
        let _ = sigprocmask(SigmaskHow::SIG_UNBLOCK, Some(&watched_signals()), None);
        let _ = nix::unistd::close(std::os::fd::AsRawFd::as_raw_fd(&self.signals));
        crate::worker::run(&self.channel, request, fds)
    }
}
