//! Our standard input, which one connection after another may read.
//!
//! It is one reader for all of them: what a read that was given up has taken already, the next one gets. What had been
//! taken and was not acknowledged when a connection broke may have arrived or not, which the input remembers.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, ReadBuf, Stdin};

/// A handle of it; all copies are the same input.
#[derive(Debug)]
pub(crate) struct Input<R = Stdin>(Arc<Mutex<Shared<R>>>);

#[derive(Debug)]
struct Shared<R> {
    reader: R,
    is_under_way: bool,
}

impl<R> Clone for Input<R> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl Input {
    /// That of this program.
    pub(crate) fn of_program() -> Self {
        Self::new(tokio::io::stdin())
    }
}

impl<R> Input<R> {
    fn new(reader: R) -> Self {
        Self(Arc::new(Mutex::new(Shared { reader, is_under_way: false })))
    }

    /// Whether something has been read that may not have arrived: who asks for more has seen to what he had.
    pub(crate) fn is_under_way(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_under_way
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for Input<R> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut shared = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = buffer.filled().len();
        let read = Pin::new(&mut shared.reader).poll_read(context, buffer);
        shared.is_under_way = buffer.filled().len() > before;
        read
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn what_was_read_is_under_way_until_more_is_asked_for() {
        let (mut writer, reader) = tokio::io::duplex(64);
        let input = Input::new(reader);
        let (mut first, mut second) = (input.clone(), input.clone());
        assert!(!input.is_under_way());
        writer.write_all(b"one").await.unwrap();
        let mut buffer = [0; 8];
        assert_eq!(first.read(&mut buffer).await.unwrap(), 3);
        assert!(input.is_under_way());
        // A read that is given up takes nothing with it.
        assert!(futures_now(second.read(&mut buffer)).await.is_none());
        assert!(!input.is_under_way());
        writer.write_all(b"two").await.unwrap();
        assert_eq!(first.read(&mut buffer).await.unwrap(), 3);
        drop(writer);
        assert_eq!(second.read(&mut buffer).await.unwrap(), 0);
        assert!(!input.is_under_way());
    }

    /// What `future` comes to without waiting.
    async fn futures_now<T>(future: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            value = future => Some(value),
            () = std::future::ready(()) => None,
        }
    }
}
