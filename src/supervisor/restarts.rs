//! When the next server may start: at once, unless they die in a row, each soon after its start; then later and later.
//!
//! A loop of crashes must not take the processor from the containers. A server that is killed now and then, be it every
//! few seconds, is no loop: starting one takes milliseconds.

use std::time::{Duration, Instant};

/// A server that has lived this long was well.
const WELL: Duration = Duration::from_secs(2);
/// How many deaths in a row may be chance.
const CHANCE: u32 = 3;
/// How long the first restart after that waits...
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// ...and how long they all wait at most.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// The deaths so far.
#[derive(Debug)]
pub(super) struct Restarts {
    started: Instant,
    /// Deaths in a row, each soon after a start.
    in_a_row: u32,
}

impl Restarts {
    /// A first server starts `now`.
    pub(super) fn new(now: Instant) -> Self {
        Self { started: now, in_a_row: 0 }
    }

    /// Another one has started.
    pub(super) fn started(&mut self, now: Instant) {
        self.started = now;
    }

    /// One has died; says how long to wait for the next.
    pub(super) fn pause_after_death(&mut self, now: Instant) -> Duration {
        let was_well = now.saturating_duration_since(self.started) >= WELL;
        self.in_a_row = if was_well { 1 } else { self.in_a_row.saturating_add(1) };
        match self.in_a_row.checked_sub(CHANCE.saturating_add(1)) {
            None => Duration::ZERO,
            Some(doublings) => FIRST_PAUSE
                .saturating_mul(1_u32.checked_shl(doublings).unwrap_or(u32::MAX))
                .min(LONGEST_PAUSE),
        }
    }

    /// How many have died in a row.
    pub(super) fn in_a_row(&self) -> u32 {
        self.in_a_row
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_deaths_cost_no_time_and_a_row_of_them_more_and_more() {
        let start = Instant::now();
        let mut restarts = Restarts::new(start);
        let pauses: Vec<u128> = (0..40).map(|_| restarts.pause_after_death(start).as_millis()).collect();
        assert_eq!(&pauses[..11], [0, 0, 0, 100, 200, 400, 800, 1600, 3200, 6400, 10_000]);
        assert!(pauses[11..].iter().all(|pause| *pause == 10_000));
        assert_eq!(restarts.in_a_row(), 40);
        restarts.started(start);
        assert_eq!(restarts.pause_after_death(start + WELL), Duration::ZERO);
        assert_eq!(restarts.in_a_row(), 1);
    }
}
