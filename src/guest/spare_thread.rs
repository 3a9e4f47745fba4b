//! A spare thread of the blocking pool, so that the pool always has one.
//!
//! A container without a limit of its own can take all threads that the guest may have (`kernel.threads-max`). For
//! work that blocks tokio starts a thread where none is idle; where the kernel refuses it, the work is left to the
//! threads that are there, and without any tokio panics. So one is always there. It sleeps until somebody finds that
//! calls take long ([`SpareThread::help`]); then it takes what waits in the pool's queue.
//!
//! Invariant: the spare work is always either running or at the end of the queue.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;

/// How long it stays awake where there is no room for other threads: as long as it is asked for help, and then some.
const AWAKE: Duration = Duration::from_secs(3);
/// How often it looks at the queue then. No event tells that something has come into it.
const LOOK: Duration = Duration::from_millis(5);
/// Of the thread that shows whether there is room for one.
const PROBE_STACK: usize = 64 << 10;

/// The thread. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct SpareThread(Arc<(Mutex<State>, Condvar)>);

#[derive(Debug, Default)]
struct State {
    asked: bool,
    awake_until: Option<Instant>,
}

impl SpareThread {
    /// Starts it, in the pool of this runtime, which has to be ended without waiting for it.
    pub fn start(runtime: &Handle) -> Self {
        let spare = Self::default();
        spare.clone().queue(runtime.clone());
        spare
    }

    /// Calls take long: it has a look whether work waits for a thread.
    pub fn help(&self) {
        self.lock().asked = true;
        self.0.1.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn queue(self, runtime: Handle) {
        runtime.clone().spawn_blocking(move || {
            self.rest();
            // All that waits by now is before this.
            self.queue(runtime);
        });
    }

    /// Returns when the queue is to be looked at.
    fn rest(&self) {
        let wake = &self.0.1;
        let mut state = self.lock();
        loop {
            let now = Instant::now();
            if std::mem::take(&mut state.asked) {
                // Unlocked, so that nobody who asks for help waits for the probe.
                drop(state);
                let awake_until = if has_room() { None } else { now.checked_add(AWAKE) };
                self.lock().awake_until = awake_until;
                return;
            }
            if state.awake_until.is_some_and(|end| now < end) {
                drop(wake.wait_timeout(state, LOOK));
                return;
            }
            state = wake.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Whether the kernel would start a thread.
fn has_room() -> bool {
    let probe = std::thread::Builder::new().stack_size(PROBE_STACK).spawn(|| {});
    probe.map(std::thread::JoinHandle::join).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_takes_what_waits_in_a_pool_that_gets_no_other_thread() {
        let runtime = tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).build().unwrap();
        let spare = SpareThread::start(runtime.handle());
        for _ in 0..3 {
            let work = runtime.spawn_blocking(|| 7);
            spare.help();
            assert_eq!(runtime.block_on(work).unwrap(), 7);
        }
        runtime.shutdown_background();
    }
}
