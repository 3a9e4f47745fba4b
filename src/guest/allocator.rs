//! glibc's allocator, set for a process that must stay small and moves large blocks through its memory.
//!
//! A reply with a mebibyte of output is a few blocks of that size, each for a moment. Left alone, the allocator would
//! map and unmap every one of them, and the kernel clear its pages: that costs more than copying the bytes. So large
//! blocks come from the heap, which keeps them while calls go on, and is given back ([`GiveBack`]) when they pause.

#![expect(unsafe_code, reason = "mallopt(3) and malloc_trim(3) have no safe wrapper")]

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

/// Blocks above this are mapped on their own. Larger than any message of ttrpc (4 MiB).
const MMAP_THRESHOLD: libc::c_int = 8 << 20;
/// As much free memory at the heap's end is kept until it is given back.
const TRIM_THRESHOLD: libc::c_int = 16 << 20;
/// How long after a call memory is given back: rarely while calls go on, soon when they pause.
const PAUSE: Duration = Duration::from_millis(200);

/// One arena for all threads: by default every thread of the blocking pool gets one that is never given back. To be
/// called before the first thread starts.
pub fn keep_small() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in [
        (libc::M_ARENA_MAX, 1),
        (libc::M_TRIM_THRESHOLD, TRIM_THRESHOLD),
        (libc::M_MMAP_THRESHOLD, MMAP_THRESHOLD),
    ] {
        // SAFETY: plain integers; the process has one thread.
        unsafe { libc::mallopt(parameter, value) };
    }
}

/// Gives free memory back to the kernel some time after it has been told that there may be some. Cheap to clone.
#[derive(Debug, Clone)]
pub struct GiveBack(Arc<Notify>);

impl GiveBack {
    /// Starts the task that does it.
    pub fn start() -> Self {
        let wanted = Arc::new(Notify::new());
        let told = wanted.clone();
        tokio::spawn(async move {
            loop {
                told.notified().await;
                // What calls free in the meantime is given back with it.
                tokio::time::sleep(PAUSE).await;
                #[cfg(target_env = "gnu")]
                // SAFETY: takes the allocator's own locks and touches free memory only.
                unsafe {
                    libc::malloc_trim(0)
                };
            }
        });
        Self(wanted)
    }

    /// Memory has been used and freed.
    pub fn soon(&self) {
        self.0.notify_one();
    }
}
