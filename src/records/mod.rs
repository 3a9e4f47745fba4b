//! Records: what a server writes down so that the next one can go on, should it die.
//!
//! One small JSON file for each thing, beneath one directory of the agent's own on a tmpfs. A record is written under
//! another name first and renamed, so that a reader finds a whole one or none, at whatever moment the writer was
//! killed. It is written *before* the thing is begun or answered, and removed *after* the thing is gone: a record
//! without a thing is cleaned up, a thing without a record never is. All calls block: not for an async thread.

mod lock;

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;
use serde::de::DeserializeOwned;

pub use self::lock::{LockError, StateLock};

/// Where unfinished files are, in the directory.
const UNFINISHED: &str = "unfinished";

/// Why a record could not be written, read or removed.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The file system refused.
    #[error("{step} record {path}: {source}", path = path.display())]
    File {
        /// What was tried.
        step: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// It is not text that we have written, or can't become one.
    #[error("record {path} makes no sense: {source}", path = path.display())]
    Format {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: serde_json::Error,
    },
}

impl RecordError {
    /// Whether the file system has no room for it.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::File { source, .. } if matches!(source.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT)))
    }
}

/// The name of a record in its directory, and what it says.
pub type Named<T> = (String, Result<T, RecordError>);

/// The directory of records.
#[derive(Debug)]
pub struct Records {
    directory: PathBuf,
    next: AtomicU64,
}

impl Records {
    /// Records beneath `directory`, which need not exist.
    pub fn new(directory: PathBuf) -> Self {
        Self { directory, next: AtomicU64::new(0) }
    }

    /// Whether there are any.
    pub fn is_empty(&self) -> bool {
        !self.directory.exists()
    }

    /// Makes the directory and those of each kind.
    ///
    /// # Errors
    /// What can't be made.
    pub fn prepare(&self, kinds: &[&str]) -> Result<(), RecordError> {
        kinds.iter().chain(&[UNFINISHED]).try_for_each(|kind| {
            let path = self.directory.join(kind);
            std::fs::create_dir_all(&path).map_err(failed("make the directory of", &path))
        })
    }

    /// Writes the record `name`, in place of one that is there.
    ///
    /// # Errors
    /// [`RecordError`]; what was there is there.
    pub fn write(&self, name: &Path, record: &impl Serialize) -> Result<(), RecordError> {
        let path = self.directory.join(name);
        let text = serde_json::to_vec(record)
            .map_err(|source| RecordError::Format { path: path.clone(), source })?;
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let unfinished = self.directory.join(UNFINISHED).join(number.to_string());
        let written = std::fs::write(&unfinished, text).map_err(failed("write", &unfinished));
        let in_place = written.and_then(|()| put_in_place(&unfinished, &path));
        // It may be the room that is missing.
        in_place.inspect_err(|_| {
            let _ = std::fs::remove_file(&unfinished);
        })
    }

    /// Removes what an earlier server had begun to write.
    pub fn drop_unfinished(&self) {
        let unfinished = std::fs::read_dir(self.directory.join(UNFINISHED)).into_iter().flatten();
        for file in unfinished.flatten() {
            let _ = std::fs::remove_file(file.path());
        }
    }

    /// Removes a record; none there is as good.
    ///
    /// # Errors
    /// [`RecordError::File`].
    pub fn remove(&self, name: &Path) -> Result<(), RecordError> {
        let path = self.directory.join(name);
        tolerant(std::fs::remove_file(&path)).map_err(failed("remove", &path))
    }

    /// Removes a directory of records with all that is in it.
    ///
    /// # Errors
    /// [`RecordError::File`].
    pub fn remove_all(&self, name: &Path) -> Result<(), RecordError> {
        let path = self.directory.join(name);
        tolerant(std::fs::remove_dir_all(&path)).map_err(failed("remove", &path))
    }

    /// Removes all.
    ///
    /// # Errors
    /// [`RecordError::File`].
    pub fn clear(&self) -> Result<(), RecordError> {
        self.remove_all(Path::new(""))
    }

    /// Whether there is such a record.
    pub fn has(&self, name: &Path) -> bool {
        self.directory.join(name).exists()
    }

