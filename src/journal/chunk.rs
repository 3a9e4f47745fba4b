//! Memory for answers.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use nix::errno::Errno;

use super::Journal;
use super::call::current;
use super::layout::{self, CHUNK_FILLED, CHUNK_OWNER, LARGE, Place, SMALL, SMALL_CHUNKS};
use super::passage::Passage;

/// What is left free in front of the data of a chunk, for the beginning of its frame.
pub const HEAD_ROOM: usize = 64;

/// Bytes in the journal.
#[derive(Debug)]
pub struct Chunk {
    journal: Arc<Journal>,
    number: usize,
    len: usize,
}

/// A chunk for what the call that this thread works at takes from a pipe, up to `capacity` bytes. `None` if there is no
/// such call, or no room.
pub fn chunk_of_current_call(capacity: usize) -> Option<Chunk> {
    let call = current()?;
    Chunk::take(&call.journal, capacity, Some(call.number?))
}

/// Gives the call that this thread works at what has been taken for its answer.
pub fn hand_over(data: Data) {
    if let Some(call) = current() {
        *call.data() = Some(data);
    }
}

impl Chunk {
    /// Whether it takes a large one to have so much.
    pub(super) fn is_large(capacity: usize) -> bool {
        capacity.saturating_add(HEAD_ROOM) > SMALL
    }

    /// One that has room for `capacity` bytes behind [`HEAD_ROOM`]. What is put there is its `owner`'s at once.
    pub(super) fn take(journal: &Arc<Journal>, capacity: usize, owner: Option<usize>) -> Option<Self> {
        let needed = capacity.checked_add(HEAD_ROOM)?;
        let number = if !Self::is_large(capacity) {
            journal.taken().small.take()
        } else if needed <= LARGE {
            journal.taken().large.take().and_then(|number| number.checked_add(SMALL_CHUNKS))
        } else {
            None
        };
        let chunk = Self { journal: journal.clone(), number: number?, len: 0 };
        let (entry, at, _) = layout::chunk(chunk.number);
        let memory = &journal.memory;
        memory.store(entry.saturating_add(CHUNK_FILLED), at.saturating_add(HEAD_ROOM) as u64);
        memory.store(entry.saturating_add(CHUNK_OWNER), layout::reference(owner));
        Some(chunk)
    }

    /// One of an earlier server's, with so many bytes of data, that has been claimed.
    pub(super) fn left(journal: &Arc<Journal>, number: usize, len: usize) -> Self {
        Self { journal: journal.clone(), number, len }
    }

    /// How much a chunk has been filled with. `None` if that can't be.
    pub(super) fn filled(journal: &Journal, number: usize) -> Option<usize> {
        let (entry, at, size) = layout::chunk(number);
        let end = usize::try_from(journal.memory.load(entry.saturating_add(CHUNK_FILLED))).ok()?;
        end.checked_sub(at.saturating_add(HEAD_ROOM)).filter(|len| *len <= size.saturating_sub(HEAD_ROOM))
    }

    /// Puts so much there as there is room for.
    pub(super) fn put(&mut self, data: &[u8]) {
        let (entry, at, size) = layout::chunk(self.number);
        let at = at.saturating_add(HEAD_ROOM);
        let data = data.get(..size.saturating_sub(HEAD_ROOM)).unwrap_or(data);
        let memory = &self.journal.memory;
        memory.write(at, data);
        memory.store(entry.saturating_add(CHUNK_FILLED), at.saturating_add(data.len()) as u64);
        self.len = data.len();
    }

    pub(super) fn number(&self) -> usize {
        self.number
    }

    /// Takes what is in a pipe, up to `limit` bytes, without waiting. None is its end.
    ///
    /// # Errors
    /// What splice(2) says; EAGAIN where there is nothing.
    pub fn fill(&mut self, pipe: BorrowedFd<'_>, limit: usize) -> Result<usize, Errno> {
        let (entry, _, size) = layout::chunk(self.number);
        let room = size.saturating_sub(HEAD_ROOM).saturating_sub(self.len);
        let place = entry.saturating_add(CHUNK_FILLED);
        let filled = self.journal.memory.splice(pipe, place, limit.min(room))?;
        self.len = self.len.saturating_add(filled);
        Ok(filled)
    }

    /// The data.
    pub fn data(&self) -> &[u8] {
        let (_, at, _) = layout::chunk(self.number);
        self.journal.memory.bytes(at.saturating_add(HEAD_ROOM), self.len)
    }

    /// Makes an answer of it, by what comes in front of the data. Too much of that is refused.
    pub fn into_answer(self, head: &[u8]) -> Option<Answer> {
        let start = HEAD_ROOM.checked_sub(head.len())?;
        let (_, at, _) = layout::chunk(self.number);
        self.journal.memory.write(at.saturating_add(start), head);
        let len = head.len().saturating_add(self.len);
        Some(Answer::Kept { chunk: self, start, len })
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        let (entry, ..) = layout::chunk(self.number);
        self.journal.memory.store(entry.saturating_add(CHUNK_OWNER), 0);
        let mut taken = self.journal.taken();
        match self.number.checked_sub(SMALL_CHUNKS) {
            None => taken.small.put(self.number),
            Some(number) => taken.large.put(number),
        }
    }
}

