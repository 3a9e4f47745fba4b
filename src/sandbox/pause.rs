//! Pausing and resuming: the part of a container's actor that freezes and thaws its cgroup.
//!
//! Owns the change that is under way; there is one at most, as the states *pausing* and *resuming* refuse
//! everything but a removal.
//!
//! - A pause waits for the launches that were asked for before it. A process that is being launched is in the
//!   cgroup already, and the worker that waits for it would be stuck with it.
//! - A change that has begun is never given up, since the thread that writes to the cgroup can't be: a removal
//!   waits for its end ([`Freezer::finish`]). Frozen after it was killed, a process of cgroup v1 would not die.
//! - A pause that fails leaves the container running, a resumption that fails leaves it paused.

use std::time::Duration;

use tokio::task::JoinSet;

use super::actor::{Actor, Answer};
use super::container::Status;
use super::create::blocking;
use super::error::SandboxError;

/// How long the processes may take to stop or to go on. One that waits for a disk or a share stops only when it
/// has its answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// What is frozen, and what was asked for.
#[derive(Debug, Default)]
pub(super) struct Freezer {
    /// The change under way.
    pub(super) task: JoinSet<()>,
    /// A pause that waits for launches.
    asked: Option<Answer>,
    /// Where a resumption leads to.
    before: Option<Status>,
}

impl Freezer {
    /// One of a container that was paused in the state `before`, if it was.
    pub(super) fn paused_from(before: Option<Status>) -> Self {
        Self { before, ..Self::default() }
    }

    /// Gives up the pause that has not begun, and waits for the change that has.
    pub(super) async fn finish(&mut self) {
        self.asked = None;
        while self.task.join_next().await.is_some() {}
    }
}

impl Actor {
    /// Refuses, or freezes as soon as nothing is being launched.
    pub(super) fn pause(&mut self, answer: Answer) {
        let status = self.container.status();
        if !matches!(status, Status::Created | Status::Running) {
            let _ = answer.send(Err(self.container.refuse(Status::Running)));
            return;
        }
        self.freezer.before = Some(status);
        self.freezer.asked = Some(answer);
        self.container.set_status(Status::Pausing);
        self.freeze_if_idle();
    }

    /// Begins the pause that was asked for, if the last launch is over.
    pub(super) fn freeze_if_idle(&mut self) {
        if !self.work.is_empty() {
            return;
        }
        let Some(answer) = self.freezer.asked.take() else { return };
        let before = self.freezer.before.unwrap_or(Status::Running);
        if answer.is_closed() {
            // Who asked has given up waiting for the launches.
            self.container.leave_status(Status::Pausing, before);
        } else {
            self.change(Status::Pausing, Status::Paused, before, answer);
        }
    }

    /// Refuses, or thaws. What is left of a container whose init has ended can be resumed, too.
    pub(super) fn resume(&mut self, answer: Answer) {
        if self.container.reached() != Status::Paused {
            let _ = answer.send(Err(self.container.refuse(Status::Paused)));
            return;
        }
        let before = self.freezer.before.unwrap_or(Status::Running);
        self.container.set_status(Status::Resuming);
        self.change(Status::Resuming, before, Status::Paused, answer);
    }

    /// Freezes or thaws, as the state `on_the_way` says; then the container is `done` or `failed`.
    fn change(&mut self, on_the_way: Status, done: Status, failed: Status, answer: Answer) {
        let container = self.container.clone();
        self.freezer.task.spawn(async move {
            let cgroup = container.cgroup().clone();
            let changed = blocking({
                let id = container.id().clone();
                move || {
                    let freeze = on_the_way == Status::Pausing;
                    let changed = if freeze { cgroup.freeze(TIMEOUT) } else { cgroup.thaw(TIMEOUT) };
                    changed.map_err(|source| SandboxError::Cgroup { id, source })
                }
            })
            .await;
            container.leave_status(on_the_way, if changed.is_ok() { done } else { failed });
            let _ = answer.send(changed);
        });
    }
}
