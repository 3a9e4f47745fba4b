//! Pending WriteStdin data: what the process has not read yet, kept so that the next server can write the remainder.
//!
//! It waits in a chunk, and the call's record says how much of it is left: the last so many bytes. While some of it
//! is being written the record says nothing, because a server that is killed just then has not noted how much that
//! was. For the rest of the time, which is all that it waits, the next server can go on with it to the byte.
//!
//! Invariants: what a call's record names is in a chunk that is taken, and is that which no process has been given.
//! At most [`LARGE_RESTS`] have a large chunk.

use std::io;
use std::sync::{Arc, Weak};

use super::Journal;
use super::call::{Call, Open, current};
use super::chunk::Chunk;
use super::layout::{self, LARGE_RESTS, Place, call_field as field};

/// Keeps what a call has not written. For one that has ended it keeps nothing.
#[derive(Debug, Default)]
pub struct Keeper(Weak<Open>);

impl Keeper {
    /// For the call that this thread works at, if there is one.
    pub fn of_current_call() -> Self {
        Self(current().map_or_else(Weak::new, |call| Arc::downgrade(&call)))
    }

    /// Whether the call has been begun again: it has waited before.
    pub fn is_again(&self) -> bool {
        self.0.upgrade().is_some_and(|call| call.is_again())
    }

    /// Puts `data` into the journal, if there is room. None of it may have been written.
    pub fn keep(&self, data: &[u8]) -> Option<Rest> {
        let call = self.0.upgrade()?;
        call.number?;
        let large = if Chunk::is_large(data.len()) { Some(Large::take(&call.journal)?) } else { None };
        let mut chunk = Chunk::take(&call.journal, data.len(), None)?;
        chunk.put(data);
        let rest = Rest { left: data.len(), chunk, call: self.0.clone(), _large: large };
        rest.note(rest.left);
        Some(rest)
    }
}

/// See the module.
#[derive(Debug)]
pub struct Rest {
    chunk: Chunk,
    left: usize,
    call: Weak<Open>,
    _large: Option<Large>,
}

/// One of the large chunks that rests may have.
#[derive(Debug)]
struct Large(Arc<Journal>);

impl Large {
    fn take(journal: &Arc<Journal>) -> Option<Self> {
        let mut taken = journal.taken();
        taken.large_rests = taken.large_rests.checked_add(1).filter(|rests| *rests <= LARGE_RESTS)?;
        Some(Self(journal.clone()))
    }
}

impl Drop for Large {
    fn drop(&mut self) {
        let mut taken = self.0.taken();
        taken.large_rests = taken.large_rests.saturating_sub(1);
    }
}

impl Rest {
    /// What is left.
    pub fn data(&self) -> &[u8] {
        tail(&self.chunk, self.left)
    }

    /// Has `write` write some of it, which tells how much that was.
    ///
    /// # Errors
    /// What `write` says: then it has written nothing.
    pub fn advance(&mut self, write: impl FnOnce(&[u8]) -> io::Result<usize>) -> io::Result<usize> {
        self.note(0);
        let written = write(self.data());
        self.left = self.left.saturating_sub(*written.as_ref().unwrap_or(&0));
        self.note(self.left);
        written
    }

    fn note(&self, left: usize) {
        if let Some(call) = self.call.upgrade() {
            note(&call, self.chunk.number(), left);
        }
    }
}

impl Drop for Rest {
    fn drop(&mut self) {
        // Before the chunk is another's.
        self.note(0);
    }
}

/// What an earlier server has left of one.
#[derive(Debug)]
pub struct LeftRest {
    call: Call,
    chunk: Chunk,
    left: usize,
}

impl LeftRest {
    pub(super) fn new(call: &Call, chunk: Chunk, left: usize) -> Self {
        Self { call: call.clone(), chunk, left }
    }

    /// The data.
    pub fn data(&self) -> &[u8] {
        tail(&self.chunk, self.left)
    }

    /// The data, which is to be written from here on: if this server dies as well, it is kept no more.
    pub fn take(self) -> Vec<u8> {
        let data = self.data().to_vec();
        note(&self.call.0, self.chunk.number(), 0);
        data
    }
}

fn tail(chunk: &Chunk, len: usize) -> &[u8] {
    let data = chunk.data();
    data.get(data.len().saturating_sub(len)..).unwrap_or_default()
}

fn note(call: &Open, chunk: usize, len: usize) {
    let Some(number) = call.number else { return };
    let word = if len == 0 { 0 } else { Place { chunk, start: 0, len }.to_word() };
    call.journal.memory.store(layout::call(number).saturating_add(field::REST), word);
}
