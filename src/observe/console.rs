//! Plain lines on the console, for a person and for tests that watch a guest boot.
//!
//! One line is one write(2), with no buffer, lock or thread: the supervisor may use it at any time. A console
//! that takes nothing is waited for only for moments; the line is lost then.

#![expect(unsafe_code, reason = "ioctl(2) takes a pointer")]

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};

use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::Mode;
use nix::unistd::{getpid, write};

/// What begins each line.
const PREFIX: &str = "nakai: ";

/// Writes `nakai: <message>` as one line, to `/dev/console` as PID 1 and to standard error otherwise.
///
/// Failures are ignored: there is nowhere to tell of them.
pub fn say(message: fmt::Arguments<'_>) {
    let text = line(message);
    match device() {
        Some(console) => drop(write(console, text.as_bytes())),
        None if has_room(io::stderr().as_fd()) => drop(write(io::stderr().as_fd(), text.as_bytes())),
        None => {}
    }
}

/// Whether a line can be written without waiting for a reader: a pipe that is ready takes as much (pipe(7)). A
/// terminal is not ready while there is much that it has to send, which it does by itself.
fn has_room(file: BorrowedFd<'_>) -> bool {
    /// In milliseconds.
    const PIPE: u16 = 100;
    const TERMINAL: u16 = 3000;
    let patience = if nix::unistd::isatty(file) == Ok(true) { TERMINAL } else { PIPE };
    let mut watched = [PollFd::new(file, PollFlags::POLLOUT)];
    poll(&mut watched, PollTimeout::from(patience)) == Ok(1)
}

mod ioctls {
    use nix::libc::{TIOCOUTQ, c_int};
    nix::ioctl_read_bad!(unsent, TIOCOUTQ, c_int);
}

/// How long, in milliseconds, and how often [`drain`] looks.
const DRAIN_STEP: u8 = 10;
const DRAIN_STEPS: u8 = 100;

/// As PID 1, waits until the console has sent what was written, for a second at most. A machine that is
/// switched off takes unsent lines with it.
pub fn drain() {
    let Some(console) = device() else { return };
    for _ in 0..DRAIN_STEPS {
        let mut unsent = 0;
        // SAFETY: the ioctl writes an int to the place it is given, which lives on.
        let asked = unsafe { ioctls::unsent(console.as_raw_fd(), &raw mut unsent) };
        if asked.is_err() || unsent == 0 {
            return;
        }
        // The kernel has no event for a terminal that has sent all; tcdrain(3) could wait for ever.
        let _ = poll(&mut [], PollTimeout::from(DRAIN_STEP));
    }
}

/// The message as one line, which a pipe that has room takes whole: whatever would end the line or move the cursor
/// becomes a blank.
fn line(message: fmt::Arguments<'_>) -> String {
    /// In letters, of which none has more than four bytes.
    const LONGEST: usize = 1000;
    let text = message.to_string();
    let letters = text.chars().take(LONGEST).map(|c| if c.is_control() { ' ' } else { c });
    let text: String = letters.collect();
    format!("{PREFIX}{text}\n")
}

fn device() -> Option<OwnedFd> {
    if getpid().as_raw() != 1 {
        return None;
    }
    let flags = OFlag::O_WRONLY | OFlag::O_NOCTTY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    open("/dev/console", flags, Mode::empty()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_does_not_read_is_not_waited_for() {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let mut lines = 0;
        while has_room(writer.as_fd()) {
            write(&writer, &[b'x'; 1000]).unwrap();
            lines += 1;
        }
        assert!(lines > 10);
        nix::unistd::read(&reader, &mut [0; 4096]).unwrap();
        assert!(has_room(writer.as_fd()));
    }

    #[test]
    fn a_message_is_one_line() {
        assert_eq!(
            line(format_args!("serving on {}", "vsock://-1:1024")),
            "nakai: serving on vsock://-1:1024\n"
        );
        assert_eq!(line(format_args!("a\nb\x1b[2Jc\r")), "nakai: a b [2Jc \n");
    }
}
