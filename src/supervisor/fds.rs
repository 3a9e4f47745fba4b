//! Descriptors that come from the kernel as bare numbers become owned here, and nowhere else.

#![expect(unsafe_code, reason = "taking ownership of a raw descriptor number is unsafe by definition")]

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// Takes ownership of a descriptor that the kernel has just handed to this process alone.
///
/// Only for numbers fresh from recvmsg(2) or a similar call: nobody else may know them.
pub(crate) fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: the callers get `fd` from the kernel in the same breath and keep no copy of the number.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
