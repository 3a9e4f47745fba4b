//! The OOM kills of a cgroup: how many there were, and when to look again.
//!
//! A kill in a sub-cgroup is one of the container's, whichever limit was hit: its own, one above, or the guest's.
//!
//! - v2 counts a whole tree in `memory.events` and tells of a change by POLLPRI on an open file (cgroup-v2.rst,
//!   "Memory Interface Files"). Nothing is missed, unless the hierarchy is mounted with `memory_localevents`.
//! - v1 counts each cgroup for itself in `memory.oom_control`; we add them up. `cgroup.event_control` gives notice
//!   through an eventfd, *before* the kernel kills, and only if this cgroup or one above is out of memory, not one
//!   below nor the guest (cgroup-v1/memory.rst, section 10). So the reader has to look again for a while
//!   ([`OomKills::is_early`]), and when a process has ended. What a sub-cgroup counted is gone with it.
//!
//! Owns the fds, so a cgroup that is removed and made anew is never taken for the old one. Invariants: a kill is
//! counted once, whoever asks, in whichever thread. A cgroup that is gone, or a file that makes no sense, has
//! nothing new to say; neither is an error.

use super::stats::flat;
use super::tree::{Dir, read_from_start};
use super::{Cgroup, CgroupError, Hierarchy};
use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::io::Interest;

/// Kills of this cgroup and all below.
const V2_EVENTS: &str = "memory.events";
/// Kills in the whole machine, since the topmost cgroup counts none.
const ALL_EVENTS: &str = "/proc/vmstat";
/// Kills of this cgroup alone.
const V1_CONTROL: &str = "memory.oom_control";
const KEY: &str = "oom_kill";

/// Counts the OOM kills of a cgroup from a given number on.
#[derive(Debug)]
pub struct OomKills {
    counter: Counter,
    /// The count at the last look. Held while looking, so that a slow look never comes after a later one.
    seen: Mutex<u64>,
}

#[derive(Debug)]
enum Counter {
    /// [`V2_EVENTS`]. Reading it also ends its notice.
    Tree { events: Arc<OwnedFd>, gone: AtomicBool },
    /// One [`V1_CONTROL`] in each cgroup, and an eventfd; how often that has given notice since a kill was found, or that
    /// the cgroup is gone.
    Each { dir: Dir, notice: Arc<OwnedFd>, noticed: AtomicU64, gone: AtomicBool },
}

impl Cgroup {
    /// How many processes the kernel has ended here so far for want of memory: zero if the cgroup does not exist.
    ///
    /// # Errors
    /// What can't be opened or read.
    pub fn oom_kills(&self) -> Result<u64, CgroupError> {
        let Some(dir) = self.memory_dir()? else { return Ok(0) };
        let kills = if self.hierarchy.is_v2() { kills_in(&dir, V2_EVENTS)? } else { kills_below(&dir)? };
        Ok(kills.unwrap_or(0))
    }

    /// Counts the kills that come after the first `seen` of them. `None` if the cgroup is gone or nobody counts
    /// there, without a memory controller, say.
    ///
    /// # Errors
    /// What can't be opened, read or registered.
    pub fn count_oom_kills(&self, seen: u64) -> Result<Option<OomKills>, CgroupError> {
        let Some(dir) = self.memory_dir()? else { return Ok(None) };
        let counter = if self.hierarchy.is_v2() {
            dir.file(V2_EVENTS)?.map(|events| Counter::Tree { events: Arc::new(events), gone: false.into() })
        } else {
            let (noticed, gone) = (AtomicU64::new(0), AtomicBool::new(false));
            register(&dir)?.map(|notice| Counter::Each { dir, notice: Arc::new(notice), noticed, gone })
        };
        Ok(counter.map(|counter| OomKills { counter, seen: Mutex::new(seen) }))
    }

    /// The count of the slice that its unit of systemd is in. `None` for one that is no unit.
    pub fn slice_kills(&self) -> Option<SliceKills> {
        self.unit.as_ref().and_then(|_| self.kills_above(ALL_EVENTS))
    }

    /// `all` is where the kernel counts what is killed anywhere.
    pub(super) fn kills_above(&self, all: &str) -> Option<SliceKills> {
        let Hierarchy::V2 { mount_point } = &*self.hierarchy else { return None };
        let (path, unit) = (self.path.parent()?, self.path.file_name()?);
        let slice = Dir::open(mount_point.join(path)).ok()??;
        let events = if path.as_os_str().is_empty() {
            std::fs::File::open(all).ok()?.into()
        } else {
            slice.file(V2_EVENTS).ok()??
        };
        Some(SliceKills { path: path.to_owned(), unit: unit.to_owned(), slice, events })
    }

    fn memory_dir(&self) -> Result<Option<Dir>, CgroupError> {
        match &*self.hierarchy {
            Hierarchy::V2 { mount_point } => self.open_at(mount_point),
            Hierarchy::V1 { .. } => self.open_v1("memory"),
        }
    }
}

/// Counts the OOM kills in a slice of systemd's: those of all units in it, also of those that are gone.
#[derive(Debug)]
pub struct SliceKills {
    path: PathBuf,
    unit: OsString,
    slice: Dir,
    events: OwnedFd,
}

