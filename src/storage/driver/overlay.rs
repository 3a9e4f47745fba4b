//! `overlayfs`: layers that are there already, put on top of each other.
//!
//! The layers are named by the usual options. What is written goes to the sandbox's own places only, so
//! `upperdir` and `workdir` must be beneath them; a lower layer must be named by an absolute path.
//! Directories may be asked for, which go with the storage: by a driver option, or, as `upperdir` and
//! `workdir` of a container, by one word.

use std::path::Path;

use super::super::request::split_unescaped;
use super::{Driver, Places, StorageError, Work};
use crate::ids::GuestPath;

/// Driver option: make this directory first.
const CREATE_DIRECTORY: &str = "io.katacontainers.volume.overlayfs.create_directory=";
/// Driver option of our own: make this directory in a layer, where it stays.
pub(in super::super) const KEEP_DIRECTORY: &str = "keep_directory=";
/// Mount option: add an upper layer of the container's own.
pub(in super::super) const ADD_UPPER: &str = "io.katacontainers.fs-opt.overlay-rw";

#[derive(Debug)]
pub(super) struct Overlay;

/// Stands for the layers that make a container's root: there they have become
/// [other storages](super::super::layers) already.
#[derive(Debug)]
pub(super) struct Layers;

impl Driver for Layers {
    fn attach(&self, work: &mut Work<'_>, _places: &Places) -> Result<(), StorageError> {
        Err(work.request.refuse("driver", "layers are for a container's root only"))
    }
}

impl Driver for Overlay {
    fn attach(&self, work: &mut Work<'_>, places: &Places) -> Result<(), StorageError> {
        let request = work.request;
        let mut options = request.options_without(|option| option == ADD_UPPER);
        for option in &options {
            check(option, work, places)?;
        }
        for option in &request.driver_options {
            if let Some(directory) = option.strip_prefix(CREATE_DIRECTORY) {
                work.make_owned_directory(&places.locate(Path::new(directory))?)?;
            }
            if let Some(directory) = option.strip_prefix(KEEP_DIRECTORY) {
                let place = places.locate(Path::new(directory))?;
                place.make_directory().map_err(StorageError::at("making directory", directory))?;
            }
        }
        if request.split_options().any(|option| option == ADD_UPPER) {
            let container = work.container.ok_or_else(|| {
                request.refuse("options", format!("{ADD_UPPER} is for a container's storage only"))
            })?;
            for (key, name) in [("upperdir", "upper"), ("workdir", "work")] {
                let place = places.of_container(container, name);
                work.make_owned_directory(&place)?;
                options.push(format!("{key}={}", place.path().display()));
            }
        }
        work.mount("overlay", &options)?;
        work.give_to_group()
    }
}

/// Refuses layers in places that a storage has nothing to do with.
fn check(option: &str, work: &Work<'_>, places: &Places) -> Result<(), StorageError> {
    let Some((key, value)) = option.split_once('=') else { return Ok(()) };
    match key {
        "upperdir" | "workdir" => places.locate(Path::new(value)).map(drop),
        "lowerdir" | "lowerdir+" | "datadir+" => {
            // Two colons in a row stand before layers that only hold data.
            for layer in split_unescaped(value, ':').filter(|layer| !layer.is_empty()) {
                GuestPath::try_from(layer)
                    .map_err(|error| work.request.refuse("options", format!("{key}: {error}")))?;
            }
            Ok(())
        }
        _ => Ok(()),
    }
}
