//! Which storages the sandbox holds, and for how many users.
//!
//! A storage is named by its mount point. Its states, and what a request finds in each:
//!
//! ```text
//!              attach: the first user's task mounts                     last user gone, or release_all
//!    (absent) ------------------------------------> mounting -> ready -----------------------> detaching -> (absent)
//!        ^                                              |         ^                                |
//!        +----------------------------------------------+         +--------------------------------+
//!           failed: all who waited get the same error               busy: stays, with no users
//!
//!    attach:   absent: mounts.  mounting: waits for the outcome.  ready: counts.  detaching, failed: waits, then starts anew.
//!    failed: is absent at once, but while somebody else may still mount there (the confidential data hub): then it is
//!              taken down when that has ended. Its users have been told; who asks for the place waits for as long as he likes.
//!    mounting, and the last user goes: detaching; the task gives up what it waits for, and takes down what it has done.
//! ```
//!
//! Invariants: the lock is held for look-ups in the map only; mounting and unmounting run in tasks of their
//! own, so a caller that goes away leaves no storage half-way: the task finishes, sees that nobody wants the
//! result, and takes it down. A failed attach leaves no mount, no directory and no entry. A storage is written down
//! before its mount is made, and until it is gone ([`recover`]).

mod handle;
mod recover;
mod remount;
mod work;

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use slog::Logger;
use tokio::sync::watch;

pub use self::handle::StorageHandle;
pub(super) use self::recover::OpenRecord;
use self::work::Job;
use super::attachment::Attachment;
use super::driver;
use super::ops::{BlockLookup, MountOps};
use super::places::Places;
use super::{StorageError, StorageRequest};
use crate::guest::bulkhead::Bulkhead;
use crate::ids::{ContainerId, GuestPath};
use crate::records::Records;

#[derive(Debug, Clone)]
enum Phase {
    Mounting,
    Ready,
    /// What has been done is still to be taken down, or it is gone at once.
    Failed(StorageError),
    Detaching,
    Gone,
}

impl Phase {
    /// The place will be free.
    fn is_leaving(&self) -> bool {
        matches!(self, Self::Failed(_) | Self::Detaching)
    }
}

#[derive(Debug)]
struct Entry {
    /// Tells this storage from a later one with the same mount point; also the order in which they came.
    serial: u64,
    driver: String,
    source: String,
    users: usize,
    /// It goes with the sandbox, not with its last user.
    outlives_users: bool,
    /// A user had it and let go of it in the ordinary way: there may be data in it.
    was_used: bool,
    /// The options it was asked for with.
    options: Vec<String>,
    phase: watch::Sender<Phase>,
    /// The way back. Here while the storage is ready.
    attachment: Attachment,
}

#[derive(Debug, Default)]
struct Table {
    entries: HashMap<GuestPath, Entry>,
    next_serial: u64,
}

struct Inner {
    places: Places,
    ops: Arc<dyn MountOps>,
    lookup: Arc<dyn BlockLookup>,
    table: Mutex<Table>,
    log: Logger,
    /// Turns to mount. A mount may hang for ever, and must not take all of the runtime's threads with others like it.
    bulkhead: Bulkhead,
    /// Where each storage is written down for the next server.
    records: Option<Arc<Records>>,
}

/// The storages of a sandbox. Clones are the same set.
#[derive(Clone)]
pub struct Storages {
    inner: Arc<Inner>,
}

impl fmt::Debug for Storages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Storages").field("table", &self.inner.table).finish_non_exhaustive()
    }
}

/// How a user lets go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LetGo {
    /// It had its use of it.
    Release,
    /// It never came to use it.
    Undo,
}

enum Claim {
    /// The entry is new: the caller mounts it.
    First(StorageHandle),
    /// The entry was there.
    Joined(StorageHandle),
    /// A storage is just leaving this place.
    Wait(watch::Receiver<Phase>),
}

