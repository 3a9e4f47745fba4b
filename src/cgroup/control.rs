//! Freezing, killing, waiting for the end, removing.
//!
//! v2 tells of changes: `cgroup.events` can be waited for with poll(2), and `cgroup.kill` reaches every
//! process at once (cgroup-v2.rst, "Core Interface Files"). v1 does neither: there we look again at
//! growing intervals, and kill a frozen tree so that nothing forks away in between.

use super::pidfd::PidFd;
use super::tree::{Dir, read_from_start};
use super::unit::RULES_KEPT;
use super::{Cgroup, CgroupError, Hierarchy};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{UnlinkatFlags, unlinkat};
use std::collections::HashSet;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// How often a tree is frozen, killed and looked at again before its processes count as unkillable.
const KILL_ROUNDS: usize = 8;
/// How long a round waits for the freezer. A process in an uninterruptible wait is killed unfrozen.
const KILL_FREEZE: Duration = Duration::from_millis(100);
/// How long a round waits for the killed to be gone.
const KILL_WAIT: Duration = Duration::from_millis(250);
/// How many pidfds are open at a time.
const KILL_CHUNK: usize = 128;
/// How long removal waits for processes that are still listed.
const SETTLE: Duration = Duration::from_millis(500);
/// How long it waits when none is listed any more: the ended ones leave as soon as the kernel gets round to it, which on
/// a busy machine takes a while, and nothing else can keep an empty cgroup.
const LEAVE: Duration = Duration::from_secs(20);

/// The freezer's two states, in the words of each version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Freezer {
    Frozen,
    Thawed,
}

impl Freezer {
    fn v1(self) -> &'static str {
        if self == Self::Frozen { "FROZEN" } else { "THAWED" }
    }

    fn v2(self) -> &'static str {
        if self == Self::Frozen { "1" } else { "0" }
    }

    fn word(self) -> &'static str {
        if self == Self::Frozen { "frozen" } else { "thawed" }
    }
}

impl Cgroup {
    /// The processes here and in all sub-cgroups, by pid. Empty if the cgroup is gone.
    ///
    /// # Errors
    /// What can't be opened or read.
    pub fn pids(&self) -> Result<Vec<i32>, CgroupError> {
        self.process_dir()?.map_or_else(|| Ok(Vec::new()), |dir| dir.pids())
    }

    /// Removes what an earlier container has left of it, with the limits and rules that were in force, unless somebody is
    /// there, in whichever hierarchy: false then. One with sub-cgroups stays.
    ///
    /// # Errors
    /// What can't be opened or read.
    pub fn clear(&self) -> Result<bool, CgroupError> {
        let mut left = Vec::new();
        for mount_point in self.hierarchy.mount_points() {
            let Some(dir) = self.open_at(mount_point)? else { continue };
            let is_empty = match self.hierarchy.is_v2() {
                true => wait_event(&dir, "populated", "0", Duration::ZERO)?,
                false => dir.pids()?.is_empty(),
            };
            if !is_empty {
                return Ok(false);
            }
            left.push(dir);
        }
        for dir in left {
            let _ = std::fs::remove_dir(dir.path().join(RULES_KEPT));
            let _ = unlinkat(nix::fcntl::AT_FDCWD, dir.path(), UnlinkatFlags::RemoveDir);
        }
        Ok(true)
    }

    /// Waits until no live process is left here and in all sub-cgroups; false if that takes longer.
    ///
    /// # Errors
    /// What can't be opened or read.
    pub fn wait_empty(&self, timeout: Duration) -> Result<bool, CgroupError> {
        let Some(dir) = self.process_dir()? else { return Ok(true) };
        if self.hierarchy.is_v2() {
            return wait_event(&dir, "populated", "0", timeout);
        }
        look_again(timeout, || Ok(dir.pids()?.is_empty()))
    }

    /// Stops every process here and in all sub-cgroups and waits until they have stopped. If they have not
    /// in time, they are let go again.
    ///
    /// # Errors
    /// [`CgroupError::NotFound`], [`CgroupError::NoController`] (v1 without a freezer),
    /// [`CgroupError::Freezer`] after `timeout`.
    pub fn freeze(&self, timeout: Duration) -> Result<(), CgroupError> {
        let dir = self.freezer_dir()?;
        let result = self.set_freezer(&dir, Freezer::Frozen, timeout);
        if result.is_err() {
            // The first error is the one to tell.
            let _ = self.set_freezer(&dir, Freezer::Thawed, Duration::ZERO);
        }
        result
    }

