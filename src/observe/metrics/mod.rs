//! Metrics in Prometheus' text format: of the agent, of the guest, and how long calls took.
//!
//! The names of the agent's and the guest's are those of the Kata agent, so that dashboards go on working. Every look
//! is a fresh one: what is gone has no series. A part that can't be read is left out; the others are told.
//!
//! No crate: the format is a line for each number, and what is kept between two looks are a few histograms.

mod agent;
mod calls;
mod guest;
mod text;

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

pub use self::calls::Calls;
pub use self::guest::Filesystem;
use self::text::Text;

/// Where the kernel tells of itself.
const PROC: &str = "/proc";

/// What is counted from the agent's start on.
#[derive(Debug, Default)]
pub struct Metrics {
    /// How long calls took.
    pub calls: Calls,
    scrapes: AtomicU64,
}

impl Metrics {
    /// All of it as text. Blocks, for some reads of files. The caller knows which filesystems there are.
    pub fn render(&self, filesystems: &[Filesystem]) -> String {
        let scrapes = self.scrapes.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        let mut text = Text::default();
        text.counter("kata_agent_scrape_count", "Metrics scrape count").sample(&[], scrapes);
        agent::collect(&mut text, Path::new(PROC));
        guest::collect(&mut text, Path::new(PROC));
        guest::filesystems(&mut text, filesystems);
        self.calls.collect(&mut text);
        text.finish()
    }
}

/// Numbers in a line, from the n-th word on.
fn numbers(line: &str, skip: usize) -> impl Iterator<Item = u64> + '_ {
    line.split_whitespace().skip(skip).map_while(|word| word.parse().ok())
}
