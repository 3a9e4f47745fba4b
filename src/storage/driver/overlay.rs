//! `overlayfs`: layers that are there already, put on top of each other.
//!
//! The layers are named by the usual options. All of them must be where storages live, and no link may be on the way to
//! one, as the kernel would follow it anywhere: the guest's own files are no container's.
//! Directories may be asked for, which go with the storage: by a driver option, or, as `upperdir` and
//! `workdir` of a container, by one word.

use std::path::Path;

use nix::errno::Errno;

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
    let layers: Vec<String> = match key {
        "upperdir" | "workdir" | "lowerdir+" | "datadir+" => vec![unescaped(value)],
        // Two colons in a row stand before layers that only hold data.
        "lowerdir" => split_unescaped(value, ':').filter(|layer| !layer.is_empty()).map(unescaped).collect(),
        _ => return Ok(()),
    };
    for layer in layers {
        let path = GuestPath::try_from(layer.as_str())
            .map_err(|error| work.request.refuse("options", format!("{key}: {error}")))?;
        // What else is wrong with it the kernel says.
        if matches!(places.locate(path.as_path())?.handle(), Err(Errno::ELOOP)) {
            return Err(work.request.refuse("options", format!("{key}: a link is on the way to {layer}")));
        }
    }
    Ok(())
}

/// A path without the backslashes before its commas and colons.
fn unescaped(text: &str) -> String {
    let mut escaped = false;
    let plain = text.chars().filter(|c| {
        escaped = *c == '\\' && !escaped;
        !escaped
    });
    plain.collect()
}

#[cfg(test)]
mod tests {
    use super::unescaped;

    #[test]
    fn backslashes_go() {
        assert_eq!(["/a", r"/a\:b\,c", r"/a\\b"].map(unescaped), ["/a", "/a:b,c", r"/a\b"]);
    }
}
