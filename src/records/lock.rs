//! One agent at a time has a state directory: flock(2), given back by the kernel when the agent is gone.
//!
//! The supervisor holds it, too, and gives it to the next server. One that took it anew could wait for its predecessor,
//! of which a thread may hang.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// How long an agent that ends may take to give its containers back.
const PATIENCE: Duration = Duration::from_secs(20);

/// Why the directory is not ours.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// It can't be made or locked.
    #[error("state_dir {path}: {source}", path = path.display())]
    File {
        /// The directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It is another's.
    #[error("state_dir {path} is in use by another agent", path = path.display())]
    Taken {
        /// The directory.
        path: PathBuf,
    },
}

/// The right to use a state directory, until it is dropped.
#[derive(Debug)]
pub struct StateLock(Flock<File>);

impl StateLock {
    /// Takes it. Another agent may just be ending.
    ///
    /// # Errors
    /// [`LockError`].
    pub async fn take(state_dir: &Path) -> Result<Self, LockError> {
        Self::within(state_dir, PATIENCE).await
    }

    /// That of the agent's earlier server, by its [`StateLock::duplicate`].
    pub fn held(lock: OwnedFd) -> Option<Self> {
        Flock::lock(File::from(lock), FlockArg::LockExclusiveNonblock).ok().map(Self)
    }

    /// For the next server.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub fn duplicate(&self) -> io::Result<OwnedFd> {
        self.0.as_fd().try_clone_to_owned()
    }

    async fn within(state_dir: &Path, limit: Duration) -> Result<Self, LockError> {
        let failed = |source| LockError::File { path: state_dir.to_owned(), source };
        std::fs::create_dir_all(state_dir).map_err(failed)?;
        let file = File::create(state_dir.join("lock")).map_err(failed)?;
        let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(Self(lock)),
            Err((file, Errno::EWOULDBLOCK)) => file,
            Err((_, errno)) => return Err(failed(errno.into())),
        };
        let wait = tokio::task::spawn_blocking(move || Flock::lock(file, FlockArg::LockExclusive));
        match tokio::time::timeout(limit, wait).await {
            Ok(Ok(Ok(lock))) => Ok(Self(lock)),
            Ok(Ok(Err((_, errno)))) => Err(failed(errno.into())),
            Ok(Err(_)) | Err(_) => Err(LockError::Taken { path: state_dir.to_owned() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_second_waits_for_the_first_and_not_for_ever() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new/state");
        let first = StateLock::take(&path).await.unwrap();
        let second = StateLock::within(&path, Duration::from_millis(10)).await;
        assert!(matches!(second, Err(LockError::Taken { .. })), "{second:?}");
        let waiting = tokio::spawn({
            let path = path.clone();
            async move { StateLock::take(&path).await.map(drop) }
        });
        tokio::task::yield_now().await;
        drop(first);
        waiting.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn the_next_server_has_it_although_the_last_one_is_not_gone() {
        let directory = tempfile::tempdir().unwrap();
        let first = StateLock::take(directory.path()).await.unwrap();
        let next = StateLock::held(first.duplicate().unwrap()).unwrap();
        let another = StateLock::within(directory.path(), Duration::from_millis(10)).await;
        assert!(matches!(another, Err(LockError::Taken { .. })), "{another:?}");
        drop(next);
        StateLock::take(directory.path()).await.unwrap();
    }
}
