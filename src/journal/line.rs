//! What has come on a connection, and what is being sent on it.
//!
//! Bytes are read into an area of the line, and stay there until a call has been noted. The body of a long request goes
//! past it, into this process's memory: of it only how much is still to come is noted.
//!
//! ```text
//! ahead: [ taken | waiting | free ]      body: missing bytes of one request; nothing waits in the area then
//!                ^begin    ^end
//! ```

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;

use super::chunk::Answer;
use super::layout::{self, AREA, halves, line_field as field, pair};
use super::{Call, Journal, Request};

/// Marks a message length that the kernel has not written.
const NONE: u32 = u32::MAX;

/// See the module.
#[derive(Debug)]
pub struct Line(Arc<Record>);

/// The line's place in the journal, which is free again when nobody uses it any more: neither the connection nor a call.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) journal: Arc<Journal>,
    number: u16,
    /// See [`Line::takes_pages`].
    takes_pages: AtomicBool,
}

impl Record {
    fn at(&self) -> usize {
        layout::line(usize::from(self.number))
    }

    fn field(&self, field: usize) -> usize {
        self.at().saturating_add(field)
    }

    fn load(&self, field: usize) -> u64 {
        self.journal.memory.load(self.field(field))
    }

    fn store(&self, field: usize, value: u64) {
        self.journal.memory.store(self.field(field), value);
    }

    /// Counts a call that is not in the journal.
    pub(super) fn lose(&self) {
        self.journal.memory.word(self.field(field::UNKEPT)).fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn is_taking_pages(&self) -> bool {
        self.takes_pages.load(Ordering::Relaxed)
    }

    /// One of those is no more.
    pub(super) fn lose_no_more(&self) {
        self.journal.memory.word(self.field(field::UNKEPT)).fetch_sub(1, Ordering::SeqCst);
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        self.store(field::STATE, 0);
        self.journal.taken().lines.put(usize::from(self.number));
    }
}

/// What is in the area: where it begins and ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ahead {
    begin: u16,
    end: u16,
}

impl Ahead {
    const EMPTY: Self = Self { begin: 0, end: 0 };

    fn to_word(self) -> u64 {
        pair(NONE, u32::from(self.begin) | u32::from(self.end) << 16)
    }

    /// With what the kernel has put behind it, if it has. `None` where that can't be.
    fn from_word(word: u64) -> Option<Self> {
        let (received, places) = halves(word);
        let [a, b, c, d] = places.to_le_bytes();
        let (begin, before) = (u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]));
        let received = if received == NONE { 0 } else { u16::try_from(received).ok()? };
        let end = before.checked_add(received)?;
        (begin <= end && usize::from(end) <= AREA).then_some(Self { begin, end })
    }

    fn len(self) -> usize {
        usize::from(self.end.saturating_sub(self.begin))
    }
}

impl Line {
    /// A line for a new connection; in a journal of its own if there is no room for another.
    ///
    /// # Errors
    /// When there is no memory for that either.
    pub fn open(journal: &Arc<Journal>) -> std::io::Result<Self> {
        let number = journal.taken().lines.take();
        let Some(number) = number.and_then(|number| u16::try_from(number).ok()) else {
            return Self::open(&Journal::create_small()?);
        };
        let line = Self::left(journal, number);
        line.clear();
        journal.raise_end(layout::head::LINES_END, usize::from(number));
        line.store(field::STATE, 1);
        Ok(line)
    }

    /// An earlier server's, that has been claimed.
    pub(super) fn left(journal: &Arc<Journal>, number: u16) -> Self {
        Self(Arc::new(Record { journal: journal.clone(), number, takes_pages: AtomicBool::new(false) }))
    }

    pub(super) fn record(&self) -> &Arc<Record> {
        &self.0
    }

    fn clear(&self) {
        self.store(field::UNKEPT, 0);
        self.store(field::SENDING, 0);
        self.store(field::AHEAD, Ahead::EMPTY.to_word());
        self.store(field::BODY, pair(NONE, 0));
        self.store(field::SENT, pair(NONE, 0));
    }

