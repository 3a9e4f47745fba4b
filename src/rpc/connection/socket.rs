//! The byte stream of a connection: a non-blocking socket in the event loop, of whatever family.
//!
//! Reads and writes don't exclude each other. A dropped read has lost nothing; a dropped write may have written a part,
//! so it may only be dropped together with the connection.

#![expect(unsafe_code, reason = "AsyncFd's constructor trusts its caller not to close the fd")]

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::Shutdown;
use rustix::buffer::spare_capacity;
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// See the module.
#[derive(Debug)]
pub(super) struct Socket(AsyncFd<OwnedFd>);

impl Socket {
    /// Takes a connected, non-blocking socket.
    pub(super) fn new(fd: OwnedFd) -> io::Result<Self> {
        // SAFETY: the descriptor is owned by the registration, and nobody else closes it.
        let registered =
            unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE | Interest::WRITABLE) };
        Ok(Self(registered?))
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
        while !head.is_empty() || !body.is_empty() {
            let mut ready = self.0.writable().await?;
            match rustix::io::writev(self.0.get_ref(), &[IoSlice::new(head), IoSlice::new(body)]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    body = body.get(written.saturating_sub(head.len())..).unwrap_or_default();
                    head = head.get(written..).unwrap_or_default();
                }
                Err(Errno::AGAIN) => ready.clear_ready(),
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
