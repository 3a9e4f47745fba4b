//! What streams need of the system that has no safe wrapper: terminals' sizes, and joining the event loop.

#![expect(unsafe_code, reason = "no safe wrapper for these ioctl(2) requests and for AsyncFd's constructor")]

use nix::errno::Errno;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Registers an fd with the event loop of the runtime we are called in.
pub(super) fn register(fd: Arc<OwnedFd>, interest: Interest) -> io::Result<AsyncFd<Arc<OwnedFd>>> {
    // SAFETY: the Arc keeps the fd open and names the same fd for as long as the registration holds it.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}

/// Sets the size of a terminal, in characters (`TIOCSWINSZ`, `ioctl_tty(2)`). Sizes saturate at what
/// the kernel can hold. Works on either end; the foreground process group gets SIGWINCH if it changed.
///
/// # Errors
/// `ENOTTY` for what is no terminal.
pub fn set_window_size(fd: impl AsFd, rows: u32, columns: u32) -> nix::Result<()> {
    let size = libc::winsize {
        ws_row: u16::try_from(rows).unwrap_or(u16::MAX),
        ws_col: u16::try_from(columns).unwrap_or(u16::MAX),
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: TIOCSWINSZ reads one winsize from the address given, which is a live local of that type.
    let result = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    Errno::result(result).map(drop)
}

/// The size of a terminal as (rows, columns).
#[cfg(test)]
pub(super) fn window_size(fd: impl AsFd) -> (u16, u16) {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes one winsize to the address given, which is a live local of that type.
    let result = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    Errno::result(result).unwrap();
    (size.ws_row, size.ws_col)
}