    /// Whether the processes are stopped by [`Cgroup::freeze`].
    ///
    /// # Errors
    /// What can't be opened or read.
    pub fn is_frozen(&self) -> Result<bool, CgroupError> {
        let dir = self.freezer_dir()?;
        let (file, word) = if self.hierarchy.is_v2() {
            ("cgroup.freeze", Freezer::Frozen.v2())
        } else {
            ("freezer.self_freezing", "1")
        };
        Ok(dir.read(file)?.is_some_and(|state| state.trim() == word))
    }

    /// Lets the processes go on and waits until they do.
    ///
    /// # Errors
    /// As [`Cgroup::freeze`]. A cgroup above that is frozen keeps this one frozen.
    pub fn thaw(&self, timeout: Duration) -> Result<(), CgroupError> {
        self.set_freezer(&self.freezer_dir()?, Freezer::Thawed, timeout)
    }

    /// Sends SIGKILL to every process here and in all sub-cgroups, and misses none that they fork
    /// meanwhile. A frozen cgroup is thawed where it would keep its processes from dying.
    ///
    /// The processes may still be ending when this returns: see [`Cgroup::wait_empty`].
    ///
    /// # Errors
    /// [`CgroupError::Busy`] if processes are left after some rounds (in an uninterruptible wait, say; they
    /// have their signal), or what can't be read or signalled.
    pub fn kill_all(&self) -> Result<(), CgroupError> {
        let Some(dir) = self.process_dir()? else { return Ok(()) };
        // Since Linux 5.14, and not in threaded cgroups.
        if self.hierarchy.is_v2() && dir.write("cgroup.kill", "1")? {
            return Ok(());
        }
        for _ in 0..KILL_ROUNDS {
            if !self.kill_round(&dir)? || self.wait_empty(KILL_WAIT)? {
                return Ok(());
            }
        }
        Err(self.busy())
    }

    /// Freezes, signals everybody, thaws. False if nobody was there.
    fn kill_round(&self, dir: &Dir) -> Result<bool, CgroupError> {
        // Without a freezer, or if it does not get there in time, the next round has to find the rest.
        let freezer = self.freezer_dir().ok();
        if let Some(freezer) = &freezer {
            let _ = self.set_freezer(freezer, Freezer::Frozen, KILL_FREEZE);
        }
        let found = kill_listed(dir);
        if let Some(freezer) = &freezer {
            // On v1 a process dies only when thawed, and a container may have frozen parts of itself.
            let _ =
                freezer.walk(&mut |dir| self.set_freezer(dir, Freezer::Thawed, Duration::ZERO).or(Ok(())));
        }
        found
    }

    /// Removes the cgroup and all sub-cgroups, in every hierarchy. Gone already is fine.
    ///
    /// # Errors
    /// [`CgroupError::Busy`] with the processes that are left, [`CgroupError::Remove`]. The other
    /// hierarchies are cleaned up nevertheless.
    pub fn remove(&self) -> Result<(), CgroupError> {
        let start = Instant::now();
        let mut first_error = None;
        for mount_point in self.hierarchy.mount_points() {
            let removed = match self.open_at(mount_point) {
                Ok(None) => continue,
                Ok(Some(dir)) => self.remove_tree(&dir, start),
                Err(error) => Err(error),
            };
            first_error = first_error.or_else(|| removed.err());
        }
        first_error.map_or(Ok(()), Err)
    }

    fn remove_tree(&self, dir: &Dir, start: Instant) -> Result<(), CgroupError> {
        look_again(LEAVE.saturating_sub(start.elapsed()), || match remove_once(dir) {
            Ok(()) => Ok(true),
            Err(CgroupError::Remove { source: Errno::EBUSY, .. }) => {
                let pids = if start.elapsed() < SETTLE { Vec::new() } else { dir.pids()? };
                if pids.is_empty() {
                    Ok(false)
                } else {
                    Err(CgroupError::Busy { path: self.path.clone(), pids })
                }
            }
            Err(error) => Err(error),
        })?
        .then_some(())
        .ok_or_else(|| self.busy())
    }

    fn busy(&self) -> CgroupError {
        CgroupError::Busy { path: self.path.clone(), pids: self.pids().unwrap_or_default() }
    }

    /// The directory to look for processes in.
    fn process_dir(&self) -> Result<Option<Dir>, CgroupError> {
        for mount_point in self.hierarchy.mount_points() {
            if let Some(dir) = self.open_at(mount_point)? {
                return Ok(Some(dir));
            }
        }
        Ok(None)
    }

    fn freezer_dir(&self) -> Result<Dir, CgroupError> {
        let mount_point = match &*self.hierarchy {
            Hierarchy::V2 { mount_point } => mount_point,
            Hierarchy::V1 { controllers } => {
                controllers.get("freezer").ok_or(CgroupError::NoController { controller: "freezer" })?
            }
        };
        self.open_at(mount_point)?.ok_or_else(|| self.not_found())
    }

