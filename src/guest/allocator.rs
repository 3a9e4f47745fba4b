//! glibc's allocator, set for a process that must stay small.

#![expect(unsafe_code, reason = "mallopt(3) has no safe wrapper")]

/// One arena for all threads, and memory goes back to the kernel soon.
///
/// By default every thread of the blocking pool gets an arena of its own that is never given back. To be called
/// before the first thread starts.
pub fn keep_small() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in
        [(libc::M_ARENA_MAX, 1), (libc::M_TRIM_THRESHOLD, 64 * 1024), (libc::M_MMAP_THRESHOLD, 128 * 1024)]
    {
        // SAFETY: plain integers; the process has one thread.
        unsafe { libc::mallopt(parameter, value) };
    }
}
