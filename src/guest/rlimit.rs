//! The number of files that this process may have open.
//!
//! A server holds a few descriptors for each process of each container; the kernel's default of 1024 would
//! end at about two hundred. Children inherit the limit, so whoever raises it before a fork gives the
//! children's programs their [`OpenFiles`] back.

use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Why the limit stays.
#[derive(Debug, thiserror::Error)]
pub enum RlimitError {
    /// The kernel's own limit can't be read.
    #[error("read {path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The limit can't be read or set.
    #[error("{step} the limit of open files: {source}")]
    Limit {
        /// What was done.
        step: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

/// A limit of open files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenFiles {
    /// What holds now.
    pub soft: u64,
    /// How far the process may raise it by itself.
    pub hard: u64,
}

impl OpenFiles {
    /// The limit of this process.
    ///
    /// # Errors
    ///
    /// [`RlimitError::Limit`].
    pub fn current() -> Result<Self, RlimitError> {
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)
            .map_err(|errno| RlimitError::Limit { step: "read", source: errno.into() })?;
        Ok(Self { soft, hard })
    }

    /// Makes it the limit of this process.
    ///
    /// # Errors
    ///
    /// [`RlimitError::Limit`].
    pub fn apply(self) -> Result<(), RlimitError> {
        self.set().map_err(|errno| RlimitError::Limit { step: "set", source: errno.into() })
    }

    fn set(self) -> nix::Result<()> {
        setrlimit(Resource::RLIMIT_NOFILE, self.soft, self.hard)
    }
}

/// Raises the limit to what the kernel allows, or without privilege to what the process may; returns what it
/// was.
///
/// # Errors
///
/// [`RlimitError`].
pub fn raise_open_files(proc: &Path) -> Result<OpenFiles, RlimitError> {
    let before = OpenFiles::current()?;
    let path = proc.join("sys/fs/nr_open");
    let text = std::fs::read_to_string(&path);
    let text = text.map_err(|source| RlimitError::Read { path: path.clone(), source })?;
    let most: u64 = text.trim().parse().map_err(|_| RlimitError::Read {
        path,
        source: io::Error::new(io::ErrorKind::InvalidData, format!("{text:?} is no number")),
    })?;
    match (OpenFiles { soft: most, hard: most }).set() {
        Err(Errno::EPERM) => OpenFiles { soft: before.hard, hard: before.hard }.apply()?,
        done => done.map_err(|errno| RlimitError::Limit { step: "set", source: errno.into() })?,
    }
    Ok(before)
}

/// How many files a process may be allowed to have open: as many as where systemd runs. Hosts ask for that number.
const MOST_OPEN_FILES: u64 = 1_073_741_816;

/// Lets limits go as far, where that is further than the kernel's default, which is a million. And the guest's memory
/// is the only limit of all open files together: else a container could take those that others need (as systemd
/// does).
///
/// # Errors
///
/// [`RlimitError::Limit`].
pub fn allow_many_open_files(proc: &Path) -> Result<(), RlimitError> {
    std::fs::write(proc.join("sys/fs/nr_open"), MOST_OPEN_FILES.to_string())
        .and_then(|()| std::fs::write(proc.join("sys/fs/file-max"), i64::MAX.to_string()))
        .map_err(|source| RlimitError::Limit { step: "raise", source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_raised_as_far_as_it_goes() {
        let before = raise_open_files(Path::new("/proc")).unwrap();
        let raised = OpenFiles::current().unwrap();
        assert!(raised.soft >= before.hard && raised.soft == raised.hard, "{before:?} {raised:?}");
        raised.apply().unwrap();
        assert_eq!(OpenFiles::current().unwrap(), raised);
    }

    #[test]
    fn a_proc_that_is_not_there_is_an_error() {
        let error = raise_open_files(Path::new("/nonexistent")).unwrap_err().to_string();
        assert!(error.starts_with("read /nonexistent/sys/fs/nr_open: "), "{error}");
        assert!(allow_many_open_files(Path::new("/nonexistent")).is_err());
    }
}
