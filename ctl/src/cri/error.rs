//! Why a container that was asked for in CRI's words is not made.

use std::io;
use std::path::PathBuf;

use crate::CallError;
use crate::disk::DiskError;
use crate::image::ImageError;
use crate::plug::PlugError;
use crate::rootfs::RootfsError;
use crate::stdio::StdioError;

/// The failure of one step, with what it was about.
#[derive(Debug, thiserror::Error)]
pub enum CriError {
    /// A file that is not JSON, or not of the expected shape.
    #[error("{what}: {source}")]
    Json {
        /// The file, or the part of it.
        what: String,
        /// The parser's reason.
        source: serde_json::Error,
    },
    /// A field whose value can't be carried out.
    #[error("{field}: {reason}")]
    Field {
        /// Its path in the configuration, or the option that became it.
        field: String,
        /// Why, and what is accepted instead.
        reason: String,
    },
    /// Something on this host.
    #[error("{what}: {source}")]
    Io {
        /// What was being done, with the path.
        what: String,
        /// The system's reason.
        source: io::Error,
    },
    /// A volume that did not come in time.
    #[error("volume {volume}: not at {path} after {seconds} s", path = .path.display())]
    VolumeTimeout {
        /// Its name.
        volume: String,
        /// Where it was expected.
        path: PathBuf,
        /// The limit.
        seconds: u64,
    },
    /// No container of that name is known.
    #[error("no container {0}")]
    Unknown(String),
    /// Another container has the name.
    #[error("container {id} is there already: {state}; nakai-ctl rm {id} removes it")]
    Taken {
        /// The name.
        id: String,
        /// What the other does.
        state: String,
    },
    /// The container is in a state that does not allow it.
    #[error("container {id} is {state}")]
    State {
        /// The container.
        id: String,
        /// What it is instead.
        state: String,
    },
    /// It was told to give up.
    #[error("interrupted")]
    Interrupted,
    /// The agent's answer.
    #[error(transparent)]
    Call(#[from] CallError),
    /// A stream of the container's.
    #[error(transparent)]
    Stdio(#[from] StdioError),
    /// The image.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The root filesystem.
    #[error(transparent)]
    Rootfs(#[from] RootfsError),
    /// A device that does not leave the machine.
    #[error("{what}: {source}")]
    Unplug {
        /// The device.
        what: String,
        /// Why.
        source: PlugError,
    },
    /// A disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

impl CriError {
    /// A field and why it is refused.
    pub fn field(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Field { field: field.into(), reason: reason.into() }
    }

    /// Adds what was being done to a system's error.
    pub fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}
