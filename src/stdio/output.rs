//! The reading end of stdout or stderr, or of a terminal.
//!
//! Invariants: bytes leave the kernel only in the poll that also hands them to the caller, so a dropped
//! read loses nothing; no lock is held while waiting, so any number of reads may wait at once and each
//! byte goes to exactly one of them; once the end was reported it stays reported.
//!
//! The end of a stream is
//! - for a pipe, that its last writer is gone;
//! - for a terminal, that nobody has it open *and* the process has exited (before that, an init
//!   may close and reopen its console at will);
//! - for both, that the process has exited and whoever else holds the stream open (a background
//!   child) has been quiet for some time.

use super::link::{Missing, Moved, is_memory_short, missing};
use super::source::{REOPEN_LOOK, Source};

use super::{StdioError, StreamName};
use crate::journal::{Data, bytes_waiting, chunk_of_current_call, passage_of_current_call, splice};
use nix::fcntl::{FcntlArg, fcntl};
use rustix::buffer::spare_capacity;
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::Interest;
use tokio::sync::watch;

/// The most that one read returns: a ttrpc message may have 4 MiB, of which this leaves 64 KiB to the rest.
pub const MAX_READ: usize = (4 << 20) - (64 << 10);

/// What the kernel gives a new pipe, pipe(7).
const DEFAULT_PIPE: usize = 64 << 10;

/// The largest pipe we ask for; also the kernel's default limit for the unprivileged (`pipe-max-size`).
const MAX_PIPE: usize = 1 << 20;

/// From when on it pays not to copy what is read: the beginning of its answer is sent by itself then.
const MUCH: usize = 48 << 10;

/// The least to make room for: a page, as the pipe has them.
const MIN_LOOK: usize = 4 << 10;

/// A stream that a process writes and the host reads. See the module.
#[derive(Debug)]
pub struct OutputStream {
    name: StreamName,
    source: Option<Arc<Source>>,
    ended: AtomicBool,
    /// Bytes handed out so far: by this a waiting read sees that another one met with activity.
    taken: AtomicU64,
    /// The pipe size asked of the kernel so far.
    pipe_size: AtomicUsize,
    /// How much the last look took.
    usual: AtomicUsize,
}

/// What was read.
#[derive(Debug)]
pub enum Taken {
    /// In memory of our own.
    Own(Vec<u8>),
    /// In the journal, for the call that this is read for.
    Kept(Data),
}

impl Default for Taken {
    fn default() -> Self {
        Self::Own(Vec::new())
    }
}

impl Taken {
    /// Whether it is the end.
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Own(bytes) => bytes.is_empty(),
            Self::Kept(data) => data.is_empty(),
        }
    }

    fn into_bytes(self) -> Vec<u8> {
        match self {
            Self::Own(bytes) => bytes,
            Self::Kept(data) => data.into_bytes(),
        }
    }
}

/// What one look at the fd found.
enum Look<B = Taken> {
    Bytes(B),
    End,
    /// A terminal that no process has open.
    HungUp,
}

impl OutputStream {
    /// `None` is a stream that is at its end from the start.
    pub(super) fn new(name: StreamName, source: Option<Arc<Source>>) -> Self {
        Self {
            name,
            source,
            ended: AtomicBool::new(false),
            taken: AtomicU64::new(0),
            pipe_size: AtomicUsize::new(DEFAULT_PIPE),
            usual: AtomicUsize::new(0),
        }
    }

    /// Whether its end has been reported to a reader.
    pub fn is_ended(&self) -> bool {
        self.source.is_none() || self.ended.load(Ordering::Relaxed)
    }

    pub(super) fn source(&self) -> Option<&Arc<Source>> {
        self.source.as_ref()
    }

    /// As [`OutputStream::take`], for whoever is no call.
    ///
    /// # Errors
    /// The same.
    pub async fn read<T>(
        &self,
        len: u32,
        exited: &watch::Receiver<Option<T>>,
        quiet: Duration,
    ) -> Result<Vec<u8>, StdioError> {
        Ok(self.take(len, exited, quiet).await?.into_bytes())
    }

