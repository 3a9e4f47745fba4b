//! How much of the time tasks wait for memory (Documentation/accounting/psi.rst).

use std::path::Path;
use std::time::{Duration, Instant};

/// The kernel's account.
const FILE: &str = "/proc/pressure/memory";

/// A look at the account.
#[derive(Debug, Clone, Copy)]
pub(super) struct Look {
    at: Instant,
    stalled: Duration,
}

impl Look {
    /// Looks now. A kernel without the account has no pressure.
    pub(super) fn now() -> Self {
        Self { at: Instant::now(), stalled: read(Path::new(FILE)) }
    }

    /// Per cent of the time since then in which some task was stalled.
    pub(super) fn percent_since(self) -> u64 {
        let now = Self::now();
        percent(now.stalled.saturating_sub(self.stalled), now.at.saturating_duration_since(self.at))
    }
}

fn read(file: &Path) -> Duration {
    Duration::from_micros(
        std::fs::read_to_string(file).ok().and_then(|text| total(&text)).unwrap_or_default(),
    )
}

/// `some avg10=0.00 avg60=0.00 avg300=0.00 total=12345`: microseconds.
fn total(text: &str) -> Option<u64> {
    let some = text.lines().find(|line| line.starts_with("some "))?;
    some.split(' ').find_map(|word| word.strip_prefix("total="))?.parse().ok()
}

fn percent(part: Duration, whole: Duration) -> u64 {
    let percent = part.as_micros().saturating_mul(100).checked_div(whole.as_micros());
    u64::try_from(percent.unwrap_or_default()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_account_is_read() {
        let text = "some avg10=0.12 avg60=0.00 avg300=0.00 total=12345\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n";
        assert_eq!(total(text), Some(12345));
        assert_eq!(total("full total=3\n"), None);
        assert_eq!(read(Path::new("/no/such/file")), Duration::ZERO);
    }

    #[test]
    fn pressure_is_a_part_of_the_time() {
        assert_eq!(percent(Duration::from_millis(20), Duration::from_secs(1)), 2);
        assert_eq!(percent(Duration::from_secs(1), Duration::ZERO), 0);
    }
}
