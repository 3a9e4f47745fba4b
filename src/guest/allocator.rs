//! glibc's allocator, set for a process that must stay small and moves large blocks through its memory.
//!
//! A reply with a mebibyte of output is a few blocks of that size, each for a moment. Left alone, the allocator would
//! map and unmap every one of them, and the kernel clear its pages: that costs more than copying the bytes. So large
//! blocks come from the heap, which keeps them while calls go on, and is given back ([`GiveBack`]) when they pause; and
//! with it, when they have paused for longer, the program's own pages ([`super::program`]).

#![expect(unsafe_code, reason = "mallopt(3) and malloc_trim(3) have no safe wrapper")]

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use super::program;

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
        // Small free blocks become one with their neighbours at once, and make room for what stays.
        (libc::M_MXFAST, 0),
        (libc::M_TRIM_THRESHOLD, TRIM_THRESHOLD),
        (libc::M_MMAP_THRESHOLD, MMAP_THRESHOLD),
    ] {
        // SAFETY: plain integers; the process has one thread.
        unsafe { libc::mallopt(parameter, value) };
    }
}

/// Takes out what this thread has cached of small free blocks, for another to drop whose cache ends with it. glibc
/// keeps them for their thread, seven of each size (its manual, Memory Allocation Tunables, `tcache`); each keeps its
/// page from being given back, and the server's main thread never ends.
fn uncache() -> Vec<Vec<u8>> {
    const SMALLEST: usize = 24;
    const LARGEST: usize = 1032;
    const STEP: usize = 16;
    let sizes = (SMALLEST..=LARGEST).step_by(STEP);
    sizes.flat_map(|size| std::iter::repeat_n(size, 7)).map(Vec::with_capacity).collect()
}

fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes the allocator's own locks and touches free memory only.
    unsafe {
        libc::malloc_trim(0)
    };
}

/// Gives free memory back to the kernel some time after it has been told that there may be some. Cheap to clone.
#[derive(Debug, Clone)]
pub struct GiveBack(Arc<Notify>);

impl GiveBack {
    /// Starts the task that does it. What is kept for the next call only is given up with `at_rest`, when calls have
    /// paused for longer.
    pub fn start(at_rest: impl Fn() + Send + 'static) -> Self {
        let wanted = Arc::new(Notify::new());
        // The boot, too, leaves some.
        wanted.notify_one();
        let told = wanted.clone();
        tokio::spawn(async move {
            loop {
                told.notified().await;
                loop {
                    // A pause and not a wait: what calls free in the meantime is given back with it.
                    sleep(PAUSE).await;
                    trim();
                    if timeout(PAUSE, told.notified()).await.is_err() {
                        break;
                    }
                }
                at_rest();
                let blocks = uncache();
                let _ = tokio::task::spawn_blocking(move || drop(blocks)).await;
                // By then that thread has ended. Its end is nobody's event: the pool lets it idle for a while, and
                // joins it unseen. If it comes later, what it held is given back the next time.
                sleep(PAUSE).await;
                trim();
                program::let_go();
            }
        });
        Self(wanted)
    }

    /// Memory has been used and freed.
    pub fn soon(&self) {
        self.0.notify_one();
    }
}
