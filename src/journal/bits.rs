//! Which of a number of records are used, the lowest free one first: so few pages are touched.

const WORD: usize = 64;

/// A bit for each record.
#[derive(Debug)]
pub(super) struct Bits {
    taken: Vec<u64>,
    /// Has been taken since memory was last given back.
    touched: Vec<u64>,
    count: usize,
}

impl Bits {
    /// All free.
    pub(super) fn new(count: usize) -> Self {
        let words = count.div_ceil(WORD);
        Self { taken: vec![0; words], touched: vec![0; words], count }
    }

    /// Takes the lowest that is free.
    pub(super) fn take(&mut self) -> Option<usize> {
        let word = self.taken.iter().position(|word| *word != u64::MAX)?;
        let bit = usize::try_from(self.taken.get(word)?.trailing_ones()).ok()?;
        let number = word.checked_mul(WORD)?.checked_add(bit)?;
        self.claim(number).then_some(number)
    }

    /// Takes this one; false if it is taken, or none of ours.
    pub(super) fn claim(&mut self, number: usize) -> bool {
        let (at, bit) = (number / WORD, 1 << (number % WORD));
        let (Some(word), Some(touched)) = (self.taken.get_mut(at), self.touched.get_mut(at)) else {
            return false;
        };
        if number >= self.count || *word & bit != 0 {
            return false;
        }
        *word |= bit;
        *touched |= bit;
        true
    }

    /// Gives one back.
    pub(super) fn put(&mut self, number: usize) {
        if let Some(word) = self.taken.get_mut(number / WORD) {
            *word &= !(1 << (number % WORD));
        }
    }

    /// The highest that is taken.
    pub(super) fn highest(&self) -> Option<usize> {
        let (word, bits) = self.taken.iter().enumerate().rfind(|(_, bits)| **bits != 0)?;
        let bit = usize::try_from(bits.checked_ilog2()?).ok()?;
        word.checked_mul(WORD)?.checked_add(bit)
    }

    /// The first of each group of `size` that is free, and was not all the time. They count as untouched then.
    pub(super) fn take_touched(&mut self, size: usize) -> Vec<usize> {
        let mut found = Vec::new();
        for (index, (taken, touched)) in self.taken.iter().zip(&mut self.touched).enumerate() {
            for first in (0..WORD).step_by(size.max(1)) {
                let group = (u64::MAX >> WORD.saturating_sub(size)) << first;
                if *touched & group != 0 && *taken & group == 0 {
                    *touched &= !group;
                    found.push(index.saturating_mul(WORD).saturating_add(first));
                }
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_is_taken_first_and_all_there_are() {
        let mut bits = Bits::new(70);
        let all: Vec<usize> = std::iter::from_fn(|| bits.take()).collect();
        assert_eq!(all, (0..70).collect::<Vec<_>>());
        bits.put(69);
        bits.put(3);
        assert_eq!((bits.take(), bits.take(), bits.take()), (Some(3), Some(69), None));
        assert_eq!(bits.highest(), Some(69));
        assert!(!bits.claim(70) && !bits.claim(1000) && !bits.claim(5));
    }

    #[test]
    fn what_was_used_is_told_once_and_by_whole_groups() {
        let mut bits = Bits::new(128);
        assert!(bits.take_touched(1).is_empty());
        for number in [0, 1, 8, 100] {
            assert!(bits.claim(number));
        }
        bits.put(0);
        bits.put(8);
        bits.put(100);
        // 1 is still used.
        assert_eq!(bits.take_touched(8), [8, 96]);
        assert_eq!(bits.take_touched(1), [0]);
        assert!(bits.take_touched(1).is_empty());
    }
}