    /// Reads a record, if it is there.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn read<T: DeserializeOwned>(&self, name: &Path) -> Result<Option<T>, RecordError> {
        let path = self.directory.join(name);
        let text = match std::fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            other => other.map_err(failed("read", &path))?,
        };
        serde_json::from_slice(&text).map(Some).map_err(|source| RecordError::Format { path, source })
    }

    /// Reads all records of a directory, by name. What makes no sense is an error of its own.
    ///
    /// # Errors
    /// When the directory can't be read.
    pub fn read_all<T: DeserializeOwned>(&self, name: &Path) -> Result<Vec<Named<T>>, RecordError> {
        let path = self.directory.join(name);
        let mut all = Vec::new();
        for entry in match std::fs::read_dir(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(all),
            other => other.map_err(failed("list", &path))?,
        } {
            let file = entry.map_err(failed("list", &path))?.file_name();
            let record = self.read(&name.join(&file));
            if let Some(record) = record.transpose() {
                all.push((file.to_string_lossy().into_owned(), record));
            }
        }
        all.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok(all)
    }
}

fn put_in_place(unfinished: &Path, path: &Path) -> Result<(), RecordError> {
    let renamed = match std::fs::rename(unfinished, path) {
        Err(error) if error.kind() == ErrorKind::NotFound => path
            .parent()
            .map_or(Ok(()), std::fs::create_dir_all)
            .and_then(|()| std::fs::rename(unfinished, path)),
        other => other,
    };
    renamed.map_err(failed("put in place", path))
}

fn failed(step: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> RecordError {
    let path = path.to_owned();
    move |source| RecordError::File { step, path, source }
}

fn tolerant(removed: std::io::Result<()>) -> std::io::Result<()> {
    match removed {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records() -> (tempfile::TempDir, Records) {
        let directory = tempfile::tempdir().unwrap();
        let records = Records::new(directory.path().join("records"));
        (directory, records)
    }

    #[test]
    fn what_was_written_is_read_until_it_is_removed() {
        let (_directory, records) = records();
        assert!(records.is_empty());
        records.prepare(&["a"]).unwrap();
        records.write(Path::new("a/x"), &1).unwrap();
        records.write(Path::new("a/x"), &2).unwrap();
        records.write(Path::new("b/deep/y"), &"text").unwrap();
        assert_eq!(records.read::<u32>(Path::new("a/x")).unwrap(), Some(2));
        assert_eq!(records.read::<String>(Path::new("b/deep/y")).unwrap(), Some("text".to_owned()));
        assert_eq!(records.read::<u32>(Path::new("a/z")).unwrap(), None);
        records.remove(Path::new("a/x")).unwrap();
        records.remove(Path::new("a/x")).unwrap();
        assert_eq!(records.read::<u32>(Path::new("a/x")).unwrap(), None);
        records.clear().unwrap();
        records.clear().unwrap();
        assert!(records.is_empty());
    }

    #[test]
    fn what_can_not_be_written_leaves_nothing() {
        let (directory, records) = records();
        records.prepare(&["a"]).unwrap();
        let unfinished = directory.path().join("records").join(UNFINISHED);
        let left = || std::fs::read_dir(&unfinished).unwrap().count();
        // In the place of a directory.
        records.write(Path::new("a"), &1).unwrap_err();
        assert_eq!(left(), 0);
        std::fs::write(unfinished.join("7"), "of a server that was killed").unwrap();
        records.drop_unfinished();
        assert_eq!(left(), 0);
    }

    #[test]
    fn a_record_that_makes_no_sense_hides_no_other() {
        let (directory, records) = records();
        records.prepare(&["a"]).unwrap();
        records.write(Path::new("a/1"), &1).unwrap();
        records.write(Path::new("a/3"), &3).unwrap();
        std::fs::write(directory.path().join("records/a/2"), "{").unwrap();
        let all = records.read_all::<u32>(Path::new("a")).unwrap();
        let good: Vec<_> =
            all.iter().filter_map(|(name, record)| Some((name.as_str(), *record.as_ref().ok()?))).collect();
        assert_eq!((all.len(), good), (3, vec![("1", 1), ("3", 3)]));
        assert!(records.read_all::<u32>(Path::new("none")).unwrap().is_empty());
    }
}
