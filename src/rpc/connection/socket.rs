//! The byte stream of a connection: a non-blocking socket in the event loop, of whatever family.
//!
//! Reads and writes don't exclude each other. A dropped read has lost nothing; a dropped write may have written a part,
//! so it may only be dropped together with the connection.
//!
//! The event loop is told to look for room only while a write waits for it: else it would be woken each time that the
//! peer takes an answer, which makes room, for nothing.

#![expect(unsafe_code, reason = "AsyncFd's constructor trusts its caller not to close the fd")]

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::sys::socket::{Shutdown, setsockopt, sockopt};
use rustix::buffer::spare_capacity;
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// How long to wait when descriptors are used up.
const NO_DESCRIPTORS: Duration = Duration::from_millis(20);
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

    /// Reads into the free room of `buffer`, of which there must be some. 0 is the end.
    pub(super) async fn read(&self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        loop {
            let mut ready = self.0.readable().await?;
            let room = buffer.capacity().saturating_sub(buffer.len());
            match rustix::io::read(self.0.get_ref(), spare_capacity(buffer)) {
                Ok(read) => {
                    // There is no more for now, so it need not be asked. What comes from here on is an event of its own.
                    if read > 0 && read < room {
                        ready.clear_ready();
                    }
                    return Ok(read);
                }
                Err(Errno::AGAIN) => ready.clear_ready(),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Writes `head` and then `body`, all of it, with as few calls of the kernel as there can be.
    pub(super) async fn write_all(&self, mut head: &[u8], mut body: &[u8]) -> io::Result<()> {
        let mut room: Option<AsyncFd<OwnedFd>> = None;
        while !head.is_empty() || !body.is_empty() {
            // From before the write: what it is told from then on is not forgotten with it.
            let ready = match &room {
                Some(room) => Some(room.writable().await?),
                None => None,
            };
            match rustix::io::writev(self.0.get_ref(), &[IoSlice::new(head), IoSlice::new(body)]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    body = body.get(written.saturating_sub(head.len())..).unwrap_or_default();
                    head = head.get(written..).unwrap_or_default();
                }
                Err(Errno::AGAIN) => match ready {
                    Some(mut ready) => ready.clear_ready(),
                    // The event loop takes a descriptor once.
                    None => {
                        match self.0.get_ref().try_clone().and_then(|fd| register(fd, Interest::WRITABLE)) {
                            Ok(registration) => room = Some(registration),
                            // Nobody tells when there are some again, nor of room without one.
                            Err(_) => tokio::time::sleep(NO_DESCRIPTORS).await,
                        }
                    }
                },
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// Ends the connection in both directions: whoever waits on it learns of it.
    pub(super) fn hang_up(&self) {
        let _ = nix::sys::socket::shutdown(self.0.as_raw_fd(), Shutdown::Both);
    }
}
