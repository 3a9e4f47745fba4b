//! Where log lines are written to. Only the writing thread calls [`Output::write_lines`], which may block as
//! long as the other side pleases.

#![expect(unsafe_code, reason = "accept4(2) hands out a raw descriptor")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, VsockAddr, accept4, bind, listen, socket,
};
use nix::unistd::write;

use crate::vsock;

/// A place to write lines to.
#[derive(Debug)]
pub enum Output {
    /// An open file: standard output, a pipe, a connected socket.
    Fd(OwnedFd),
    /// A listening socket: lines wait until somebody connects, and go to one connection at a time.
    Listener {
        /// The listening socket.
        socket: OwnedFd,
        /// Whether processes of this machine are not to read it.
        is_for_the_host: bool,
        /// Who listens now.
        connection: Option<OwnedFd>,
    },
}

impl Output {
    /// Standard output.
    ///
    /// # Errors
    ///
    /// It is closed, or no descriptor is left.
    pub fn stdout() -> io::Result<Self> {
        Ok(Self::Fd(io::stdout().as_fd().try_clone_to_owned()?))
    }

    /// A vsock port of this guest, on which the host collects the log, see [`Output::at_port`].
    ///
    /// # Errors
    ///
    /// There is no vsock transport, or the port is taken.
    pub fn listen(port: u32) -> io::Result<OwnedFd> {
        let listener = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        bind(listener.as_raw_fd(), &VsockAddr::new(libc::VMADDR_CID_ANY, port))?;
        listen(&listener, Backlog::new(1)?)?;
        Ok(listener)
    }

    /// Whoever connects from the host to a listener of [`Output::listen`]'s.
    pub fn at_port(listener: OwnedFd) -> Self {
        Self::Listener { socket: listener, is_for_the_host: true, connection: None }
    }

    /// Writes whole lines. A listener whose peer hangs up in the middle of a line goes on with the next one
    /// at the next peer.
    pub(super) fn write_lines(&mut self, mut lines: &[u8]) -> io::Result<()> {
        loop {
            let Err((written, error)) = write_all(self.connected()?, lines) else { return Ok(()) };
            let Self::Listener { connection, .. } = self else { return Err(error.into()) };
            *connection = None;
            lines = rest(lines, written);
            if lines.is_empty() {
                return Ok(());
            }
        }
    }

    /// The descriptor to write to. A listener without a peer waits for one.
    fn connected(&mut self) -> io::Result<BorrowedFd<'_>> {
        let fd = match self {
            Self::Fd(fd) => fd,
            Self::Listener { connection: Some(peer), .. } => peer,
            Self::Listener { socket, is_for_the_host, connection } => {
                connection.insert(accept(socket, *is_for_the_host)?)
            }
        };
        Ok(OwnedFd::as_fd(fd))
    }
}

fn accept(listener: &OwnedFd, is_for_the_host: bool) -> io::Result<OwnedFd> {
    loop {
        let fd = match accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC) {
            Ok(fd) => fd,
            Err(Errno::EINTR | Errno::ECONNABORTED) => continue,
            Err(error) => return Err(error.into()),
        };
        // SAFETY: accept4 has just returned this descriptor, and nothing else knows it.
        let connection = unsafe { OwnedFd::from_raw_fd(fd) };
        if !is_for_the_host || vsock::is_from_the_host(connection.as_fd()) {
            return Ok(connection);
        }
    }
}

/// Writes it all, or says how much was written before the error.
fn write_all(fd: BorrowedFd<'_>, mut bytes: &[u8]) -> Result<(), (usize, Errno)> {
    let all = bytes.len();
    while !bytes.is_empty() {
        match write(fd, bytes) {
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(Errno::EINTR) => {}
            // Somebody else made the open file non-blocking: wait for room.
            Err(Errno::EAGAIN) => {
                let _ = poll(&mut [PollFd::new(fd, PollFlags::POLLOUT)], PollTimeout::NONE);
            }
            Err(error) => return Err((all.saturating_sub(bytes.len()), error)),
        }
    }
    Ok(())
}

/// What follows the line in which `written` ends.
fn rest(lines: &[u8], written: usize) -> &[u8] {
    if written == 0 {
        return lines;
    }
    // Step back one, so that a line written to its end costs no other.
    let tail = lines.get(written.saturating_sub(1)..).unwrap_or_default();
    let end = tail.iter().position(|byte| *byte == b'\n');
    end.and_then(|end| tail.get(end.saturating_add(1)..)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    #[test]
    fn a_broken_line_costs_only_itself() {
        let lines = b"one\ntwo\nthree\n";
        for (written, left) in
            [(0, "one\ntwo\nthree\n"), (1, "two\nthree\n"), (4, "two\nthree\n"), (5, "three\n"), (14, "")]
        {
            assert_eq!(rest(lines, written), left.as_bytes(), "{written}");
        }
    }

    #[test]
    fn the_next_peer_gets_the_next_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.sock");
        let socket = OwnedFd::from(UnixListener::bind(&path).unwrap());
        let mut output = Output::Listener { socket, is_for_the_host: false, connection: None };
        for text in ["first\n", "second\n"] {
            let mut peer = BufReader::new(UnixStream::connect(&path).unwrap());
            output.write_lines(text.as_bytes()).unwrap();
            let mut line = String::new();
            peer.read_line(&mut line).unwrap();
            assert_eq!(line, text);
        }
    }
}