    /// The number by which the next server finds it, in the same journal.
    pub fn number(&self) -> u16 {
        self.0.number
    }

    /// The connection takes pages without a copy: its answers may come through the pipe.
    pub fn takes_pages(&self) {
        self.0.takes_pages.store(true, Ordering::Relaxed);
    }

    /// Where it is.
    pub fn journal(&self) -> &Arc<Journal> {
        &self.0.journal
    }

    fn field(&self, field: usize) -> usize {
        self.0.field(field)
    }

    fn load(&self, field: usize) -> u64 {
        self.0.load(field)
    }

    fn store(&self, field: usize, value: u64) {
        self.0.store(field, value);
    }

    fn ahead(&self) -> Ahead {
        Ahead::from_word(self.load(field::AHEAD)).unwrap_or(Ahead::EMPTY)
    }

    /// Whether the next server could go on with it.
    pub(super) fn is_whole(&self) -> bool {
        self.load(field::UNKEPT) == 0 && Ahead::from_word(self.load(field::AHEAD)).is_some()
    }

    /// What has come and is not taken.
    pub fn waiting(&self) -> &[u8] {
        let ahead = self.ahead();
        let at = self.field(field::AREA).saturating_add(usize::from(ahead.begin));
        self.0.journal.memory.bytes(at, ahead.len())
    }

    /// Takes the first `count` bytes of what waits.
    pub fn take(&mut self, count: usize) {
        let ahead = self.ahead();
        let count = u16::try_from(count.min(ahead.len())).unwrap_or(0);
        let left = Ahead { begin: ahead.begin.saturating_add(count), end: ahead.end };
        let left = if left.len() == 0 { Ahead::EMPTY } else { left };
        self.store(field::AHEAD, left.to_word());
    }

    /// Makes the area hold `count` bytes from where those that wait begin, if it can.
    pub fn has_room_for(&mut self, count: usize) -> bool {
        let ahead = self.ahead();
        let (begin, len) = (usize::from(ahead.begin), ahead.len());
        if begin.saturating_add(count) <= AREA {
            return true;
        }
        // Where the bytes are and where they go must not overlap: half of such a move could not be gone on from.
        if len > begin || count > AREA {
            return false;
        }
        let area = self.field(field::AREA);
        let memory = &self.0.journal.memory;
        memory.write(area, memory.bytes(area.saturating_add(begin), len));
        let end = u16::try_from(len).unwrap_or(0);
        self.store(field::AHEAD, Ahead { begin: 0, end }.to_word());
        true
    }

    /// Reads what there is room for in the area. Comes back with how much that was, and whether it was all there is; 0 is
    /// the end.
    ///
    /// # Errors
    /// What recvmmsg(2) says, EAGAIN where there is nothing.
    pub fn receive(&mut self, socket: BorrowedFd<'_>) -> Result<(usize, bool), Errno> {
        let ahead = self.ahead();
        let end = usize::from(ahead.end);
        let room = AREA.saturating_sub(end);
        self.store(field::AHEAD, ahead.to_word());
        let at = self.field(field::AREA).saturating_add(end);
        let received = self.0.journal.memory.receive(socket, self.field(field::AHEAD_MESSAGE), at, room)?;
        let end = u16::try_from(end.saturating_add(received)).unwrap_or(u16::MAX);
        self.store(field::AHEAD, Ahead { end, ..ahead }.to_word());
        Ok((received, received < room))
    }

    /// All that waits has been taken, and is the beginning of a request of which so much is still to come.
    pub fn begin_body(&mut self, missing: u32) {
        self.store(field::BODY, pair(NONE, missing));
        self.store(field::AHEAD, Ahead::EMPTY.to_word());
    }

    /// How much is still to come of the request that has begun.
    pub fn missing(&self) -> usize {
        let (received, before) = halves(self.load(field::BODY));
        let received = if received == NONE { 0 } else { received };
        usize::try_from(before.saturating_sub(received)).unwrap_or(usize::MAX)
    }

