//! The agent's own process, which is the server: `/proc/self` (proc_pid_stat(5), proc_pid_status(5), proc_pid_io(5)).

use std::fs;
use std::path::Path;

use nix::unistd::{SysconfVar, sysconf};

use super::numbers;
use super::text::Text;

pub(super) fn collect(text: &mut Text, proc: &Path) {
    let read = |name: &str| fs::read_to_string(proc.join("self").join(name)).unwrap_or_default();
    stat(text, &read("stat"));
    status(text, &read("status"));
    let io = read("io");
    let mut family = text.gauge("kata_agent_io_stat", "Agent process IO statistics.");
    for (item, value) in io.lines().filter_map(|line| line.split_once(": ")) {
        if let Ok(value) = value.trim().parse::<u64>() {
            family.sample(&[("item", item)], value);
        }
    }
}

fn stat(text: &mut Text, stat: &str) {
    // The program's name is in brackets and may hold any character.
    let Some((_, rest)) = stat.rsplit_once(") ") else { return };
    let words: Vec<&str> = rest.split_whitespace().collect();
    // Counted from 1 as in the manual page; the first word here is the third there.
    let field = |number: usize| words.get(number.checked_sub(3)?)?.parse::<i64>().ok();
    let ticks = constant(SysconfVar::CLK_TCK).unwrap_or(100);
    let page = constant(SysconfVar::PAGE_SIZE).unwrap_or(4096);
    if let (Some(user), Some(system)) = (field(14), field(15)) {
        let millis = user.saturating_add(system).saturating_mul(1000).checked_div(ticks).unwrap_or(0);
        let seconds = format_args!("{}.{:03}", millis / 1000, millis % 1000).to_string();
        text.gauge("kata_agent_total_time", "Agent process total time").sample(&[], seconds);
    }
    for (name, help, value) in [
        ("kata_agent_threads", "Agent process threads", field(20)),
        ("kata_agent_total_vm", "Agent process total VM size", field(23)),
        (
            "kata_agent_total_rss",
            "Agent process total RSS size",
            field(24).map(|pages| pages.saturating_mul(page)),
        ),
    ] {
        if let Some(value) = value {
            text.gauge(name, help).sample(&[], value);
        }
    }
    let mut family = text.gauge("kata_agent_proc_stat", "Agent process statistics.");
    for (item, number) in [("utime", 14), ("stime", 15), ("cutime", 16), ("cstime", 17)] {
        if let Some(value) = field(number) {
            family.sample(&[("item", item)], value);
        }
    }
}

fn constant(which: SysconfVar) -> Option<i64> {
    sysconf(which).ok().flatten()
}

/// Sizes in KiB and counts of context switches, by their names in lower case.
fn status(text: &mut Text, status: &str) {
    let mut family = text.gauge("kata_agent_proc_status", "Agent process status.");
    for (name, value) in status.lines().filter_map(|line| line.split_once(':')) {
        let is_told = name.starts_with("Vm")
            || name.starts_with("Rss")
            || name == "HugetlbPages"
            || name.ends_with("_ctxt_switches");
        if let Some(value) = numbers(value, 0).next().filter(|_| is_told) {
            family.sample(&[("item", &name.to_ascii_lowercase())], value);
        }
    }
}
