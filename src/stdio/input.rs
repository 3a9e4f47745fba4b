//! The writing end of stdin, or of a terminal.
//!
//! A write that finds room is done at once. The first that does not starts a small task, which finishes it and is fed
//! through a channel of one place. A write whose turn has come is finished whether or not its caller still
//! waits; one that is dropped before its turn writes nothing: never half of it. Writes keep the order in which
//! they were made: none is done at once while another waits. A process that does not read makes writers
//! wait (for ever, if it must), and nobody else; more than [`MOST_WAITING`] of them are refused.
//!
//! A write that has had its turn and waits is kept in the journal after a moment ([`PATIENCE`]), so that the next
//! server can finish it.
//!
//! ```text
//! Open --write without room--> Writing --close--> Closed (the task writes what was accepted, then closes the fd)
//! Open --close--> Closed
//! any  --abandon or drop--> Closed, the task ends at once
//! ```

use super::link::{Missing, Moved, is_memory_short, missing};
use super::source::Source;

use super::{StdioError, StreamName};
use crate::journal::{Keeper, Rest, splice};
use nix::errno::Errno;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::Interest;
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;

/// A stream that the host writes and a process reads. See the module.
#[derive(Debug)]
pub struct InputStream {
    name: StreamName,
    /// Held for a look or an exchange, never while waiting.
    state: Mutex<State>,
    /// How many bytes the writes have that go through the task, from the moment they ask for their turn.
    waiting: Arc<AtomicUsize>,
}

#[derive(Debug)]
enum State {
    Open(Arc<Source>),
    Writing { source: Arc<Source>, jobs: mpsc::Sender<Job>, writer: AbortHandle },
    Closed { writer: Option<AbortHandle> },
}

/// How long a write waits before it is kept in the journal. Most wait for less, and to copy them would take longer.
const PATIENCE: Duration = Duration::from_millis(50);

/// How many bytes may wait, before who comes with more is refused. Those who write one after the other never have so
/// many.
const MOST_WAITING: usize = 16 << 20;

/// What is left of a write.
#[derive(Debug)]
enum Unwritten {
    /// Of these bytes so many have been written.
    Own(Vec<u8>, usize),
    /// In the journal.
    Kept(Rest),
}

impl Unwritten {
    fn data(&self) -> &[u8] {
        match self {
            Self::Own(data, written) => data.get(*written..).unwrap_or_default(),
            Self::Kept(rest) => rest.data(),
        }
    }

    fn advance(&mut self, write: impl FnOnce(&[u8]) -> io::Result<usize>) -> io::Result<usize> {
        match self {
            Self::Own(data, written) => {
                let now = write(data.get(*written..).unwrap_or_default())?;
                *written = written.saturating_add(now);
                Ok(now)
            }
            Self::Kept(rest) => rest.advance(write),
        }
    }
}

/// One write, or what is left of it, and where its outcome goes.
#[derive(Debug)]
struct Job {
    unwritten: Unwritten,
    keeper: Keeper,
    done: oneshot::Sender<Result<(), StdioError>>,
    waiting: Waiting,
}

/// A write whose bytes are counted.
#[derive(Debug)]
struct Waiting(Arc<AtomicUsize>, usize);

impl Waiting {
    fn new(all: &Arc<AtomicUsize>, bytes: usize) -> Self {
        all.fetch_add(bytes, Ordering::Relaxed);
        Self(all.clone(), bytes)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.fetch_sub(self.1, Ordering::Relaxed);
    }
}

/// A write that was not done at once.
enum Later {
    /// It has its turn: it is with the task.
    Begun,
    /// Others come first.
    Queued(mpsc::Sender<Job>, Job),
}

impl InputStream {
    /// `None` is a stream that is closed from the start.
    pub(super) fn new(name: StreamName, source: Option<Arc<Source>>) -> Self {
        let state = source.map_or(State::Closed { writer: None }, State::Open);
        Self { name, state: Mutex::new(state), waiting: Arc::default() }
    }

