//! A mount that goes away with its owner.

use std::path::{Path, PathBuf};

use super::{MountError, unmount};

/// Unmounts its target when dropped, lazily: so that a call that fails halfway leaves no mount behind,
/// whoever uses it.
#[derive(Debug)]
#[must_use = "dropping the guard unmounts"]
pub struct MountGuard {
    /// `None` once the mount is somebody else's.
    target: Option<PathBuf>,
}

impl MountGuard {
    /// Takes over what is mounted on `target`.
    pub fn new(target: impl Into<PathBuf>) -> Self {
        Self { target: Some(target.into()) }
    }

    /// The mount point.
    pub fn target(&self) -> &Path {
        self.target.as_deref().unwrap_or_else(|| Path::new(""))
    }

    /// Leaves the mount in place, and gives back where it is.
    pub fn keep(mut self) -> PathBuf {
        self.target.take().unwrap_or_default()
    }

    /// Unmounts now, for a caller who wants to know of failures.
    ///
    /// # Errors
    ///
    /// [`MountError::Unmount`]; the mount is still there then, and nobody's.
    pub fn unmount(mut self, lazy: bool) -> Result<(), MountError> {
        self.target.take().map_or(Ok(()), |target| unmount(&target, lazy))
    }
}

impl Drop for MountGuard {
    fn drop(&mut self) {
        if let Some(target) = &self.target {
            // Nobody can be told. A target that is no mount point any more is what was wanted.
            let _ = unmount(target, true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guard_knows_its_target_until_it_gives_it_up() {
        let guard = MountGuard::new("/nonexistent/a");
        assert_eq!(guard.target(), Path::new("/nonexistent/a"));
        assert_eq!(guard.keep(), Path::new("/nonexistent/a"));
        assert!(MountGuard::new("/nonexistent/a").unmount(false).is_err());
    }
}
