//! OOM kills on their way to the host: each container's watch adds them to the sandbox's [`OomEvents`], and each
//! is taken by one GetOOMEvent.
//!
//! A kill is only ever moved whole: counted and added in one step on the blocking pool, which runs to its end
//! whoever goes away, and taken in the same poll that completes the call. So a call that is given up takes nothing
//! with it. What was added stays when its container is removed; a record of it lasts until the host has been told, so
//! that it is told by the next server, too.
//!
//! systemd removes the cgroup of a unit whose processes have ended, with its counters: see [`Slices`].
//!
//! Bounded: one entry for each container, [`MAX_CONTAINERS`] of them. Only if nobody asks while more containers than
//! that run out of memory is the oldest forgotten.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use slog::{Logger, warn};
use tokio::sync::Notify;

use super::oom_slices::{InSlice, Slices};
use super::process::Process;
use super::records::{forget_oom, note_oom};
use super::{Environment, lock};
use crate::cgroup::{Cgroup, CgroupError, Notices, OomKills};
use crate::ids::ContainerId;
use crate::records::Records;
use crate::supervisor::ExitStatus;

/// How many containers can have kills that nobody has asked for.
const MAX_CONTAINERS: usize = 1024;
/// How soon to look again after notice that comes before its kill. Twice as long each time...
const FIRST_LOOK: Duration = Duration::from_millis(1);
/// ...up to this: two seconds in all.
const LAST_LOOK: Duration = Duration::from_secs(1);
/// How long the end of a cgroup may take to give notice of itself.
const LAST_NOTICE: Duration = Duration::from_millis(100);
/// The exit code of who was killed.
const KILLED: i32 = 128 + libc::SIGKILL;

/// The OOM kills that the host has not asked for yet.
#[derive(Debug, Default)]
pub struct OomEvents {
    /// Held for single operations only, never across an await.
    pending: Mutex<Pending>,
    changed: Notify,
    slices: Slices,
}

#[derive(Debug, Default)]
struct Pending {
    /// Containers with how many kills of each, the next one to tell of in front.
    kills: VecDeque<(ContainerId, u64)>,
    closed: bool,
}

impl OomEvents {
    /// Adds kills of a container, of which there is a record. Returns the container that had to be forgotten, if one had
    /// to be.
    pub(super) fn add(&self, id: &ContainerId, kills: u64) -> Option<ContainerId> {
        if kills == 0 {
            return None;
        }
        let mut pending = lock(&self.pending);
        let mut forgotten = None;
        if let Some((_, count)) = pending.kills.iter_mut().find(|(known, _)| known == id) {
            *count = count.saturating_add(kills);
        } else {
            if pending.kills.len() >= MAX_CONTAINERS {
                forgotten = pending.kills.pop_front().map(|(id, _)| id);
            }
            pending.kills.push_back((id.clone(), kills));
        }
        drop(pending);
        self.changed.notify_waiters();
        forgotten
    }

    /// Takes one kill. A container with more of them takes its turn again after the others.
    fn take(&self) -> Option<ContainerId> {
        let mut pending = lock(&self.pending);
        let (id, count) = pending.kills.pop_front()?;
        if let Some(left) = count.checked_sub(1).filter(|left| *left > 0) {
            pending.kills.push_back((id.clone(), left));
        }
        Some(id)
    }

    /// Waits for a kill, takes it, and says whose it was. `None` once [`OomEvents::close`] has been called and all
    /// are taken. Whoever stops waiting has taken nothing.
    pub async fn next(&self) -> Option<ContainerId> {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            // From here on no change is missed.
            changed.as_mut().enable();
            if let Some(id) = self.take() {
                return Some(id);
            }
            if lock(&self.pending).closed {
                return None;
            }
            changed.await;
        }
    }

    /// Lets nobody wait any longer: the agent is about to end.
    pub fn close(&self) {
        lock(&self.pending).closed = true;
        self.changed.notify_waiters();
    }
}

/// Watches one container.
#[derive(Debug)]
pub(super) struct OomWatch {
    id: ContainerId,
    kills: OomKills,
    /// For a unit of systemd's.
    in_slice: Option<InSlice>,
    events: Arc<OomEvents>,
    records: Arc<Records>,
    logger: Logger,
    /// When the last kill was found.
    found: Mutex<Option<Instant>>,
    /// Whether its last kill is known, or never will be.
    settled: AtomicBool,
}

