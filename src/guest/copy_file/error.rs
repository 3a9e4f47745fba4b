//! Why a file is not copied.

use std::path::PathBuf;

use nix::errno::Errno;

use crate::guest::beneath::BeneathError;

/// Why a file is not copied. Paths are relative to the shared directory.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// Not in the shared directory.
    #[error("path {path:?} is not beneath {}", one_of(bases))]
    Outside {
        /// What was given.
        path: String,
        /// The shared directories.
        bases: Vec<PathBuf>,
    },
    /// A number that is none.
    #[error("copy {path}: {field} is {value}", path = path.display())]
    Number {
        /// The file.
        path: PathBuf,
        /// Its name on the wire.
        field: &'static str,
        /// What was given.
        value: i64,
    },
    /// More data than the file has.
    #[error("copy {path}: {len} bytes at {offset} are more than file_size {size}", path = path.display())]
    TooMuch {
        /// The file.
        path: PathBuf,
        /// How many bytes came.
        len: usize,
        /// Where they belong.
        offset: u64,
        /// The size of the whole file.
        size: u64,
    },
    /// Neither file, directory nor symbolic link.
    #[error("copy {path}: file_mode {mode:#o} is no file, directory or symbolic link", path = path.display())]
    Type {
        /// The file.
        path: PathBuf,
        /// What was given.
        mode: u32,
    },
    /// The target of a symbolic link that can't be one.
    #[error("copy {path}: data is no target of a symbolic link: {reason}", path = path.display())]
    Target {
        /// The link.
        path: PathBuf,
        /// What is wrong.
        reason: &'static str,
    },
    /// The file system has less room.
    #[error("copy {path}: file_size {size}, but only {available} bytes are free", path = path.display())]
    NoRoom {
        /// The file.
        path: PathBuf,
        /// Its size.
        size: u64,
        /// What is free.
        available: u64,
    },
    /// Too many files are half-way.
    #[error("copy {path}: {limit} other files are under way", path = path.display())]
    TooMany {
        /// The file.
        path: PathBuf,
        /// How many may be.
        limit: usize,
    },
    /// The chunks lie too far apart.
    #[error("copy {path}: its chunks have more than {limit} gaps between them", path = path.display())]
    Scattered {
        /// The file.
        path: PathBuf,
        /// The most gaps.
        limit: usize,
    },
    /// The shared directory can't be had, or the directory around the file.
    #[error(transparent)]
    Beneath(#[from] BeneathError),
    /// A step failed.
    #[error("copy {path}: {step}: {source}", path = path.display())]
    Step {
        /// The file.
        path: PathBuf,
        /// Which step.
        step: &'static str,
        /// Why.
        source: Errno,
    },
}

fn one_of(bases: &[PathBuf]) -> String {
    bases.iter().map(|base| base.display().to_string()).collect::<Vec<_>>().join(" or ")
}

impl CopyError {
    /// The system's error number, if it is an error of the system.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Step { source, .. } => Some(*source),
            Self::Beneath(error) => error.raw_os_error().map(Errno::from_raw),
            _ => None,
        }
    }
}
