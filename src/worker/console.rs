//! The terminal of a process.
//!
//! Of a further process its own child makes it, in the container, and sends the master to the worker ([`open`]). Of a
//! container's init libcontainer makes the pty in the container's own devpts and sends the master over a unix socket. A
//! relay, forked before libcontainer runs, takes it, sets the window size, gives the pts to the process's
//! user, hands the master to the worker and ends. The executor waits for the relay's end before it starts
//! the program, so the program never sees a terminal of size zero or of another owner.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg,
    socketpair,
};
use nix::sys::stat::{Mode, SFlag, fstat, major, minor};
use nix::sys::statfs::{DEVPTS_SUPER_MAGIC, fstatfs};
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout};

use super::job::{Failure, FailureKind, ProcessIo};
use super::{child, sys};
use crate::supervisor::{Forked, fork, own};

/// The socket's name in a container's bundle. A worker that is killed leaves it there.
pub(crate) const SOCKET: &str = "console.sock";

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
        let socket = dir.join(SOCKET);
        let listener = listen(dir, SOCKET).map_err(|e| failed("listen", &e))?;
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
    let _ = std::fs::remove_file(dir.join(name));
    let dir = std::fs::File::open(dir)?;
    UnixListener::bind(format!("/proc/self/fd/{}/{name}", dir.as_raw_fd()))
}

fn relay(listener: &UnixListener, worker: &OwnedFd, io: &ProcessIo) {
    let Ok((connection, _)) = listener.accept() else { return };
    let Some(master) = receive_fd(&connection.into()) else { return };
    let peer = sys::open_pty_peer(&master);
    dress(&master, peer.ok().as_ref(), io);
    let _ = send_fd(worker, &master);
}

/// The size that the host named, and the process's user as the owner.
fn dress(master: &OwnedFd, peer: Option<&OwnedFd>, io: &ProcessIo) {
    if let Some((rows, columns)) = io.window {
        let _ = crate::stdio::set_window_size(master, rows.into(), columns.into());
    }
    if let Some(peer) = peer.filter(|_| io.owner.0 != 0) {
        let _ = nix::unistd::fchown(peer, Some(io.owner.0.into()), None);
    }
}

/// Makes the terminal of this process, which is in the container and leads a session, and sends the master to `worker`.
/// `proc` is the agent's `/proc`. Returns the terminal.
pub(super) fn open(proc: &OwnedFd, io: &ProcessIo, worker: &OwnedFd) -> Result<OwnedFd, Failure> {
    let failed = |step: &'static str| {
        move |errno: nix::Error| match errno {
            // The guest has as many as it may (`kernel.pty.max`).
            nix::Error::ENOSPC => Failure {
                kind: FailureKind::Exhausted,
                message: format!("make a terminal: {step}: there are no more"),
            },
            _ => child::failed(&format!("make a terminal: {step}"), errno),
        }
    };
    let place = multiplexer().map_err(failed("look for /dev/ptmx"))?;
    let place = place
        .ok_or_else(|| Failure::internal("make a terminal: the container's /dev/ptmx is something else"))?;
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let path = format!("thread-self/fd/{}", place.as_raw_fd());
    let master = nix::fcntl::openat(proc, path.as_str(), flags, Mode::empty()).map_err(failed("open it"))?;
    sys::unlock_pty(&master).map_err(failed("unlock it"))?;
    let peer = sys::open_pty_peer(&master).map_err(failed("open its other side"))?;
    dress(&master, Some(&peer), io);
    send_fd(worker, &master).map_err(failed("hand it over"))?;
    sys::take_terminal(&peer)
        .and_then(|()| dup2_stdin(&peer))
        .and_then(|()| dup2_stdout(&peer))
        .and_then(|()| dup2_stderr(&peer))
        .map_err(failed("connect the process to it"))?;
    Ok(peer)
}

/// The device which makes terminals in the container's filesystem for them; nothing if there is something else.
/// `/dev/ptmx` is a link to it or, in a `/dev` of the guest's, a node of its own.
fn multiplexer() -> Result<Option<OwnedFd>, nix::Error> {
    let find = |path: &str| {
        // By no link to what is open here, which may be the guest's.
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_NO_MAGICLINKS);
        let place = openat2(AT_FDCWD, path, how)?;
        Ok::<_, nix::Error>(is_multiplexer(&place)?.then_some(place))
    };
    match find("/dev/pts/ptmx") {
        Ok(Some(place)) => Ok(Some(place)),
        _ => find("/dev/ptmx"),
    }
}

/// Whether that is the device which makes terminals, in a filesystem for them (pts(4)), and not what the image or
/// somebody in the container has put in its place.
fn is_multiplexer(place: &OwnedFd) -> Result<bool, nix::Error> {
    /// In each such filesystem (`PTMX_MINOR` in the kernel's fs/devpts/inode.c).
    const INODE: u64 = 2;
    let (file, filesystem) = (fstat(place)?, fstatfs(place)?);
    Ok(filesystem.filesystem_type() == DEVPTS_SUPER_MAGIC
        && SFlag::from_bits_truncate(file.st_mode) & SFlag::S_IFMT == SFlag::S_IFCHR
        && (major(file.st_rdev), minor(file.st_rdev), file.st_ino) == (5, 2, INODE))
}

fn send_fd(socket: &OwnedFd, fd: &OwnedFd) -> Result<(), nix::Error> {
    let rights = [fd.as_raw_fd()];
    let control = [ControlMessage::ScmRights(&rights)];
    let parts = [IoSlice::new(b"m")];
    sendmsg::<()>(socket.as_raw_fd(), &parts, &control, MsgFlags::MSG_NOSIGNAL, None).map(drop)
}

fn receive_fd(socket: &OwnedFd) -> Option<OwnedFd> {
    receive(socket).ok()??.fd
}

/// What the other side of a socket has sent.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) text: Vec<u8>,
    pub(super) fd: Option<OwnedFd>,
}

/// The next message; nothing when the other side has closed.
pub(super) fn receive(socket: &OwnedFd) -> Result<Option<Message>, nix::Error> {
    /// A [`Failure`] with the longest path that there is, and some.
    const LONGEST: usize = 16 << 10;
    let mut text = vec![0; LONGEST];
    let mut control = nix::cmsg_space!([std::os::fd::RawFd; 1]);
    let mut parts = [IoSliceMut::new(&mut text)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let received = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags)?;
    let fd = received.cmsgs()?.find_map(|message| match message {
        ControlMessageOwned::ScmRights(fds) => fds.into_iter().map(own).next(),
        _ => None,
    });
    let len = received.bytes;
    text.truncate(len);
    Ok((len > 0).then_some(Message { text, fd }))
}
