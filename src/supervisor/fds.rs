//! Descriptors that come from the kernel as bare numbers become owned here, and nowhere else; and the channel's
//! own descriptor is made known to the runtime.

#![expect(
    unsafe_code,
    reason = "taking ownership of a raw number, and AsyncFd's constructor, are unsafe by definition"
)]

use std::io;

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::channel::Channel;

/// Takes ownership of a descriptor that the kernel has just handed to this process alone.
///
/// Only for numbers fresh from recvmsg(2) or a similar call: nobody else may know them.
pub(crate) fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: the callers get `fd` from the kernel in the same breath and keep no copy of the number.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Closes all descriptors but the standard ones and those of `keep`. Only for a forked child that uses no other any more:
/// one by one takes longer, and who is asked to close them writes to memory that is shared until then.
pub(crate) fn close_all_but(keep: &mut [RawFd]) {
    keep.sort_unstable();
    let mut first: u32 = 3;
    for fd in keep.iter().filter_map(|fd| u32::try_from(*fd).ok()).filter(|fd| *fd > 2) {
        close_range(first, fd.saturating_sub(1));
        first = fd.saturating_add(1);
    }
    close_range(first, u32::MAX);
}

fn close_range(first: u32, last: u32) {
    if first <= last {
        // SAFETY: plain integers; the caller answers for who owns the descriptors.
        let _ = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    }
}

/// Registers the channel with the runtime.
///
/// # Errors
/// When epoll refuses it.
pub(super) fn register(channel: Channel) -> io::Result<AsyncFd<Channel>> {
    // SAFETY: a Channel owns its socket and gives the same open descriptor for as long as it lives.
    Ok(unsafe { AsyncFd::register_with_interest(channel, Interest::READABLE | Interest::WRITABLE) }?)
}
