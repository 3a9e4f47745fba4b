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

/// Registers the channel with the runtime.
///
/// # Errors
/// When epoll refuses it.
pub(super) fn register(channel: Channel) -> io::Result<AsyncFd<Channel>> {
    // SAFETY: a Channel owns its socket and gives the same open descriptor for as long as it lives.
    Ok(unsafe { AsyncFd::register_with_interest(channel, Interest::READABLE | Interest::WRITABLE) }?)
}