    /// Reads of what is missing what is there, into `body`, or nowhere.
    ///
    /// # Errors
    /// As for [`Line::receive`].
    pub fn receive_body(
        &mut self,
        socket: BorrowedFd<'_>,
        body: Option<&mut Vec<u8>>,
    ) -> Result<(usize, bool), Errno> {
        let missing = self.missing();
        let word = |missing: usize| pair(NONE, u32::try_from(missing).unwrap_or(0));
        self.store(field::BODY, word(missing));
        let (memory, message) = (&self.0.journal.memory, self.field(field::BODY_MESSAGE));
        let (room, received) = match body {
            Some(body) => (missing, memory.receive_into(socket, message, body, missing)?),
            None => {
                let room = missing.min(AREA);
                (room, memory.receive(socket, message, self.field(field::AREA), room)?)
            }
        };
        self.store(field::BODY, word(missing.saturating_sub(received)));
        Ok((received, received < room))
    }

    /// Notes a request.
    pub fn open_call(&self, request: Request<'_>) -> Call {
        Call::open(self, request)
    }

    /// A handle for sending. One answer at a time: the caller sees to that.
    pub fn sender(&self) -> Sender {
        Sender(self.0.clone())
    }

    /// Of what was half read when a server died, what is in the area is no more once it is noted as a body's beginning.
    pub(super) fn settle(&mut self) {
        let missing = u32::try_from(self.missing()).unwrap_or(0);
        self.store(field::BODY, pair(NONE, missing));
        let ahead = if missing > 0 { Ahead::EMPTY } else { self.ahead() };
        self.store(field::AHEAD, ahead.to_word());
    }
}

/// See [`Line::sender`].
#[derive(Debug, Clone)]
pub struct Sender(Arc<Record>);

impl Sender {
    /// The answer of this call is sent next.
    pub fn begin(&self, call: &Call) {
        self.0.store(field::SENT, pair(NONE, 0));
        self.0.store(field::SENDING, layout::reference(call.0.number));
    }

    /// Sends of an answer in the journal what there is room for, and at most so many bytes; true when all of it is sent.
    ///
    /// # Errors
    /// What sendmmsg(2) or splice(2) says, EAGAIN where there is no room.
    pub fn send(&self, socket: BorrowedFd<'_>, answer: &Answer, most: usize) -> Result<bool, Errno> {
        let Some((at, len)) = answer.range() else { return Err(Errno::EINVAL) };
        Ok(self.send_range(socket, (at, len), most)? && answer.send_passage(socket, most)?)
    }

    fn send_range(
        &self,
        socket: BorrowedFd<'_>,
        (at, len): (usize, usize),
        most: usize,
    ) -> Result<bool, Errno> {
        let sent = self.sent();
        if sent >= len {
            return Ok(true);
        }
        let word = |sent: usize| pair(NONE, u32::try_from(sent).unwrap_or(u32::MAX));
        self.0.store(field::SENT, word(sent));
        let left = len.saturating_sub(sent);
        let (message, at) = (self.0.field(field::SENT_MESSAGE), at.saturating_add(sent));
        let now = self.0.journal.memory.send(socket, message, at, left.min(most))?;
        let sent = sent.saturating_add(now);
        self.0.store(field::SENT, word(sent));
        Ok(sent >= len)
    }

    /// How much of the answer has been sent.
    pub(super) fn sent(&self) -> usize {
        let (now, before) = halves(self.0.load(field::SENT));
        let now = if now == NONE { 0 } else { now };
        usize::try_from(before.saturating_add(now)).unwrap_or(usize::MAX)
    }

    /// The answer has been sent: the call is no more.
    pub fn end(&self, call: &Call) {
        call.0.close();
        self.rest();
    }

    /// Nothing is being sent.
    pub(super) fn rest(&self) {
        self.0.store(field::SENDING, 0);
    }

    /// The call whose answer was being sent.
    pub(super) fn sending(&self) -> Option<usize> {
        layout::referenced(self.0.load(field::SENDING))
    }
}