    /// Waits until there is something to read and takes as much as is there, up to `len` and
    /// [`MAX_READ`] bytes. Empty means the end of the stream, now and for good.
    ///
    /// `exited` turns `Some` when the process is gone (its sender going away counts as that), `quiet` is how
    /// long the stream may then be silent before it counts as ended.
    ///
    /// Dropping the future loses no byte.
    ///
    /// # Errors
    /// [`StdioError::ZeroLength`] if `len` is 0, [`StdioError::Read`] for what the kernel refuses.
    pub async fn take<T>(
        &self,
        len: u32,
        exited: &watch::Receiver<Option<T>>,
        quiet: Duration,
    ) -> Result<Taken, StdioError> {
        if len == 0 {
            return Err(StdioError::ZeroLength);
        }
        let Some(source) = &self.source else { return Ok(Taken::default()) };
        let limit = usize::try_from(len).unwrap_or(MAX_READ).min(MAX_READ);
        self.ask_for_pipe(source.fd(), limit);
        let taken = self.read_from(source, |fd| self.look(fd, limit), exited.clone(), quiet).await;
        taken
            .map(Option::unwrap_or_default)
            .map_err(|error| StdioError::Read { stream: self.name, source: error })
    }

    /// The same to a connection that had room, `most` bytes at a time; one of the two is a pipe.
    pub(super) async fn move_to<T>(
        &self,
        to: BorrowedFd<'_>,
        most: usize,
        exited: &watch::Receiver<Option<T>>,
        quiet: Duration,
    ) -> Result<Moved, StdioError> {
        let Some(source) = &self.source else { return Ok(Moved::End) };
        let look = |from: BorrowedFd<'_>| match splice(from, to, most) {
            Ok(0) => Ok(Look::End),
            Ok(moved) => {
                self.took(moved);
                Ok(Look::Bytes(Moved::Bytes))
            }
            Err(nix::errno::Errno::EAGAIN) => match missing(from, to) {
                Missing::Bytes => Err(nix::errno::Errno::EAGAIN.into()),
                Missing::Room => Ok(Look::Bytes(Moved::NotNow)),
                Missing::Nothing => Ok(Look::Bytes(Moved::Bytes)),
            },
            Err(errno) if is_memory_short(errno) => Ok(Look::Bytes(Moved::NoMemory)),
            Err(nix::errno::Errno::EIO) if self.is_terminal() => Ok(Look::HungUp),
            Err(errno) => Err(errno.into()),
        };
        let moved = self.read_from(source, look, exited.clone(), quiet).await;
        moved
            .map(|moved| moved.unwrap_or(Moved::End))
            .map_err(|error| StdioError::Read { stream: self.name, source: error })
    }

    pub(super) fn is_terminal(&self) -> bool {
        self.name == StreamName::Terminal
    }

    /// `None` at the end.
    async fn read_from<T, B>(
        &self,
        source: &Source,
        look: impl Fn(BorrowedFd<'_>) -> io::Result<Look<B>>,
        mut exited: watch::Receiver<Option<T>>,
        quiet: Duration,
    ) -> io::Result<Option<B>> {
        let mut gone = exited.borrow().is_some();
        while !self.ended.load(Ordering::Relaxed) {
            match self.wait(source, &look, exited.clone(), quiet).await? {
                Look::Bytes(bytes) => return Ok(Some(bytes)),
                Look::HungUp if !gone => tokio::select! {
                    _ = exited.wait_for(Option::is_some) => gone = true,
                    () = tokio::time::sleep(REOPEN_LOOK) => {}
                },
                Look::End | Look::HungUp => self.ended.store(true, Ordering::Relaxed),
            }
        }
        Ok(None)
    }

    /// One look at once; if that finds nothing, waits for bytes, the end, or silence after the exit.
    async fn wait<T, B>(
        &self,
        source: &Source,
        look: impl Fn(BorrowedFd<'_>) -> io::Result<Look<B>>,
        exited: watch::Receiver<Option<T>>,
        quiet: Duration,
    ) -> io::Result<Look<B>> {
        match source.attempt(Interest::READABLE, &look) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            done => return done,
        }
        tokio::select! {
            biased;
            seen = source.perform(Interest::READABLE, &look) => seen,
            () = self.silence(exited, quiet) => match look(source.fd().as_fd()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Look::End),
                done => done,
            },
        }
    }

    /// Takes what is there, up to `limit`. Makes room for twice what the last look found, and asks the kernel how much
    /// there is only if that was too little: an ordinary look is one read(2), in which it is seen that there is no more.
    fn look(&self, fd: BorrowedFd<'_>, limit: usize) -> io::Result<Look> {
        // A terminal can't be moved from without a copy by all kernels.
        if self.name != StreamName::Terminal
            && let Some(data) = self.room_for(limit)
        {
            return self.look_into(data, fd, limit);
        }
        let mut bytes = Vec::new();
        let mut room = self.usual.load(Ordering::Relaxed).saturating_mul(2).max(MIN_LOOK).min(limit);
        while room > 0 {
            let start = bytes.len();
            bytes.reserve_exact(room);
            match rustix::io::read(fd, spare_capacity(&mut bytes)) {
                Err(Errno::INTR) => continue,
                Ok(0) if start == 0 => return Ok(Look::End),
                Err(Errno::IO) if start == 0 && self.name == StreamName::Terminal => {
                    return Ok(Look::HungUp);
                }
                Err(errno) if start == 0 => return Err(errno.into()),
                // Whatever it is, the next look meets it again; the bytes come first.
                Ok(0) | Err(_) => break,
                Ok(read) if read < room => break,
                Ok(_) => {}
            }
            room = limit.saturating_sub(bytes.len());
            // A reader that is full, at a pipe that can't grow, need not know.
            if room > 0 || self.pipe_size.load(Ordering::Relaxed) < MAX_PIPE {
                room = room.min(self.left(fd, bytes.len()));
            }
        }
        self.usual.store(bytes.len(), Ordering::Relaxed);
        self.took(bytes.len());
        if bytes.len() < bytes.capacity() / 2 {
            bytes.shrink_to_fit();
        }
        Ok(Look::Bytes(Taken::Own(bytes)))
    }

    /// Room in the journal: for much the pipe, that needs no copy, for little the file, that needs fewer system calls.
    fn room_for(&self, limit: usize) -> Option<Data> {
        let passage = if limit.min(self.usual.load(Ordering::Relaxed)) >= MUCH {
            passage_of_current_call().map(Data::Passage)
        } else {
            None
        };
        passage.or_else(|| chunk_of_current_call(limit).map(Data::Chunk))
    }

    /// The same into the journal, so that the next server has what this one has not sent.
    fn look_into(&self, mut data: Data, fd: BorrowedFd<'_>, limit: usize) -> io::Result<Look> {
        let taken = loop {
            match data.fill(fd, limit) {
                Err(nix::errno::Errno::EINTR) => {}
                filled => break filled?,
            }
        };
        if taken == 0 {
            return Ok(Look::End);
        }
        self.usual.store(taken, Ordering::Relaxed);
        self.took(taken);
        let size = self.pipe_size.load(Ordering::Relaxed);
        if taken >= size.saturating_sub(size / 4) {
            self.ask_for_pipe(fd, size.saturating_mul(4));
        }
        Ok(Look::Bytes(Taken::Kept(data)))
    }

    fn took(&self, bytes: usize) {
        self.taken.fetch_add(u64::try_from(bytes).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// How much there is beyond the `taken` bytes of this look. A pipe that was nearly full holds up its writer, and
    /// wakes it for each read: it gets bigger. One that is emptied in time stays as it is.
    fn left(&self, fd: BorrowedFd<'_>, taken: usize) -> usize {
        let left = bytes_waiting(fd).unwrap_or(0);
        let size = self.pipe_size.load(Ordering::Relaxed);
        if left.saturating_add(taken) >= size.saturating_sub(size / 4) {
            self.ask_for_pipe(fd, size.saturating_mul(4));
        }
        left
    }

    /// Ends when the process has exited and nobody has taken a byte for `quiet`.
    async fn silence<T>(&self, mut exited: watch::Receiver<Option<T>>, quiet: Duration) {
        // A sender that is gone will not tell of the exit any more: go on as if it had.
        let _ = exited.wait_for(Option::is_some).await;
        loop {
            let before = self.taken.load(Ordering::Relaxed);
            tokio::time::sleep(quiet).await;
            if self.taken.load(Ordering::Relaxed) == before {
                return;
            }
        }
    }

    /// A reader with a big buffer gets a bigger pipe, once for each size.
    fn ask_for_pipe(&self, pipe: impl AsFd, wanted: usize) {
        let wanted = wanted.min(MAX_PIPE);
        if self.pipe_size.fetch_max(wanted, Ordering::Relaxed) < wanted {
            enlarge_pipe(pipe, wanted);
        }
    }
}

/// Enlarges a pipe, never shrinks it. A wish: the stream works with any size, so refusals (a per-user limit,
/// no pipe at all) don't matter.
pub(super) fn enlarge_pipe(pipe: impl AsFd, wanted: usize) {
    let pipe = pipe.as_fd();
    let Ok(wanted) = i32::try_from(wanted.min(MAX_PIPE)) else { return };
    if fcntl(pipe, FcntlArg::F_GETPIPE_SZ).is_ok_and(|size| size < wanted) {
        let _ = fcntl(pipe, FcntlArg::F_SETPIPE_SZ(wanted));
    }
}
