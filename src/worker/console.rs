//! The terminal of a process.
//!
//! libcontainer makes the pty in the container's own devpts and sends the master over a unix socket. A
//! relay, forked before libcontainer runs, takes it, sets the window size, gives the pts to the process's
//! user, hands the master to the worker and ends. The executor waits for the relay's end before it starts
//! the program, so the program never sees a terminal of size zero or of another owner.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg,
    socketpair,
};

use super::job::{Failure, ProcessIo};
use super::sys;
use crate::supervisor::{Forked, fork, own};

/// The worker's side of a terminal in the making.
#[derive(Debug)]
pub(super) struct Console {
    /// Where libcontainer is to connect; removed on drop.
    pub(super) socket: PathBuf,
    /// The executor reads this until its end: then the terminal is ready.
    pub(super) ready: OwnedFd,
    master: OwnedFd,
}

impl Console {
    /// Listens in `dir` and forks the relay.
    pub(super) fn prepare(dir: &Path, io: &ProcessIo) -> Result<Self, Failure> {
        let failed = |step: &str, cause: &dyn std::fmt::Display| {
            Failure::internal(format!("prepare a terminal: {step}: {cause}"))
        };
        let name = format!("console-{}.sock", std::process::id());
        let socket = dir.join(&name);
        let listener = listen(dir, &name).map_err(|e| failed("listen", &e))?;
        let (ready, done) =
            nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(|e| failed("pipe", &e))?;
        let (master, relayed) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
                .map_err(|e| failed("socket pair", &e))?;
        match fork().map_err(|e| failed("fork", &e))? {
            Forked::Child => {
                // Ends with the worker when libcontainer fails before it connects.
                let _ = nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL);
                drop((ready, master));
                relay(&listener, &relayed, io);
                drop(done);
                sys::exit_now(0)
            }
            Forked::Parent(_) => Ok(Self { socket, ready, master }),
        }
    }

    /// The master, once libcontainer has made the terminal.
    pub(super) fn master(&self) -> Result<OwnedFd, Failure> {
        receive_fd(&self.master).ok_or_else(|| Failure::internal("the container's terminal did not arrive"))
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// A socket path is limited to 107 bytes; through the directory's descriptor it is always short enough.
fn listen(dir: &Path, name: &str) -> std::io::Result<UnixListener> {
    let dir = std::fs::File::open(dir)?;
    UnixListener::bind(format!("/proc/self/fd/{}/{name}", dir.as_raw_fd()))
}

fn relay(listener: &UnixListener, worker: &OwnedFd, io: &ProcessIo) {
    let Ok((connection, _)) = listener.accept() else { return };
    let Some(master) = receive_fd(&connection.into()) else { return };
    if let Some((rows, columns)) = io.window {
        let _ = crate::stdio::set_window_size(&master, rows.into(), columns.into());
    }
    if io.owner.0 != 0
        && let Ok(peer) = sys::open_pty_peer(&master)
    {
        let _ = nix::unistd::fchown(&peer, Some(io.owner.0.into()), None);
    }
    let rights = [master.as_raw_fd()];
    let control = [ControlMessage::ScmRights(&rights)];
    let _ = sendmsg::<()>(worker.as_raw_fd(), &[IoSlice::new(b"m")], &control, MsgFlags::MSG_NOSIGNAL, None);
}

fn receive_fd(socket: &OwnedFd) -> Option<OwnedFd> {
    let mut bytes = [0; 256];
    let mut control = nix::cmsg_space!([std::os::fd::RawFd; 1]);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let received = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags).ok()?;
    let mut fds = received.cmsgs().ok()?.flat_map(|message| match message {
        ControlMessageOwned::ScmRights(fds) => fds.into_iter().map(own).collect(),
        _ => Vec::new(),
    });
    fds.next()
}