impl OomWatch {
    /// A watch that reports the kills of container `id`, from the one after those `before` it on. To be
    /// made before init is let go. A container that can't be watched, or ended before it could be, is none the
    /// worse: it has no watch.
    pub(super) async fn new(
        id: &ContainerId,
        cgroup: &Cgroup,
        before: Result<u64, CgroupError>,
        environment: &Environment,
        logger: &Logger,
    ) -> Option<Arc<Self>> {
        // On v2 it is one file, which the kernel answers from its memory: to hand that to a thread takes longer.
        let kills = if cgroup.hierarchy().is_v2() {
            before.and_then(|before| cgroup.count_oom_kills(before))
        } else {
            let counted = cgroup.clone();
            tokio::task::spawn_blocking(move || counted.count_oom_kills(before?)).await.ok()?
        };
        let (id, logger) = (id.clone(), logger.clone());
        let (events, records) = (environment.oom_events.clone(), environment.records.clone());
        let in_slice = cgroup.slice_kills().map(InSlice::new);
        match kills {
            Ok(kills) => {
                let watch = Arc::new(Self {
                    id,
                    kills: kills?,
                    in_slice,
                    events,
                    records,
                    logger,
                    found: Mutex::default(),
                    settled: AtomicBool::default(),
                });
                watch.events.slices.join(&watch);
                Some(watch)
            }
            Err(error) => {
                warn!(logger, "OOM kills will not be reported"; "error" => %error);
                None
            }
        }
    }

    /// Adds what was killed since the last look. When this returns, the events are there.
    pub(super) async fn look(self: &Arc<Self>) {
        if self.kills.walks() {
            let watch = self.clone();
            let _ = tokio::task::spawn_blocking(move || watch.look_now()).await;
        } else {
            self.look_now();
        }
    }

    /// Looks, and knows how init has ended, if it has: with it the cgroup may have gone.
    pub(super) async fn look_after(self: &Arc<Self>, end: Option<ExitStatus>) {
        self.look().await;
        let Some(end) = end.filter(|_| self.kills.is_gone()) else { return };
        self.events.slices.settle(self, end.code() != 0);
        // On v1 slices count nothing: it is known that there was a kill, and not how many.
        if self.in_slice.is_some() || end.code() != KILLED {
            return;
        }
        tokio::time::sleep(LAST_NOTICE).await;
        self.look().await;
        if self.kills.has_unseen()
            && lock(&self.found).is_none_or(|found| found.elapsed() > LAST_LOOK)
            && !self.settled.swap(true, Ordering::Relaxed)
        {
            self.tell(1);
        }
    }

    /// Looks as soon as init has ended.
    pub(super) async fn look_at_end_of(self: Arc<Self>, init: Arc<Process>) {
        let end = init.wait().await;
        self.look_after(end).await;
    }

    pub(super) fn look_now(&self) {
        match self.kills.news() {
            Ok(0) => {}
            Ok(kills) => {
                if let Some(slice) = &self.in_slice {
                    self.events.slices.known(slice, kills);
                }
                self.tell(kills);
            }
            Err(error) => warn!(self.logger, "OOM kills can't be counted"; "error" => %error),
        }
    }

    pub(super) fn tell(&self, kills: u64) {
        warn!(self.logger, "processes killed: out of memory"; "kills" => kills);
        *lock(&self.found) = Some(Instant::now());
        // Before anybody can be told. As what is read here it is in memory, and rare.
        note_oom(&self.records, self.id.as_str(), kills, 0);
        if let Some(id) = self.events.add(&self.id, kills) {
            warn!(self.logger, "nobody asks for OOM kills, some are forgotten"; "of" => id.as_str());
            forget_oom(&self.records, id.as_str());
        }
    }

    pub(super) fn in_slice(&self) -> Option<&InSlice> {
        self.in_slice.as_ref()
    }

    /// Whether its cgroup is gone, and it is not known yet what that had counted.
    pub(super) fn is_unsettled(&self) -> bool {
        self.kills.is_gone() && self.in_slice.as_ref().is_some_and(|slice| !slice.is_settled())
    }

