//! File operations of the host whose errors name the path.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// An operation on a file of the host.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// Reading a file or folder.
    #[error("{}: can't be read: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Making, changing or removing a file or folder.
    #[error("{}: can't be written: {source}", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The content of a file.
pub fn read(path: &Path) -> Result<Vec<u8>, FilesError> {
    std::fs::read(path).map_err(|source| FilesError::Read { path: path.into(), source })
}

/// The content of a text file.
pub fn read_text(path: &Path) -> Result<String, FilesError> {
    std::fs::read_to_string(path).map_err(|source| FilesError::Read { path: path.into(), source })
}

/// The names in a folder, sorted.
pub fn list(dir: &Path) -> Result<Vec<String>, FilesError> {
    let names = || -> io::Result<Vec<String>> {
        let mut names = std::fs::read_dir(dir)?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<io::Result<Vec<_>>>()?;
        names.sort();
        Ok(names)
    };
    names().map_err(|source| FilesError::Read { path: dir.into(), source })
}

/// A folder with all its parents; it may exist.
pub fn create_dir(path: &Path) -> Result<(), FilesError> {
    std::fs::create_dir_all(path).map_err(|source| FilesError::Write { path: path.into(), source })
}

/// A file of the default mode, made or replaced in one step: a reader sees the old content or the new.
///
/// A file that has the content already is left alone, so that a virtual machine that runs on it keeps it.
pub fn write(path: &Path, content: &[u8]) -> Result<(), FilesError> {
    if std::fs::read(path).is_ok_and(|old| old == content) {
        return Ok(());
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    create_dir(parent)?;
    let written = || -> io::Result<()> {
        // Not a temporary file's usual mode of 0600: the image may be run by another user than its builder.
        let mut file = tempfile::Builder::new()
            .prefix(".writing-")
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
            .tempfile_in(parent)?;
        file.write_all(content)?;
        file.persist(path)?;
        Ok(())
    };
    written().map_err(|source| FilesError::Write { path: path.into(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn unchanged_content_keeps_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        write(&path, b"one").unwrap();
        let inode = std::fs::metadata(&path).unwrap().ino();
        write(&path, b"one").unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().ino(), inode);
        write(&path, b"two").unwrap();
        assert_ne!(std::fs::metadata(&path).unwrap().ino(), inode);
        assert_eq!(list(&dir.path().join("a")).unwrap(), ["b"]);
    }

    #[test]
    fn errors_name_the_path() {
        let error = read(Path::new("/no/such/file")).unwrap_err().to_string();
        assert!(error.starts_with("/no/such/file: can't be read: "), "{error}");
    }
}
