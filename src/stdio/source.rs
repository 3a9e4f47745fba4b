//! Our end of a stream: a non-blocking fd that joins the event loop when it is first waited for.
//!
//! Owns the fd. Most streams of a guest are idle and many are never read, so registration is put off
//! until a caller finds nothing to do.
//!
//! A terminal may hang up and come back: while no process has the slave open, the master answers EIO and
//! epoll says "closed"; then someone opens `/dev/console` again. tokio takes "closed" for final, so waiting
//! on such a registration would spin. After a hang-up the fd is registered anew for each wait, under a
//! duplicate of its own (epoll refuses the same number twice).

use super::StdioError;
use super::sys::register;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::OnceCell;

/// How often a terminal that nobody has open is looked at again: the kernel tells nobody when it is opened.
pub(super) const REOPEN_LOOK: Duration = Duration::from_millis(100);

/// See the module.
#[derive(Debug)]
pub(super) struct Source {
    fd: Arc<OwnedFd>,
    interest: Interest,
    registration: OnceCell<AsyncFd<Arc<OwnedFd>>>,
    hung_up: AtomicBool,
}

impl Source {
    /// Takes a pipe end or a terminal master and makes it non-blocking and close-on-exec.
    pub(super) fn new(fd: OwnedFd, interest: Interest) -> Result<Self, StdioError> {
        prepare(&fd).map_err(|source| StdioError::Prepare { source })?;
        Ok(Self {
            fd: Arc::new(fd),
            interest,
            registration: OnceCell::new(),
            hung_up: AtomicBool::new(false),
        })
    }

    pub(super) fn fd(&self) -> &Arc<OwnedFd> {
        &self.fd
    }

    /// Runs `action` each time the fd looks ready for `interest`, until it returns something else than
    /// [`io::ErrorKind::WouldBlock`].
    ///
    /// `action` runs in the same poll that ends this future: whoever drops the future before that
    /// has not lost what `action` took.
    pub(super) async fn perform<R>(
        &self,
        interest: Interest,
        mut action: impl FnMut(BorrowedFd<'_>) -> io::Result<R>,
    ) -> io::Result<R> {
        loop {
            let fresh;
            let registration = if self.hung_up.load(Ordering::Relaxed) {
                fresh = register(Arc::new(self.fd.try_clone()?), self.interest)?;
                &fresh
            } else {
                self.registered().await?
            };
            loop {
                let mut guard = registration.ready(interest).await?;
                match action(self.fd.as_fd()) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        if guard.ready().is_read_closed() || guard.ready().is_write_closed() {
                            break;
                        }
                        guard.clear_ready();
                    }
                    done => return done,
                }
            }
            self.hung_up.store(true, Ordering::Relaxed);
            tokio::time::sleep(REOPEN_LOOK).await;
        }
    }

    /// Runs `action` once, whether the fd looks ready or not. What it finds out is known to the event loop: who then
    /// waits by [`Source::perform`] need not find it out again.
    pub(super) fn attempt<R>(
        &self,
        interest: Interest,
        action: impl Fn(BorrowedFd<'_>) -> io::Result<R>,
    ) -> io::Result<R> {
        let mut is_done = false;
        if let Some(registration) = self.registration.get() {
            let done = registration.try_io(interest, |fd| {
                is_done = true;
                action(fd.as_fd())
            });
            if is_done {
                return done;
            }
        }
        action(self.fd.as_fd())
    }

    async fn registered(&self) -> io::Result<&AsyncFd<Arc<OwnedFd>>> {
        self.registration.get_or_try_init(|| async { register(self.fd.clone(), self.interest) }).await
    }
}

pub(super) fn prepare(fd: &OwnedFd) -> Result<(), Errno> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    Ok(())
}
