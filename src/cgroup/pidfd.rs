//! Signals by pidfd: what the fd names stays the same process, whatever becomes of its number.

#![expect(unsafe_code, reason = "pidfd_open(2) and pidfd_send_signal(2) have no wrapper in nix")]

use nix::errno::Errno;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// A process, by an fd. Close-on-exec by nature.
#[derive(Debug)]
pub(super) struct PidFd(OwnedFd);

impl PidFd {
    /// # Errors
    /// `ESRCH` if there is no such process (any more).
    pub(super) fn open(pid: i32) -> nix::Result<Self> {
        // SAFETY: pidfd_open takes two integers and no pointer.
        let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
        let fd = RawFd::try_from(fd).map_err(|_| Errno::EBADF)?;
        // SAFETY: the kernel just gave us this fd, and nobody else knows it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// # Errors
    /// `ESRCH` if the process has ended.
    pub(super) fn kill(&self) -> nix::Result<()> {
        let info = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: the fd is open, and a null siginfo is allowed: the kernel fills in its own.
        let result =
            unsafe { libc::syscall(libc::SYS_pidfd_send_signal, self.0.as_raw_fd(), libc::SIGKILL, info, 0) };
        Errno::result(result).map(drop)
    }
}
