//! Container images on this host: a directory, a tar of a root filesystem, an OCI image layout (a directory or a tar),
//! or what `docker save` writes; tars also compressed.
//!
//! ```text
//! reference -> source (files or entries) -> manifest (configuration, layers) -> store (unpacked layers, shared)
//!           -> rootfs::SharedRootfs (overlayfs of them for the guest), or disk (an ext4 image of them)
//! ```
//!
//! Every part is verified by its digest, and a layer that fails is not kept. What an archive may do is the business of
//! [`crate::unpack`].

mod config;
mod digest;
mod disk;
mod manifest;
mod merge;
mod source;
mod store;
#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

pub use config::{Healthcheck, ImageConfig};
pub use digest::Digest;
pub use disk::{make_disk, make_empty_disk, make_erofs};
pub use merge::{Ids, Owners, merge};
pub use store::Store;

use digest::Digesting;
use manifest::{Layer, Manifest, mismatch};
use source::Source;

use crate::unpack::{Counter, Decoded, UnpackError, decode, unpack_stream};
use crate::vm::ToolMissing;

/// The most that is read of a manifest or a configuration.
const MANIFEST_MAX: u64 = 4 << 20;

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// Neither a path nor, as nothing is pulled, anything else.
    #[error(
        "image {0}: no such file or directory on this host, and none is pulled: give a directory, a tar of a root \
         filesystem, an OCI image layout or a docker-archive"
    )]
    Missing(String),
    /// A file that can't be read.
    #[error("image {path}: {source}", path = .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// An image that is not as it must be.
    #[error("image {path}: {problem}", path = .path.display())]
    Image {
        /// The image.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A layer that is not unpacked.
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    /// A layer that can't be kept.
    #[error("image store {path}: {source}", path = .path.display())]
    Store {
        /// Where it was to be.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A file that can't be copied.
    #[error("copy {path}: {source}", path = .path.display())]
    Copy {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A program that isn't installed.
    #[error(transparent)]
    Tool(#[from] ToolMissing),
    /// A program that failed.
    #[error("{program}: {problem}")]
    Program {
        /// The program.
        program: &'static str,
        /// Its last words.
        problem: String,
    },
}

/// An image whose layers are unpacked.
#[derive(Clone, Debug)]
pub struct Image {
    /// What it says of its containers; empty for a bare root filesystem.
    pub config: ImageConfig,
    /// Its layers as directories with overlayfs's whiteouts, the lowest first. They are shared: never write to them.
    pub layers: Vec<PathBuf>,
    /// The digest of its configuration, or of the tar; none for a directory.
    pub id: Option<Digest>,
}

impl Image {
    /// Reads the image at `reference`: a path, or a path, a colon, and the name of one of the images there. Blocks.
    ///
    /// # Errors
    ///
    /// See [`ImageError`]. Nothing is left of a layer that is not in order.
    pub fn open(reference: &str, store: &Store) -> Result<Self, ImageError> {
        let (path, tag) = split(reference);
        if path.try_exists().is_ok_and(|there| !there) {
            return Err(ImageError::Missing(reference.to_owned()));
        }
        let source = Source::open(path, store.limits)?;
        match (Manifest::read(&source, tag)?, &source, tag) {
            (Some(manifest), ..) => {
                let layers = manifest.layers.iter().map(|layer| unpacked(&source, layer, store));
                let layers = layers.collect::<Result<_, ImageError>>()?;
                Ok(Self { config: manifest.config, layers, id: Some(manifest.id) })
            }
            (None, _, Some(tag)) => {
                Err(source.bad(format!("it is a root filesystem and has no image {tag:?}")))
            }
            (None, Source::Directory(path), None) => {
                let path = fs::canonicalize(path);
                let path =
                    path.map_err(|error| ImageError::Read { path: source.path().to_owned(), source: error })?;
                Ok(Self { config: ImageConfig::default(), layers: vec![path], id: None })
            }
            (None, Source::Archive { path, .. }, None) => root_archive(path, store),
        }
    }
}

/// The whole reference is a path if it is one.
fn split(reference: &str) -> (&Path, Option<&str>) {
    match reference.rsplit_once(':') {
        Some((path, tag)) if !Path::new(reference).exists() && Path::new(path).exists() => {
            (Path::new(path), Some(tag))
        }
        _ => (Path::new(reference), None),
    }
}

fn unpacked(source: &Source, layer: &Layer, store: &Store) -> Result<PathBuf, ImageError> {
    store.layer(&layer.diff_id, |target| {
        let name = source.path().join(&layer.part);
        let read = |source| ImageError::Read { path: name.clone(), source };
        let compressed = Cell::new(0);
        let packed = Counter { inner: source.need(&layer.part)?, count: &compressed };
        let mut packed = Digesting::new(packed);
        let plain = match decode(&mut packed).map_err(read)? {
            Decoded::Plain(plain) => plain,
            Decoded::Unknown(format) => {
                return Err(source.bad(format!("{} is compressed with {format}", layer.part)));
            }
        };
        let mut plain = Digesting::new(plain);
        unpack_stream(&mut plain, &name, target, true, store.limits, &compressed)?;
        let found = plain.finish().map_err(read)?;
        if found != layer.diff_id {
            return Err(mismatch(source, &format!("the contents of {}", layer.part), &layer.diff_id, &found));
        }
        let found = packed.finish().map_err(read)?;
        match &layer.digest {
            Some(digest) if *digest != found => Err(mismatch(source, &layer.part, digest, &found)),
            _ => Ok(()),
        }
    })
}

/// A tar that is itself a root filesystem: one layer, by the digest of the file.
fn root_archive(path: &Path, store: &Store) -> Result<Image, ImageError> {
    let read = |source| ImageError::Read { path: path.to_owned(), source };
    let file = fs::File::open(path).map_err(read)?;
    let id = Digesting::new(file).finish().map_err(read)?;
    let layer = store.layer(&id, |target| Ok(crate::unpack::unpack(path, target)?))?;
    Ok(Image { config: ImageConfig::default(), layers: vec![layer], id: Some(id) })
}