    pub(super) fn source(&self) -> Option<Arc<Source>> {
        match &*self.state() {
            State::Open(source) | State::Writing { source, .. } => Some(source.clone()),
            State::Closed { .. } => None,
        }
    }

    /// Writes all of `data` and returns its length. Empty `data` is [`InputStream::close`].
    ///
    /// # Errors
    /// [`StdioError::Closed`] if the stream was closed or the process reads no more, [`StdioError::Full`] if too much
    /// waits for it to read, [`StdioError::Write`] for what else the kernel refuses.
    pub async fn write(&self, data: Vec<u8>) -> Result<u32, StdioError> {
        if data.is_empty() {
            self.close();
            return Ok(0);
        }
        let len = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let (done, outcome) = oneshot::channel();
        let closed = || StdioError::Closed { stream: self.name };
        match self.begin(data, done)? {
            None => return Ok(len),
            Some(Later::Begun) => {}
            Some(Later::Queued(jobs, job)) => jobs.send(job).await.map_err(|_| closed())?,
        }
        outcome.await.map_err(|_| closed())??;
        Ok(len)
    }

    /// Moves what is there from a connection to the process, when there is room, `most` bytes at a time; one of the
    /// two is a pipe.
    ///
    /// # Errors
    /// As [`InputStream::write`].
    pub(super) async fn move_from(&self, from: BorrowedFd<'_>, most: usize) -> Result<Moved, StdioError> {
        let source = self.source().ok_or(StdioError::Closed { stream: self.name })?;
        let moved = source.perform(Interest::WRITABLE, |to| match splice(from, to, most) {
            // A stopped terminal takes nothing and does not say why.
            Ok(0) if self.is_terminal() => Err(io::ErrorKind::WouldBlock.into()),
            Ok(0) => Ok(Moved::End),
            Ok(_) => Ok(Moved::Bytes),
            Err(Errno::EAGAIN) => match missing(from, to) {
                Missing::Bytes => Ok(Moved::NotNow),
                Missing::Room => Err(Errno::EAGAIN.into()),
                Missing::Nothing => Ok(Moved::Bytes),
            },
            Err(errno) if is_memory_short(errno) => Ok(Moved::NoMemory),
            Err(errno) => Err(errno.into()),
        });
        moved.await.map_err(|error| outcome(self.name, error))
    }

    pub(super) fn is_terminal(&self) -> bool {
        self.name == StreamName::Terminal
    }

    /// Writes what there is room for, if it is this write's turn. Never waits, so that nobody can drop it half done:
    /// what is left is with the task when this returns.
    fn begin(
        &self,
        data: Vec<u8>,
        done: oneshot::Sender<Result<(), StdioError>>,
    ) -> Result<Option<Later>, StdioError> {
        let closed = || StdioError::Closed { stream: self.name };
        let mut state = self.state();
        let before = self.waiting.load(Ordering::Relaxed);
        if before >= MOST_WAITING {
            return Err(StdioError::Full { stream: self.name, waiting: before });
        }
        let is_first = before == 0;
        let waiting = Waiting::new(&self.waiting, data.len());
        let unwritten = Unwritten::Own(data, 0);
        let keeper = Keeper::of_current_call();
        let mut job = Job { unwritten, keeper, done, waiting };
        if is_first {
            let (State::Open(source) | State::Writing { source, .. }) = &*state else { return Err(closed()) };
            match job.unwritten.advance(|data| write_some(source.fd().as_fd(), data)) {
                Ok(_) if job.unwritten.data().is_empty() => return Ok(None),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(outcome(self.name, error)),
            }
        }
        let jobs = self.jobs(&mut state).ok_or_else(closed)?;
        if !is_first {
            return Ok(Some(Later::Queued(jobs, job)));
        }
        // The channel is empty: no write waits.
        jobs.try_send(job).map_err(|_| closed())?;
        Ok(Some(Later::Begun))
    }

