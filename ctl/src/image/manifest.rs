//! What an image consists of, by an OCI image layout or by the `manifest.json` of `docker save`.

use std::io::Read as _;

use oci_spec::image::{Descriptor, ImageIndex, ImageManifest, MediaType};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::config::{Configuration, ImageConfig};
use super::digest::Digest;
use super::source::Source;
use super::{ImageError, MANIFEST_MAX};

/// An image without its contents.
#[derive(Debug)]
pub(super) struct Manifest {
    pub(super) config: ImageConfig,
    /// Of the configuration, and with it of all.
    pub(super) id: Digest,
    /// The lowest first.
    pub(super) layers: Vec<Layer>,
}

/// A layer that is still packed.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) part: String,
    /// Of the part as it is.
    pub(super) digest: Option<Digest>,
    /// Of its decompressed bytes.
    pub(super) diff_id: Digest,
}

/// More layers than any image that works: overlayfs takes 500.
const LAYERS_MAX: usize = 500;

/// How deep indexes of indexes go.
const DEPTH_MAX: usize = 4;

/// How many entries of indexes are looked at: one can name another many times, and each of those the next.
const ENTRIES_MAX: usize = 1000;

/// The name under which an index knows an image.
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// An image of the list that `docker save` writes.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

impl Manifest {
    /// Reads what `source` says of the image called `tag`, or of its only one; none if it holds no image.
    pub(super) fn read(source: &Source, tag: Option<&str>) -> Result<Option<Self>, ImageError> {
        if let Some(index) = source.text("index.json")?
            && source.part("oci-layout")?.is_some()
        {
            return oci(source, &index, tag).map(Some);
        }
        // Of a directory, that is any file of that name.
        match source {
            Source::Archive { .. } => match source.text("manifest.json")? {
                Some(list) => docker(source, &list, tag).map(Some),
                None => Ok(None),
            },
            Source::Directory(_) => Ok(None),
        }
    }

    fn of(
        source: &Source,
        config: &[u8],
        id: Digest,
        layers: Vec<(String, Option<Digest>)>,
    ) -> Result<Self, ImageError> {
        let Configuration { config, rootfs, os, architecture } = json(source, "the configuration", config)?;
        if !os.is_empty() && (&*os, &*architecture) != ("linux", host_architecture()) {
            return Err(source.bad(format!("it is for {os}/{architecture}")));
        }
        let (packed, unpacked) = (layers.len(), rootfs.diff_ids.len());
        if packed != unpacked || packed > LAYERS_MAX {
            return Err(source.bad(format!("it has {packed} layers and {unpacked} of their digests")));
        }
        let layers = layers.into_iter().zip(&rootfs.diff_ids).map(|((part, digest), diff_id)| {
            let diff_id = checked(source, diff_id)?;
            Ok(Layer { part, digest, diff_id })
        });
        Ok(Self { config, id, layers: layers.collect::<Result<_, ImageError>>()? })
    }
}

fn oci(source: &Source, index: &[u8], tag: Option<&str>) -> Result<Manifest, ImageError> {
    let index: ImageIndex = json(source, "index.json", index)?;
    let (mut found, mut left) = (Vec::new(), ENTRIES_MAX);
    for descriptor in index.manifests() {
        let names = descriptor.annotations().as_ref().and_then(|annotations| annotations.get(REF_NAME));
        if tag.is_none_or(|tag| names.is_some_and(|name| is_called(name, tag))) {
            manifests(source, descriptor, DEPTH_MAX, &mut left, &mut found)?;
        }
    }
    let descriptor = only(source, tag, found)?;
    let text = blob(source, &descriptor)?;
    let manifest: ImageManifest = json(source, "the manifest", &text)?;
    let config = blob(source, manifest.config())?;
    let layers = manifest.layers().iter().map(|layer| {
        let digest = checked(source, layer.digest().as_ref())?;
        Ok((blob_name(&digest), Some(digest)))
    });
    let layers = layers.collect::<Result<_, ImageError>>()?;
    Manifest::of(source, &config, checked(source, manifest.config().digest().as_ref())?, layers)
}

