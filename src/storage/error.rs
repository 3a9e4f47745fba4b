//! What can go wrong with a storage. One variant for each step that can fail; each names the place it
//! happened at. Errors are cheap to clone, because everyone who waits for the same mount gets the same one.

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;

use crate::ids::IdError;

/// The error of a side effect ([`MountOps`](super::MountOps), [`BlockLookup`](super::BlockLookup)), shared by
/// all who waited for it.
pub type Cause = Arc<dyn Error + Send + Sync>;

/// Why a storage is not there, or is still there.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StorageError {
    /// The mount point is no path at all.
    #[error("mount point of the {driver} storage: {cause}")]
    MountPoint {
        /// Which driver was asked for.
        driver: String,
        /// What is wrong with the path.
        #[source]
        cause: IdError,
    },
    /// A field of the request can't be used.
    #[error("{field} of the storage at {mount_point}: {reason}")]
    Field {
        /// Where the storage was to be mounted.
        mount_point: PathBuf,
        /// The field, by its name on the wire.
        field: &'static str,
        /// What is wrong with it, and what it held.
        reason: String,
    },
    /// It could not be written down for the next server.
    #[error("{cause}")]
    Record {
        /// What failed.
        #[source]
        cause: Cause,
    },
    /// A path that is not where storages live.
    #[error("{path} is not a place for storages, they live beneath {allowed}")]
    Outside {
        /// What was asked for.
        path: PathBuf,
        /// The directory beneath which it would have been accepted.
        allowed: PathBuf,
    },
    /// No driver of that name.
    #[error("unknown storage driver {driver:?}, known are {}", known.join(", "))]
    UnknownDriver {
        /// What was asked for.
        driver: String,
        /// What there is.
        known: Vec<&'static str>,
    },
    /// The driver is known, but can't do this.
    #[error("the {driver} storage at {mount_point} asks for {what}, which is not supported")]
    Unsupported {
        /// Which driver.
        driver: String,
        /// Where it was to be mounted.
        mount_point: PathBuf,
        /// What can't be done.
        what: String,
    },
    /// Another storage is mounted there.
    #[error("{mount_point} holds the {held_driver} storage {held:?}, not the {driver} storage {wanted:?}")]
    Conflict {
        /// Where both want to be.
        mount_point: PathBuf,
        /// Driver of the new one.
        driver: String,
        /// Source of the new one.
        wanted: String,
        /// Driver of the one that is there.
        held_driver: String,
        /// Source of the one that is there.
        held: String,
    },
    /// Nothing of ours is mounted there.
    #[error("no storage is attached at {mount_point}")]
    NotAttached {
        /// Where it should have been.
        mount_point: PathBuf,
    },
    /// The device behind the storage did not come.
    #[error("device {device} of the {driver} storage: {cause}")]
    Device {
        /// Which driver.
        driver: &'static str,
        /// The device's address, as the host gave it.
        device: String,
        /// What the look-up said.
        #[source]
        cause: Cause,
    },
    /// The image could not be pulled.
    #[error("image {image} for {mount_point}: {cause}")]
    Image {
        /// Its reference.
        image: String,
        /// Where its root was to be.
        mount_point: PathBuf,
        /// What the hub said.
        #[source]
        cause: Cause,
    },
    /// The guest's own image of the pause container can't be used.
    #[error("the guest's pause image {path}: {cause}")]
    PauseImage {
        /// The part of it.
        path: PathBuf,
        /// Why.
        #[source]
        cause: Cause,
    },
    /// The disk can't be given a file system.
    #[error("a file system for {mount_point}: {cause}")]
    Format {
        /// Where it was to be mounted.
        mount_point: PathBuf,
        /// What is on the disk, or what mkfs said.
        #[source]
        cause: Cause,
    },
    /// The volume can't be encrypted.
    #[error("an encrypted volume for {mount_point}: {cause}")]
    Encrypt {
        /// Where it was to be mounted.
        mount_point: PathBuf,
        /// What the hub said.
        #[source]
        cause: Cause,
    },
    /// A device path that leads to something else.
    #[error("{device} is a {found}, not a block device")]
    NotBlockDevice {
        /// The path.
        device: PathBuf,
        /// What is there.
        found: &'static str,
    },
    /// A file or directory could not be made, opened or changed.
    #[error("{step} {path}: {cause}")]
    Path {
        /// What was being done.
        step: &'static str,
        /// To which path.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        cause: Errno,
    },
    /// The kernel has no such filesystem.
    #[error("filesystem {fstype} for {mount_point}: {cause}")]
    Filesystem {
        /// Which filesystem.
        fstype: String,
        /// Where it was to be mounted.
        mount_point: PathBuf,
        /// What the module loader said.
        #[source]
        cause: Cause,
    },
    /// It could not be told what is mounted.
    #[error("looking whether {mount_point} is mounted: {cause}")]
    Mounts {
        /// The place in question.
        mount_point: PathBuf,
        /// What the kernel said.
        #[source]
        cause: Cause,
    },
    /// The device that checks what is read.
    #[error("dm-verity: {cause}")]
    Verity {
        /// Which step, and the reason.
        #[source]
        cause: Cause,
    },
    /// The kernel's pool of huge pages.
    #[error("huge pages: {cause}")]
    HugePages {
        /// What was asked for, and what there is.
        #[source]
        cause: Cause,
    },
    /// The guest has no memory for them in one piece.
    #[error("huge pages: {cause}")]
    TooFewPages {
        /// What was asked for, and what could be had.
        #[source]
        cause: Cause,
    },
    /// It could not be mounted.
    #[error("{cause}")]
    Mount {
        /// What was mounted where, and what the kernel said.
        #[source]
        cause: Cause,
    },
    /// It could not be unmounted: the storage is still there.
    #[error("{cause}")]
    Unmount {
        /// Where it is, and what the kernel said.
        #[source]
        cause: Cause,
    },
    /// The sandbox goes away, and with it the storage that was waited for.
    #[error("the storage at {mount_point} was released with its sandbox")]
    Released {
        /// Where it was.
        mount_point: PathBuf,
    },
    /// It could not be waited for any longer.
    #[error("the storage at {mount_point} is not released after {after:?}")]
    Late {
        /// Where it is.
        mount_point: PathBuf,
        /// How long it was waited for.
        after: Duration,
    },
    /// The task that did the work ended early.
    #[error("work on the storage at {mount_point} was cut short: {reason}")]
    CutShort {
        /// Where the storage was to be.
        mount_point: PathBuf,
        /// What the runtime said.
        reason: String,
    },
    /// Something stayed behind when everything was released.
    #[error("{} storages could not be released: {}", errors.len(), list(errors))]
    Leftovers {
        /// One error for each.
        errors: Vec<StorageError>,
    },
}

fn list(errors: &[StorageError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

impl From<crate::records::RecordError> for StorageError {
    fn from(error: crate::records::RecordError) -> Self {
        Self::Record { cause: Arc::new(error) }
    }
}

impl StorageError {
    /// For `map_err` on a file system call: `step` is a verb in its -ing form.
    pub(super) fn at(step: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(Errno) -> Self {
        let path = path.into();
        move |cause| Self::Path { step, path, cause }
    }
}
