//! Bytes between a connection and a terminal, until either of them ends.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{read, write};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::sys;

/// What is carried at a time: a screen or two.
const BUFFER: usize = 4096;

/// Carries bytes both ways.
pub(super) async fn relay(connection: OwnedFd, master: OwnedFd) -> io::Result<()> {
    let (connection, master) = (nonblocking(connection)?, nonblocking(master)?);
    // The terminal's last words have been carried when its side ends; when the connection ends, nobody listens.
    tokio::select! {
        ended = carry(&master, &connection) => ended,
        ended = carry(&connection, &master) => ended,
    }
}

fn nonblocking(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
    fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    sys::register(fd, Interest::READABLE | Interest::WRITABLE)
}

async fn carry(from: &AsyncFd<OwnedFd>, to: &AsyncFd<OwnedFd>) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let len = match from.async_io(Interest::READABLE, |fd| Ok(read(fd.as_fd(), &mut buffer)?)).await {
            Ok(0) => return Ok(()),
            Ok(len) => len,
            // What a master says when no process has the terminal open any more.
            Err(error) if error.raw_os_error() == Some(Errno::EIO as i32) => return Ok(()),
            Err(error) => return Err(error),
        };
        let mut rest = buffer.get(..len).unwrap_or_default();
        while !rest.is_empty() {
            let written = to.async_io(Interest::WRITABLE, |fd| Ok(write(fd.as_fd(), rest)?)).await?;
            rest = rest.get(written..).unwrap_or_default();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[tokio::test]
    async fn bytes_go_both_ways_until_one_side_ends() {
        let (mut host, connection) = UnixStream::pair().unwrap();
        let (mut shell, master) = UnixStream::pair().unwrap();
        let relayed = tokio::spawn(relay(connection.into(), master.into()));
        let talked = tokio::task::spawn_blocking(move || {
            let mut seen = [0; 5];
            host.write_all(b"hello").unwrap();
            shell.read_exact(&mut seen).unwrap();
            assert_eq!(&seen, b"hello");
            // More than fits at a time, and then the end.
            let page = vec![b'x'; 3 * BUFFER + 1];
            let copy = page.clone();
            let writer = std::thread::spawn(move || shell.write_all(&copy).unwrap());
            let mut all = Vec::new();
            host.read_to_end(&mut all).unwrap();
            writer.join().unwrap();
            assert_eq!(all, page);
        });
        talked.await.unwrap();
        relayed.await.unwrap().unwrap();
    }
}
