//! One agent at a time has a state directory: flock(2), given back by the kernel when its server dies.

use std::fs::File;
use std::io;
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
pub struct StateLock(#[expect(dead_code, reason = "held for its end")] Flock<File>);

impl StateLock {
    /// Takes it. Another agent may just be ending.
    ///
    /// # Errors
    /// [`LockError`].
    pub async fn take(state_dir: &Path) -> Result<Self, LockError> {
        Self::within(state_dir, PATIENCE).await
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
}