/// The manifests for this host that a descriptor leads to.
fn manifests(
    source: &Source,
    descriptor: &Descriptor,
    depth: usize,
    left: &mut usize,
    found: &mut Vec<Descriptor>,
) -> Result<(), ImageError> {
    *left = left.checked_sub(1).ok_or_else(|| source.bad("its indexes have too many entries"))?;
    let fits = |descriptor: &Descriptor| {
        descriptor.platform().as_ref().is_none_or(|platform| {
            (platform.os().to_string(), platform.architecture().to_string())
                == ("linux".to_owned(), host_architecture().to_owned())
        })
    };
    let is_index = match descriptor.media_type() {
        MediaType::ImageIndex => true,
        MediaType::Other(name) => name.ends_with("manifest.list.v2+json"),
        _ => false,
    };
    if !is_index {
        found.extend(fits(descriptor).then(|| descriptor.clone()));
        return Ok(());
    }
    let deeper = depth.checked_sub(1).ok_or_else(|| source.bad("its indexes are too deep"))?;
    let index: ImageIndex = json(source, "an index", &blob(source, descriptor)?)?;
    index.manifests().iter().try_for_each(|descriptor| manifests(source, descriptor, deeper, left, found))
}

fn docker(source: &Source, list: &[u8], tag: Option<&str>) -> Result<Manifest, ImageError> {
    let list: Vec<Saved> = json(source, "manifest.json", list)?;
    let named = |saved: &Saved| {
        let mut names = saved.repo_tags.iter().flatten();
        tag.is_none_or(|tag| names.any(|name| is_called(name, tag)))
    };
    let saved = only(source, tag, list.into_iter().filter(named).collect())?;
    let config =
        source.text(&saved.config)?.ok_or_else(|| source.bad(format!("it has no {}", saved.config)))?;
    let id = Digest::of(&config);
    // Its name is its digest, with or without an ending.
    let name = saved.config.rsplit('/').next().unwrap_or_default();
    if let Some(expected) = Digest::of_hex(name.strip_suffix(".json").unwrap_or(name))
        && expected != id
    {
        return Err(mismatch(source, &saved.config, &expected, &id));
    }
    let layers = saved.layers.into_iter().map(|part| (part, None)).collect();
    Manifest::of(source, &config, id, layers)
}

/// `name`, or the part of it behind the last colon.
fn is_called(name: &str, tag: &str) -> bool {
    name == tag || name.rsplit_once(':').is_some_and(|(_, last)| last == tag)
}

fn only<T>(source: &Source, tag: Option<&str>, found: Vec<T>) -> Result<T, ImageError> {
    let count = found.len();
    match (found.into_iter().next(), count, tag) {
        (Some(one), 1, _) => Ok(one),
        (_, 0, Some(tag)) => {
            Err(source.bad(format!("it has no image {tag:?} for linux/{}", host_architecture())))
        }
        (_, 0, None) => Err(source.bad(format!("it has no image for linux/{}", host_architecture()))),
        _ => Err(source.bad(format!("it has {count} images: name one behind a colon"))),
    }
}

/// A small blob, whole and verified.
fn blob(source: &Source, descriptor: &Descriptor) -> Result<Vec<u8>, ImageError> {
    let digest = checked(source, descriptor.digest().as_ref())?;
    let name = blob_name(&digest);
    let mut bytes = Vec::new();
    let read = source.need(&name)?.take(MANIFEST_MAX).read_to_end(&mut bytes);
    read.map_err(|error| ImageError::Read { path: source.path().join(&name), source: error })?;
    let found = Digest::of(&bytes);
    if found == digest { Ok(bytes) } else { Err(mismatch(source, &name, &digest, &found)) }
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn checked(source: &Source, digest: &str) -> Result<Digest, ImageError> {
    Digest::parse(digest).ok_or_else(|| source.bad(format!("{digest:?} is no sha256 digest")))
}

pub(super) fn mismatch(source: &Source, part: &str, expected: &Digest, found: &Digest) -> ImageError {
    source.bad(format!("{part} is {found}, not {expected}"))
}

fn json<T: DeserializeOwned>(source: &Source, part: &str, bytes: &[u8]) -> Result<T, ImageError> {
    serde_json::from_slice(bytes).map_err(|error| source.bad(format!("{part}: {error}")))
}

/// This host's architecture as images name it.
fn host_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
