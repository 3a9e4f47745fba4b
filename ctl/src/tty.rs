//! This side's terminal: raw mode as a guard, and its window size for the container's terminal.

#![expect(unsafe_code, reason = "the window size is an ioctl")]

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};

use nix::sys::termios::{self, SetArg, Termios};
use tokio::signal::unix::{SignalKind, signal};

use crate::client::Client;

/// A terminal in raw mode (cfmakeraw(3)): keys go to the container as they are, ^C too. Dropping it
/// restores the former mode.
#[derive(Debug)]
pub struct RawMode {
    terminal: OwnedFd,
    former: Termios,
}

impl RawMode {
    /// Switches `terminal` to raw mode.
    ///
    /// # Errors
    ///
    /// It is no terminal.
    pub fn enter(terminal: impl AsFd) -> io::Result<Self> {
        let terminal = terminal.as_fd().try_clone_to_owned()?;
        let former = termios::tcgetattr(&terminal)?;
        let mut raw = former.clone();
        termios::cfmakeraw(&mut raw);
        termios::tcsetattr(&terminal, SetArg::TCSANOW, &raw)?;
        Ok(Self { terminal, former })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // A terminal that has gone away needs no restoring.
        let _ = termios::tcsetattr(&self.terminal, SetArg::TCSANOW, &self.former);
    }
}

nix::ioctl_read_bad!(
    /// `TIOCGWINSZ` (ioctl_tty(2)).
    get_window_size,
    libc::TIOCGWINSZ,
    libc::winsize
);

/// Rows and columns of a terminal; None if it has none to tell.
pub fn window_size(terminal: impl AsFd) -> Option<(u16, u16)> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the ioctl writes one winsize to the given place, and the fd is open.
    let result = unsafe { get_window_size(terminal.as_fd().as_raw_fd(), &raw mut size) };
    result.ok().map(|_| (size.ws_row, size.ws_col)).filter(|&(rows, columns)| rows > 0 && columns > 0)
}

/// Gives a process's terminal the size of ours, now and at each SIGWINCH. Never ends by itself.
///
/// # Errors
///
/// The signal can't be waited for. That the agent refuses a size is none: the process may be ending.
pub async fn follow_window_size(client: &Client, container: &str, exec: &str) -> io::Result<()> {
    let mut changed = signal(SignalKind::window_change())?;
    loop {
        if let Some((rows, columns)) = window_size(io::stdout()) {
            let _ = client.tty_win_resize(container, exec, rows, columns).await;
        }
        changed.recv().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::termios::LocalFlags;

    #[test]
    fn raw_mode_is_undone() {
        let window = nix::pty::Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = nix::pty::openpty(&window, None).unwrap();
        let echo = || termios::tcgetattr(&pty.slave).unwrap().local_flags.contains(LocalFlags::ECHO);
        assert!(echo());
        let raw = RawMode::enter(&pty.slave).unwrap();
        assert!(!echo());
        drop(raw);
        assert!(echo());
        assert_eq!(window_size(&pty.slave), Some((24, 80)));
        assert_eq!(window_size(std::fs::File::open("/dev/null").unwrap()), None);
    }
}
