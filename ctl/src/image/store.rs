//! Unpacked layers, each once, by the digest of its contents.
//!
//! ```text
//! $NAKAI_IMAGES, /var/lib/nakai-ctl/images (root), or $XDG_DATA_HOME/nakai/images
//!   layers/<digest>/        a layer as overlayfs reads it
//!   layers/<digest>.part/   one that is being unpacked by the holder of its lock
//!   layers/<digest>.lock
//! ```
//!
//! The directory is closed to other users: programs with set-user-ID bits of images lie in it. A layer is there whole or
//! not at all, and is never written to again.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use super::ImageError;
use super::digest::Digest;
use crate::state::Lock;
use crate::unpack::Limits;

/// The layers of this host.
#[derive(Clone, Debug)]
pub struct Store {
    directory: PathBuf,
    pub(super) limits: Limits,
}

impl Store {
    /// The store of this user.
    pub fn of_user() -> Self {
        let of = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        Self::at(match of("NAKAI_IMAGES") {
            Some(directory) => directory,
            None if nix::unistd::geteuid().is_root() => PathBuf::from("/var/lib/nakai-ctl/images"),
            None => {
                let home = || of("HOME").unwrap_or_else(std::env::temp_dir).join(".local/share");
                of("XDG_DATA_HOME").unwrap_or_else(home).join("nakai/images")
            }
        })
    }

    /// The store in a directory, which need not be there yet.
    pub fn at(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into(), limits: Limits::default() }
    }

    /// What each layer may cost.
    #[must_use]
    pub fn limits(self, limits: Limits) -> Self {
        Self { limits, ..self }
    }

    /// The layer of that digest; `fill` unpacks it into an empty directory if it is not there yet. Blocks.
    pub(super) fn layer(
        &self,
        digest: &Digest,
        fill: impl FnOnce(&Path) -> Result<(), ImageError>,
    ) -> Result<PathBuf, ImageError> {
        let place = self.directory.join("layers");
        let layer = place.join(digest.hex());
        let failed = |source| ImageError::Store { path: layer.clone(), source };
        if layer.is_dir() {
            return Ok(layer);
        }
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.directory).map_err(failed)?;
        let lock = Lock::take_blocking(&place.join(format!("{}.lock", digest.hex()))).map_err(failed)?;
        if !layer.is_dir() {
            let part = place.join(format!("{}.part", digest.hex()));
            clear(&part).map_err(failed)?;
            // Its mode is that of a container's root, where the layer does not say.
            fs::DirBuilder::new().mode(0o755).create(&part).map_err(failed)?;
            if let Err(error) = fill(&part) {
                // Why it is not unpacked tells more than why it stays.
                let _ = clear(&part);
                return Err(error);
            }
            fs::rename(&part, &layer).map_err(failed)?;
        }
        lock.remove();
        Ok(layer)
    }
}

/// Removes what another has begun and not finished.
fn clear(part: &Path) -> io::Result<()> {
    match fs::remove_dir_all(part) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
