//! `image_guest_pull`: a container's root filesystem from an image that the guest pulls itself, through the
//! [confidential data hub](super::super::hub). The source is the image's reference; the mount point is the directory
//! `rootfs` of a bundle, as the hub makes it.
//!
//! The sandbox's own container has no image of its own: it gets the guest's pause bundle.

use std::path::Path;

use super::super::ops::BlockLookup;
use super::{Driver, Fill, Places, StorageError, Work};
use crate::storage::StorageRequest;

/// Driver option: what the host's snapshotter knows of the image, as JSON.
const METADATA: &str = "image_guest_pull=";
/// The root of the guest image's pause container.
const PAUSE_ROOT: &str = "/pause_bundle/rootfs";

#[derive(Debug)]
pub(super) struct GuestPull;

#[async_trait::async_trait]
impl Driver for GuestPull {
    fn fills_mount_point(&self, request: &StorageRequest) -> Option<Fill> {
        let pulls = matches!(is_for_sandbox(request), Ok(false)) && bundle_of(request).is_ok();
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
        if is_for_sandbox(request)? {
            return Ok(PAUSE_ROOT.to_owned());
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
        if work.source == PAUSE_ROOT {
            let root = Path::new(PAUSE_ROOT);
            let flags =
                nix::fcntl::OFlag::O_PATH | nix::fcntl::OFlag::O_DIRECTORY | nix::fcntl::OFlag::O_CLOEXEC;
            let root = nix::fcntl::open(root, flags, nix::sys::stat::Mode::empty())
                .map_err(StorageError::at("opening", root))?;
            return work.bind(&root, &["bind".to_owned(), "ro".to_owned()]);
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

/// Whether it is the sandbox's own container. Container runtimes say so by an annotation, each by its own.
fn is_for_sandbox(request: &StorageRequest) -> Result<bool, StorageError> {
    let Some(text) = request.driver_options.iter().find_map(|option| option.strip_prefix(METADATA)) else {
        return Ok(false);
    };
    let metadata: serde_json::Value = serde_json::from_str(text)
        .map_err(|error| request.refuse("driver_options", format!("{METADATA} is no JSON: {error}")))?;
    let kinds = ["io.kubernetes.cri.container-type", "io.kubernetes.cri-o.ContainerType"];
    let is = |kind: &str| {
        metadata.pointer("/metadata").and_then(|all| all.get(kind)).is_some_and(|is| is == "sandbox")
    };
    Ok(kinds.into_iter().any(is))
}
