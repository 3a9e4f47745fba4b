//! How much memory a connection takes: the answers that wait for their turn to be sent, and the calls under way.
//!
//! Invariant: a peer that takes none of its answers makes them no more than some MiB, whatever it has asked for. No
//! further request is read without room, and a read that waits for a stream, which takes what is there by the MiB,
//! goes on only with room: a peer may have thousands of them under way when the process begins to write. Nor has it
//! more than [`MOST_CALLS`] calls under way: others are refused, but for those that end some. They are still read, as
//! what ends them comes behind.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

use crate::journal::Answer;

/// From when on there is no room.
const MOST: usize = 8 << 20;
/// How many calls may be under way, each of which takes some KiB. A shim has a few for each process.
const MOST_CALLS: usize = 16 << 10;
/// The same with calls that end others.
const MOST_WITH_THOSE_THAT_END: usize = 2 * MOST_CALLS;
/// What an answer takes beside its bytes: its task, and a page of the journal.
const PER_ANSWER: usize = 6 << 10;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Room {
    taken: AtomicUsize,
    calls: AtomicUsize,
    /// Told when there is room again.
    freed: Notify,
}

/// Counts an answer that waits, for as long as it does.
pub(super) struct Counted<'a>(&'a Room, usize);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        let before = self.0.taken.fetch_sub(self.1, Ordering::Relaxed);
        if before >= MOST && self.0.is_left() {
            self.0.freed.notify_waiters();
        }
    }
}

impl Room {
    /// Whether there is some.
    pub(super) fn is_left(&self) -> bool {
        self.taken.load(Ordering::Relaxed) < MOST
    }

    /// So many calls are under way.
    pub(super) fn note_calls(&self, count: usize) {
        self.calls.store(count, Ordering::Relaxed);
    }

    /// Whether there are too many for one of this method.
    pub(super) fn is_crowded_for(&self, method: &str) -> bool {
        let most = match method {
            "SignalProcess" | "CloseStdin" | "RemoveContainer" | "DestroySandbox" | "Check" => {
                MOST_WITH_THOSE_THAT_END
            }
            _ => MOST_CALLS,
        };
        self.calls.load(Ordering::Relaxed) >= most
    }

    /// To be kept while the answer waits.
    pub(super) fn count(&self, answer: &Answer) -> Counted<'_> {
        let size = answer.len().saturating_add(PER_ANSWER);
        self.taken.fetch_add(size, Ordering::Relaxed);
        Counted(self, size)
    }

    /// Goes on with `body` only while there is room: what it takes in its last step is an answer of this connection.
    pub(super) async fn go_on_with<T>(&self, body: impl Future<Output = T>) -> T {
        let mut body = pin!(body);
        loop {
            // Made before the look: what it is told from then on is not missed.
            let mut freed = pin!(self.freed.notified());
            let done = poll_fn(|context| {
                if self.is_left() {
                    body.as_mut().poll(context).map(Some)
                } else {
                    freed.as_mut().poll(context).map(|()| None)
                }
            });
            if let Some(done) = done.await {
                return done;
            }
        }
    }
}
