//! Where a container's init waits until it is let go: a fifo in the place of libcontainer's state.
//!
//! The server opens it and writes a byte (`sandbox::start`). A server that comes after another finds by it whether init
//! still waits: nobody has it open any more once the program runs.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use super::super::job::Failure;

/// The side of init.
#[derive(Debug)]
pub(super) struct Gate(OwnedFd);

impl Gate {
    /// Makes it, in the place of one that was left behind.
    pub(super) fn make(path: &Path) -> Result<Self, Failure> {
        make_fifo(path).map(Self)
    }

    /// Returns when the container is started.
    pub(super) fn wait(&self) -> Result<(), Errno> {
        loop {
            match nix::unistd::read(&self.0, &mut [0]) {
                Err(Errno::EINTR) => {}
                other => return other.map(drop),
            }
        }
    }
}

impl AsFd for Gate {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A fifo in the place of what was left behind there, open both ways: without a writer its end would be read at once.
pub(in super::super) fn make_fifo(path: &Path) -> Result<OwnedFd, Failure> {
    let mode = Mode::S_IRUSR | Mode::S_IWUSR;
    let make = || match mkfifo(path, mode) {
        Err(Errno::EEXIST) => std::fs::remove_file(path).and_then(|()| Ok(mkfifo(path, mode)?)),
        other => Ok(other?),
    };
    let flags = OFlag::O_RDWR | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    make()
        .and_then(|()| Ok(open(path, flags, Mode::empty())?))
        .map_err(|error| Failure::internal(format!("make the fifo {}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;

    use super::*;

    #[test]
    fn who_opens_the_gate_finds_whether_somebody_waits() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("c1");
        let let_go = || {
            let mut options = std::fs::OpenOptions::new();
            options.write(true).custom_flags(libc::O_NONBLOCK).open(&path)?.write_all(b"s")
        };
        std::fs::write(&path, "left behind").unwrap();
        let gate = Gate::make(&path).unwrap();
        let_go().unwrap();
        let_go().unwrap();
        gate.wait().unwrap();
        drop(gate);
        assert_eq!(let_go().unwrap_err().raw_os_error(), Some(libc::ENXIO));
    }
}