/// What has been taken from a process's pipe for the answer to a call.
#[derive(Debug)]
pub enum Data {
    /// It is in the file.
    Chunk(Chunk),
    /// It is on its way.
    Passage(Passage),
}

impl Data {
    /// How many bytes it has.
    pub fn len(&self) -> usize {
        match self {
            Self::Chunk(chunk) => chunk.len,
            Self::Passage(passage) => passage.len(),
        }
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes what is in a pipe, up to `limit` bytes, without waiting. None is its end.
    ///
    /// # Errors
    /// What splice(2) says; EAGAIN where there is nothing.
    pub fn fill(&mut self, pipe: BorrowedFd<'_>, limit: usize) -> Result<usize, Errno> {
        match self {
            Self::Chunk(chunk) => chunk.fill(pipe, limit),
            Self::Passage(passage) => passage.fill(pipe, limit),
        }
    }

    /// The bytes, for whoever is no connection.
    pub fn into_bytes(self) -> Vec<u8> {
        match self {
            Self::Chunk(chunk) => chunk.data().to_vec(),
            Self::Passage(mut passage) => passage.take_out(),
        }
    }

    /// Makes an answer of it, by what comes in front of the data. Too much of that is refused.
    pub fn into_answer(self, head: &[u8]) -> Option<Answer> {
        match self {
            Self::Chunk(chunk) => chunk.into_answer(head),
            Self::Passage(mut passage) => {
                let Some(chunk) = Chunk::take(passage.journal(), 0, None) else {
                    return Some(Answer::Own(head.to_vec(), passage.take_out()));
                };
                match chunk.into_answer(head)? {
                    Answer::Kept { chunk, start, len } => {
                        Some(Answer::Passing { chunk, start, len, passage })
                    }
                    other => Some(other),
                }
            }
        }
    }
}

/// A frame that answers a call.
#[derive(Debug)]
pub enum Answer {
    /// In the journal.
    Kept {
        /// Where it is.
        chunk: Chunk,
        /// Where in the chunk it begins.
        start: usize,
        /// How long it is.
        len: usize,
    },
    /// The same of its beginning; the rest is in the pipe.
    Passing {
        /// Where the beginning is.
        chunk: Chunk,
        /// Where in the chunk it begins.
        start: usize,
        /// How long the beginning is.
        len: usize,
        /// The rest.
        passage: Passage,
    },
    /// In this process's own memory, in two parts.
    Own(Vec<u8>, Vec<u8>),
}

impl Answer {
    /// Puts a frame of two parts into the journal, if there is room.
    pub fn keep(journal: &Arc<Journal>, head: Vec<u8>, body: Vec<u8>) -> Self {
        let len = head.len().saturating_add(body.len());
        let Some(chunk) = Chunk::take(journal, len.saturating_sub(HEAD_ROOM), None) else {
            return Self::Own(head, body);
        };
        let (_, at, _) = layout::chunk(chunk.number);
        journal.memory.write(at, &head);
        journal.memory.write(at.saturating_add(head.len()), &body);
        Self::Kept { chunk, start: 0, len }
    }

    /// How many bytes it has.
    #[expect(clippy::len_without_is_empty, reason = "none is empty: a frame has a header")]
    pub fn len(&self) -> usize {
        match self {
            Self::Kept { len, .. } => *len,
            Self::Passing { len, passage, .. } => len.saturating_add(passage.len()),
            Self::Own(head, body) => head.len().saturating_add(body.len()),
        }
    }

    /// As it is noted.
    pub(super) fn place(&self) -> Option<u64> {
        match self {
            Self::Kept { chunk, start, len } | Self::Passing { chunk, start, len, .. } => {
                Some(Place { chunk: chunk.number, start: *start, len: *len }.to_word())
            }
            Self::Own(..) => None,
        }
    }

    /// What of it is in the pipe is sent, as far as there is room; true when that is all.
    pub(super) fn send_passage(&self, socket: BorrowedFd<'_>, most: usize) -> Result<bool, Errno> {
        match self {
            Self::Passing { passage, .. } => passage.send(socket, most),
            Self::Kept { .. } | Self::Own(..) => Ok(true),
        }
    }

    /// Whether all of it has been sent when so much of what is in the file has.
    pub(super) fn is_sent(&self, sent: usize) -> bool {
        let is_passed = !matches!(self, Self::Passing { passage, .. } if passage.len() > 0);
        is_passed && self.range().is_some_and(|(_, len)| sent >= len)
    }

    /// Where in the file it is, or its beginning, and how long.
    pub(super) fn range(&self) -> Option<(usize, usize)> {
        match self {
            Self::Kept { chunk, start, len } | Self::Passing { chunk, start, len, .. } => {
                Some((layout::chunk(chunk.number).1.saturating_add(*start), *len))
            }
            Self::Own(..) => None,
        }
    }
}
