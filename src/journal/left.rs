//! What an earlier server has left in the journal. Nothing in it is taken for granted.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use super::call::{Call, now};
use super::chunk::{Answer, Chunk, Data};
use super::layout::{
    self, CALLS, CHUNK_OWNER, CHUNKS, LEN, LINES, MAGIC, Place, SMALL_CHUNKS, State, call_field as field,
    halves, head, line_field,
};
use super::line::Line;
use super::memory::Memory;
use super::passage::Passage;
use super::pipe::Pipe;
use super::rest::LeftRest;
use super::{Journal, layout::REQUEST_MAX};

/// How many servers may fail to take a journal over.
const ATTEMPTS: u64 = 3;

/// All of it.
#[derive(Debug)]
pub struct Left {
    /// The journal, which goes on.
    pub journal: Arc<Journal>,
    /// The connections that can be gone on with.
    pub lines: Vec<LeftLine>,
    /// What the server said when it panicked.
    pub panic: Option<String>,
}

/// A connection.
#[derive(Debug)]
pub struct LeftLine {
    /// What has come on it.
    pub line: Line,
    /// A call whose answer is sent in part, and has to be sent to its end before anything else.
    pub sending: Option<(Call, Answer)>,
    /// Its other calls, in the order of their streams.
    pub calls: Vec<LeftCall>,
}

/// A call that has no answer yet, or whose answer is not sent.
#[derive(Debug)]
pub struct LeftCall {
    /// Its record, which goes on.
    pub call: Call,
    /// The stream that names it.
    pub stream: u32,
    /// Of its message.
    pub kind: u8,
    /// The request, or its beginning.
    pub request: Vec<u8>,
    /// How long the request was in whole.
    pub len: u32,
    /// Whether some of it had not come yet, so that nothing can have been done.
    pub is_receiving: bool,
    /// How often it has been begun again.
    pub runs: u8,
    /// How many servers died just when they were working at it.
    pub strikes: u8,
    /// Whether one panicked at it.
    pub has_panicked: bool,
    /// What is left of its time.
    pub limit: Option<Duration>,
    /// The answer.
    pub answer: Option<Answer>,
    /// What was taken from a pipe to be the answer.
    pub data: Option<Data>,
    /// What a process had not read yet of what the call writes.
    pub rest: Option<LeftRest>,
}

impl Journal {
    /// Takes over the journal of an earlier server.
    ///
    /// # Errors
    /// When it is none, or when too many servers have died of it.
    pub fn open(held: Vec<OwnedFd>) -> io::Result<Left> {
        let mut held = held.into_iter();
        let file = held.next().ok_or(io::ErrorKind::NotFound)?;
        let memory = Memory::open(file, LEN)?;
        let attempts = memory.load(head::ATTEMPTS);
        if memory.load(head::MAGIC) != MAGIC || attempts >= ATTEMPTS {
            return Err(io::ErrorKind::InvalidData.into());
        }
        memory.store(head::ATTEMPTS, attempts.saturating_add(1));
        let text = usize::try_from(memory.load(head::TEXT_LEN)).unwrap_or(0).min(head::TEXT_MAX);
        let panic = String::from_utf8_lossy(memory.bytes(head::TEXT, text)).into_owned();
        let journal = Arc::new(Self::of(memory, Pipe::held(held.next(), held.next())));
        let lines = journal.claim_lines();
        for place in [head::TEXT_LEN, head::CURRENT, head::PANICKED] {
            journal.memory.store(place, 0);
        }
        Ok(Left { journal, lines, panic: Some(panic).filter(|panic| !panic.is_empty()) })
    }

    fn claim_lines(self: &Arc<Self>) -> Vec<LeftLine> {
        let end = |place, most: usize| usize::try_from(self.memory.load(place)).unwrap_or(most).min(most);
        let (lines, calls) = (end(head::LINES_END, LINES), end(head::CALLS_END, CALLS));
        let mut lines: Vec<Option<LeftLine>> = (0..lines).map(|number| self.claim_line(number)).collect();
        let owned = self.owned_chunks();
        // No call is let go of before all are found: their records would be taken again.
        let found: Vec<(u16, LeftCall)> =
            (0..calls).filter_map(|number| self.claim_call(number, &lines, &owned)).collect();
        // What has not been claimed is nobody's.
        for (_, chunk) in owned {
            self.memory.store(layout::chunk(chunk).0.saturating_add(CHUNK_OWNER), 0);
        }
        self.empty_pipe();
        for (number, call) in found {
            if let Some(Some(line)) = lines.get_mut(usize::from(number)) {
                line.calls.push(call);
            }
        }
        let lines = lines.into_iter().flatten().filter(|line| line.line.is_whole());
        lines.filter_map(LeftLine::settle).collect()
    }

    /// What no call has claimed of what is in the pipe is nobody's.
    fn empty_pipe(&self) {
        if let (Some(pipe), false) = (&self.pipe, self.taken().pipe) {
            pipe.empty();
            self.memory.store(head::PASSAGE, 0);
        }
    }

    fn claim_line(self: &Arc<Self>, number: usize) -> Option<LeftLine> {
        let used = self.memory.load(layout::line(number).saturating_add(line_field::STATE)) == 1;
        if !used || !self.taken().lines.claim(number) {
            return None;
        }
        Some(LeftLine::new(Line::left(self, u16::try_from(number).ok()?)))
    }

