//! The bounded queue between those who log and the thread that writes.
//!
//! Lines lie end to end in one buffer. The writer takes the whole buffer and leaves an empty one, so the lock
//! is held for the time of a copy and never during a write. Invariant: the buffer has whole lines and at most
//! [`LIMIT`] bytes.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::line::Line;
use super::output::Output;

/// How many bytes may wait. As many again may be on their way out.
const LIMIT: usize = 128 * 1024;
/// A buffer that grew above this is given back to the allocator once it is written.
const KEEP: usize = 8 * 1024;
/// Formatting the line about losses is all that the thread does on its stack.
const STACK: usize = 64 * 1024;

#[derive(Debug, Default)]
struct State {
    lines: Vec<u8>,
    dropped: u64,
    writing: bool,
    closed: bool,
    output: Option<Output>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    /// There is something to write, another output, or an end.
    work: Condvar,
    /// Everything is written.
    empty: Condvar,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock; if something did, its state would still be whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a line, or counts it as dropped.
    pub(super) fn push(&self, line: &[u8]) {
        let mut state = self.lock();
        if state.closed || line.len() > LIMIT.saturating_sub(state.lines.len()) {
            state.dropped = state.dropped.saturating_add(1);
            return;
        }
        state.lines.extend_from_slice(line);
        self.work.notify_one();
    }

    pub(super) fn redirect(&self, output: Output) {
        self.lock().output = Some(output);
        self.work.notify_one();
    }

    /// Ends the writer once it has written what is queued.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.work.notify_one();
    }

    pub(super) fn wait_empty(&self, limit: Duration) -> bool {
        let busy = |state: &mut State| state.writing || !state.lines.is_empty();
        let waited = self.empty.wait_timeout_while(self.lock(), limit, busy);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    /// Waits for lines and takes them, with the output to change to. `None`: closed, and nothing is left.
    fn take(&self, spare: Vec<u8>) -> Option<(Vec<u8>, Option<Output>)> {
        let mut state = self.lock();
        state.writing = false;
        if state.lines.is_empty() {
            self.empty.notify_all();
        }
        let idle = |state: &mut State| state.lines.is_empty() && !state.closed && state.output.is_none();
        state = self.work.wait_while(state, idle).unwrap_or_else(PoisonError::into_inner);
        if state.lines.is_empty() && state.closed {
            return None;
        }
        let mut lines = std::mem::replace(&mut state.lines, spare);
        let dropped = std::mem::take(&mut state.dropped);
        if dropped > 0 {
            lines.extend_from_slice(&Line::of_losses(dropped));
        }
        state.writing = true;
        Some((lines, state.output.take()))
    }
}

/// Starts the thread that writes to `output` what is queued.
pub(super) fn start_writer(queue: Arc<Queue>, mut output: Output) -> io::Result<()> {
    let run = move || {
        let mut spare = Vec::new();
        while let Some((mut lines, other)) = queue.take(spare) {
            if let Some(other) = other {
                output = other;
            }
            // If it can't be written there is nobody to tell.
            let _ = output.write_lines(&lines);
            lines.clear();
            lines.shrink_to(KEEP);
            spare = lines;
        }
    };
    std::thread::Builder::new().name("log".to_owned()).stack_size(STACK).spawn(run).map(drop)
}
