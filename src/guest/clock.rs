//! The guest's clock, set by a host that paused it or started it from a snapshot.

use std::time::Duration;

use nix::errno::Errno;
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime, clock_settime};

/// The clock was not set.
#[derive(Debug, thiserror::Error)]
pub enum ClockError {
    /// A number that is no time.
    #[error("{field} is {value}, and must be {range}")]
    Field {
        /// Its name on the wire.
        field: &'static str,
        /// What was given.
        value: i64,
        /// What it may be.
        range: &'static str,
    },
    /// The kernel refused.
    #[error("{step} the clock: {source}")]
    Kernel {
        /// What was done to it.
        step: &'static str,
        /// Why.
        source: Errno,
    },
}

/// A time since 1970, with microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DateTime(TimeSpec);

impl DateTime {
    /// Checks a time from the wire.
    ///
    /// # Errors
    ///
    /// [`ClockError::Field`].
    pub fn new(seconds: i64, microseconds: i64) -> Result<Self, ClockError> {
        if seconds < 0 {
            return Err(ClockError::Field { field: "Sec", value: seconds, range: "0 or more" });
        }
        if !(0..1_000_000).contains(&microseconds) {
            return Err(ClockError::Field { field: "Usec", value: microseconds, range: "0 to 999999" });
        }
        Ok(Self(TimeSpec::new(seconds, microseconds.saturating_mul(1000))))
    }
}

/// Sets the clock. Says how far it jumped, in either direction.
///
/// # Errors
///
/// [`ClockError::Kernel`].
pub fn set(to: DateTime) -> Result<Duration, ClockError> {
    let error = |step| move |source| ClockError::Kernel { step, source };
    let before = clock_gettime(ClockId::CLOCK_REALTIME).map_err(error("read"))?;
    clock_settime(ClockId::CLOCK_REALTIME, to.0).map_err(error("set"))?;
    Ok(distance(before, to.0))
}

fn distance(one: TimeSpec, other: TimeSpec) -> Duration {
    let duration = |time: TimeSpec| {
        let seconds = Duration::from_secs(u64::try_from(time.tv_sec()).unwrap_or_default());
        seconds.saturating_add(Duration::from_nanos(u64::try_from(time.tv_nsec()).unwrap_or_default()))
    };
    duration(one).abs_diff(duration(other))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_within_its_bounds() {
        let time = DateTime::new(1, 500_000).unwrap();
        assert_eq!(time.0, TimeSpec::new(1, 500_000_000));
        for (seconds, microseconds, message) in [
            (-1, 0, "Sec is -1, and must be 0 or more"),
            (1, -1, "Usec is -1, and must be 0 to 999999"),
            (1, 1_000_000, "Usec is 1000000, and must be 0 to 999999"),
        ] {
            assert_eq!(DateTime::new(seconds, microseconds).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn a_jump_has_no_direction() {
        let (early, late) = (TimeSpec::new(10, 900_000_000), TimeSpec::new(12, 100_000_000));
        assert_eq!(distance(early, late), Duration::from_millis(1200));
        assert_eq!(distance(late, early), Duration::from_millis(1200));
        assert_eq!(distance(late, late), Duration::ZERO);
    }
}
