//! A connection into a guest through its VMM's unix socket, and how it ends.
//!
//! A unix socket that is closed with bytes in it that nobody has read gives its peer ECONNRESET instead of the end of
//! the stream. vhost-device-vsock 0.3 takes that for nothing at all: it never looks at the socket again, and the guest
//! keeps its end for ever. So whatever has come is taken before the socket is closed, when no more can come.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::pin::Pin;
use std::task::{Context, Poll};

use nix::sys::socket::{Shutdown, shutdown};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;

/// See the module.
pub(crate) struct Hybrid(UnixStream);

impl Hybrid {
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self(stream)
    }

    /// Which process of this host is at the other end.
    pub(crate) fn peer(&self) -> Option<String> {
        crate::connect::peer(&self.0)
    }
}

impl Drop for Hybrid {
    fn drop(&mut self) {
        // From here on the peer can't send.
        let _ = shutdown(self.0.as_raw_fd(), Shutdown::Both);
        let mut unread = [0; 4096];
        while nix::unistd::read(self.0.as_fd(), &mut unread).is_ok_and(|read| read > 0) {}
    }
}

impl AsyncRead for Hybrid {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Hybrid {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    #[tokio::test]
    async fn whoever_is_left_sees_an_end_and_no_error() {
        let (stream, mut vmm) = UnixStream::pair().unwrap();
        let mut client = Hybrid::new(stream);
        client.write_all(b"call").await.unwrap();
        vmm.write_all(b"answer").await.unwrap();
        assert_eq!(client.read_u8().await.unwrap(), b'a');
        drop(client);
        let mut seen = Vec::new();
        vmm.read_to_end(&mut seen).await.unwrap();
        assert_eq!(seen, b"call");
        assert_eq!(vmm.write_all(b"more").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
