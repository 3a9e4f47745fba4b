//! The storage drivers: one file each, behind one trait.

mod bind;
mod block;
mod ephemeral;
mod guest_pull;
mod local;
mod overlay;
mod virtiofs;
mod watchable;

use super::StorageError;
use super::attachment::Work;
use super::ops::BlockLookup;
use super::places::Places;
use super::request::StorageRequest;
pub(super) use ephemeral::bytes;
pub(super) use overlay::{ADD_UPPER, KEEP_DIRECTORY};

/// What fills the mount point while the source is found, if it is not the agent that does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fill {
    /// Somebody makes it, and what is in it.
    Tree,
    /// Somebody mounts on it.
    Mount,
}

/// One kind of storage. It has two steps, because waiting for a device must not occupy a thread, and mounting
/// must not occupy the runtime.
#[async_trait::async_trait]
pub(super) trait Driver: Send + Sync {
    /// Another storage that has to be there first. It is attached before, and stays with the sandbox.
    fn needs(&self, _request: &StorageRequest) -> Result<Option<StorageRequest>, StorageError> {
        Ok(None)
    }

    /// Whether, and how, finding the source fills the mount point.
    fn fills_mount_point(&self, _request: &StorageRequest) -> Option<Fill> {
        None
    }

    /// What will be mounted; waits for a device if it has to. It is dropped when nobody wants the storage any more.
    async fn find_source(
        &self,
        request: &StorageRequest,
        _lookup: &dyn BlockLookup,
    ) -> Result<String, StorageError> {
        Ok(request.source.clone())
    }

    /// Attaches it; blocks. What it did before an error is taken down by the caller, from the record in
    /// `work`.
    fn attach(&self, work: &mut Work<'_>, places: &Places) -> Result<(), StorageError>;

    /// Whether the storage holds the sandbox's data, which has to outlive the container that was its last
    /// user (as a volume has to survive the restart of its only container).
    fn outlives_users(&self) -> bool {
        false
    }
}

const DRIVERS: &[(&str, &dyn Driver)] = &[
    ("bind", &bind::Bind),
    ("blk", &block::Block { name: "blk" }),
    ("ephemeral", &ephemeral::Ephemeral),
    (super::layers::DRIVER, &overlay::Layers),
    ("image_guest_pull", &guest_pull::GuestPull),
    ("local", &local::Local),
    ("mmioblk", &block::Block { name: "mmioblk" }),
    ("nvdimm", &block::Block { name: "nvdimm" }),
    ("overlayfs", &overlay::Overlay),
    ("scsi", &block::Block { name: "scsi" }),
    ("virtio-fs", &virtiofs::Virtiofs),
    ("virtio-fs-nydus", &virtiofs::Virtiofs),
    ("watchable-bind", &watchable::Watchable),
];

/// The names of all drivers, sorted.
pub(super) fn names() -> Vec<&'static str> {
    DRIVERS.iter().map(|(name, _)| *name).collect()
}

/// The driver of that name.
pub(super) fn find(name: &str) -> Result<&'static dyn Driver, StorageError> {
    let found = DRIVERS.iter().find(|(known, _)| *known == name);
    found
        .map(|(_, driver)| *driver)
        .ok_or_else(|| StorageError::UnknownDriver { driver: name.to_owned(), known: names() })
}
