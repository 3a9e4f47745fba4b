//! OOM kills in units of systemd that were gone before anybody could look.
//!
//! systemd removes the cgroup of a unit whose last process has ended, and the kernel forgets what was counted there: as a
//! rule within milliseconds of the kill, whose notice it may hold back for ten. But it has counted each kill in the slice
//! above, too, or in the topmost one, which counts nothing, for the machine. What that has more than is known of the
//! units in it was the unit's that is gone.
//!
//! Where others than containers are, that may have been one of theirs, which came and went between two looks. So it
//! is told of a unit that has failed, and not of one whose init ended with 0.
//!
//! Invariant: `known` of a slice is what its count was when all units in it had last been looked at, and what has been
//! found in them since. Those that are not ours are looked at by their counts, whenever one of ours comes or is gone.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};

use super::lock;
use super::oom::OomWatch;
use crate::cgroup::SliceKills;

/// A watch's part in a slice.
#[derive(Debug)]
pub(super) struct InSlice {
    kills: SliceKills,
    /// Whether what its unit had counted when that went is known, or never will be.
    settled: AtomicBool,
}

impl InSlice {
    pub(super) fn new(kills: SliceKills) -> Self {
        Self { kills, settled: AtomicBool::new(false) }
    }

    pub(super) fn is_settled(&self) -> bool {
        self.settled.load(Ordering::Relaxed)
    }
}

#[derive(Debug, Default)]
struct Slice {
    known: u64,
    watches: Vec<Weak<OomWatch>>,
    /// What each cgroup in it had counted at the last look.
    counts: HashMap<OsString, u64>,
    /// Those that were not ours then.
    others: HashSet<OsString>,
    /// Whether one of them has gone, with kills that may still count as nobody's.
    has_lost: bool,
}

impl Slice {
    /// All units have been looked at after it had `counted` so many kills.
    fn looked_at(&mut self, counted: u64) {
        self.known = self.known.max(counted);
        self.has_lost = false;
    }

    /// What the cgroups in it have counted by now. Of those that are not `ours` nobody else takes note.
    fn look_at_others(&mut self, counts: HashMap<OsString, u64>, ours: &[&OsStr]) {
        self.has_lost |= self.others.iter().any(|name| comes_and_goes(name) && !counts.contains_key(name));
        self.others.clear();
        for (name, count) in counts.iter().filter(|(name, _)| !ours.contains(&name.as_os_str())) {
            // Fewer than before: it is another, of the same name.
            let before = self.counts.get(name).copied().filter(|before| before <= count).unwrap_or(0);
            self.known = self.known.saturating_add(count.saturating_sub(before));
            self.others.insert(name.clone());
        }
        self.counts = counts;
    }

    /// The share of a unit that is gone, of the kills that nobody has seen: all, unless others are gone as well. One
    /// that has not failed has none then, nor where they may have been in one that is not ours.
    fn share(&mut self, counted: u64, is_alone: bool, has_failed: bool) -> u64 {
        let unseen = counted.saturating_sub(self.known);
        let share = match (is_alone, has_failed) {
            (true, true) => unseen,
            (true, false) if self.has_lost || self.others.iter().any(|name| comes_and_goes(name)) => {
                self.looked_at(counted);
                0
            }
            (true, false) => unseen,
            (false, true) => unseen.min(1),
            (false, false) => 0,
        };
        self.known = self.known.saturating_add(share);
        share
    }
}

/// Whether a cgroup of this name may have been removed with all that was killed in it. A slice stays for as long as
/// something is in it, and has counted that.
fn comes_and_goes(name: &OsStr) -> bool {
    let name = name.as_encoded_bytes();
    (name.ends_with(b".service") || name.ends_with(b".scope")) && name != b"init.scope"
}

/// The slices in which containers are units.
#[derive(Debug, Default)]
pub(super) struct Slices(Mutex<HashMap<PathBuf, Slice>>);

impl Slices {
    /// Takes a new unit in, which begins to be watched.
    pub(super) fn join(&self, watch: &Arc<OomWatch>) {
        let Some(in_slice) = watch.in_slice() else { return };
        let path = in_slice.kills.path().to_owned();
        {
            let mut slices = lock(&self.0);
            slices.retain(|_, slice| slice.watches.iter().any(|watch| watch.strong_count() > 0));
            slices.entry(path).or_default().watches.push(Arc::downgrade(watch));
        }
        // Before the looks: what comes after it is not known.
        let Some(counted) = in_slice.kills.count() else { return };
        let Some(all) = self.look_at_all(in_slice) else { return };
        // What one is gone with would be taken for known.
        if !all.iter().any(|watch| watch.is_unsettled()) {
            self.change(in_slice, |slice| slice.looked_at(counted));
        }
    }