    fn claim_call(
        self: &Arc<Self>,
        number: usize,
        lines: &[Option<LeftLine>],
        owned: &[(usize, usize)],
    ) -> Option<(u16, LeftCall)> {
        let at = layout::call(number);
        let word = |field: usize| self.memory.load(at.saturating_add(field));
        let mut state = State::from_word(word(field::STATE))?;
        let Some(Some(line)) = lines.get(usize::from(state.line)) else {
            self.memory.store(at, 0);
            return None;
        };
        if !self.taken().calls.claim(number) {
            return None;
        }
        let call = Call::left(self, number, &line.line);
        let is_current = |place| layout::referenced(self.memory.load(place)) == Some(number);
        state.strikes = state.strikes.saturating_add(is_current(head::CURRENT).into());
        self.memory.store(at, state.to_word());
        let kept = usize::try_from(word(field::KEPT)).unwrap_or(0).min(REQUEST_MAX);
        let (stream, len) = halves(word(field::HEADER));
        let deadline = Some(word(field::DEADLINE)).filter(|at| *at > 0);
        let passage = if is_current(head::PASSAGE) { Passage::left(self) } else { None };
        let (answer, passage) = self.claim_answer(word(field::ANSWER), passage);
        let passage = passage.filter(|passage| passage.len() > 0).map(Data::Passage);
        let data = if answer.is_none() { passage.or_else(|| self.claim_data(number, owned)) } else { None };
        let rest = if answer.is_none() { self.claim_rest(&call, word(field::REST)) } else { None };
        let left = LeftCall {
            call,
            stream,
            kind: state.kind,
            request: self.memory.bytes(at.saturating_add(field::REQUEST), kept).to_vec(),
            len,
            is_receiving: state.is_receiving,
            runs: state.runs,
            strikes: state.strikes,
            has_panicked: is_current(head::PANICKED),
            limit: deadline.map(|at| Duration::from_nanos(at).saturating_sub(now())),
            answer,
            data,
            rest,
        };
        Some((state.line, left))
    }

    fn claim_chunk(&self, number: usize) -> bool {
        let mut taken = self.taken();
        match number.checked_sub(SMALL_CHUNKS) {
            None => taken.small.claim(number),
            Some(number) => taken.large.claim(number),
        }
    }

    /// The answer that is at a place, with what is in the pipe if that is its call's; and what is there if there is
    /// no answer.
    fn claim_answer(
        self: &Arc<Self>,
        word: u64,
        passage: Option<Passage>,
    ) -> (Option<Answer>, Option<Passage>) {
        let place = Place::from_word(word).filter(|place| self.claim_chunk(place.chunk));
        let Some(Place { chunk, start, len }) = place else { return (None, passage) };
        let data = len.saturating_add(start).saturating_sub(super::HEAD_ROOM);
        let chunk = Chunk::left(self, chunk, data);
        let answer = match passage {
            Some(passage) => Answer::Passing { chunk, start, len, passage },
            None => Answer::Kept { chunk, start, len },
        };
        (Some(answer), None)
    }

    fn claim_rest(self: &Arc<Self>, call: &Call, word: u64) -> Option<LeftRest> {
        let Place { chunk: number, len, .. } = Place::from_word(word)?;
        let filled = Chunk::filled(self, number).filter(|filled| len <= *filled)?;
        self.claim_chunk(number).then(|| LeftRest::new(call, Chunk::left(self, number, filled), len))
    }

    /// Chunks in which something may have been put for a call, and that call.
    fn owned_chunks(&self) -> Vec<(usize, usize)> {
        let owner = |number: usize| self.memory.load(layout::chunk(number).0.saturating_add(CHUNK_OWNER));
        (0..CHUNKS).filter_map(|number| Some((layout::referenced(owner(number))?, number))).collect()
    }

    /// What a call had taken from a pipe.
    fn claim_data(self: &Arc<Self>, call: usize, owned: &[(usize, usize)]) -> Option<Data> {
        let its = owned.iter().filter(|(owner, _)| *owner == call).map(|(_, chunk)| *chunk);
        let (number, len) = its
            .filter_map(|number| Some((number, Chunk::filled(self, number)?)))
            .find(|(_, len)| *len > 0)?;
        self.claim_chunk(number).then(|| Data::Chunk(Chunk::left(self, number, len)))
    }
}

impl LeftLine {
    /// A line on which nothing has happened yet.
    pub fn new(line: Line) -> Self {
        Self { line, sending: None, calls: Vec::new() }
    }

    /// Finds out what had been sent. `None` if the line can't be gone on with.
    fn settle(mut self) -> Option<Self> {
        self.line.settle();
        let sender = self.line.sender();
        let sending = sender.sending();
        let place = self.calls.iter().position(|left| left.call.0.number == sending && sending.is_some());
        let Some(place) = place else {
            // The call had ended, and its number will be another's.
            sender.rest();
            return Some(self.sorted());
        };
        let LeftCall { call, answer, .. } = self.calls.remove(place);
        let answer = answer?;
        answer.range()?;
        if answer.is_sent(sender.sent()) {
            sender.end(&call);
        } else {
            self.sending = Some((call, answer));
        }
        Some(self.sorted())
    }

    fn sorted(mut self) -> Self {
        self.calls.sort_by_key(|left| left.stream);
        self
    }
}
