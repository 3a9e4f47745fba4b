//! Waiting for notice of OOM kills on the event loop.

#![expect(unsafe_code, reason = "AsyncFd's constructor trusts its caller not to close the fd")]

use super::oom::OomKills;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Tells when to look at an [`OomKills`] again. Edge-triggered: it may wake once too often, never too seldom.
#[derive(Debug)]
pub struct Notices {
    fd: AsyncFd<Arc<OwnedFd>>,
    interest: Interest,
}

impl Notices {
    /// Notices for `kills`, in the runtime that this is called in.
    ///
    /// # Errors
    /// What epoll(7) says.
    pub fn of(kills: &OomKills) -> io::Result<Self> {
        let (fd, interest) = kills.notice();
        // SAFETY: the Arc keeps the fd open and names the same fd for as long as the registration holds it.
        let fd = unsafe { AsyncFd::register_with_interest(fd.clone(), interest) }?;
        Ok(Self { fd, interest })
    }

    /// Waits for the next one.
    ///
    /// # Errors
    /// When the runtime ends.
    pub async fn next(&self) -> io::Result<()> {
        // Cleared before the caller looks: what comes meanwhile makes it ready again.
        self.fd.ready(self.interest).await?.clear_ready();
        Ok(())
    }
}