    /// Looks whenever there is notice. Ends only when it is dropped, or with the runtime.
    pub(super) async fn run(self: Arc<Self>) {
        let notices = match Notices::of(&self.kills) {
            Ok(notices) => notices,
            Err(error) => {
                warn!(self.logger, "OOM kills will be reported late"; "error" => %error);
                return;
            }
        };
        // Set while a kill may still follow its notice.
        let mut pause: Option<Duration> = None;
        loop {
            let noticed = match pause {
                None => Ok(notices.next().await),
                Some(pause) => tokio::time::timeout(pause, notices.next()).await,
            };
            let next = match (noticed, pause) {
                (Ok(Ok(())), _) => FIRST_LOOK,
                (Err(_), Some(pause)) => pause.saturating_mul(2),
                (Ok(Err(_)), _) | (Err(_), None) => return,
            };
            pause = Some(next).filter(|next| self.kills.is_early() && *next <= LAST_LOOK);
            self.look().await;
            if pause.is_none() {
                self.kills.expect_no_more();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;
    use std::task::{Context, Poll, Waker};

    fn id(name: &str) -> ContainerId {
        ContainerId::try_from(name).unwrap()
    }

    /// What is there now, in the order in which it is given.
    fn all(events: &OomEvents) -> Vec<String> {
        std::iter::from_fn(|| events.take()).map(|id| id.to_string()).collect()
    }

    #[test]
    fn kills_are_told_in_the_order_of_their_containers_and_in_turns() {
        for (added, told) in [
            (&[][..], &[][..]),
            (&[("a", 1)], &["a"]),
            (&[("a", 2)], &["a", "a"]),
            (&[("b", 1), ("a", 1)], &["b", "a"]),
            (&[("a", 3), ("b", 1)], &["a", "b", "a", "a"]),
            (&[("a", 1), ("b", 1), ("a", 1)], &["a", "b", "a"]),
        ] {
            let events = OomEvents::default();
            for (name, kills) in added {
                assert_eq!(events.add(&id(name), *kills), None);
            }
            assert_eq!(all(&events), told, "{added:?}");
        }
    }

    #[test]
    fn only_more_containers_than_fit_are_forgotten_and_kills_of_one_never_are() {
        let events = OomEvents::default();
        for n in 0..MAX_CONTAINERS {
            assert_eq!(events.add(&id(&format!("c{n}")), 1), None);
        }
        assert_eq!(events.add(&id("c7"), u64::MAX), None);
        assert_eq!(events.add(&id("new"), 1), Some(id("c0")));
        assert_eq!(lock(&events.pending).kills.len(), MAX_CONTAINERS);
        assert_eq!(events.take(), Some(id("c1")));
    }

    #[tokio::test]
    async fn each_kill_goes_to_one_of_many_waiters() {
        let events = Arc::new(OomEvents::default());
        let mut waiters = tokio::task::JoinSet::new();
        for _ in 0..5 {
            let events = events.clone();
            waiters.spawn(async move { events.next().await.map(|id| id.to_string()) });
        }
        tokio::task::yield_now().await;
        events.add(&id("a"), 2);
        events.add(&id("b"), 1);
        let mut told = HashMap::new();
        for _ in 0..3 {
            *told.entry(waiters.join_next().await.unwrap().unwrap()).or_insert(0) += 1;
        }
        assert_eq!(told, HashMap::from([(Some("a".to_owned()), 2), (Some("b".to_owned()), 1)]));
        events.close();
        assert_eq!(waiters.join_all().await, [None, None]);
        assert_eq!(events.next().await, None);
    }

    #[test]
    fn a_waiter_that_goes_away_takes_nothing_even_when_it_has_been_woken() {
        let events = OomEvents::default();
        let mut context = Context::from_waker(Waker::noop());
        let mut gone = Box::pin(events.next());
        let mut stays = Box::pin(events.next());
        assert_eq!(gone.as_mut().poll(&mut context), Poll::Pending);
        assert_eq!(stays.as_mut().poll(&mut context), Poll::Pending);
        events.add(&id("a"), 1);
        drop(gone);
        assert_eq!(stays.as_mut().poll(&mut context), Poll::Ready(Some(id("a"))));
        assert_eq!(all(&events), [""; 0]);
    }

    #[tokio::test]
    async fn what_is_pending_when_the_agent_ends_is_still_told() {
        let events = OomEvents::default();
        events.add(&id("a"), 1);
        events.close();
        assert_eq!((events.next().await, events.next().await), (Some(id("a")), None));
    }
}
