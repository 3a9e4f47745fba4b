//! A folder of things that are slow to get: downloaded packages, a bootstrapped distribution.
//!
//! Invariant: what has its name in the cache is whole. It is made in a work folder beside it and renamed, so that
//! an interrupted run leaves nothing that a later one takes for good. Two runs at once both do the work, and the
//! first to finish wins.

use std::io;
use std::path::{Path, PathBuf};

use crate::files::{self, FilesError};

/// The cache folder. It need not exist yet.
#[derive(Debug, Clone)]
pub struct Cache {
    dir: PathBuf,
}

impl Cache {
    /// The cache in `dir`.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// `.cache` in the project that the working directory is in (the nearest folder upwards with a `Cargo.lock`),
    /// else in the working directory itself.
    pub fn of_project() -> io::Result<Self> {
        let here = std::env::current_dir()?;
        let root = here.ancestors().find(|dir| dir.join("Cargo.lock").is_file()).unwrap_or(&here);
        Ok(Self::new(root.join(".cache")))
    }

    /// Where `name`, which may have several components, is or will be.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The file or folder `name`; when it is not there, `make` makes it.
    ///
    /// `make` gets an empty work folder, removed at the end, and the path in it where it has to leave the product.
    pub fn get_or_make<E: From<FilesError>>(
        &self,
        name: &str,
        make: impl FnOnce(&Path, &Path) -> Result<(), E>,
    ) -> Result<PathBuf, E> {
        let path = self.path(name);
        if path.exists() {
            return Ok(path);
        }
        let parent = path.parent().unwrap_or(&self.dir);
        files::create_dir(parent)?;
        let work = tempfile::Builder::new()
            .prefix(".making-")
            .tempdir_in(parent)
            .map_err(|source| FilesError::Write { path: parent.into(), source })?;
        let product = work.path().join("product");
        make(work.path(), &product)?;
        match std::fs::rename(&product, &path) {
            // Another run was faster.
            Err(_) if path.exists() => Ok(path),
            Err(source) => Err(FilesError::Write { path, source }.into()),
            Ok(()) => Ok(path),
        }
    }

    /// Forgets `name`, so that the next call makes it anew.
    pub fn remove(&self, name: &str) -> Result<(), FilesError> {
        let path = self.path(name);
        let removed =
            if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        match removed {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(FilesError::Write { path, source })
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failing(_: &Path, _: &Path) -> Result<(), FilesError> {
        Err(FilesError::Read { path: "x".into(), source: io::Error::other("no network") })
    }

    #[test]
    fn made_once_and_found_afterwards() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path().join("new"));
        let make = |_: &Path, product: &Path| files::write(product, b"whole");
        let path = cache.get_or_make("kind/name", make).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"whole");
        assert_eq!(cache.get_or_make("kind/name", failing).unwrap(), path);
        cache.remove("kind/name").unwrap();
        cache.get_or_make("kind/name", failing).unwrap_err();
    }

    #[test]
    fn a_failure_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path());
        let half = |_: &Path, product: &Path| {
            files::write(product, b"half")?;
            failing(product, product)
        };
        cache.get_or_make("name", half).unwrap_err();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn the_first_of_two_runs_wins() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path());
        let make_dir = |product: &Path, content: &[u8]| {
            files::create_dir(product)?;
            files::write(&product.join("file"), content)
        };
        let path = cache
            .get_or_make("name", |_, product| {
                cache.get_or_make("name", |_, other| make_dir(other, b"first"))?;
                make_dir(product, b"second")
            })
            .unwrap();
        assert_eq!(std::fs::read(path.join("file")).unwrap(), b"first");
    }
}