    /// Kills that have been found in a unit.
    pub(super) fn known(&self, in_slice: &InSlice, kills: u64) {
        self.change(in_slice, |slice| slice.known = slice.known.saturating_add(kills));
    }

    /// Tells of the kills that a unit is gone with.
    pub(super) fn settle(&self, watch: &OomWatch, has_failed: bool) {
        let Some(in_slice) = watch.in_slice() else { return };
        if in_slice.settled.swap(true, Ordering::Relaxed) {
            return;
        }
        let Some(counted) = in_slice.kills.count() else { return };
        let Some(all) = self.look_at_all(in_slice) else { return };
        let is_alone = !all.iter().any(|watch| watch.is_unsettled());
        let share = self.change(in_slice, |slice| slice.share(counted, is_alone, has_failed));
        if share > 0 {
            watch.tell(share);
        }
    }

    /// Looks at all units of the slice, so that what is found in them is known. `None` if that can't be.
    fn look_at_all(&self, in_slice: &InSlice) -> Option<Vec<Arc<OomWatch>>> {
        let all: Vec<_> = self.change(in_slice, |slice| {
            slice.watches.retain(|watch| watch.strong_count() > 0);
            slice.watches.iter().filter_map(Weak::upgrade).collect()
        });
        all.iter().for_each(|watch| watch.look_now());
        let counts = in_slice.kills.counts()?;
        let ours: Vec<&OsStr> = all.iter().filter_map(|watch| Some(watch.in_slice()?.kills.unit())).collect();
        self.change(in_slice, |slice| slice.look_at_others(counts, &ours));
        Some(all)
    }

    fn change<R>(&self, in_slice: &InSlice, change: impl FnOnce(&mut Slice) -> R) -> R {
        change(lock(&self.0).entry(in_slice.kills.path().to_owned()).or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_that_is_gone_has_what_its_slice_counted_and_nobody_has_seen() {
        let mut slice = Slice::default();
        // There were some before ours came.
        slice.looked_at(5);
        assert_eq!(slice.share(5, true, true), 0);
        assert_eq!((slice.share(8, true, true), slice.share(8, true, true)), (3, 0));
        // Found in a unit that is still there.
        slice.known += 1;
        assert_eq!((slice.share(9, true, true), slice.share(10, true, true)), (0, 1));
        // Two are gone.
        assert_eq!((slice.share(12, false, true), slice.share(12, true, true)), (1, 1));
        // A look that comes late takes nothing back.
        slice.looked_at(7);
        assert_eq!(slice.share(13, true, true), 1);
    }

    #[test]
    fn what_is_counted_in_others_that_are_there_is_known() {
        let counts = |all: &[(&str, u64)]| all.iter().map(|(name, count)| ((*name).into(), *count)).collect();
        let mut slice = Slice::default();
        slice.look_at_others(counts(&[("cron", 3), ("ours", 0)]), &[OsStr::new("ours")]);
        slice.looked_at(5);
        slice.look_at_others(counts(&[("cron", 4), ("ours", 2)]), &[OsStr::new("ours")]);
        assert_eq!(slice.share(6, true, true), 0, "what is found in ours its own watch makes known");
        // One that is not watched any more has nothing new, one that has come anew has.
        slice.look_at_others(counts(&[("cron", 1), ("ours", 2)]), &[]);
        assert_eq!(slice.share(7, true, true), 0);
        slice.look_at_others(counts(&[]), &[]);
        assert_eq!(slice.share(8, true, true), 1);
    }

    #[test]
    fn who_ends_well_has_no_kills_that_may_have_been_anothers() {
        let counts = |all: &[&str]| all.iter().map(|name| ((*name).into(), 0)).collect();
        let ours = [OsStr::new("ours.scope")];
        let mut slice = Slice::default();
        // Slices and systemd itself stay.
        slice.look_at_others(counts(&["ours.scope", "init.scope", "system.slice"]), &ours);
        assert_eq!(slice.share(1, true, false), 1);
        assert_eq!(slice.share(2, false, false), 0, "of two that are gone the other has failed");
        assert_eq!(slice.share(2, false, true), 1);
        slice.look_at_others(counts(&["init.scope", "system.slice", "cron.service"]), &[]);
        assert_eq!(slice.share(3, true, false), 0, "where one is, another may have been");
        assert_eq!(slice.share(3, true, true), 0, "it is not told of the next one, either");
        assert_eq!(slice.share(4, true, true), 1);
        slice.look_at_others(counts(&["init.scope"]), &[]);
        slice.look_at_others(counts(&["init.scope"]), &[]);
        assert_eq!(slice.share(5, true, false), 0, "one has gone");
        assert_eq!(slice.share(6, true, false), 1);
    }
}
