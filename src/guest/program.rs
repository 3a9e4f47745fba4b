//! The pages of the agent's own program: code and constants that only the boot or a rare call needs.
//!
//! A page that has been touched stays mapped, with fifteen neighbours that the kernel maps along with it, and counts as
//! memory of this process for as long as that lives. [`let_go`] unmaps them all. What is needed later is mapped again
//! from the page cache, without reading it, at a microsecond for each sixteen pages; so it is for a process that rests.

#![expect(unsafe_code, reason = "madvise(2) takes addresses")]

use std::ffi::c_void;
use std::ptr::{NonNull, addr_of};

use nix::sys::mman::{MmapAdvise, madvise};

unsafe extern "C" {
    // Both are the linker's: the program's first byte, and the end of its code (end(3)).
    static __executable_start: u8;
    static etext: u8;
}

/// The least size of a page, and on all machines that the agent is built for the only one.
const PAGE: usize = 4096;

/// Unmaps the program's code and constants until they are needed.
pub fn let_go() {
    // Where constants come after the code, they stay: between these two nothing can be written, so that the file has it
    // all. What of the last page is somebody else's stays too.
    let (start, end) = (addr_of!(__executable_start), addr_of!(etext));
    let len = end.addr().saturating_sub(start.addr()) / PAGE * PAGE;
    if let Some(start) = NonNull::new(start.cast_mut().cast::<c_void>()) {
        // SAFETY: private, read-only pages of a file, which come back as they were. A failure leaves them mapped.
        let _ = unsafe { madvise(start, len, MmapAdvise::MADV_DONTNEED) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In KiB, what of the program's code is mapped.
    fn mapped() -> u64 {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let program = std::fs::read_link("/proc/self/exe").unwrap();
        let mut ours = false;
        let mut sum = 0;
        for line in smaps.lines() {
            match line.split_whitespace().collect::<Vec<_>>().as_slice() {
                [_, mode, _, _, _, path] if mode.ends_with('p') => {
                    ours = mode.starts_with("r-x") && *path == program.as_os_str();
                }
                ["Rss:", size, "kB"] if ours => sum += size.parse::<u64>().unwrap(),
                _ => {}
            }
        }
        sum
    }

    #[test]
    fn most_of_the_program_is_let_go_and_comes_back() {
        let before = mapped();
        // Another test may run in this process and bring its own back at once.
        let least = (0..100).map(|_| {
            let_go();
            mapped()
        });
        let least = least.min().unwrap();
        assert!(least < before / 2, "{before} kB, then {least} kB");
    }
}
