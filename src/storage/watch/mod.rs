//! Following a directory or file of a share: virtio-fs tells the guest nothing of what the host changes, so
//! the guest has to look.
//!
//! A [`Watch`] holds a copy up to date for as long as it lives. The look is cheap for a volume as Kubernetes
//! writes it: all of it changes by one link, `..data`. Elsewhere every file is looked at, as often as that
//! takes a tenth of the time at most. Nothing ends the watching but the storage's end: an error is logged, and the
//! next look tries again.
//!
//! The copy is in the guest's memory, so there is a limit to it ([`can_not_be_copied`]).

mod limit;
mod mirror;
mod scan;
mod share;
mod step;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use slog::{Logger, debug, warn};
use tokio::task::AbortHandle;

pub(super) use self::mirror::Mirror;
use self::scan::TOO_MUCH;
use super::StorageError;
use super::ownership::Giver;
use crate::guest::bulkhead::Bulkhead;

/// The time between two looks. virtio-fs itself may hold back a change for a second.
const PERIOD: Duration = Duration::from_millis(500);

/// A look that takes long is followed by a pause that is longer by this factor.
const REST: u32 = 9;

/// How long the end waits for a look that is under way. A share may hang.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whether there is no copy because there is no room for one, in the guest or with the server of the share.
pub(super) fn can_not_be_copied(error: &StorageError) -> bool {
    use Errno::{EDQUOT, EMFILE, ENFILE, ENOMEM, ENOSPC};
    let StorageError::Path { cause, .. } = error else { return false };
    matches!(*cause, TOO_MUCH | EMFILE | ENFILE | ENOSPC | EDQUOT | ENOMEM)
}

/// Keeps a copy up to date, until it is dropped.
pub(super) struct Watch {
    /// What is followed, the copy, and where new things are made.
    pub(super) places: [PathBuf; 3],
    /// Whom the copy belongs to.
    pub(super) group: Option<Giver>,
    turn: Arc<Turn>,
    task: AbortHandle,
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").finish_non_exhaustive()
    }
}

/// Whether the copy is being changed, and whether it may.
#[derive(Debug, Default)]
struct Turn {
    state: Mutex<State>,
    idle: Condvar,
}

#[derive(Debug, Default)]
struct State {
    busy: bool,
    stopped: bool,
}

impl Turn {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a look, unless there are to be no more.
    fn begin(self: &Arc<Self>) -> Option<Busy> {
        let mut state = self.state();
        if state.stopped {
            return None;
        }
        state.busy = true;
        Some(Busy(Arc::clone(self)))
    }
}

struct Busy(Arc<Turn>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.state().busy = false;
        self.0.idle.notify_all();
    }
}

impl Watch {
    /// Follows from now on, in a task of the current runtime.
    pub(super) fn start(mirror: Mirror, bulkhead: Bulkhead, log: Logger) -> Self {
        let (places, group, turn) = (mirror.places(), mirror.group(), Arc::<Turn>::default());
        let task = tokio::spawn(follow(mirror, Arc::clone(&turn), bulkhead, log)).abort_handle();
        Self { places, group, turn, task }
    }
}

impl Drop for Watch {
    /// Blocks while a look is under way: afterwards nothing is written any more.
    fn drop(&mut self) {
        self.task.abort();
        let mut state = self.turn.state();
        state.stopped = true;
        let idle = self.turn.idle.wait_timeout_while(state, PATIENCE, |state| state.busy);
        drop(idle.unwrap_or_else(PoisonError::into_inner));
    }
}

async fn follow(mut mirror: Mirror, turn: Arc<Turn>, bulkhead: Bulkhead, log: Logger) {
    let [source, ..] = mirror.places();
    let mut pause = PERIOD;
    let mut trouble = String::new();
    loop {
        // There is no event to wait for.
        tokio::time::sleep(pause).await;
        let turn = Arc::clone(&turn);
        let look = bulkhead.run(&source, move || {
            let busy = turn.begin()?;
            let begin = Instant::now();
            let outcome = mirror.update();
            drop(busy);
            Some((mirror, outcome, begin.elapsed()))
        });
        let Ok(Some((back, outcome, took))) = look.await else { return };
        mirror = back;
        // A copy, or a source that is being written, happens once: it says nothing of how long the next look takes.
        let is_once = match &outcome {
            Ok(changed) => *changed || mirror.is_volume(),
            Err(error) => {
                matches!(error, StorageError::Path { cause: Errno::EAGAIN | Errno::ENOENT, .. })
            }
        };
        let factor = if is_once { 1 } else { REST };
        pause = PERIOD.max(took.saturating_mul(factor));
        report(&mirror, outcome, &mut trouble, &log);
    }
}

/// Says each trouble once.
fn report(mirror: &Mirror, outcome: Result<bool, StorageError>, trouble: &mut String, log: &Logger) {
    let path = mirror.path();
    match outcome {
        Ok(changed) => {
            trouble.clear();
            if changed {
                debug!(log, "watched storage changed"; "mount_point" => %path.display());
            }
        }
        Err(error) => {
            let text = error.to_string();
            if *trouble != text {
                warn!(log, "watched storage not followed"; "mount_point" => %path.display(), "cause" => &text);
                *trouble = text;
            }
        }
    }
}
