//! The pipe through which splice(2) moves bytes between a terminal and the connection that carries a stream of it.
//!
//! splice(2) moves bytes only where one side is a pipe, so they go from one side into this one and on to the other. The
//! supervisor holds both of its ends with the connection: whenever the server is killed, each byte is in one of the
//! three, and the next server begins with what is in the pipe.

use std::io;
use std::time::Duration;

use nix::errno::Errno;
use tokio::sync::watch;

use super::link::{Link, Missing, Moved, Piece, is_memory_short, missing};
use super::{InputStream, OutputStream};
use crate::journal::{Pipe, splice};

/// See the module.
#[derive(Debug)]
pub(super) struct Stage(pub(super) Pipe);

impl Stage {
    /// Moves what a terminal shows, until its end or the host's. `exited` and `quiet` as in [`OutputStream::take`].
    pub(super) async fn carry_output<T>(
        &self,
        link: &Link,
        stream: &OutputStream,
        exited: &watch::Receiver<Option<T>>,
        quiet: Duration,
    ) {
        let mut piece = Piece::of_terminal();
        while self.empty_into(link).await.is_ok() {
            match stream.move_to(self.0.writer(), piece.0, exited, quiet).await {
                Ok(Moved::Bytes) => piece.moved(),
                Ok(Moved::NoMemory) => piece.refused().await,
                // It has just been emptied.
                Ok(Moved::NotNow) => {}
                Ok(Moved::End) | Err(_) => break,
            }
            tokio::task::consume_budget().await;
        }
    }

    /// Moves what is in the pipe to the host, until it is empty and the connection has room.
    async fn empty_into(&self, link: &Link) -> io::Result<()> {
        let mut piece = Piece::of_terminal();
        loop {
            let mut room = link.connection().writable().await?;
            match splice(self.0.reader(), link.fd(), piece.0) {
                Ok(_) => piece.moved(),
                Err(Errno::EAGAIN) => match missing(self.0.reader(), link.fd()) {
                    Missing::Bytes => return Ok(()),
                    Missing::Room => room.clear_ready(),
                    Missing::Nothing => {}
                },
                Err(errno) if is_memory_short(errno) => piece.refused().await,
                Err(errno) => return Err(errno.into()),
            }
            tokio::task::consume_budget().await;
        }
    }

    /// Moves what the host writes to a terminal, until its end or the process's.
    pub(super) async fn carry_input(&self, link: &Link, stream: &InputStream) {
        let mut piece = Piece::of_terminal();
        loop {
            // What the terminal has not taken yet comes first.
            match stream.move_from(self.0.reader(), piece.0).await {
                Ok(Moved::Bytes) => piece.moved(),
                Ok(Moved::NoMemory) => piece.refused().await,
                Ok(Moved::End) | Err(_) => return,
                Ok(Moved::NotNow) => match self.fill_from(link, &mut piece).await {
                    Ok(Moved::End) | Err(_) => return,
                    Ok(_) => {}
                },
            }
            tokio::task::consume_budget().await;
        }
    }

    /// Waits for the host and moves what it writes into the pipe, which is empty.
    async fn fill_from(&self, link: &Link, piece: &mut Piece) -> io::Result<Moved> {
        let mut ready = link.connection().readable().await?;
        match splice(link.fd(), self.0.writer(), piece.0) {
            Ok(0) => return Ok(Moved::End),
            Ok(_) => piece.moved(),
            Err(Errno::EAGAIN) if missing(link.fd(), self.0.writer()) == Missing::Bytes => {
                ready.clear_ready();
            }
            Err(Errno::EAGAIN) => {}
            Err(errno) if is_memory_short(errno) => piece.refused().await,
            Err(errno) => return Err(errno.into()),
        }
        Ok(Moved::Bytes)
    }
}
