//! Where in the file everything is.
//!
//! | what | size | how many |
//! |---|---|---|
//! | head: what the file is, and of the last server | 4 KiB | 1 |
//! | chunks: whose each is, and how far it is filled | 16 bytes | [`CHUNKS`] |
//! | calls: a request that has no answer yet, or whose answer is not sent | 512 bytes | [`CALLS`] |
//! | lines: a connection, and what has come on it | 8 KiB | [`LINES`] |
//! | small chunks: answers | 4 KiB | [`SMALL_CHUNKS`] |
//! | large chunks: answers, of up to 4 MiB | 4 MiB and a page | [`LARGE_CHUNKS`] |
//!
//! Only what is used takes memory, and what was used last is used first.

use std::num::NonZeroUsize;

use super::memory::{MESSAGE, MESSAGE_WORD};

pub(super) const PAGE: usize = 4096;

/// Raised when the layout changes.
pub(super) const MAGIC: u64 = u64::from_le_bytes(*b"nakaiJ03");

pub(super) mod head {
    pub(in super::super) const MAGIC: usize = 8;
    /// How many servers in a row have begun to take the file over and not come to the end of it.
    pub(in super::super) const ATTEMPTS: usize = 16;
    /// The call that is being worked at, and 1; 0 is none.
    pub(in super::super) const CURRENT: usize = 24;
    /// The call that was being worked at when there was a panic, and 1.
    pub(in super::super) const PANICKED: usize = 32;
    /// How long the text of the panic is.
    pub(in super::super) const TEXT_LEN: usize = 40;
    /// No line with this number or a higher one has been used.
    pub(in super::super) const LINES_END: usize = 48;
    /// The same for calls.
    pub(in super::super) const CALLS_END: usize = 56;
    pub(in super::super) const TEXT: usize = 64;
    pub(in super::super) const TEXT_MAX: usize = 1024;
    /// The call whose answer's data is in the pipe, and 1.
    pub(in super::super) const PASSAGE: usize = TEXT + TEXT_MAX;
}

pub(super) const SMALL_CHUNKS: usize = 2048;
pub(super) const LARGE_CHUNKS: usize = 32;
/// How many large chunks may have what processes have not read. They wait for as long as it pleases a process, and an
/// answer that finds no room is lost with its server.
pub(super) const LARGE_RESTS: usize = 8;
pub(super) const CHUNKS: usize = SMALL_CHUNKS + LARGE_CHUNKS;
pub(super) const CALLS: usize = 4096;
pub(super) const LINES: usize = 1024;

const CHUNK_ENTRY: usize = 16;
const CALL: usize = 512;
const LINE: usize = 2 * PAGE;
pub(super) const SMALL: usize = PAGE;
pub(super) const LARGE: usize = (4 << 20) + PAGE;

const CHUNK_ENTRIES_AT: usize = PAGE;
const CALLS_AT: usize = (CHUNK_ENTRIES_AT + CHUNKS * CHUNK_ENTRY).next_multiple_of(PAGE);
const LINES_AT: usize = CALLS_AT + CALLS * CALL;
const SMALL_AT: usize = LINES_AT + LINES * LINE;
const LARGE_AT: usize = SMALL_AT + SMALL_CHUNKS * SMALL;
pub(super) const LEN: NonZeroUsize = NonZeroUsize::MIN.saturating_add(LARGE_AT + LARGE_CHUNKS * LARGE - 1);

/// Numbers are checked where they come from; one that is too large is the last one's.
fn nth(start: usize, size: usize, number: usize, count: usize) -> usize {
    start.saturating_add(size.saturating_mul(number.min(count.saturating_sub(1))))
}

/// A chunk: where its entry is, where its bytes are, how many it has.
pub(super) fn chunk(number: usize) -> (usize, usize, usize) {
    let entry = nth(CHUNK_ENTRIES_AT, CHUNK_ENTRY, number, CHUNKS);
    match number.checked_sub(SMALL_CHUNKS) {
        None => (entry, nth(SMALL_AT, SMALL, number, SMALL_CHUNKS), SMALL),
        Some(number) => (entry, nth(LARGE_AT, LARGE, number, LARGE_CHUNKS), LARGE),
    }
}

/// In a chunk's entry: the call whose it is, and 1.
pub(super) const CHUNK_OWNER: usize = 0;
/// How far it is filled, as a place in the file.
pub(super) const CHUNK_FILLED: usize = 8;

pub(super) fn call(number: usize) -> usize {
    nth(CALLS_AT, CALL, number, CALLS)
}

