//! Reclaiming: pages that nobody has used for long go before memory is short.
//!
//! Each run lets the pages of every memory cgroup age by a generation, and reclaims the oldest ones where they are
//! old enough.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::Path;

use slog::{Logger, debug, info, warn};
use tokio::sync::watch;

use super::lru_gen::{Generation, Lru, parse};
use super::pressure::Look;
use crate::config::MemcgSettings;
use crate::guest::mount::{MountOptions, mount};

/// The list of generations, and where commands are written.
const GENERATIONS: &str = "/sys/kernel/debug/lru_gen";
const DEBUG_FS: &str = "/sys/kernel/debug";
/// The switch of the kernel's generations.
const ENABLED: &str = "/sys/kernel/mm/lru_gen/enabled";
/// How many pages are reclaimed between two looks at the pressure.
const BATCH: u64 = 1024;
/// The most generations between the oldest and the youngest (`MAX_NR_GENS` of the kernel, less one).
const SPAN: u64 = 3;

/// The kernel's side.
trait Kernel {
    fn list(&self) -> io::Result<String>;
    fn command(&self, command: &str) -> io::Result<()>;
}

struct DebugFs;

impl Kernel for DebugFs {
    fn list(&self) -> io::Result<String> {
        fs::read_to_string(GENERATIONS)
    }

    fn command(&self, command: &str) -> io::Result<()> {
        fs::write(GENERATIONS, command)
    }
}

/// How often the pages of a cgroup on a node have aged.
type Ages = HashMap<(String, u64), u64>;

/// Reclaims for ever, by the settings as they are at each time.
pub(super) async fn run(mut settings: watch::Receiver<MemcgSettings>, logger: Logger) {
    let mut ages = Ages::new();
    let mut is_ready = false;
    loop {
        let now = settings.borrow_and_update().clone();
        if !super::next_turn(&mut settings, now.disabled, now.period, now.period_psi_percent_limit).await {
            if settings.has_changed().is_err() {
                return;
            }
            continue;
        }
        let mut known = std::mem::take(&mut ages);
        let done = tokio::task::spawn_blocking(move || {
            if !is_ready {
                prepare()?;
            }
            let look = Look::now();
            let is_short = || look.percent_since() > now.eviction_psi_percent_limit.into();
            let pages = round(&DebugFs, &now, &mut known, &is_short)?;
            io::Result::Ok((known, pages))
        });
        match done.await {
            Ok(Ok((known, pages))) => {
                ages = known;
                is_ready = true;
                debug!(logger, "reclaiming"; "pages" => pages);
            }
            Ok(Err(error)) => warn!(logger, "reclaiming"; "error" => %error),
            Err(_) => info!(logger, "reclaiming was given up"),
        }
    }
}

/// Switches the kernel's generations on, and makes their list visible.
fn prepare() -> io::Result<()> {
    fs::write(ENABLED, "y").map_err(|error| io::Error::other(format!("{ENABLED}: {error}")))?;
    if !Path::new(GENERATIONS).exists() {
        let options = MountOptions::parse(&["nosuid", "nodev", "noexec"]).map_err(io::Error::other)?;
        mount("debugfs", Path::new(DEBUG_FS), "debugfs", &options).map_err(io::Error::other)?;
    }
    Ok(())
}

/// One run. Returns how many pages it asked the kernel for.
fn round(
    kernel: &dyn Kernel,
    settings: &MemcgSettings,
    ages: &mut Ages,
    is_short: &dyn Fn() -> bool,
) -> io::Result<u64> {
    let list = parse(&kernel.list()?);
    ages.retain(|(path, node), _| list.iter().any(|lru| lru.path == *path && lru.node == *node));
    for lru in &list {
        // A cgroup may go at any time.
        if lru.age(settings.swap).is_some_and(|command| kernel.command(&command).is_ok()) {
            let age = ages.entry((lru.path.clone(), lru.node)).or_default();
            *age = age.saturating_add(1);
        }
    }
    let mut reclaimed: u64 = 0;
    for lru in parse(&kernel.list()?) {
        let age = ages.get(&(lru.path.clone(), lru.node)).copied().unwrap_or_default();
        let Some(oldest) = old_enough(&lru, age, settings) else { continue };
        let anonymous = if settings.swap { oldest.anonymous } else { 0 };
        let mut left = oldest.file.saturating_add(anonymous);
        let swappiness = if settings.swap { settings.swappiness_max } else { 0 };
        while left > 0 {
            if is_short() {
                return Ok(reclaimed);
            }
            let pages = left.min(BATCH);
            if kernel.command(&lru.evict(oldest.number, swappiness, pages)).is_err() {
                break;
            }
            reclaimed = reclaimed.saturating_add(pages);
            left = left.saturating_sub(pages);
        }
    }
    Ok(reclaimed)
}

/// The oldest generation, if its pages have not been used in as many runs as they must.
fn old_enough(lru: &Lru, age: u64, settings: &MemcgSettings) -> Option<Generation> {
    let oldest = lru.oldest()?;
    let span = lru.generations.last()?.number.saturating_sub(oldest.number);
    let wanted = settings.eviction_run_aging_count_min;
    (age >= wanted && span >= wanted.min(SPAN)).then_some(oldest)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::config::Config;

    /// A kernel with one cgroup, whose youngest generation is as young as ageing made it.
    struct Fake {
        youngest: RefCell<u64>,
        commands: RefCell<Vec<String>>,
    }

    impl Kernel for Fake {
        fn list(&self) -> io::Result<String> {
            let youngest = *self.youngest.borrow();
            let generations = youngest.saturating_sub(SPAN)..=youngest;
            let lines: Vec<String> = generations.map(|number| format!("  {number} 100 500 1500\n")).collect();
            Ok(format!("memcg 7 /c\n node 0\n{}", lines.concat()))
        }

        fn command(&self, command: &str) -> io::Result<()> {
            if command.starts_with('+') {
                *self.youngest.borrow_mut() += 1;
            }
            self.commands.borrow_mut().push(command.to_owned());
            Ok(())
        }
    }

    fn settings() -> MemcgSettings {
        Config::default().mem_agent.memcg
    }

    #[test]
    fn pages_go_when_they_are_old_enough() {
        let kernel = Fake { youngest: RefCell::new(0), commands: RefCell::default() };
        let mut ages = Ages::new();
        for expected in [0, 0, 1500, 1500] {
            assert_eq!(round(&kernel, &settings(), &mut ages, &|| false).unwrap(), expected);
        }
        let commands = kernel.commands.borrow();
        let expected =
            ["+ 7 0 0 0", "+ 7 0 1 0", "+ 7 0 2 0", "- 7 0 0 0 1024", "- 7 0 0 0 476", "+ 7 0 3 0"];
        assert_eq!(commands[..6], expected);
    }

    #[test]
    fn swap_takes_anonymous_pages_and_pressure_ends_a_run() {
        let kernel = Fake { youngest: RefCell::new(5), commands: RefCell::default() };
        let swap = MemcgSettings { swap: true, eviction_run_aging_count_min: 1, ..settings() };
        assert_eq!(round(&kernel, &swap, &mut Ages::new(), &|| false).unwrap(), 2000);
        assert_eq!(kernel.commands.borrow()[1], "- 7 0 3 50 1024");
        assert_eq!(round(&kernel, &swap, &mut Ages::new(), &|| true).unwrap(), 0);
    }
}
