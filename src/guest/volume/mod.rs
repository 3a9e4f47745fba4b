//! Volumes that are mounted in the guest: how full they are, and growing them while they are in use.
//!
//! A volume is a path beneath the directory where storages live; links in it lead nowhere else.

mod grow;
mod usage;

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

pub use grow::grow;
pub use usage::{Amount, Usage, usage};

use crate::guest::beneath::{BeneathError, Root};

/// Why a volume can't be asked or grown.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// Not where volumes are.
    #[error("volume {path}: it is not beneath {base}", path = path.display(), base = base.display())]
    Outside {
        /// What was given.
        path: PathBuf,
        /// Where volumes are.
        base: PathBuf,
    },
    /// It can't be opened.
    #[error("volume {path}: {source}", path = path.display())]
    Open {
        /// What was given.
        path: PathBuf,
        /// Why.
        source: BeneathError,
    },
    /// A step failed.
    #[error("volume {path}: {step}: {source}", path = path.display())]
    Step {
        /// What was given.
        path: PathBuf,
        /// Which step.
        step: &'static str,
        /// Why.
        source: io::Error,
    },
    /// Its file system can't grow in use, or not from here.
    #[error("volume {path}: growing a file system of type {fstype} is not implemented", path = path.display())]
    FileSystem {
        /// What was given.
        path: PathBuf,
        /// Its name, or its number in hexadecimal.
        fstype: String,
    },
    /// There is no block device below it.
    #[error("volume {path}: its device {device} has no size: {source}", path = path.display())]
    NoDevice {
        /// What was given.
        path: PathBuf,
        /// Major and minor number.
        device: String,
        /// Why.
        source: io::Error,
    },
    /// Its device is smaller than it shall be.
    #[error("volume {path}: {size} bytes are wanted, and its device has {device}", path = path.display())]
    DeviceTooSmall {
        /// What was given.
        path: PathBuf,
        /// What was asked for.
        size: u64,
        /// What there is.
        device: u64,
    },
    /// It is larger already.
    #[error(
        "volume {path}: {size} bytes are wanted, it has {current} already and can't shrink",
        path = path.display()
    )]
    Shrink {
        /// What was given.
        path: PathBuf,
        /// What was asked for.
        size: u64,
        /// What there is.
        current: u64,
    },
}

impl VolumeError {
    /// The system's error number, if it is an error of the system.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Open { source, .. } => source.raw_os_error().map(Errno::from_raw),
            Self::Step { source, .. } => source.raw_os_error().map(Errno::from_raw),
            _ => None,
        }
    }
}

/// Opens a volume.
fn open(base: &Path, path: &Path, flags: OFlag) -> Result<OwnedFd, VolumeError> {
    let outside = || VolumeError::Outside { path: path.to_owned(), base: base.to_owned() };
    let relative = path.strip_prefix(base).map_err(|_| outside())?;
    let opened = Root::open(base).and_then(|root| root.open_path(relative, flags, Mode::empty()));
    opened.map_err(|source| match source {
        BeneathError::Climbs { .. } => outside(),
        source => VolumeError::Open { path: path.to_owned(), source },
    })
}
