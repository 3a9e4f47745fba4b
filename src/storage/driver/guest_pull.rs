//! `image_guest_pull`: a container's root filesystem from an image that the guest pulls itself, through the
//! [confidential data hub](super::super::hub). The source is the image's reference; the mount point is the directory
//! `rootfs` of a bundle, as the hub makes it.
//!
//! The sandbox's own container has no image of its own: it gets what the guest's [pause bundle](PauseBundle) runs.

use std::path::Path;

use super::super::ops::BlockLookup;
use super::super::pause_bundle::PauseBundle;
use super::{Driver, Fill, Places, StorageError, Work};
use crate::storage::StorageRequest;

#[derive(Debug)]
pub(super) struct GuestPull;

#[async_trait::async_trait]
impl Driver for GuestPull {
    fn fills_mount_point(&self, request: &StorageRequest) -> Option<Fill> {
        let pulls = matches!(PauseBundle::is_wanted(request), Ok(false)) && bundle_of(request).is_ok();
        pulls.then_some(Fill::Tree)
    }

    async fn find_source(
        &self,
        request: &StorageRequest,
        lookup: &dyn BlockLookup,
    ) -> Result<String, StorageError> {
        if request.fs_group.is_some() {
            return Err(request.unsupported("fs_group"));
        }
        if PauseBundle::is_wanted(request)? {
            return Ok(request.source.clone());
        }
        let bundle = bundle_of(request)?;
        if request.source.is_empty() {
            return Err(request.refuse("source", "the image is missing"));
        }
        lookup.pull_image(&request.source, bundle).await.map_err(|cause| StorageError::Image {
            image: request.source.clone(),
            mount_point: request.target(),
            cause,
        })?;
        Ok(request.source.clone())
    }

    fn attach(&self, work: &mut Work<'_>, _places: &Places) -> Result<(), StorageError> {
        if PauseBundle::is_wanted(work.request)? {
            let root = work.make_owned_directory(&work.place.clone())?;
            return PauseBundle::of_guest().unpack(&root);
        }
        work.adopt()
    }
}

/// Where the hub is to make the directory of the mount point.
fn bundle_of(request: &StorageRequest) -> Result<&Path, StorageError> {
    let mount_point = request.mount_point.as_path();
    let bundle = mount_point.parent().filter(|_| mount_point.ends_with("rootfs"));
    bundle.ok_or_else(|| request.refuse("mount_point", "its name is not rootfs"))
}
