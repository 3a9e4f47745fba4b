//! A pipe whose both ends the supervisor holds as well, and the calls that move bytes without looking at them.
//!
//! Whenever the server is killed, each byte is on one side of the pipe, in it, or on the other, and the next server goes on
//! with what is in it.

#![expect(unsafe_code, reason = "splice(2) and ioctl(2) have no safe wrapper here")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::pipe2;

/// Both ends of the pipe, non-blocking and close-on-exec.
#[derive(Debug)]
pub struct Pipe {
    reader: OwnedFd,
    writer: OwnedFd,
}

impl Pipe {
    /// A new one.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub fn create() -> io::Result<Self> {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        Ok(Self { reader, writer })
    }

    /// An earlier server's, by its [`Pipe::ends`].
    pub fn held(reader: Option<OwnedFd>, writer: Option<OwnedFd>) -> Option<Self> {
        Some(Self { reader: reader?, writer: writer? })
    }

    /// What the next server needs to go on with it.
    pub fn ends(&self) -> [BorrowedFd<'_>; 2] {
        [self.reader(), self.writer()]
    }

    /// The end that bytes come out of.
    pub fn reader(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }

    /// The end that they go into.
    pub fn writer(&self) -> BorrowedFd<'_> {
        self.writer.as_fd()
    }

    /// Throws away what is in it.
    pub(super) fn empty(&self) {
        let mut bytes = [0; 4096];
        while nix::unistd::read(&self.reader, &mut bytes).is_ok_and(|read| read > 0) {}
    }
}

/// How many bytes a read would find (`FIONREAD`; pipe(7), `ioctl_tty(2)`).
///
/// # Errors
/// ENOTTY for what has no such number.
pub fn bytes_waiting(fd: impl AsFd) -> nix::Result<usize> {
    let mut waiting: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int to the address given, which is a live local of that type.
    let result = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::FIONREAD, &raw mut waiting) };
    Errno::result(result)?;
    Ok(usize::try_from(waiting).unwrap_or(0))
}

/// Moves bytes between a pipe and something else, without waiting for any (splice(2)).
///
/// # Errors
/// EAGAIN where one side has no bytes or the other no room, ENOMEM, and what else splice(2) says.
pub fn splice(from: BorrowedFd<'_>, to: BorrowedFd<'_>, most: usize) -> nix::Result<usize> {
    let (none, flags) = (std::ptr::null_mut(), libc::SPLICE_F_NONBLOCK | libc::SPLICE_F_MOVE);
    loop {
        // SAFETY: both descriptors are open, and no memory of ours is named.
        let moved = unsafe { libc::splice(from.as_raw_fd(), none, to.as_raw_fd(), none, most, flags) };
        match Errno::result(moved) {
            Err(Errno::EINTR) => {}
            moved => return moved.map(|moved| usize::try_from(moved).unwrap_or(0)),
        }
    }
}
