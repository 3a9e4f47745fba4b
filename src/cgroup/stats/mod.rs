//! What a container used: the values of `StatsContainer`, from the files of its cgroup.
//!
//! Each file is opened and read once, each directory opened once. A file or controller that is not there
//! leaves its part of the answer out; lines that make no sense are passed over.
//!
//! The wire knows the shape of v1, and shims read it by what their *host* has, so the answer has to suit all
//! four combinations. Where v2 has no word for something:
//! - no limit is [`UNLIMITED`], near what v1 says for it; but 0 for processes, as the wire wants it;
//! - `failcnt` is how often the limit was hit, which v2 counts as `max` in the `*.events` files;
//! - all v2 accounting is hierarchical, so `use_hierarchy` is true, and `memory_stats.stats` has, beside
//!   what the kernel says, the names that a shim on a v1 host looks for (`total_cache` and so on);
//! - swap is swap alone (v1: memory and swap together).

mod parse;
mod v1;
mod v2;

pub(super) use parse::flat;

use super::tree::Dir;
use super::{Cgroup, CgroupError, Hierarchy};
use nakai_protocols::agent::CgroupStats;

/// "max". It fits into a signed number, for the sake of those who take it for one.
const UNLIMITED: u64 = i64::MAX.unsigned_abs();

impl Cgroup {
    /// What the processes here and in all sub-cgroups used.
    ///
    /// # Errors
    /// [`CgroupError::NotFound`] if the cgroup is gone, or what can't be opened or read.
    pub fn stats(&self) -> Result<CgroupStats, CgroupError> {
        let dirs = match &*self.hierarchy {
            Hierarchy::V2 { mount_point } => vec![("", self.open_at(mount_point)?)],
            Hierarchy::V1 { .. } => v1::CONTROLLERS
                .into_iter()
                .map(|controller| Ok((controller, self.open_v1(controller)?)))
                .collect::<Result<_, CgroupError>>()?,
        };
        let dirs: Vec<(&str, Dir)> = dirs.into_iter().filter_map(|(name, dir)| Some((name, dir?))).collect();
        let mut stats = CgroupStats::new();
        for (controller, dir) in &dirs {
            match *controller {
                "" => v2::read(dir, &mut stats)?,
                controller => v1::read(controller, dir, &mut stats)?,
            }
        }
        // What vanished under our hands would look like a container that used nothing.
        if dirs.is_empty() || dirs.iter().any(|(_, dir)| dir.is_gone()) {
            return Err(self.not_found());
        }
        Ok(stats)
    }
}
