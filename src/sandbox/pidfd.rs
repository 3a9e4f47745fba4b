//! Signals by pidfd: they reach the process they are meant for, or nobody.

#![expect(
    unsafe_code,
    reason = "pidfd_open(2) and pidfd_send_signal(2) for any signal number have no wrapper"
)]

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;

/// Opens a process by its number.
///
/// # Errors
/// `ESRCH` when there is none.
pub(super) fn open(pid: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: pidfd_open takes two integers and no pointer.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    let fd = RawFd::try_from(fd).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel just gave us this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

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
