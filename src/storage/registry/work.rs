//! The work on the table of storages: claiming, mounting, counting off, taking down.

use std::path::PathBuf;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use slog::{Logger, debug, info, warn};
use tokio::sync::watch;

use super::super::attachment::{Attachment, Work};
use super::super::driver::{Driver, Fill};
use super::super::ops::MountOps;
use super::super::places::{Place, Places};
use super::recover::OpenRecord;
use super::{
    Claim, Entry, Eviction, Inner, LetGo, Phase, StorageError, StorageHandle, StorageRequest, Table,
};
use crate::guest::bulkhead::Bulkhead;
use crate::ids::{ContainerId, GuestPath};

/// How long attachers of a storage that has failed wait for an external mounter (the confidential data hub) to end
/// before they get the error.
const PATIENCE: Duration = Duration::from_millis(if cfg!(test) { 100 } else { 10_000 });

/// Runs blocking work off the runtime.
pub(super) async fn blocking<T: Send + 'static>(
    mount_point: PathBuf,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, StorageError> {
    let joined = tokio::task::spawn_blocking(work).await;
    joined.map_err(|error| StorageError::CutShort { mount_point, reason: error.to_string() })
}

/// What a mount may hang at: its source, or its lowest layer.
fn touched(request: &StorageRequest, source: &str) -> PathBuf {
    let layers = request.split_options().find_map(|option| option.strip_prefix("lowerdir="));
    let lowest = layers.and_then(|layers| layers.rsplit(':').next());
    PathBuf::from(lowest.unwrap_or(source))
}

/// What the mounting task needs.
pub(super) struct Job {
    pub(super) serial: u64,
    pub(super) driver: &'static dyn Driver,
    pub(super) request: StorageRequest,
    pub(super) container: Option<ContainerId>,
    pub(super) place: Place,
}

/// What it works with, while it may block.
struct Task {
    ops: Arc<dyn MountOps>,
    places: Places,
    bulkhead: Bulkhead,
    log: Logger,
    record: OpenRecord,
    attachment: Attachment,
    job: Job,
}

impl Task {
    fn work<'a>(&'a mut self, source: &'a str) -> Work<'a> {
        Work {
            request: &self.job.request,
            source,
            container: self.job.container.as_ref(),
            place: &self.job.place,
            ops: &*self.ops,
            attachment: &mut self.attachment,
            record: &self.record,
            bulkhead: &self.bulkhead,
            log: &self.log,
        }
    }

    fn attach(&mut self, source: &str) -> Result<(), StorageError> {
        self.record.begun(&self.attachment)?;
        let (driver, places) = (self.job.driver, self.places.clone());
        driver.attach(&mut self.work(source), &places)?;
        self.record.done(&self.attachment)
    }

    /// Takes down what has been done if it has come to nothing.
    fn or_take_down(mut self, outcome: Result<(), StorageError>) -> Result<Self, StorageError> {
        let Err(error) = outcome else { return Ok(self) };
        match self.attachment.take_down(&*self.ops) {
            Ok(()) => self.record.remove(),
            Err(undo) => warn!(self.log, "part of a failed storage stays";
                "mount_point" => %self.job.request.mount_point, "cause" => %undo),
        }
        Err(error)
    }
}

