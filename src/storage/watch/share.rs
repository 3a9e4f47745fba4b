//! A source in a share, whose server has a limit of open files.
//!
//! virtiofsd keeps a descriptor for everything that the guest's kernel has looked up, until the kernel forgets it. Of a
//! large volume that is as many as the server may have, and then nobody in the guest can open anything of the share. The
//! kernel forgets what nobody uses when it is short of memory, or when it is told to.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::statfs::{FUSE_SUPER_MAGIC, fstatfs};

/// By writing this there the kernel forgets names and inodes, keeps the contents of files, and says nothing of it in its
/// log (bits 2 and 4 of drop_caches, proc_sys_vm(5)).
const DROP: (&str, &str) = ("/proc/sys/vm/drop_caches", "6");

/// How often something is tried again that the server has no descriptor for, and the time it gets to close others.
const ATTEMPTS: usize = 20;
const PAUSE: Duration = Duration::from_millis(50);

/// After so many things have been looked up for once, all of them are forgotten.
const MANY: usize = 4096;

/// The root of what is copied.
#[derive(Debug)]
pub(super) struct Share<'a> {
    pub(super) root: &'a OwnedFd,
    /// Whether somebody else has descriptors for what is here.
    is_served: bool,
}

impl<'a> Share<'a> {
    pub(super) fn at(root: &'a OwnedFd) -> Self {
        let is_served = fstatfs(root).is_ok_and(|statfs| statfs.filesystem_type() == FUSE_SUPER_MAGIC);
        Self { root, is_served }
    }

    /// Does something that takes the server a descriptor.
    pub(super) fn patiently<T>(&self, mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
        for _ in 1..ATTEMPTS {
            match call() {
                Err(Errno::EMFILE | Errno::ENFILE) if self.is_served && forget().is_ok() => pause(),
                outcome => return outcome,
            }
        }
        call()
    }

    /// So many things have been looked up, and won't be again soon.
    pub(super) fn leave(&self, things: usize) {
        if self.is_served && things > MANY {
            // That it can't be done is noticed when there are too many.
            let _ = forget();
        }
    }
}

fn forget() -> io::Result<()> {
    let (path, what) = DROP;
    std::fs::write(path, what)
}

#[expect(
    clippy::disallowed_methods,
    reason = "the server says to nobody when it has closed what was forgotten"
)]
fn pause() {
    std::thread::sleep(PAUSE);
}
