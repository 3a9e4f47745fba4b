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
        sync_within(SYNC_LIMIT);
        console::drain();
        // Returns only if it fails. Then PID 1 ends, and the kernel panics, which ends the machine too.
        let _ = reboot(RebootMode::RB_POWER_OFF);
    }
    std::process::exit(status)
}

fn sync_within(limit: Duration) {
    let (syncing, synced) = mpsc::channel::<()>();
    // One that hangs in the kernel keeps nobody from switching off.
    let sync_and_tell = move || {
        sync();
        drop(syncing);
    };
    match thread::Builder::new().spawn(sync_and_tell) {
        Ok(_) => drop(synced.recv_timeout(limit)),
        Err(_) => sync(),
    }
}
