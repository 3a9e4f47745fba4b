//! A lock on one name, between all clients of this host: flock(2) on a file.
//!
//! The kernel gives it back when its holder dies. The file of a name that is gone is removed by the holder, so whoever
//! gets the lock looks whether it is still on the file that the name has.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

/// A lock that is held.
#[derive(Debug)]
pub struct Lock {
    file: Flock<File>,
    path: PathBuf,
}

impl Lock {
    /// Waits for the lock on `path`. Dropping the future leaves the wait to a thread of its own.
    ///
    /// # Errors
    ///
    /// The file can't be made.
    pub async fn wait(path: PathBuf) -> io::Result<Self> {
        let waiting = tokio::task::spawn_blocking(move || Self::take(&path, FlockArg::LockExclusive));
        waiting.await.map_err(io::Error::from)?
    }

    /// Takes the lock if nobody has it; else [`io::ErrorKind::WouldBlock`].
    ///
    /// # Errors
    ///
    /// Another has it, or the file can't be made.
    pub fn try_take(path: &Path) -> io::Result<Self> {
        Self::take(path, FlockArg::LockExclusiveNonblock)
    }

    /// As [`Lock::wait`], on the calling thread.
    pub(crate) fn take_blocking(path: &Path) -> io::Result<Self> {
        Self::take(path, FlockArg::LockExclusive)
    }

    /// Takes the lock together with others that share it, and waits for whoever has it alone.
    pub(crate) fn share_blocking(path: &Path) -> io::Result<Self> {
        Self::take(path, FlockArg::LockShared)
    }

    fn take(path: &Path, how: FlockArg) -> io::Result<Self> {
        if let Some(parent) = path.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
        }
        loop {
            let file = File::options().create(true).truncate(false).write(true).open(path)?;
            let file = Flock::lock(file, how).map_err(|(_, errno)| errno)?;
            let same = |at: fs::Metadata| file.metadata().is_ok_and(|mine| mine.ino() == at.ino());
            if fs::metadata(path).is_ok_and(same) {
                return Ok(Self { file, path: path.to_owned() });
            }
        }
    }

    /// Another descriptor of the lock, for a process that is to have it when this one has ended.
    ///
    /// # Errors
    ///
    /// There are no more descriptors.
    pub fn hand_over(self) -> io::Result<File> {
        let file = self.file.try_clone()?;
        // Given back by one, it would be given back by all.
        std::mem::forget(self);
        Ok(file)
    }

    /// Gives the lock back and removes its file.
    pub fn remove(self) {
        // It is only litter if it stays.
        let _ = fs::remove_file(&self.path);
        drop(self.file);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_at_a_time_also_when_the_file_goes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deeper/lock");
        let first = Lock::try_take(&path).unwrap();
        assert_eq!(Lock::try_take(&path).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let second = tokio::spawn(Lock::wait(path.clone()));
        first.remove();
        let second = second.await.unwrap().unwrap();
        assert!(path.exists());
        assert_eq!(Lock::try_take(&path).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let handed = second.hand_over().unwrap();
        assert_eq!(Lock::try_take(&path).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        // This process has the other descriptor still, as one that starts another has until it ends.
        drop(handed);
        assert_eq!(Lock::try_take(&path).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}
