//! How long calls took: a histogram for each method.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::text::Text;

/// The buckets' upper ends, in milliseconds, and as they are written.
const BUCKETS: [(u128, &str); 8] = [
    (1, "0.001"),
    (5, "0.005"),
    (25, "0.025"),
    (100, "0.1"),
    (500, "0.5"),
    (2500, "2.5"),
    (10_000, "10"),
    (u128::MAX, "+Inf"),
];

#[derive(Debug, Default, Clone, Copy)]
struct Histogram {
    /// How many calls ended in each bucket, not counting those before it.
    buckets: [u64; BUCKETS.len()],
    failed: u64,
    sum: Duration,
}

/// The histograms, by method.
#[derive(Debug, Default)]
pub struct Calls {
    by_method: Mutex<BTreeMap<&'static str, Histogram>>,
}

impl Calls {
    /// Notes a call that has been answered.
    pub fn note(&self, method: &'static str, took: Duration, failed: bool) {
        // Whoever died with the lock, numbers are numbers.
        let mut methods = self.by_method.lock().unwrap_or_else(PoisonError::into_inner);
        let histogram = methods.entry(method).or_default();
        let bucket = BUCKETS.iter().zip(&mut histogram.buckets).find(|((end, _), _)| took.as_millis() < *end);
        if let Some((_, count)) = bucket {
            *count = count.saturating_add(1);
        }
        histogram.failed = histogram.failed.saturating_add(u64::from(failed));
        histogram.sum = histogram.sum.saturating_add(took);
    }

    pub(super) fn collect(&self, text: &mut Text) {
        let methods = self.by_method.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut family =
            text.histogram("nakai_call_duration_seconds", "How long calls took until their answer.");
        for (method, histogram) in &methods {
            let mut count = 0_u64;
            for ((_, end), more) in BUCKETS.iter().zip(histogram.buckets) {
                count = count.saturating_add(more);
                family.part("_bucket", &[("method", method), ("le", end)], count);
            }
            family.part("_sum", &[("method", method)], format_args!("{:.6}", histogram.sum.as_secs_f64()));
            family.part("_count", &[("method", method)], count);
        }
        let mut family = text.counter("nakai_calls_failed_total", "Calls that were answered with an error.");
        for (method, histogram) in &methods {
            family.sample(&[("method", method)], histogram.failed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_hold_all_that_took_no_longer() {
        let calls = Calls::default();
        for (millis, failed) in [(0, false), (3, true), (30, false), (700, false), (3_600_000, true)] {
            calls.note("ExecProcess", Duration::from_millis(millis), failed);
        }
        calls.note("Check", Duration::ZERO, false);
        let mut text = Text::default();
        calls.collect(&mut text);
        let text = text.finish();
        for line in [
            "nakai_call_duration_seconds_bucket{method=\"ExecProcess\",le=\"0.001\"} 1",
            "nakai_call_duration_seconds_bucket{method=\"ExecProcess\",le=\"0.005\"} 2",
            "nakai_call_duration_seconds_bucket{method=\"ExecProcess\",le=\"0.025\"} 2",
            "nakai_call_duration_seconds_bucket{method=\"ExecProcess\",le=\"2.5\"} 4",
            "nakai_call_duration_seconds_bucket{method=\"ExecProcess\",le=\"+Inf\"} 5",
            "nakai_call_duration_seconds_sum{method=\"ExecProcess\"} 3600.733000",
            "nakai_call_duration_seconds_count{method=\"ExecProcess\"} 5",
            "nakai_call_duration_seconds_count{method=\"Check\"} 1",
            "nakai_calls_failed_total{method=\"ExecProcess\"} 2",
        ] {
            assert!(text.lines().any(|other| other == line), "{line} is not in:\n{text}");
        }
    }
}
