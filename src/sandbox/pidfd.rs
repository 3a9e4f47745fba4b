//! Signals by pidfd: they reach the process they are meant for, or nobody.

#![expect(unsafe_code, reason = "pidfd_send_signal(2) has no wrapper that takes any signal number")]

use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;

/// Sends `signal` to the process that `pidfd` stands for.
///
/// # Errors
/// `ESRCH` when it has ended, `EINVAL` for a number that is no signal.
pub(super) fn send_signal(pidfd: &OwnedFd, signal: u32) -> Result<(), Errno> {
    let signal = libc::c_int::try_from(signal).map_err(|_| Errno::EINVAL)?;
    let info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: `pidfd` is open for the length of the call, and a null info is allowed.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, info, 0) };
    Errno::result(result).map(drop)
}
