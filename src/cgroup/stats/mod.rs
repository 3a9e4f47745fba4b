//! What a container used: the values of `StatsContainer`, from the files of its cgroup.
//!
//! Each file is read once, and stays open for the next look where looks are frequent ([`KeptFiles`]). A directory is
//! listed once in a container's life: for the sizes of huge pages, which don't change. A file or controller that is
//! not there leaves its part of the answer out; lines that make no sense are passed over.
//!
//! The wire knows the shape of v1, and shims read it by what their *host* has, so the answer has to suit all
//! four combinations. Where v2 has no word for something:
//! - no limit is [`UNLIMITED`], near what v1 says for it; but 0 for processes, as the wire wants it;
//! - `failcnt` is how often the limit was hit, which v2 counts as `max` in the `*.events` files;
//! - all v2 accounting is hierarchical, so `use_hierarchy` is true, and `memory_stats.stats` has, beside
//!   what the kernel says, the names that a shim on a v1 host looks for (`total_cache` and so on);
//! - swap is swap alone (v1: memory and swap together).

mod encode;
mod files;
mod parse;
mod v1;
mod v2;

pub use files::KeptFiles;
pub(super) use parse::flat;

use super::{Cgroup, CgroupError};
use encode::field;
use files::{Files, Opened};
use nakai_scan::Wire;
use std::sync::{Arc, OnceLock};

/// "max". It fits into a signed number, for the sake of those who take it for one.
const UNLIMITED: u64 = i64::MAX.unsigned_abs();

/// How files of huge pages begin, and after it with their size: `hugetlb.2MB`.
const HUGE: &str = "hugetlb.";

/// Huge pages of one size: usage, the highest one, and how often the limit was hit.
type HugeUse = [u64; 3];

/// How the files of each size begin that a cgroup counts huge pages of, once they are known.
#[derive(Debug, Clone, Default)]
pub(super) struct HugePages(Arc<OnceLock<Vec<String>>>);

impl HugePages {
    /// Writes the statistics of each size: `usage` is how a file of usage ends, `read_one` gets how the files of a size
    /// begin.
    fn read(
        &self,
        files: &mut Files,
        usage: &str,
        wire: &mut Wire,
        read_one: impl Fn(&mut Files, &str) -> Result<Option<HugeUse>, CgroupError>,
    ) -> Result<(), CgroupError> {
        if self.0.get().is_none() {
            let sizes = parse::huge_pages(files.dir(), usage)?;
            // None at all may be for want of the controller, which can be switched on.
            if !sizes.is_empty() {
                let _ = self.0.set(sizes);
            }
        }
        for size in self.0.get().into_iter().flatten() {
            if let Some(used) = read_one(files, size)? {
                let entry = wire.begin(field::HUGE_PAGES);
                wire.text(field::SIZE, size.strip_prefix(HUGE).unwrap_or_default().as_bytes());
                wire.numbers(field::USED, &used);
                wire.end(entry);
            }
        }
        Ok(())
    }
}

impl Cgroup {
    /// What the processes here and in all sub-cgroups used: a `CgroupStats` of the protocol, encoded. Files are `kept`
    /// for the next time.
    ///
    /// # Errors
    /// [`CgroupError::NotFound`] if the cgroup is gone, or what can't be opened or read.
    pub fn stats(&self, kept: &KeptFiles) -> Result<Vec<u8>, CgroupError> {
        // Kept ones may be of a cgroup that was here before.
        if let Some(mut opened) = kept.take(self)
            && let Ok(Some(used)) = opened.look(&self.huge_pages)
        {
            kept.put(self, opened);
            return Ok(used);
        }
        let mut opened = Opened::of(self)?;
        let used = opened.look(&self.huge_pages)?.ok_or_else(|| self.not_found())?;
        kept.put(self, opened);
        Ok(used)
    }
}