/// What evicting a storage takes.
enum Eviction {
    /// Nothing: it is not there.
    Gone,
    /// This has to be taken down.
    Detach(Attachment),
    /// Waiting: it is being mounted or taken down.
    Busy(watch::Receiver<Phase>),
}

impl Storages {
    /// A sandbox's set of storages, empty. They may be mounted beneath `base` (`/run/kata-containers`), nowhere
    /// else. Each is written down in `records`, if there are any.
    pub fn new(
        base: &Path,
        ops: Arc<dyn MountOps>,
        lookup: Arc<dyn BlockLookup>,
        bulkhead: Bulkhead,
        log: Logger,
        records: Option<Arc<Records>>,
    ) -> Self {
        let (places, table) = (Places::new(base), Mutex::default());
        Self { inner: Arc::new(Inner { places, ops, lookup, table, log, bulkhead, records }) }
    }

    /// The names of all drivers, for `GetGuestDetails`.
    pub fn drivers() -> Vec<&'static str> {
        driver::names()
    }

    /// The mount points in use, in no order.
    pub fn mount_points(&self) -> Vec<PathBuf> {
        self.inner.table().entries.keys().map(|point| point.as_path().to_owned()).collect()
    }

    /// Makes the storage there for one more user. The first one mounts it; who asks for the same mount point
    /// meanwhile waits for the outcome and shares it. `container` is whom it is for, unless it is for the
    /// sandbox.
    ///
    /// # Errors
    ///
    /// What failed, by step. Then nothing is left of the attempt. A mount point that holds a storage with
    /// another driver or source is a [`Conflict`](StorageError::Conflict).
    pub async fn attach(
        &self,
        request: StorageRequest,
        container: Option<&ContainerId>,
    ) -> Result<StorageHandle, StorageError> {
        let driver = driver::find(&request.driver)?;
        let place = self.inner.places.locate(request.mount_point.as_path())?;
        if let Some(needed) = driver.needs(&request)? {
            Box::pin(self.attach(needed, None)).await?.release().await?;
        }
        loop {
            match self.inner.claim(&request, driver)? {
                Claim::First(handle) => {
                    let inner = Arc::clone(&self.inner);
                    let job =
                        Job { serial: handle.serial, driver, request, container: container.cloned(), place };
                    tokio::spawn(inner.mount(job));
                    return handle.ready().await;
                }
                Claim::Joined(handle) => return handle.ready().await,
                Claim::Wait(mut phase) => {
                    // An error means that the entry is gone altogether, which is as good.
                    let _gone = phase.wait_for(|phase| !phase.is_leaving()).await;
                }
            }
        }
    }

    /// Takes down all storages, the last one first, whoever still uses them: the sandbox goes. May be called
    /// again to retry what could not be released. It takes no longer than `limit`: one that hangs may have half of the
    /// time that is left, so that there is some for those behind it, and is left to itself then.
    ///
    /// # Errors
    ///
    /// [`Leftovers`](StorageError::Leftovers) with what stays behind, after everything else was released.
    pub async fn release_all(&self, limit: Duration) -> Result<(), StorageError> {
        let mut all: Vec<(u64, GuestPath)> = {
            let table = self.inner.table();
            table.entries.iter().map(|(point, entry)| (entry.serial, point.clone())).collect()
        };
        all.sort_unstable_by(|a, b| b.cmp(a));
        let (begun, mut errors) = (Instant::now(), Vec::new());
        for (serial, point) in all {
            let limit = limit.saturating_sub(begun.elapsed()).checked_div(2).unwrap_or_default();
            let released = tokio::time::timeout(limit, Arc::clone(&self.inner).evict(&point, serial)).await;
            let mount_point = point.as_path().to_owned();
            let late = |_| Err(StorageError::Late { mount_point, after: limit });
            errors.extend(released.unwrap_or_else(late).err());
        }
        if errors.is_empty() { Ok(()) } else { Err(StorageError::Leftovers { errors }) }
    }
}