pub(super) mod call_field {
    /// What it is; 0 is free.
    pub(in super::super) const STATE: usize = 0;
    /// Stream and length of the request.
    pub(in super::super) const HEADER: usize = 8;
    /// When its time is up, in nanoseconds of the monotonic clock; 0 is never.
    pub(in super::super) const DEADLINE: usize = 16;
    /// Where its answer is; 0 is nowhere.
    pub(in super::super) const ANSWER: usize = 24;
    /// How much there is of the request.
    pub(in super::super) const KEPT: usize = 32;
    /// Where the rest is of what it writes to a process that does not read; 0 is nowhere, or that can't be told.
    pub(in super::super) const REST: usize = 40;
    pub(in super::super) const REQUEST: usize = 48;
}

/// How much of a request is kept.
pub(super) const REQUEST_MAX: usize = CALL - call_field::REQUEST;

pub(super) fn line(number: usize) -> usize {
    nth(LINES_AT, LINE, number, LINES)
}

pub(super) mod line_field {
    use super::{MESSAGE, MESSAGE_WORD};

    /// 1 while it is used.
    pub(in super::super) const STATE: usize = 0;
    /// How many calls or answers are not in the file.
    pub(in super::super) const UNKEPT: usize = 8;
    /// The call whose answer is being sent, and 1.
    pub(in super::super) const SENDING: usize = 16;
    pub(in super::super) const AHEAD_MESSAGE: usize = 64;
    /// Length received last; where what is in the area begins and ended before it.
    pub(in super::super) const AHEAD: usize = AHEAD_MESSAGE + MESSAGE_WORD;
    pub(in super::super) const BODY_MESSAGE: usize = AHEAD_MESSAGE + MESSAGE;
    /// Length received last; how much of a request's body was missing before it.
    pub(in super::super) const BODY: usize = BODY_MESSAGE + MESSAGE_WORD;
    pub(in super::super) const SENT_MESSAGE: usize = BODY_MESSAGE + MESSAGE;
    /// Length sent last; how much had been sent before it.
    pub(in super::super) const SENT: usize = SENT_MESSAGE + MESSAGE_WORD;
    pub(in super::super) const AREA: usize = SENT_MESSAGE + MESSAGE;
}

/// How much is read ahead.
pub(super) const AREA: usize = LINE - line_field::AREA;

/// How many calls share a page.
pub(super) const CALLS_A_PAGE: usize = PAGE / CALL;

/// A number as it is noted where 0 is none.
pub(super) fn reference(number: Option<usize>) -> u64 {
    number.map_or(0, |number| (number as u64).saturating_add(1))
}

/// The number that a [`reference()`] names.
pub(super) fn referenced(word: u64) -> Option<usize> {
    usize::try_from(word.checked_sub(1)?).ok()
}

/// Two numbers in one word, the lower half first.
pub(super) fn pair(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

/// Both halves of a word.
pub(super) fn halves(word: u64) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = word.to_le_bytes();
    (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]))
}

/// What a call is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct State {
    pub(super) line: u16,
    /// Of its message.
    pub(super) kind: u8,
    pub(super) is_receiving: bool,
    /// How often it has been begun again.
    pub(super) runs: u8,
    /// How many servers have died at work at it.
    pub(super) strikes: u8,
}

impl State {
    const USED: u8 = 1;

    pub(super) fn to_word(self) -> u64 {
        let [a, b] = self.line.to_le_bytes();
        let receiving = u8::from(self.is_receiving);
        u64::from_le_bytes([Self::USED, self.runs, self.strikes, self.kind, receiving, 0, a, b])
    }

    /// `None` is free.
    pub(super) fn from_word(word: u64) -> Option<Self> {
        let [used, runs, strikes, kind, receiving, _, a, b] = word.to_le_bytes();
        let (line, is_receiving) = (u16::from_le_bytes([a, b]), receiving != 0);
        (used == Self::USED).then_some(Self { line, kind, is_receiving, runs, strikes })
    }
}

/// An answer's place: the chunk, where in it the answer begins, and how long it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) chunk: usize,
    pub(super) start: usize,
    pub(super) len: usize,
}

impl Place {
    pub(super) fn to_word(self) -> u64 {
        let low = |value: usize, bits: u32| value as u64 & (u64::MAX >> 64_u32.saturating_sub(bits));
        low(self.chunk.saturating_add(1), 16) | low(self.start, 16) << 16 | low(self.len, 32) << 32
    }

    /// `None` where there is none, or none that can be.
    pub(super) fn from_word(word: u64) -> Option<Self> {
        let (low, len) = halves(word);
        let [a, b, c, d] = low.to_le_bytes();
        let chunk = usize::from(u16::from_le_bytes([a, b])).checked_sub(1)?;
        let start = usize::from(u16::from_le_bytes([c, d]));
        let len = usize::try_from(len).ok()?;
        let (_, _, size) = self::chunk(chunk);
        (chunk < CHUNKS && start.checked_add(len)? <= size).then_some(Self { chunk, start, len })
    }
}
