//! Unpacked layers, each once, by the digest of its contents.
//!
//! ```text
//! $NAKAI_IMAGES, /var/lib/nakai-ctl/images (root), or $XDG_DATA_HOME/nakai/images
//!   layers/<digest>/        a layer as overlayfs reads it
//!   layers/<digest>.part/   one that is being unpacked by the holder of its lock
//!   layers/<digest>.lock
//!   layers/<digest>.erofs   the same as an image, if one has been asked for
//!   roots/<agent>/<id>/     what is lent to a container whose agent is a process of this host
//!   used.lock               shared by whoever makes a container, alone for whoever removes layers
//! ```
//!
//! The directory is closed to other users: programs with set-user-ID bits of images lie in it. A layer is there whole or
//! not at all, and is never written to again.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use super::digest::Digest;
use super::{ImageError, make_erofs};
use crate::removal::{self, remove};
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

    /// Where what is lent to the containers of an agent on this host lies: in a place that it sees, too, when it has a
    /// `/run` of its own.
    pub fn roots(&self, agent: &str) -> PathBuf {
        self.directory.join("roots").join(agent)
    }

    /// Keeps layers from being removed for as long as the lock is held. Blocks.
    ///
    /// # Errors
    ///
    /// The lock's file can't be made.
    pub fn in_use(&self) -> Result<Lock, ImageError> {
        let path = self.directory.join("used.lock");
        Lock::share_blocking(&path).map_err(|source| ImageError::Store { path, source })
    }

    /// Whether one of these is a layer of this store.
    pub fn has(&self, layers: &[PathBuf]) -> bool {
        layers.iter().any(|layer| layer.parent() == Some(&*self.directory.join("layers")))
    }

    /// The EROFS image of a layer of this store; of another directory, the new file `own`, for which the second value is
    /// true. Blocks.
    ///
    /// # Errors
    ///
    /// It can't be made.
    pub fn erofs(&self, layer: &Path, own: &Path) -> Result<(PathBuf, bool), ImageError> {
        if !self.has(&[layer.to_owned()]) {
            make_erofs(layer, own)?;
            return Ok((own.to_owned(), true));
        }
        let image = layer.with_extension("erofs");
        let failed = |source| ImageError::Store { path: image.clone(), source };
        let lock = Lock::take_blocking(&layer.with_extension("lock")).map_err(failed)?;
        if !image.exists() {
            make_erofs(layer, &image)?;
        }
        lock.remove();
        Ok((image, false))
    }

    /// The layers, with the bytes that each takes. Blocks.
    pub fn layers(&self) -> Vec<(PathBuf, u64)> {
        let entries = fs::read_dir(self.directory.join("layers")).into_iter().flatten().flatten();
        let layers = entries.map(|entry| entry.path()).filter(|path| path.extension().is_none());
        let mut layers: Vec<_> =
            layers.filter(|path| path.is_dir()).map(|path| (size(&path), path)).collect();
        layers.sort();
        layers.into_iter().map(|(size, path)| (path, size)).collect()
    }

    /// Removes the layers that are not among `used`; returns them with their sizes. Blocks.
    ///
    /// # Errors
    ///
    /// One can't be removed.
    pub fn prune(&self, used: impl FnOnce() -> BTreeSet<PathBuf>) -> Result<Vec<(PathBuf, u64)>, ImageError> {
        let failed = |source| ImageError::Store { path: self.directory.clone(), source };
        let _alone = Lock::take_blocking(&self.directory.join("used.lock")).map_err(failed)?;
        let (used, mut gone) = (used(), Vec::new());
        for (layer, size) in self.layers() {
            if used.contains(&layer) {
                continue;
            }
            let failed = |source| ImageError::Store { path: layer.clone(), source };
            let _ = fs::remove_file(layer.with_extension("erofs"));
            // By another name first: half a layer must not be taken for one.
            let part = layer.with_extension("part");
            let removed = remove(&part).map_err(io::Error::from);
            removed
                .and_then(|()| fs::rename(&layer, &part))
                .and_then(|()| Ok(remove(&part)?))
                .map_err(failed)?;
            gone.push((layer, size));
        }
        Ok(gone)
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
            remove(&part).map_err(|left| failed(left.into()))?;
            // Its mode is that of a container's root, where the layer does not say.
            fs::DirBuilder::new().mode(0o755).create(&part).map_err(failed)?;
            if let Err(error) = fill(&part) {
                removal::tell(remove(&part));
                return Err(error);
            }
            fs::rename(&part, &layer).map_err(failed)?;
        }
        lock.remove();
        Ok(layer)
    }
}

/// The bytes of the files in a directory; what can't be read counts nothing.
fn size(directory: &Path) -> u64 {
    let (mut total, mut directories) = (0_u64, vec![directory.to_owned()]);
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(metadata) if metadata.is_dir() => directories.push(entry.path()),
                metadata => total = total.saturating_add(metadata.map_or(0, |metadata| metadata.len())),
            }
        }
    }
    total
}
