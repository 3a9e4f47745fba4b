//! What a container used: the values of `StatsContainer`, from the files of its cgroup.
//!
//! Each file is opened and read once, each directory opened once, and listed once in a container's life: for the sizes
//! of huge pages, which don't change. A file or controller that is not there leaves its part of the answer out; lines that
//! make no sense are passed over.
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
use nakai_protocols::agent::{CgroupStats, HugetlbStats};
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

/// "max". It fits into a signed number, for the sake of those who take it for one.
const UNLIMITED: u64 = i64::MAX.unsigned_abs();

/// The sizes of huge pages that a cgroup counts, once they are known.
#[derive(Debug, Clone, Default)]
pub(super) struct HugePages(Arc<OnceLock<Vec<String>>>);

impl HugePages {
    /// The statistics of each size: `usage` is how a file of usage ends, `read_one` gets how the files of a size begin.
    fn read(
        &self,
        dir: &Dir,
        usage: &str,
        read_one: impl Fn(&str) -> Result<Option<HugetlbStats>, CgroupError>,
    ) -> Result<HashMap<String, HugetlbStats>, CgroupError> {
        if self.0.get().is_none() {
            let sizes = parse::huge_page_sizes(dir, usage)?;
            // None at all may be for want of the controller, which can be switched on.
            if !sizes.is_empty() {
                let _ = self.0.set(sizes);
            }
        }
        let mut all = HashMap::new();
        for size in self.0.get().into_iter().flatten() {
            if let Some(stats) = read_one(&format!("hugetlb.{size}"))? {
                all.insert(size.clone(), stats);
            }
        }
        Ok(all)
    }
}

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
                "" => v2::read(dir, &self.huge_pages, &mut stats)?,
                controller => v1::read(controller, dir, &self.huge_pages, &mut stats)?,
            }
        }
        // What vanished under our hands would look like a container that used nothing.
        if dirs.is_empty() || dirs.iter().any(|(_, dir)| dir.is_gone()) {
            return Err(self.not_found());
        }
        Ok(stats)
    }
}
