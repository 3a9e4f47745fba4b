//! The last thing PID 1 does: switch the virtual machine off.

use std::fmt;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::sys::reboot::{RebootMode, reboot};
use nix::unistd::{getpid, sync};

use crate::observe::console;

/// How long that may take: with a share whose host does not answer it has no end. Storages that could be released have
/// been written by then.
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
        within(SYNC_LIMIT, sync);
        console::drain();
        // Returns only if it fails. Then PID 1 ends, and the kernel panics, which ends the machine too.
        let _ = reboot(RebootMode::RB_POWER_OFF);
    }
    std::process::exit(status)
}

/// Waits for what may hang in the kernel, but not for ever.
fn within(limit: Duration, work: impl FnOnce() + Send + 'static) {
    let (working, worked) = mpsc::channel::<()>();
    let work_and_tell = move || {
        work();
        drop(working);
    };
    // Without a thread it is left: what could be written has been, as its storage was released.
    if thread::Builder::new().spawn(work_and_tell).is_ok() {
        let _ = worked.recv_timeout(limit);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn what_hangs_is_left_and_what_ends_is_waited_for() {
        let (hanging, hung) = mpsc::channel::<()>();
        within(Duration::from_millis(1), move || {
            let _ = hung.recv();
        });
        drop(hanging);
        let is_done = Arc::new(AtomicBool::new(false));
        let done = is_done.clone();
        within(Duration::from_secs(60), move || {
            thread::yield_now();
            done.store(true, Ordering::SeqCst);
        });
        assert!(is_done.load(Ordering::SeqCst));
    }
}