impl SliceKills {
    /// The slice, below the hierarchy's root.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The unit, by the name of its cgroup.
    pub fn unit(&self) -> &OsStr {
        &self.unit
    }

    /// How many there have been. `None` if the slice is gone.
    pub fn count(&self) -> Option<u64> {
        flat(&read_from_start(self.events.as_fd()).ok()?).get(KEY).copied()
    }

    /// How many there have been in each cgroup that is there, right below the slice. `None` if that can't be told.
    pub fn counts(&self) -> Option<HashMap<OsString, u64>> {
        let mut counts = HashMap::new();
        for (name, dir) in self.slice.children().ok()? {
            if let Some(kills) = kills_in(&dir, V2_EVENTS).ok()? {
                counts.insert(OsString::from_vec(name.into_bytes()), kills);
            }
        }
        Some(counts)
    }
}

impl OomKills {
    /// How many there were since the last time. Blocks: in a v1 hierarchy it walks the tree.
    ///
    /// # Errors
    /// What can't be read.
    pub fn news(&self) -> Result<u64, CgroupError> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(kills) = self.counter.read()? else { return Ok(0) };
        // Fewer than before: a v1 sub-cgroup has been removed.
        let news = kills.saturating_sub(*seen);
        *seen = kills;
        if let (Counter::Each { noticed, .. }, 1..) = (&self.counter, news) {
            noticed.store(0, Ordering::Relaxed);
        }
        Ok(news)
    }

    /// Whether the last look found the cgroup removed, and with it any kills counted since the look before.
    pub fn is_gone(&self) -> bool {
        let (Counter::Tree { gone, .. } | Counter::Each { gone, .. }) = &self.counter;
        gone.load(Ordering::Relaxed)
    }

    /// The notices that were given so far are of kills elsewhere, below the same one above (v1).
    pub fn expect_no_more(&self) {
        if let Counter::Each { noticed, .. } = &self.counter
            && !self.is_gone()
        {
            noticed.store(0, Ordering::Relaxed);
        }
    }

    /// Whether notice was given of a kill that has not been found, on v1, where the end of the cgroup gives notice, too:
    /// within a moment.
    pub fn has_unseen(&self) -> bool {
        let ends = u64::from(self.is_gone());
        matches!(&self.counter, Counter::Each { noticed, .. } if noticed.load(Ordering::Relaxed) > ends)
    }

    /// Whether notice is given before the kill, so that a look right after it may find nothing yet.
    pub fn is_early(&self) -> bool {
        matches!(self.counter, Counter::Each { .. })
    }

    /// Whether a look walks a tree of cgroups.
    pub fn walks(&self) -> bool {
        matches!(self.counter, Counter::Each { .. })
    }

    /// What gives notice, and how it shows.
    pub(super) fn notice(&self) -> (&Arc<OwnedFd>, Interest) {
        match &self.counter {
            Counter::Tree { events, .. } => (events, Interest::PRIORITY),
            Counter::Each { notice, .. } => (notice, Interest::READABLE),
        }
    }
}

impl Counter {
    /// `None` if nothing counts (any more).
    fn read(&self) -> Result<Option<u64>, CgroupError> {
        match self {
            Self::Tree { events, gone } => match read_from_start(events.as_fd()) {
                Ok(text) => Ok(flat(&text).get(KEY).copied()),
                Err(Errno::ENODEV) => {
                    gone.store(true, Ordering::Relaxed);
                    Ok(None)
                }
                Err(source) => Err(CgroupError::OomEvents { source }),
            },
            Self::Each { dir, notice, noticed, gone } => {
                // Read first: what is told while we look is for the next look.
                let mut count = [0; size_of::<u64>()];
                let _ = nix::unistd::read(notice.as_fd(), &mut count);
                noticed.fetch_add(u64::from_ne_bytes(count), Ordering::Relaxed);
                let kills = kills_below(dir)?;
                gone.store(kills.is_none(), Ordering::Relaxed);
                Ok(kills)
            }
        }
    }
}

/// Has the kernel give notice of v1. `None` if it has no such thing.
fn register(dir: &Dir) -> Result<Option<OwnedFd>, CgroupError> {
    let Some(control) = dir.file(V1_CONTROL)? else { return Ok(None) };
    let failed = |source| CgroupError::OomNotice { path: dir.path().clone(), source };
    let notice = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).map_err(failed)?;
    let line = format!("{} {}", notice.as_fd().as_raw_fd(), control.as_raw_fd());
    Ok(dir.write("cgroup.event_control", &line)?.then(|| notice.into()))
}

fn kills_in(dir: &Dir, file: &str) -> Result<Option<u64>, CgroupError> {
    Ok(dir.read(file)?.and_then(|text| flat(&text).get(KEY).copied()))
}

/// The sum of a v1 tree, `None` if not even its top counts.
fn kills_below(top: &Dir) -> Result<Option<u64>, CgroupError> {
    let mut sum = None;
    top.walk(&mut |dir| {
        if let Some(kills) = kills_in(dir, V1_CONTROL)? {
            sum = Some(kills.saturating_add(sum.unwrap_or(0)));
        }
        Ok(())
    })?;
    Ok(sum)
}
