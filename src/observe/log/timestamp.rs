//! RFC 3339 time stamps in UTC, with nanoseconds.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

const SECONDS_OF_A_DAY: u64 = 86_400;
/// Days from 0000-03-01 to 1970-01-01 in the proleptic Gregorian calendar.
const DAYS_BEFORE_EPOCH: u64 = 719_468;
/// Days of 400 years, after which the calendar repeats.
const DAYS_OF_AN_ERA: u64 = 146_097;

/// A moment, to be displayed as `2001-09-09T01:46:40.000000007Z`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timestamp {
    /// Seconds since 1970-01-01T00:00:00Z.
    seconds: u64,
    /// Nanoseconds since that second began.
    nanos: u32,
}

impl Timestamp {
    /// This moment. A clock before 1970 reads as 1970: guests without a real-time clock start there.
    pub(super) fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { seconds: since.as_secs(), nanos: since.subsec_nanos() }
    }
}

/// Year, month and day of a number of days since 1970-01-01.
///
/// The year is taken to begin in March, so that the leap day is its last and months have a regular pattern.
#[expect(clippy::arithmetic_side_effects, reason = "a day count from u64 seconds is far from any limit")]
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + DAYS_BEFORE_EPOCH;
    let (era, day) = (days / DAYS_OF_AN_ERA, days % DAYS_OF_AN_ERA);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, carry) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (era * 400 + year + carry, month, day)
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = date(self.seconds / SECONDS_OF_A_DAY);
        let second = self.seconds % SECONDS_OF_A_DAY;
        let (hour, minute, second, nanos) = (second / 3600, second / 60 % 60, second % 60, self.nanos);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanos:09}Z")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_moments() {
        for (seconds, nanos, text) in [
            (0, 0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_399, 999_999_999, "2000-02-28T23:59:59.999999999Z"),
            (951_782_400, 1, "2000-02-29T00:00:00.000000001Z"),
            (951_868_800, 0, "2000-03-01T00:00:00.000000000Z"),
            (1_000_000_000, 7, "2001-09-09T01:46:40.000000007Z"),
            (1_709_164_800, 0, "2024-02-29T00:00:00.000000000Z"),
            (1_735_689_599, 0, "2024-12-31T23:59:59.000000000Z"),
            (4_107_542_400, 0, "2100-03-01T00:00:00.000000000Z"),
        ] {
            assert_eq!(Timestamp { seconds, nanos }.to_string(), text);
        }
    }

    #[test]
    fn days_follow_one_another() {
        let mut before = date(0);
        for days in 1..200_000 {
            let (year, month, day) = date(days);
            let next_day = before.0 == year && before.1 == month && before.2 + 1 == day;
            let next_month = before.0 == year && before.1 + 1 == month && day == 1;
            let next_year =
                before.0 + 1 == year && (before.1, before.2) == (12, 31) && (month, day) == (1, 1);
            assert!(next_day || next_month || next_year, "{before:?} -> {:?}", (year, month, day));
            before = (year, month, day);
        }
    }
}
