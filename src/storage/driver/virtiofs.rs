//! `virtio-fs`, and `virtio-fs-nydus`, which is the same to the guest: a directory that the host shares, found by its
//! tag (the source).
//!
//! With the filesystem type `bind` the source is a directory or file in a share that is mounted already.

use super::{Driver, Places, StorageError, Work, bind};

/// The tag of the share that every sandbox has. A guest image may mount it at boot.
const SANDBOX_SHARE: &str = "kataShared";

#[derive(Debug)]
pub(super) struct Virtiofs;

impl Driver for Virtiofs {
    fn attach(&self, work: &mut Work<'_>, places: &Places) -> Result<(), StorageError> {
        let path = work.place.path();
        if work.source == SANDBOX_SHARE {
            let mounted = work.ops.is_mount_point(&path);
            let mounted = mounted.map_err(|cause| StorageError::Mounts { mount_point: path, cause })?;
            if mounted {
                return Ok(());
            }
        }
        match work.request.fstype.as_str() {
            "bind" => return bind::Bind.attach(work, places),
            "virtiofs" if work.source.is_empty() => {
                return Err(work.request.refuse("source", "the share's tag is missing"));
            }
            "virtiofs" => {}
            other => {
                return Err(work.request.refuse("fstype", format!("{other:?} is neither virtiofs nor bind")));
            }
        }
        let options = work.request.options_without(|_| false);
        work.mount("virtiofs", &options)?;
        work.give_to_group()
    }
}
