//! A call from its request to the last byte of its answer.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use super::Journal;
use super::chunk::{Answer, Data};
use super::layout::{self, REQUEST_MAX, State, call_field as field, head};
use super::line::{Line, Record};

thread_local! {
    static CURRENT: RefCell<Option<Arc<Open>>> = const { RefCell::new(None) };
}

/// A request as it is noted.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The stream that it came on, which names the call.
    pub stream: u32,
    /// What kind of message it is.
    pub kind: u8,
    /// How long it is in whole.
    pub len: u32,
    /// As much of it as is there.
    pub bytes: &'a [u8],
    /// Whether the rest of it is still to come.
    pub is_receiving: bool,
}

impl Request<'_> {
    /// How much of a request of `len` bytes is kept.
    pub fn kept(len: usize) -> usize {
        len.min(REQUEST_MAX)
    }
}

/// A call under way; cheap to clone. When the last one is dropped, nobody waits for an answer any more.
#[derive(Debug, Clone)]
pub struct Call(pub(super) Arc<Open>);

#[derive(Debug)]
pub(super) struct Open {
    pub(super) journal: Arc<Journal>,
    line: Arc<Record>,
    /// None if there was no room.
    pub(super) number: Option<usize>,
    is_unkept: AtomicBool,
    /// What has been taken for its answer.
    data: Mutex<Option<Data>>,
}

impl Call {
    /// Notes a request that has come on a line.
    pub(super) fn open(line: &Line, request: Request<'_>) -> Self {
        let journal = line.journal().clone();
        let number = journal.taken().calls.take();
        let call = Self(Arc::new(Open::new(journal, number, line)));
        match number {
            Some(number) => call.0.note(number, line, request),
            None => call.lose(),
        }
        call
    }

    /// The call of an earlier server's.
    pub(super) fn left(journal: &Arc<Journal>, number: usize, line: &Line) -> Self {
        Self(Arc::new(Open::new(journal.clone(), Some(number), line)))
    }

    /// All of the request is there.
    pub fn received(&self) {
        self.0.change(|state| state.is_receiving = false);
    }

    /// It is begun again.
    pub fn begun_again(&self) {
        self.0.change(|state| state.runs = state.runs.saturating_add(1));
    }

    /// The call may take so long from now on. The first limit counts.
    pub fn limit(&self, limit: Duration) {
        let Some(number) = self.0.number else { return };
        let (memory, place) = (&self.0.journal.memory, layout::call(number).saturating_add(field::DEADLINE));
        if memory.load(place) == 0 {
            let at = now().saturating_add(limit).as_nanos();
            memory.store(place, u64::try_from(at).unwrap_or(u64::MAX));
        }
    }

    /// Works at the call: whatever `body` does, it is known whose it is.
    pub async fn run<T>(&self, body: impl Future<Output = T>) -> T {
        let mut body = pin!(body);
        poll_fn(|context| {
            let _current = Current::enter(&self.0);
            body.as_mut().poll(context)
        })
        .await
    }

    /// Takes what has been handed over for the answer.
    pub fn take_data(&self) -> Option<Data> {
        self.0.data().take()
    }

    /// This is the answer.
    pub fn answered(&self, answer: &Answer) {
        match (self.0.number, answer.place()) {
            (Some(number), Some(place)) => {
                self.0.journal.memory.store(layout::call(number).saturating_add(field::ANSWER), place);
            }
            _ => self.lose(),
        }
    }

    /// The line can't be taken over as long as this call is under way.
    fn lose(&self) {
        if !self.0.is_unkept.swap(true, Ordering::Relaxed) {
            self.0.line.lose();
        }
    }
}

impl Open {
    fn new(journal: Arc<Journal>, number: Option<usize>, line: &Line) -> Self {
        let line = line.record().clone();
        Self { journal, line, number, is_unkept: AtomicBool::new(false), data: Mutex::new(None) }
    }

    fn note(&self, number: usize, line: &Line, request: Request<'_>) {
        let (memory, at) = (&self.journal.memory, layout::call(number));
        let bytes = request.bytes.get(..Request::kept(request.bytes.len())).unwrap_or_default();
        memory.write(at.saturating_add(field::REQUEST), bytes);
        memory.store(at.saturating_add(field::KEPT), bytes.len() as u64);
        memory.store(at.saturating_add(field::HEADER), layout::pair(request.stream, request.len));
        memory.store(at.saturating_add(field::DEADLINE), 0);
        memory.store(at.saturating_add(field::ANSWER), 0);
        memory.store(at.saturating_add(field::REST), 0);
        let state = State {
            line: line.number(),
            kind: request.kind,
            is_receiving: request.is_receiving,
            runs: 0,
            strikes: 0,
        };
        self.journal.raise_end(head::CALLS_END, number);
        memory.store(at, state.to_word());
    }

    /// Whether an earlier server had begun it, too.
    pub(super) fn is_again(&self) -> bool {
        let state =
            self.number.and_then(|number| State::from_word(self.journal.memory.load(layout::call(number))));
        state.is_some_and(|state| state.runs > 0)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let Some(at) = self.number.map(layout::call) else { return };
        if let Some(mut state) = State::from_word(self.journal.memory.load(at)) {
            change(&mut state);
            self.journal.memory.store(at, state.to_word());
        }
    }

    pub(super) fn takes_pages(&self) -> bool {
        self.line.is_taking_pages()
    }

    pub(super) fn data(&self) -> std::sync::MutexGuard<'_, Option<Data>> {
        self.data.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It has its answer, and is no more.
    pub(super) fn close(&self) {
        if let Some(number) = self.number {
            self.journal.memory.store(layout::call(number), 0);
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.close();
        // Before its number can be another call's.
        self.data().take();
        if let Some(number) = self.number {
            self.journal.taken().calls.put(number);
        }
        if *self.is_unkept.get_mut() {
            self.line.lose_no_more();
        }
    }
}

/// For as long as it lives, this thread works at a call.
struct Current<'a> {
    call: &'a Open,
    before: Option<Arc<Open>>,
}

impl<'a> Current<'a> {
    fn enter(call: &'a Arc<Open>) -> Self {
        let before = CURRENT.replace(Some(call.clone()));
        call.journal.memory.store(head::CURRENT, layout::reference(call.number));
        Self { call, before }
    }
}

impl Drop for Current<'_> {
    fn drop(&mut self) {
        let number = self.before.as_ref().and_then(|before| before.number);
        self.call.journal.memory.store(head::CURRENT, layout::reference(number));
        CURRENT.replace(self.before.take());
    }
}

/// The call that this thread works at.
pub(super) fn current() -> Option<Arc<Open>> {
    CURRENT.with_borrow(Clone::clone)
}

/// Its number. To be asked in a panic, so it must not be another.
pub(super) fn current_number() -> Option<usize> {
    CURRENT.try_with(|current| current.try_borrow().ok()?.as_ref()?.number).ok().flatten()
}

/// The time by which deadlines are told, for all processes the same.
pub(super) fn now() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from)
}
