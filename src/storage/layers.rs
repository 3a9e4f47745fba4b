//! A root filesystem of several images laid on each other (`erofs.multi-layer`): one storage on the wire for each
//! layer, which belong together.
//!
//! Pure: the group becomes ordinary storages, each layer mounted in the container's own directory, and an overlay
//! of them at the place where the root is wanted. So counting, undoing and cleaning up are those of any storage.
//!
//! ```text
//! <base>/<container>/multi-layer/upper      the writable filesystem, if one is given
//! <base>/<container>/multi-layer/0, 1, ...  the layers, the topmost first
//! <base>/<container>/multi-layer/g0, ...    layers taken together, if there are many
//! ```

use std::path::{Path, PathBuf};

use super::request::StorageRequest;
use super::{StorageError, driver, verity};
use crate::ids::{ContainerId, GuestPath};

/// So many layers' paths are sure to fit into the page that mount(2) has for options. An overlay may be on overlays,
/// but on no more of them.
const AT_ONCE: usize = 24;

/// The driver's name, and the option by which a storage of another driver belongs to the group.
pub(super) const DRIVER: &str = "erofs.multi-layer";
const MEMBER: &str = "X-kata.multi-layer=true";
/// What the host's own options begin with: none of them is for the kernel.
const OWN: &str = "X-kata.";
const UPPER: &str = "X-kata.overlay-upper";
const LOWER: &str = "X-kata.overlay-lower";
const MAKE: &str = "X-kata.mkdir.path";
const UPPER_MOUNT: &str = "{{ mount 0 }}";
const PARTITIONED: &str = "X-kata.gpt-partitioned";
/// The number of the partition that holds a layer.
pub(super) const PARTITION: &str = "X-kata.partition-number";

/// Whether a storage is one of several layers.
fn is_layer(storage: &StorageRequest) -> bool {
    storage.driver == DRIVER || storage.split_options().any(|option| option == MEMBER)
}

/// Replaces the layers among a container's storages, at the place of the first. The others stay as they are.
///
/// # Errors
///
/// The layers make no root filesystem.
pub fn unfold(
    base: &Path,
    container: &ContainerId,
    storages: Vec<StorageRequest>,
) -> Result<Vec<StorageRequest>, StorageError> {
    let (layers, others): (Vec<_>, Vec<_>) = storages.iter().cloned().partition(is_layer);
    let Some(first) = layers.first() else { return Ok(others) };
    let place = storages.iter().take_while(|storage| !is_layer(storage)).count();
    let first = first.clone();
    let stack = Stack::of(layers, first)?;
    let mut all = others;
    let unfolded = stack.unfold(&base.join(container.as_str()).join("multi-layer"))?;
    all.splice(place..place, unfolded);
    Ok(all)
}

struct Stack {
    upper: Option<StorageRequest>,
    lowers: Vec<StorageRequest>,
    /// Where the root is wanted.
    target: StorageRequest,
}

impl Stack {
    fn of(layers: Vec<StorageRequest>, first: StorageRequest) -> Result<Self, StorageError> {
        let mut stack = Self { upper: None, lowers: Vec::new(), target: first };
        for layer in layers {
            check_options(&layer)?;
            let has = |option: &str| layer.split_options().any(|word| word == option);
            if has(UPPER) || (layer.fstype != "erofs" && !has(LOWER)) {
                if stack.upper.is_some() {
                    return Err(layer.refuse("options", "there is an upper layer already"));
                }
                stack.upper = Some(layer);
            } else {
                stack.lowers.push(layer);
            }
        }
        let target = stack.upper.as_ref().or_else(|| stack.lowers.first());
        stack.target = target.cloned().unwrap_or(stack.target);
        if stack.lowers.is_empty() {
            return Err(stack.target.refuse("options", "there is no lower layer"));
        }
        let mut numbered = Vec::with_capacity(stack.lowers.len());
        for lower in stack.lowers {
            numbered.push((partition(&lower)?, lower));
        }
        if numbered.iter().all(|(number, _)| number.is_some()) {
            numbered.sort_by_key(|(number, _)| *number);
        }
        stack.lowers = numbered.into_iter().map(|(_, lower)| lower).collect();
        Ok(stack)
    }