impl Inner {
    pub(super) fn table(&self) -> MutexGuard<'_, Table> {
        // Nothing that runs under the lock can leave the table half-changed.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn claim(
        self: &Arc<Self>,
        request: &StorageRequest,
        driver: &dyn Driver,
    ) -> Result<Claim, StorageError> {
        let mut table = self.table();
        let Table { entries, next_serial } = &mut *table;
        if let Some(entry) = entries.get_mut(&request.mount_point) {
            if entry.phase.borrow().is_leaving() {
                return Ok(Claim::Wait(entry.phase.subscribe()));
            }
            if entry.driver != request.driver || entry.source != request.source {
                return Err(StorageError::Conflict {
                    mount_point: request.target(),
                    driver: request.driver.clone(),
                    wanted: request.source.clone(),
                    held_driver: entry.driver.clone(),
                    held: entry.source.clone(),
                });
            }
            entry.users = entry.users.saturating_add(1);
            return Ok(Claim::Joined(self.handle(&request.mount_point, entry)));
        }
        let entry = Entry {
            serial: *next_serial,
            driver: request.driver.clone(),
            source: request.source.clone(),
            users: 1,
            outlives_users: request.shared || driver.outlives_users(),
            was_used: false,
            options: request.options_without(|_| false),
            phase: watch::Sender::new(Phase::Mounting),
            attachment: Attachment::default(),
        };
        *next_serial = next_serial.wrapping_add(1);
        let handle = self.handle(&request.mount_point, &entry);
        entries.insert(request.mount_point.clone(), entry);
        Ok(Claim::First(handle))
    }

    pub(super) fn handle(self: &Arc<Self>, mount_point: &GuestPath, entry: &Entry) -> StorageHandle {
        StorageHandle {
            inner: Arc::clone(self),
            mount_point: mount_point.clone(),
            serial: entry.serial,
            phase: entry.phase.subscribe(),
            held: true,
        }
    }

    /// The first user's task.
    pub(super) async fn mount(self: Arc<Self>, job: Job) {
        let (point, serial) = (job.request.mount_point.clone(), job.serial);
        let outcome = self.run_driver(job).await;
        let unwanted = {
            let mut table = self.table();
            let Some(entry) = table.entries.get_mut(&point).filter(|entry| entry.serial == serial) else {
                return;
            };
            match outcome {
                Ok(attachment) if entry.users == 0 => {
                    entry.phase.send_replace(Phase::Detaching);
                    Some(attachment)
                }
                Ok(attachment) => {
                    entry.attachment = attachment;
                    entry.phase.send_replace(Phase::Ready);
                    info!(self.log, "storage attached"; "mount_point" => %point, "driver" => &entry.driver);
                    None
                }
                Err(error) => {
                    debug!(self.log, "storage not attached"; "mount_point" => %point, "cause" => %error);
                    entry.phase.send_replace(Phase::Failed(error));
                    table.entries.remove(&point);
                    None
                }
            }
        };
        if let Some(attachment) = unwanted
            && let Err(error) = self.detach(&point, serial, attachment).await
        {
            warn!(self.log, "an unwanted storage stays"; "mount_point" => %point, "cause" => %error);
        }
    }

    async fn run_driver(&self, job: Job) -> Result<Attachment, StorageError> {
        let (mount_point, fills) = (job.request.target(), job.driver.fills_mount_point(&job.request));
        let mut task = Task {
            ops: Arc::clone(&self.ops),
            places: self.places.clone(),
            bulkhead: self.bulkhead.clone(),
            log: self.log.clone(),
            record: self.record_of(&job),
            attachment: Attachment::default(),
            job,
        };
        let cut_short = |reason: String| StorageError::CutShort { mount_point: mount_point.clone(), reason };
        if let Some(fill) = fills {
            let begin = self.bulkhead.run(&mount_point, move || {
                let begun = match fill {
                    Fill::Tree => task.work("").expect_tree(),
                    Fill::Mount => task.work("").expect_mount(),
                };
                task.or_take_down(begun)
            });
            task = begin.await.map_err(|error| cut_short(error.to_string()))??;
        }
        let source = tokio::select! {
            source = task.job.driver.find_source(&task.job.request, &*self.lookup) => source,
            () = self.unwanted(&task.job) => Err(StorageError::Released { mount_point: mount_point.clone() }),
        };
        if let Err(error) = &source
            && fills.is_some()
        {
            // Whoever fills it may have heard only now that it is given up, and be about to mount something.
            let mut ended = self.lookup.ended(&mount_point);
            if tokio::time::timeout(PATIENCE, &mut ended).await.is_err() {
                warn!(self.log, "what was given up goes on"; "mount_point" => %mount_point.display());
                self.tell_failed(&task.job, error);
                ended.await;
            }
        }
        let touched = match &source {
            Ok(source) => touched(&task.job.request, source),
            Err(error) if fills.is_none() => return Err(error.clone()),
            Err(_) => mount_point.clone(),
        };
        let attach = self.bulkhead.run(&touched, move || {
            let attached = match source {
                Ok(source) => task.attach(&source),
                Err(error) => {
                    // What there is of it goes.
                    let _unknown = task.work("").adopt_mount();
                    Err(error)
                }
            };
            Ok(task.or_take_down(attached)?.attachment)
        });
        attach.await.map_err(|error| cut_short(error.to_string()))?
    }

    /// Lets nobody wait any longer, though it is not taken down yet.
    fn tell_failed(&self, job: &Job, error: &StorageError) {
        let table = self.table();
        let entry = table.entries.get(&job.request.mount_point).filter(|entry| entry.serial == job.serial);
        if let Some(entry) = entry {
            entry.phase.send_replace(Phase::Failed(error.clone()));
        }
    }

    /// Comes back when nobody waits for the storage any more.
    async fn unwanted(&self, job: &Job) {
        let phase = self.table().entries.get(&job.request.mount_point).map(|entry| entry.phase.subscribe());
        match phase {
            Some(mut phase) => drop(phase.wait_for(|phase| matches!(phase, Phase::Detaching)).await),
            None => std::future::pending().await,
        }
    }

    /// Counts a user off. Returns what has to be taken down, if that was the last one.
    pub(super) fn let_go(&self, point: &GuestPath, serial: u64, how: LetGo) -> Option<Attachment> {
        let mut table = self.table();
        let entry = table.entries.get_mut(point).filter(|entry| entry.serial == serial)?;
        entry.users = entry.users.saturating_sub(1);
        entry.was_used |= how == LetGo::Release;
        let stays = entry.outlives_users && entry.was_used;
        if entry.users > 0 || stays {
            return None;
        }
        let is_ready = matches!(*entry.phase.borrow(), Phase::Ready);
        // While it is being mounted, this tells the mounting task, which takes down what it has done.
        if is_ready || matches!(*entry.phase.borrow(), Phase::Mounting) {
            entry.phase.send_replace(Phase::Detaching);
        }
        is_ready.then(|| std::mem::take(&mut entry.attachment))
    }

    /// Takes the storage down, whatever its count.
    pub(super) async fn evict(self: Arc<Self>, point: &GuestPath, serial: u64) -> Result<(), StorageError> {
        loop {
            let mut busy = match self.try_evict(point, serial) {
                Eviction::Gone => return Ok(()),
                Eviction::Detach(attachment) => {
                    return self.detach_in_task(point.clone(), serial, attachment).await;
                }
                Eviction::Busy(phase) => phase,
            };
            let _gone = busy.wait_for(|phase| !matches!(phase, Phase::Mounting) && !phase.is_leaving()).await;
        }
    }

    fn try_evict(&self, point: &GuestPath, serial: u64) -> Eviction {
        let mut table = self.table();
        let Some(entry) = table.entries.get_mut(point).filter(|entry| entry.serial == serial) else {
            return Eviction::Gone;
        };
        if !matches!(*entry.phase.borrow(), Phase::Ready) {
            return Eviction::Busy(entry.phase.subscribe());
        }
        entry.users = 0;
        entry.phase.send_replace(Phase::Detaching);
        Eviction::Detach(std::mem::take(&mut entry.attachment))
    }

    /// [`detach`](Self::detach), to the end even if the caller goes away.
    pub(super) async fn detach_in_task(
        self: Arc<Self>,
        point: GuestPath,
        serial: u64,
        attachment: Attachment,
    ) -> Result<(), StorageError> {
        let mount_point = point.as_path().to_owned();
        let task = tokio::spawn(async move { self.detach(&point, serial, attachment).await });
        task.await.map_err(|error| StorageError::CutShort { mount_point, reason: error.to_string() })?
    }

    /// Takes down a storage whose phase is `Detaching`.
    pub(super) async fn detach(
        &self,
        point: &GuestPath,
        serial: u64,
        mut attachment: Attachment,
    ) -> Result<(), StorageError> {
        let (ops, records) = (Arc::clone(&self.ops), self.records.clone());
        let place = point.as_path().to_owned();
        let is_within = |other: &&GuestPath| *other != point && other.as_path().starts_with(&place);
        let others: Vec<PathBuf> =
            self.table().entries.keys().filter(is_within).map(|other| other.as_path().to_owned()).collect();
        let taken_down = self.bulkhead.run(point.as_path(), move || {
            // What a container has mounted in a volume that it shares, and left there, is nobody's now. A mount would say
            // that it is busy; a directory's contents would be gone by then, but for that.
            if attachment.has_tree() {
                ops.detach_beneath(&place, &others);
            }
            let mut outcome = attachment.take_down(&*ops);
            if !attachment.is_empty() && ops.detach_beneath(&place, &others) {
                outcome = attachment.take_down(&*ops);
            }
            if attachment.is_empty() {
                super::recover::remove(records.as_deref(), serial);
            }
            (attachment, outcome)
        });
        let (attachment, outcome) = match taken_down.await {
            Ok((attachment, outcome)) => (attachment, outcome),
            Err(error) => {
                let mount_point = point.as_path().to_owned();
                (
                    Attachment::default(),
                    Err(StorageError::CutShort { mount_point, reason: error.to_string() }),
                )
            }
        };
        let mut table = self.table();
        let Some(entry) = table.entries.get_mut(point).filter(|entry| entry.serial == serial) else {
            return outcome;
        };
        if attachment.is_empty() {
            entry.phase.send_replace(Phase::Gone);
            table.entries.remove(point);
            match &outcome {
                Ok(()) => info!(self.log, "storage detached"; "mount_point" => %point),
                Err(error) => {
                    warn!(self.log, "storage detached in part"; "mount_point" => %point, "cause" => %error);
                }
            }
        } else {
            entry.attachment = attachment;
            entry.phase.send_replace(Phase::Ready);
        }
        outcome
    }
}