    fn set_freezer(&self, dir: &Dir, wanted: Freezer, timeout: Duration) -> Result<(), CgroupError> {
        let reached = if self.hierarchy.is_v2() {
            if !dir.write("cgroup.freeze", wanted.v2())? {
                return Err(self.not_found());
            }
            wait_event(dir, "frozen", wanted.v2(), timeout)?
        } else {
            // Written again at each look: a process that was forked meanwhile is frozen only by that.
            look_again(timeout, || {
                if !dir.write("freezer.state", wanted.v1())? {
                    return Err(self.not_found());
                }
                Ok(dir.read("freezer.state")?.is_some_and(|state| state.trim() == wanted.v1()))
            })?
        };
        if reached {
            return Ok(());
        }
        Err(CgroupError::Freezer { path: self.path.clone(), wanted: wanted.word(), waited: timeout })
    }
}

fn remove_once(dir: &Dir) -> Result<(), CgroupError> {
    // Most have none below. To find that out by a list of seventy files takes as long as the removal.
    remove_alone(dir).or_else(|_| {
        dir.remove_sub_cgroups()?;
        remove_alone(dir)
    })
}

fn remove_alone(dir: &Dir) -> Result<(), CgroupError> {
    match unlinkat(nix::fcntl::AT_FDCWD, dir.path(), UnlinkatFlags::RemoveDir) {
        Ok(()) | Err(Errno::ENOENT | Errno::ENODEV) => Ok(()),
        Err(source) => Err(CgroupError::Remove { path: dir.path().clone(), source }),
    }
}

/// Signals every process in the tree. False if there is none.
///
/// A pid may be given to another process between our reading it and our opening it. So the list is read again
/// once the fds are open: who is on it then is in the cgroup, or is not who the fd names and is dead.
fn kill_listed(dir: &Dir) -> Result<bool, CgroupError> {
    let listed = dir.pids()?;
    for chunk in listed.chunks(KILL_CHUNK) {
        let fail = |pid, source| CgroupError::Kill { path: dir.path().clone(), pid, source };
        let mut opened = Vec::with_capacity(chunk.len());
        for pid in chunk.iter().copied() {
            match PidFd::open(pid) {
                Ok(fd) => opened.push((pid, fd)),
                Err(Errno::ESRCH) => {}
                Err(source) => return Err(fail(pid, source)),
            }
        }
        let still_here: HashSet<i32> = dir.pids()?.into_iter().collect();
        for (pid, fd) in opened.iter().filter(|(pid, _)| still_here.contains(pid)) {
            match fd.kill() {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(source) => return Err(fail(*pid, source)),
            }
        }
    }
    Ok(!listed.is_empty())
}

/// Waits until `cgroup.events` says `value` for `key`; false if that takes longer. A cgroup that
/// vanishes has no processes, so it has come to whatever was waited for.
fn wait_event(dir: &Dir, key: &str, value: &str, timeout: Duration) -> Result<bool, CgroupError> {
    let Some(file) = dir.file("cgroup.events")? else { return Ok(true) };
    let start = Instant::now();
    loop {
        let text = match read_from_start(file.as_fd()) {
            Ok(text) => text,
            Err(Errno::ENODEV) => return Ok(true),
            Err(source) => {
                let file = "cgroup.events".to_owned();
                return Err(CgroupError::Read { path: dir.path().clone(), file, source });
            }
        };
        if text.lines().any(|line| line.split_once(' ') == Some((key, value))) {
            return Ok(true);
        }
        let left = timeout.saturating_sub(start.elapsed());
        if left.is_zero() {
            return Ok(false);
        }
        let mut fds = [PollFd::new(file.as_fd(), PollFlags::POLLPRI)];
        // Rounded up, or the last millisecond would be spent spinning.
        let left = left.saturating_add(Duration::from_millis(1));
        // Interrupted or refused, the next look decides.
        let _ = poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX));
    }
}

/// Looks again at growing intervals until `done`; false if that takes longer than `timeout`.
fn look_again(
    timeout: Duration,
    mut done: impl FnMut() -> Result<bool, CgroupError>,
) -> Result<bool, CgroupError> {
    let start = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        if done()? {
            return Ok(true);
        }
        let left = timeout.saturating_sub(start.elapsed());
        if left.is_zero() {
            return Ok(false);
        }
        rest(pause.min(left));
        pause = pause.saturating_mul(2).min(Duration::from_millis(50));
    }
}

#[expect(clippy::disallowed_methods, reason = "v1 tells of nothing, and rmdir(2) not of when it would work")]
fn rest(pause: Duration) {
    // There is no event to wait for: see the reason above. On v2 what can be waited for is, in `wait_event`.
    std::thread::sleep(pause);
}