    fn unfold(self, directory: &Path) -> Result<Vec<StorageRequest>, StorageError> {
        let mut all = Vec::with_capacity(self.lowers.len().saturating_add(2));
        let mut options = Vec::new();
        let mut directories = Vec::new();
        let upper = directory.join("upper");
        match &self.upper {
            Some(wanted) => {
                let mut paths = vec![upper.join("upper"), upper.join("work")];
                for layer in std::iter::once(wanted).chain(&self.lowers) {
                    paths.extend(made(layer, &upper)?);
                }
                paths.dedup();
                directories
                    .extend(paths.iter().map(|path| format!("{}{}", driver::KEEP_DIRECTORY, path.display())));
                options.push(format!("upperdir={}", upper.join("upper").display()));
                options.push(format!("workdir={}", upper.join("work").display()));
                all.push(layer(wanted, upper)?);
            }
            None => options.push(driver::ADD_UPPER.to_owned()),
        }
        let mut lowers = Vec::with_capacity(self.lowers.len());
        for (number, lower) in self.lowers.iter().enumerate() {
            let place = directory.join(number.to_string());
            lowers.push(place.display().to_string());
            let mut lower = layer(lower, place)?;
            lower.options.push("ro".to_owned());
            all.push(lower);
        }
        if lowers.len() > AT_ONCE {
            let mut groups = Vec::new();
            for (number, group) in lowers.chunks(AT_ONCE).enumerate() {
                // What is laid on nothing is no overlay.
                let [single] = group else {
                    let place = directory.join(format!("g{number}"));
                    groups.push(place.display().to_string());
                    let target = StorageRequest {
                        mount_point: own_place(&self.target, place)?,
                        ..self.target.clone()
                    };
                    let options = vec![format!("lowerdir={}", group.join(":"))];
                    all.push(StorageRequest { fs_group: None, ..overlay(target, options, Vec::new()) });
                    continue;
                };
                groups.push(single.clone());
            }
            lowers = groups;
        }
        options.insert(0, format!("lowerdir={}", lowers.join(":")));
        all.push(overlay(self.target, options, directories));
        Ok(all)
    }
}

/// What would be passed over must be known.
fn check_options(layer: &StorageRequest) -> Result<(), StorageError> {
    for option in layer.split_options().filter(|option| option.starts_with(OWN)) {
        let key = option.split_once('=').map_or(option, |(key, _)| key);
        match key {
            UPPER | LOWER | MAKE | PARTITIONED | PARTITION => {}
            _ if option == MEMBER => {}
            _ if key.starts_with(verity::PREFIX) => {}
            _ => return Err(layer.refuse("options", format!("{key} is unknown"))),
        }
    }
    Ok(())
}

fn partition(layer: &StorageRequest) -> Result<Option<u32>, StorageError> {
    let parse = |text: &str| {
        let number = text.parse().ok().filter(|number| *number > 0);
        number
            .ok_or_else(|| layer.refuse("options", format!("{PARTITION}={text} is no number of a partition")))
    };
    layer.option(PARTITION).map(parse).transpose()
}

/// The directories that the host wants in the upper layer's filesystem. Any layer may say so.
fn made(layer: &StorageRequest, mounted: &Path) -> Result<Vec<PathBuf>, StorageError> {
    let mut all = Vec::new();
    for option in layer.split_options() {
        let Some(wanted) = option.strip_prefix(MAKE).and_then(|rest| rest.strip_prefix('=')) else {
            continue;
        };
        // A mode may stand behind it, which only the owner of the layer's content could have a use for.
        let path = wanted.split(':').next().unwrap_or(wanted);
        let inside = path.strip_prefix(UPPER_MOUNT).map(|rest| mounted.join(rest.trim_start_matches('/')));
        all.push(
            inside.ok_or_else(|| layer.refuse("options", format!("{option} is not in the upper layer")))?,
        );
    }
    Ok(all)
}

fn overlay(target: StorageRequest, options: Vec<String>, driver_options: Vec<String>) -> StorageRequest {
    let word = || "overlay".to_owned();
    StorageRequest {
        driver: "overlayfs".to_owned(),
        driver_options,
        source: word(),
        fstype: word(),
        options,
        ..target
    }
}

fn own_place(wanted: &StorageRequest, place: PathBuf) -> Result<GuestPath, StorageError> {
    let place = place.to_str().and_then(|place| GuestPath::try_from(place).ok());
    place.ok_or_else(|| wanted.refuse("mount_point", "the layer's own place is no path"))
}

/// The storage of a single layer.
fn layer(wanted: &StorageRequest, place: PathBuf) -> Result<StorageRequest, StorageError> {
    let mount_point = own_place(wanted, place)?;
    let driver = match wanted.driver.as_str() {
        "blk" | "scsi" | "mmioblk" | "nvdimm" => wanted.driver.as_str(),
        DRIVER if wanted.source.contains(':') => "scsi",
        DRIVER => "blk",
        other => return Err(wanted.refuse("driver", format!("{other:?} holds no layer"))),
    };
    let verity =
        wanted.split_options().filter(|option| option.starts_with(verity::PREFIX)).map(str::to_owned);
    let number = partition(wanted)?.map(|number| format!("{PARTITION}={number}"));
    let options = wanted.options_without(|option| option.starts_with(OWN));
    Ok(StorageRequest {
        driver: driver.to_owned(),
        driver_options: number.into_iter().chain(verity).collect(),
        options,
        mount_point,
        fs_group: None,
        ..wanted.clone()
    })
}