    /// Closes a pipe: the process reads what was written before, then the end. May be called again.
    ///
    /// The process sees the end only when *every* duplicate of the fd is closed, so the caller has
    /// the supervisor drop the one it holds; that may be done at once, bytes still under way are safe here.
    ///
    /// A terminal stays as it is: closing its master would hang up the whole session.
    pub fn close(&self) {
        if self.name == StreamName::Terminal {
            return;
        }
        let mut state = self.state();
        let writer = match &*state {
            State::Open(_) => None,
            State::Writing { writer, .. } => Some(writer.clone()),
            State::Closed { .. } => return,
        };
        *state = State::Closed { writer };
    }

    /// Closes pipe or terminal at once, whatever is still to be written: for a process that is removed.
    /// Writes that wait for it end with [`StdioError::Closed`]. Dropping the stream does the same, but a
    /// stuck write may well be what keeps it from being dropped.
    pub fn abandon(&self) {
        let closed = State::Closed { writer: None };
        if let State::Writing { writer, .. } | State::Closed { writer: Some(writer) } =
            std::mem::replace(&mut *self.state(), closed)
        {
            writer.abort();
        }
    }

    /// The channel to the writer, which is started if need be. `None` if the stream is closed.
    fn jobs(&self, state: &mut State) -> Option<mpsc::Sender<Job>> {
        let source = match &*state {
            State::Open(source) => source.clone(),
            State::Writing { jobs, .. } => return Some(jobs.clone()),
            State::Closed { .. } => return None,
        };
        let (jobs, queue) = mpsc::channel(1);
        let writer = tokio::spawn(write_jobs(self.name, source.clone(), queue)).abort_handle();
        *state = State::Writing { source, jobs: jobs.clone(), writer };
        Some(jobs)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for InputStream {
    fn drop(&mut self) {
        self.abandon();
    }
}

/// The writer task: ends when the stream is closed and drained, or when a pipe's reader is gone.
async fn write_jobs(stream: StreamName, source: Arc<Source>, mut queue: mpsc::Receiver<Job>) {
    while let Some(Job { unwritten, keeper, done, waiting }) = queue.recv().await {
        let result = write_all(&source, unwritten, keeper).await.map_err(|error| outcome(stream, error));
        // A terminal that hung up may be opened again; a pipe stays broken.
        let broken = result.is_err() && stream != StreamName::Terminal;
        // Before its caller can come with the next one.
        drop(waiting);
        let _ = done.send(result);
        if broken {
            return;
        }
    }
}

async fn write_all(source: &Source, mut unwritten: Unwritten, keeper: Keeper) -> io::Result<()> {
    let mut patience = if keeper.is_again() { Duration::ZERO } else { PATIENCE };
    while !unwritten.data().is_empty() {
        let written = source.perform(Interest::WRITABLE, |fd| unwritten.advance(|data| write_some(fd, data)));
        match tokio::time::timeout(patience, written).await {
            Ok(written) => drop(written?),
            Err(_) => {
                // Once, whether there was room for it or not.
                patience = Duration::MAX;
                if let Some(rest) = keeper.keep(unwritten.data()) {
                    unwritten = Unwritten::Kept(rest);
                }
            }
        }
    }
    Ok(())
}

fn write_some(fd: std::os::fd::BorrowedFd<'_>, data: &[u8]) -> io::Result<usize> {
    loop {
        match nix::unistd::write(fd, data) {
            Err(Errno::EINTR) => {}
            // A stopped terminal takes nothing and does not say why.
            Ok(0) => return Err(io::ErrorKind::WouldBlock.into()),
            result => return Ok(result?),
        }
    }
}

fn outcome(stream: StreamName, error: io::Error) -> StdioError {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EPIPE | Errno::EIO) => StdioError::Closed { stream },
        _ => StdioError::Write { stream, source: error },
    }
}
