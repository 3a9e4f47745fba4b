//! How torn the free memory is (proc_buddyinfo(5)), and when it is worth to compact it.

use crate::config::CompactSettings;

/// Free pages in blocks of a lower order than `order`, in all zones.
pub(super) fn small_pages(buddyinfo: &str, order: u32) -> u64 {
    buddyinfo.lines().filter_map(|line| in_zone(line, order)).fold(0, u64::saturating_add)
}

/// `Node 0, zone   Normal   3   1   0 ...`: how many free blocks there are of each order.
fn in_zone(line: &str, order: u32) -> Option<u64> {
    let (_, counts) = line.split_once("zone")?;
    let counts = counts.split_whitespace().skip(1).zip(0..order);
    let pages =
        counts.filter_map(|(count, order)| count.parse::<u64>().ok()?.checked_mul(1_u64.checked_shl(order)?));
    Some(pages.fold(0, u64::saturating_add))
}

/// Remembers the last run, and decides about the next.
#[derive(Debug, Default)]
pub(super) struct Judge {
    after_last: u64,
    left_out: u64,
}

impl Judge {
    /// Whether a run is worth it.
    pub(super) fn is_worth_it(&mut self, pages: u64, settings: &CompactSettings) -> bool {
        let worth = pages.saturating_sub(self.after_last) >= settings.threshold;
        if worth || self.left_out >= settings.force_times {
            self.left_out = 0;
            return true;
        }
        self.left_out = self.left_out.saturating_add(1);
        false
    }

    /// A run left so many pages in small blocks.
    pub(super) fn ran(&mut self, pages: u64) {
        self.after_last = pages;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn pages_in_small_blocks_are_counted() {
        let text = "Node 0, zone      DMA      1      1      0      5\nNode 0, zone   Normal     10      0      2      1\nnonsense\n";
        assert_eq!(small_pages(text, 0), 0);
        assert_eq!(small_pages(text, 1), 11);
        assert_eq!(small_pages(text, 3), 1 + 2 + 10 + 8);
        assert_eq!(small_pages("", 9), 0);
    }

    #[test]
    fn a_run_is_made_when_it_is_worth_it_or_overdue() {
        let settings =
            CompactSettings { threshold: 100, force_times: 2, ..Config::default().mem_agent.compact };
        let mut judge = Judge::default();
        assert!(judge.is_worth_it(100, &settings));
        judge.ran(60);
        assert!(!judge.is_worth_it(159, &settings));
        assert!(judge.is_worth_it(160, &settings));
        for worth in [false, false, true, false] {
            assert_eq!(judge.is_worth_it(60, &settings), worth);
        }
    }
}
