//! Which parts of a file have arrived.

/// Parts of a file, sorted, apart from each other, none empty.
#[derive(Debug, Default)]
pub(super) struct Ranges(Vec<(u64, u64)>);

impl Ranges {
    /// Adds what lies from `start` up to `end`.
    pub(super) fn add(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        // All that overlap or touch the new one are next to each other.
        let first = self.0.partition_point(|range| range.1 < start);
        let last = self.0.partition_point(|range| range.0 <= end);
        let touched = self.0.get(first..last).unwrap_or_default();
        let start = touched.first().map_or(start, |range| range.0.min(start));
        let end = touched.last().map_or(end, |range| range.1.max(end));
        self.0.splice(first..last, [(start, end)]);
    }

    /// Whether all before `size` is there.
    pub(super) fn cover(&self, size: u64) -> bool {
        size == 0 || self.0.first().is_some_and(|range| range.0 == 0 && range.1 >= size)
    }

    /// Whether the first byte is there.
    pub(super) fn begin(&self) -> bool {
        self.0.first().is_some_and(|range| range.0 == 0)
    }

    /// How many parts there are.
    pub(super) fn count(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// As a set of bytes would have it.
        #[test]
        fn ranges_are_what_a_set_of_bytes_is(parts in prop::collection::vec((0_usize..64, 0_usize..16), 0..12)) {
            let mut bytes = [false; 80];
            let mut ranges = Ranges::default();
            for (start, len) in parts {
                bytes[start..start + len].fill(true);
                ranges.add(start as u64, (start + len) as u64);
            }
            let whole = bytes.iter().take_while(|there| **there).count();
            for size in 0..bytes.len() {
                prop_assert_eq!(ranges.cover(size as u64), size <= whole);
            }
            prop_assert_eq!(ranges.begin(), bytes[0]);
            let edges = bytes.iter().zip(std::iter::once(&false).chain(&bytes)).filter(|(now, before)| **now && !**before);
            prop_assert_eq!(ranges.count(), edges.count());
        }
    }
}
