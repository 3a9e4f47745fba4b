//! The records of storages, and taking over what an earlier server has attached.
//!
//! A storage that was being attached when the server died is taken down: what is at its place, and what else the steps
//! on record say.
//! The others come back without users; who has them says so with [`Storages::take_over`], and what is nobody's then
//! goes with [`Storages::release_unused`].

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use slog::{info, warn};
use tokio::sync::watch;

use super::work::{Job, blocking};
use super::{Attachment, Entry, Inner, Phase, StorageError, StorageHandle, Storages, Table, driver};
use crate::guest::mountinfo;
use crate::ids::GuestPath;
use crate::records::Records;
use crate::storage::attachment::StepRecord;

/// What is known of a storage.
#[derive(Debug, Serialize, Deserialize)]
struct StorageRecord {
    mount_point: String,
    driver: String,
    source: String,
    outlives_users: bool,
    options: Vec<String>,
    /// What was done, once all of it is.
    steps: Option<Vec<StepRecord>>,
    /// What was done before that, as far as it can't be seen at the mount point.
    #[serde(default)]
    begun: Vec<StepRecord>,
}

/// The record of a storage that is being attached.
pub(in super::super) struct OpenRecord {
    records: Option<Arc<Records>>,
    serial: u64,
    record: std::cell::RefCell<StorageRecord>,
}

impl OpenRecord {
    /// Writes down what has been done until now; blocks.
    pub(in super::super) fn begun(&self, so_far: &Attachment) -> Result<(), StorageError> {
        let Some(records) = &self.records else { return Ok(()) };
        let mut record = self.record.borrow_mut();
        record.begun = so_far.record();
        Ok(records.write(&name(self.serial), &*record)?)
    }

    /// Writes down that all has been done; blocks.
    pub(super) fn done(&self, all: &Attachment) -> Result<(), StorageError> {
        let Some(records) = &self.records else { return Ok(()) };
        let mut record = self.record.borrow_mut();
        record.steps = Some(all.record());
        Ok(records.write(&name(self.serial), &*record)?)
    }

    /// Nothing of it is left; blocks.
    pub(super) fn remove(&self) {
        remove(self.records.as_deref(), self.serial);
    }
}

fn name(serial: u64) -> PathBuf {
    Path::new("storages").join(serial.to_string())
}

/// Where it is noted that a storage which outlives its users has had one.
fn used_name(serial: u64) -> PathBuf {
    Path::new("used").join(serial.to_string())
}

/// Removes the record of a storage that is gone. A record too many is found to be of nothing later.
pub(super) fn remove(records: Option<&Records>, serial: u64) {
    if let Some(records) = records {
        let _ = records.remove(&used_name(serial));
        let _ = records.remove(&name(serial));
    }
}

impl Inner {
    pub(super) fn record_of(&self, job: &Job) -> OpenRecord {
        let request = &job.request;
        let record = StorageRecord {
            mount_point: request.mount_point.to_string(),
            driver: request.driver.clone(),
            source: request.source.clone(),
            outlives_users: request.shared || job.driver.outlives_users(),
            options: request.options_without(|_| false),
            steps: None,
            begun: Vec::new(),
        };
        OpenRecord { records: self.records.clone(), serial: job.serial, record: record.into() }
    }

    /// Notes that there may be data in a storage that outlives its users, so that the next server won't take it down
    /// with a half-made container.
    pub(super) async fn note_used(&self, point: &GuestPath, serial: u64) -> Result<(), StorageError> {
        let is_news = {
            let mut table = self.table();
            let entry = table.entries.get_mut(point).filter(|entry| entry.serial == serial);
            // At once: the data stays also if this can't be written down, or nobody waits for it.
            entry.is_some_and(|entry| !std::mem::replace(&mut entry.was_used, true) && entry.outlives_users)
        };
        match self.records.clone().filter(|_| is_news) {
            Some(records) => {
                let write = move || Ok(records.write(&used_name(serial), &())?);
                blocking(point.as_path().to_owned(), write).await?
            }
            None => Ok(()),
        }
    }

