//! Compaction: the kernel moves pages together, so that large free blocks are there before somebody needs them.
//!
//! A run is a write(2) that may take minutes, and ends early only with its process. So it is a worker's, which is
//! killed when it takes too long or the pressure rises.

use std::time::Duration;

use slog::{Logger, debug, info};
use tokio::sync::watch;
use tokio::time::{interval, sleep};

use super::fragments::{Judge, small_pages};
use super::pressure::Look;
use crate::config::CompactSettings;
use crate::supervisor::client::Launcher;
use crate::worker::job::{CompactJob, Job};

/// Where a run is asked for (Documentation/admin-guide/sysctl/vm.rst).
const TRIGGER: &str = "/proc/sys/vm/compact_memory";
const FREE_BLOCKS: &str = "/proc/buddyinfo";
/// How often the pressure is looked at in a run.
const WATCH: Duration = Duration::from_secs(1);

/// Compacts for ever, by the settings as they are at each time.
pub(super) async fn run(mut settings: watch::Receiver<CompactSettings>, launcher: Launcher, logger: Logger) {
    let mut judge = Judge::default();
    loop {
        let now = settings.borrow_and_update().clone();
        if !super::next_turn(&mut settings, now.disabled, now.period, now.period_psi_percent_limit).await {
            if settings.has_changed().is_err() {
                return;
            }
            continue;
        }
        let pages = torn(now.order).await;
        if !judge.is_worth_it(pages, &now) {
            debug!(logger, "compaction left out"; "pages" => pages);
            continue;
        }
        let outcome = compact(&now, &launcher).await;
        let left = torn(now.order).await;
        judge.ran(left);
        info!(logger, "compaction"; "outcome" => outcome, "before" => pages, "after" => left);
    }
}

/// Free pages in blocks that are too small.
async fn torn(order: u32) -> u64 {
    let count = move || small_pages(&std::fs::read_to_string(FREE_BLOCKS).unwrap_or_default(), order);
    tokio::task::spawn_blocking(count).await.unwrap_or_default()
}

/// One run. What it says is for the log.
async fn compact(settings: &CompactSettings, launcher: &Launcher) -> String {
    let job = Job::Compact(CompactJob { trigger: TRIGGER.into() });
    // Dropped, it kills the worker.
    let mut run = std::pin::pin!(launcher.launch(&job, Vec::new()));
    // The limit of the run, whose end is the event.
    let mut too_long = std::pin::pin!(sleep(settings.longest));
    let mut watch = interval(WATCH);
    let mut look = Look::now();
    watch.tick().await;
    loop {
        tokio::select! {
            done = &mut run => return done.map_or_else(|error| error.to_string(), |_| "done".to_owned()),
            () = &mut too_long => return "given up: it took too long".to_owned(),
            _ = watch.tick() => {
                if look.percent_since() > settings.psi_percent_limit.into() {
                    return "given up: memory is short".to_owned();
                }
                look = Look::now();
            }
        }
    }
}
