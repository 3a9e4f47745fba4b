//! The last thing PID 1 does: switch the virtual machine off.

use std::fmt;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use nix::sys::reboot::{RebootMode, reboot};
use nix::unistd::{getpid, sync};

use crate::observe::console;

/// How long nothing may be written meanwhile: with a share whose host does not answer that has no end. A slow disk may
/// take as long as it needs.
const SYNC_LIMIT: Duration = Duration::from_secs(30);

/// Writes what is not yet written to disks, and powers the virtual machine off.
///
/// Only PID 1 does that. Any other process just ends: on a developer's host the machine is not ours to switch
/// off.
pub fn power_off() -> ! {
    end(0)
}

/// Says on the console why the guest can't boot, and powers it off: a host that waits for the agent sees the
/// machine end instead of a time-out. Any process but PID 1 just ends, with status 1.
pub fn boot_failed(reason: &dyn fmt::Display) -> ! {
    console::say(format_args!("boot failed: {reason}"));
    end(1)
}

fn end(status: i32) -> ! {
    if getpid().as_raw() == 1 {
        while_less_is_left(SYNC_LIMIT, unwritten, sync);
        console::drain();
        // Returns only if it fails. Then PID 1 ends, and the kernel panics, which ends the machine too.
        let _ = reboot(RebootMode::RB_POWER_OFF);
    }
    std::process::exit(status)
}

/// How much is not written to disks yet, in kilobytes (proc_meminfo(5)).
fn unwritten() -> u64 {
    let table = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let value = |line: &str| {
        let (name, value) = line.split_once(':')?;
        let value = value.trim().trim_end_matches(" kB");
        matches!(name, "Dirty" | "Writeback").then(|| value.parse::<u64>().ok())?
    };
    table.lines().filter_map(value).fold(0, u64::saturating_add)
}

/// Waits for what may hang in the kernel, for as long as `left` tells less after each `limit`.
fn while_less_is_left(limit: Duration, left: impl Fn() -> u64, work: impl FnOnce() + Send + 'static) {
    let (working, worked) = mpsc::channel::<()>();
    let work_and_tell = move || {
        work();
        drop(working);
    };
    // Without a thread it is left: what could be written has been, as its storage was released.
    if thread::Builder::new().spawn(work_and_tell).is_err() {
        return;
    }
    let mut before = left();
    while worked.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
        let now = left();
        if now >= before {
            return;
        }
        before = now;
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn what_hangs_is_left_and_what_ends_is_waited_for() {
        let is_done = Arc::new(AtomicBool::new(false));
        let done = is_done.clone();
        while_less_is_left(
            Duration::from_secs(60),
            || 0,
            move || {
                thread::yield_now();
                done.store(true, Ordering::SeqCst);
            },
        );
        assert!(is_done.load(Ordering::SeqCst));
        // Less is left twice.
        let (hanging, hung) = mpsc::channel::<()>();
        let (left, looks) = ([9, 5, 4, 4], Cell::new(0));
        let next = || left[looks.replace(looks.get() + 1)];
        while_less_is_left(Duration::from_millis(1), next, move || {
            let _ = hung.recv();
        });
        drop(hanging);
        assert_eq!(looks.get(), left.len());
    }
}