    /// The entry of a record, without users. `None` if there is no such storage.
    fn entry(
        &self,
        serial: u64,
        record: StorageRecord,
        was_used: bool,
    ) -> Result<Option<(GuestPath, Entry)>, StorageError> {
        let Ok(point) = GuestPath::try_from(record.mount_point.as_str()) else { return Ok(None) };
        if driver::find(&record.driver).is_err() {
            return Ok(None);
        }
        let is_finished = record.steps.is_some();
        // When in doubt it is there: then an unmount that fails tells.
        let mounted = |path: &Path| mountinfo::is_mount_point(path).unwrap_or(true);
        let recover = |steps| Attachment::recover(steps, &self.places, mounted, &self.bulkhead, &self.log);
        let attachment = match record.steps {
            Some(steps) => recover(steps)?,
            None => {
                let is_mounted = mountinfo::is_mount_point(point.as_path()).unwrap_or(false);
                recover(record.begun)?.unfinished(self.places.locate(point.as_path())?, is_mounted)
            }
        };
        let entry = Entry {
            serial,
            driver: record.driver,
            source: record.source,
            users: 0,
            outlives_users: record.outlives_users && is_finished,
            was_used,
            options: record.options,
            phase: watch::Sender::new(Phase::Ready),
            attachment,
        };
        Ok(Some((point, entry)))
    }
}

impl Storages {
    /// Takes over what is on record. To be called before anything is attached.
    ///
    /// # Errors
    /// When the records can't be read. A single one that makes no sense is logged.
    pub async fn recover(&self) -> Result<(), StorageError> {
        let inner = Arc::clone(&self.inner);
        let Some(records) = inner.records.clone() else { return Ok(()) };
        blocking(PathBuf::from("records"), move || {
            for (file, record) in records.read_all::<StorageRecord>("storages".as_ref())? {
                let Ok(serial) = file.parse::<u64>() else { continue };
                let was_used = records.read::<()>(&used_name(serial))?.is_some();
                let entry = record
                    .map_err(StorageError::from)
                    .and_then(|record| inner.entry(serial, record, was_used));
                match entry {
                    Ok(Some((point, entry))) => {
                        let mut table = inner.table();
                        let Table { entries, next_serial } = &mut *table;
                        *next_serial = (*next_serial).max(serial.wrapping_add(1));
                        entries.insert(point, entry);
                    }
                    Ok(None) => {}
                    Err(error) => warn!(inner.log, "storage lost"; "number" => serial, "error" => %error),
                }
            }
            Ok(())
        })
        .await?
    }

    /// The hold of a user that an earlier server knew. `None` if the storage is not there.
    pub fn take_over(&self, mount_point: &GuestPath) -> Option<StorageHandle> {
        let mut table = self.inner.table();
        let entry = table.entries.get_mut(mount_point)?;
        entry.users = entry.users.saturating_add(1);
        Some(self.inner.handle(mount_point, entry))
    }

    /// Takes down what no user has taken over, unless it lives as long as the sandbox.
    pub async fn release_unused(&self) {
        let mut unused: Vec<(u64, GuestPath)> = {
            let table = self.inner.table();
            let is_unused = |entry: &Entry| entry.users == 0 && !(entry.outlives_users && entry.was_used);
            let unused = table.entries.iter().filter(|(_, entry)| is_unused(entry));
            unused.map(|(point, entry)| (entry.serial, point.clone())).collect()
        };
        // One may be mounted in another: the newest first.
        unused.sort_unstable_by(|a, b| b.cmp(a));
        for (serial, point) in unused {
            info!(self.inner.log, "a storage is nobody's"; "mount_point" => %point);
            if let Err(error) = Arc::clone(&self.inner).evict(&point, serial).await {
                warn!(self.inner.log, "a storage stays"; "mount_point" => %point, "cause" => %error);
            }
        }
    }
}
