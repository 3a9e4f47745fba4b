//! The byte stream of a connection: a non-blocking socket in the event loop, of whatever family.
//!
//! Reads and writes don't exclude each other. A dropped read has lost nothing; a dropped write may have written a part,
//! so it may only be dropped together with the connection.
//!
//! The event loop is told to look for room only while a write waits for it: else it would be woken each time that the
//! peer takes an answer, which makes room, for nothing.

#![expect(unsafe_code, reason = "AsyncFd's constructor trusts its caller not to close the fd")]

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Shutdown, SockaddrLike as _, SockaddrStorage, getsockname, setsockopt, sockopt,
};
use nix::sys::uio::writev;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::coop::consume_budget;

use crate::journal::{Answer, Sender};

/// How long to wait when descriptors or memory are used up: nobody tells when there are some again.
const RECOVERY: Duration = Duration::from_millis(20);
/// How much is written at a time from when memory was short: the kernel then needs no pages that lie together for it.
const LITTLE: usize = 4096;
/// Room for answers that the peer has not taken: an answer of a mebibyte is one write, and waits in the kernel and not
/// here.
const ROOM: usize = 1 << 20;

/// See the module.
#[derive(Debug)]
pub(super) struct Socket(AsyncFd<OwnedFd>);

fn register(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is owned by the registration, and nobody else closes it.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}

impl Socket {
    /// Takes a connected, non-blocking socket.
    pub(super) fn new(fd: OwnedFd) -> io::Result<Self> {
        // A wish, which a unix socket heeds; vsock has what its host gives it.
        let _ =
            setsockopt(&fd, sockopt::SndBufForce, &ROOM).or_else(|_| setsockopt(&fd, sockopt::SndBuf, &ROOM));
        Ok(Self(register(fd, Interest::READABLE)?))
    }

    /// Whether it takes what is spliced into it without a copy: of a page at a time vsock would make a packet.
    pub(super) fn takes_pages(&self) -> bool {
        let name = getsockname::<SockaddrStorage>(self.0.as_raw_fd());
        name.is_ok_and(|name| name.family() == Some(AddressFamily::Unix))
    }

    /// Reads once there is something. `read` tells how much it took, 0 at the end, and whether that was all there is.
    pub(super) async fn read(
        &self,
        mut read: impl FnMut(BorrowedFd<'_>) -> Result<(usize, bool), Errno>,
    ) -> io::Result<usize> {
        loop {
            // To be readable takes none of it, and bytes that are passed over may be without end.
            consume_budget().await;
            let mut ready = self.0.readable().await?;
            match read(self.0.get_ref().as_fd()) {
                Ok((count, was_all)) => {
                    // There is no more for now, so it need not be asked. What comes from here on is an event of its own.
                    if count > 0 && was_all {
                        ready.clear_ready();
                    }
                    return Ok(count);
                }
                Err(Errno::EAGAIN) => ready.clear_ready(),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Writes an answer, or what an earlier server has not written of it, with as few calls of the kernel as there
    /// can be.
    pub(super) async fn write(&self, sender: &Sender, answer: &Answer) -> io::Result<()> {
        match answer {
            Answer::Kept { .. } | Answer::Passing { .. } => {
                self.write_by(|fd, most| sender.send(fd, answer, most)).await
            }
            Answer::Own(head, body) => {
                let (mut head, mut body) = (head.as_slice(), body.as_slice());
                self.write_by(|fd, most| {
                    let (now, then) = (upto(head, most), upto(body, most.saturating_sub(head.len())));
                    let written = writev(fd, &[IoSlice::new(now), IoSlice::new(then)])?;
                    body = body.get(written.saturating_sub(head.len())..).unwrap_or_default();
                    head = head.get(written..).unwrap_or_default();
                    Ok(head.is_empty() && body.is_empty())
                })
                .await
            }
        }
    }

    /// Calls `write` whenever there may be room, with how much it may write, until it says that all is written.
    async fn write_by(
        &self,
        mut write: impl FnMut(BorrowedFd<'_>, usize) -> Result<bool, Errno>,
    ) -> io::Result<()> {
        let mut room: Option<AsyncFd<OwnedFd>> = None;
        let mut most = usize::MAX;
        loop {
            // From before the write: what it is told from then on is not forgotten with it.
            let ready = match &room {
                Some(room) => Some(room.writable().await?),
                None => None,
            };
            match write(self.0.get_ref().as_fd(), most) {
                Ok(true) => return Ok(()),
                Ok(false) | Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => match ready {
                    Some(mut ready) => ready.clear_ready(),
                    // The event loop takes a descriptor once.
                    None => {
                        match self.0.get_ref().try_clone().and_then(|fd| register(fd, Interest::WRITABLE)) {
                            Ok(registration) => room = Some(registration),
                            // Nobody tells of room without one.
                            Err(_) => tokio::time::sleep(RECOVERY).await,
                        }
                    }
                },
                // The kernel's memory is short, which passes, of which no event tells; the end of the connection
                // would not.
                Err(Errno::ENOMEM | Errno::ENOBUFS) => {
                    most = LITTLE;
                    tokio::time::sleep(RECOVERY).await;
                }
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Ends the connection in both directions: whoever waits on it learns of it, also while the supervisor still has a
    /// duplicate.
    pub(super) fn hang_up(&self) {
        let _ = nix::sys::socket::shutdown(self.0.as_raw_fd(), Shutdown::Both);
    }
}

fn upto(bytes: &[u8], most: usize) -> &[u8] {
    bytes.get(..most).unwrap_or(bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::unix::net::UnixStream;

    use super::*;

    /// vsock's sendmsg(2) says so where memory is in pieces.
    #[tokio::test]
    async fn a_moment_without_memory_ends_no_connection() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let socket = Socket::new(ours.into()).unwrap();
        let mut said = [Errno::ENOMEM, Errno::ENOBUFS].into_iter();
        let mut tried = Vec::new();
        let write = |fd: BorrowedFd<'_>, most: usize| {
            tried.push(most);
            said.next().map_or_else(|| nix::unistd::write(fd, b"x").map(|_| true), Err)
        };
        socket.write_by(write).await.unwrap();
        assert_eq!(tried, [usize::MAX, LITTLE, LITTLE]);
        assert_eq!(theirs.read(&mut [0; 8]).unwrap(), 1);
    }
}
