//! What the next server needs of the calls under way and their connections, if this one dies.
//!
//! It is one memory file, mapped by the server and held by the supervisor, which never looks into it. Writing to it takes
//! no system call. It has
//! - for each connection its *line*: what has been read and is no whole request yet, and how far the answer that is being
//!   sent has got;
//! - each *call* that has no answer yet, by its request or the beginning of it, and where its answer is when it has one;
//! - *chunks* of memory: answers, what has been taken from a process's pipe to become one, and what a process has not
//!   read yet of what is written to it (`rest`).
//!
//! With it goes a pipe, for data that is not copied (`passage`).
//!
//! A process can be killed between any two instructions. So each change is one store of one word, in an order in which
//! every state in between can be gone on from; and system calls that move bytes are those whose result the kernel stores
//! in the file itself (`memory`). Calls that the file has no room for are counted on their connection's line: a connection with
//! such a call is closed by the next server.
//!
//! [`Call::run`] says which call is being worked at; a panic is noted with it, so that the next server can answer it.

mod bits;
mod call;
mod chunk;
mod layout;
mod left;
mod line;
mod memory;
mod passage;
#[cfg(test)]
mod passing_tests;
mod pipe;
mod rest;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use self::call::{Call, Request};
pub use self::chunk::{Answer, Chunk, Data, HEAD_ROOM, chunk_of_current_call, hand_over};
pub use self::left::{Left, LeftCall, LeftLine};
pub use self::line::{Line, Sender};
pub use self::passage::{Passage, passage_of_current_call};
pub use self::pipe::{Pipe, bytes_waiting, splice};
pub use self::rest::{Keeper, LeftRest, Rest};

use self::bits::Bits;
use self::layout::{CALLS, LARGE_CHUNKS, LEN, LINES, MAGIC, SMALL_CHUNKS, head};
use self::memory::Memory;
use crate::observe::console;

/// See the module.
#[derive(Debug)]
pub struct Journal {
    memory: Memory,
    pipe: Option<Pipe>,
    /// Held for single operations only.
    taken: Mutex<Taken>,
}

/// Which records are used.
#[derive(Debug)]
struct Taken {
    small: Bits,
    large: Bits,
    calls: Bits,
    lines: Bits,
    /// A call has the pipe.
    pipe: bool,
    /// It has been asked to be large.
    pipe_is_large: bool,
    /// How many of the large ones have what a process has not read.
    large_rests: usize,
}

impl Journal {
    /// An empty one.
    ///
    /// # Errors
    /// When the kernel has no memory or descriptors left.
    pub fn create() -> io::Result<Arc<Self>> {
        Self::create_with(Some(Pipe::create()?))
    }

    /// One for few calls, without a pipe.
    fn create_small() -> io::Result<Arc<Self>> {
        Self::create_with(None)
    }

    fn create_with(pipe: Option<Pipe>) -> io::Result<Arc<Self>> {
        let memory = Memory::create(LEN)?;
        memory.store(head::MAGIC, MAGIC);
        Ok(Arc::new(Self::of(memory, pipe)))
    }

    fn of(memory: Memory, pipe: Option<Pipe>) -> Self {
        let taken = Taken {
            small: Bits::new(SMALL_CHUNKS),
            large: Bits::new(LARGE_CHUNKS),
            calls: Bits::new(CALLS),
            lines: Bits::new(LINES),
            pipe: false,
            pipe_is_large: false,
            large_rests: 0,
        };
        Self { memory, pipe, taken: Mutex::new(taken) }
    }

    /// Descriptors of the file and of the pipe, for the next server.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub fn duplicates(&self) -> io::Result<Vec<OwnedFd>> {
        let ends = self.pipe.iter().flat_map(Pipe::ends);
        std::iter::once(self.file()).chain(ends).map(|fd| fd.try_clone_to_owned()).collect()
    }

    fn file(&self) -> BorrowedFd<'_> {
        self.memory.file()
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a record is used: the next server looks at no higher ones.
    fn raise_end(&self, end: usize, number: usize) {
        let needed = layout::reference(Some(number));
        if self.memory.load(end) < needed {
            self.memory.store(end, needed);
        }
    }

    /// Whatever an earlier server has left is taken over: the next one need not be careful with it.
    pub fn is_taken_over(&self) {
        self.memory.store(head::ATTEMPTS, 0);
    }

    /// Gives back the memory of what is not used.
    pub fn trim(&self) {
        let mut taken = self.taken();
        for number in taken.small.take_touched(1) {
            self.give_back_chunk(number);
        }
        for number in taken.large.take_touched(1) {
            self.give_back_chunk(SMALL_CHUNKS.saturating_add(number));
        }
        for number in taken.calls.take_touched(layout::CALLS_A_PAGE) {
            self.memory.give_back(layout::call(number), layout::PAGE);
        }
        self.memory.store(head::CALLS_END, layout::reference(taken.calls.highest()));
    }

    fn give_back_chunk(&self, number: usize) {
        let (_, at, size) = layout::chunk(number);
        self.memory.give_back(at, size);
    }

    /// Notes a panic, and with which call it was.
    fn note_panic(&self, call: Option<usize>, text: &str) {
        let text: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
        // What is cut in two of a letter is not shown.
        let text = text.as_bytes().get(..text.len().min(head::TEXT_MAX)).unwrap_or_default();
        self.memory.write(head::TEXT, text);
        self.memory.store(head::TEXT_LEN, text.len() as u64);
        self.memory.store(head::PANICKED, layout::reference(call));
    }
}

/// Has the last words of this process told to the next one, which answers the call that it was working at. Then this one
/// ends, whatever thread it was.
pub fn note_panics(journal: Arc<Journal>) {
    std::panic::set_hook(Box::new(move |panic| {
        journal.note_panic(call::current_number(), &panic.to_string());
        // Not by the usual way, which waits for a reader of standard error.
        console::say(format_args!("{panic}"));
        std::process::abort();
    }));
}
