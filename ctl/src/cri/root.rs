//! A container's root filesystem as the agent sees it: a part of the shared directory, a copy, or disks.
//!
//! ```text
//! image        an overlay of its layers in the shared directory; a copy for an agent on this host, or for a container
//!              with users of its own, to whom it belongs
//! itself       the directory as it is: what the container writes is written there
//! one disk     ext4 of all layers, plugged into the machine
//! layer disks  EROFS of each layer, plugged in read-only; the agent lays them on each other
//! ```

use std::path::{Path, PathBuf};

use super::engine::Engine;
use super::extras::RootKind;
use super::mounts::Places;
use super::users::Accounts;
use super::volumes::Lent;
use super::{CriError, Holdings, Order, user_namespace};
use crate::disk::{Access, RootDisk};
use crate::image::{self, Image, Owners};
use crate::pending;
use crate::plug::Machine;
use crate::rootfs::{self, SharedRootfs};
use crate::sandbox;
use crate::state::{ContainerRecord, Lock};
use crate::tree::by_descriptor;

/// A root filesystem that the agent can see, until it is kept or dropped.
pub(super) struct Root {
    /// The specification's path.
    pub(super) guest: String,
    /// The users that it knows.
    pub(super) accounts: Accounts,
    /// The guard of the part of it that is on this host.
    pub(super) shared: Option<SharedRootfs>,
}

/// What an order's image is.
pub(super) enum Opened {
    /// A directory that is to be the root itself.
    Itself(PathBuf),
    /// Layers, which are not removed while the lock is held.
    Image(Box<Image>, Option<Lock>),
}

/// Reads and unpacks the image.
pub(super) async fn open(order: &Order, places: &Places) -> Result<Opened, CriError> {
    let reference = order.config.image.image.clone();
    let itself = order.extras.root == RootKind::Itself;
    let full = Path::new(&reference).canonicalize();
    match (places, full) {
        (_, Ok(path)) if itself && path.is_dir() => return Ok(Opened::Itself(path)),
        // Unpacked in the shared directory, and not kept beside it.
        (Places::Shared(_), Ok(path)) if itself => return Ok(Opened::Itself(path)),
        _ => {}
    }
    let opened = blocking(move || {
        let store = image::Store::of_user();
        let image = Image::open(&reference, &store)?;
        if !store.has(&image.layers) {
            return Ok::<_, image::ImageError>((image, None));
        }
        let in_use = store.in_use()?;
        // Somebody may have removed them before.
        let there = image.layers.iter().all(|layer| layer.is_dir());
        Ok((if there { image } else { Image::open(&reference, &store)? }, Some(in_use)))
    });
    let (image, in_use) = opened.await?;
    Ok(Opened::Image(Box::new(image), in_use))
}

/// Makes the files the root of the container `id`.
pub(super) async fn make(
    engine: &Engine,
    order: &Order,
    id: &str,
    opened: Opened,
    lent: &mut Lent,
    holdings: &mut Holdings,
) -> Result<Root, CriError> {
    let limit = order.extras.disk;
    let owners = user_namespace::owners(&order.config.linux.security_context.namespace_options)?;
    let (image, _in_use) = match opened {
        Opened::Itself(_) if limit.is_some() => {
            return Err(CriError::field("disk", "a directory that is the root itself has no limit"));
        }
        Opened::Itself(path) => return itself(engine.places(), path, id).await,
        Opened::Image(image, in_use) => (*image, in_use),
    };
    holdings.layers.clone_from(&image.layers);
    if let Some(owners) = owners {
        return shifted(engine.places(), order, image, id, owners).await;
    }
    match (order.extras.root, engine.places(), limit) {
        (RootKind::Disk(size), ..) => {
            one_disk(engine.machine("root")?, image, id, limit.or(size), holdings).await
        }
        (RootKind::Layers, ..) => layer_disks(engine.machine("root")?, image, id, limit, holdings).await,
        (_, Places::Shared(_), Some(bytes)) => {
            let root = lent.limited_root(&image.layers, engine.state().place("disks", id), bytes)?;
            let accounts = Accounts::read(&by_descriptor(&root))?;
            Ok(Root { guest: sandbox::guest_rootfs(id), accounts, shared: None })
        }
        (_, Places::Local(_), Some(_)) => {
            Err(CriError::field("disk", "an agent on this host gets a copy, without a limit"))
        }
        (_, Places::Shared(share), None) => {
            let (share, id) = (share.clone(), id.to_owned());
            let shared = blocking(move || SharedRootfs::share_image(&image, &share, &id)).await?;
            shared_root(shared.guest_path().to_owned(), shared)
        }
        (_, Places::Local(directory), None) => {
            let shared = copied(directory, image, id, None).await?;
            shared_root(shared.host_path().display().to_string(), shared)
        }
    }
}

/// A copy that belongs to the users of the container.
async fn shifted(
    places: &Places,
    order: &Order,
    image: Image,
    id: &str,
    owners: Owners,
) -> Result<Root, CriError> {
    let refuse = |reason: &str| Err(CriError::field("namespace_options.userns_options", reason));
    if order.extras.disk.is_some() || matches!(order.extras.root, RootKind::Disk(_) | RootKind::Layers) {
        return refuse("such a container's root is a copy, on no disk and without a limit");
    }
    if !nix::unistd::geteuid().is_root() {
        return refuse("the files of its root belong to others, which only root can do");
    }
    let (Places::Shared(directory) | Places::Local(directory)) = places;
    let shared = copied(directory, image, id, Some(owners)).await?;
    let guest = match places {
        Places::Shared(_) => shared.guest_path().to_owned(),
        Places::Local(_) => shared.host_path().display().to_string(),
    };
    shared_root(guest, shared)
}

async fn copied(
    directory: &Path,
    image: Image,
    id: &str,
    owners: Option<Owners>,
) -> Result<SharedRootfs, CriError> {
    let (directory, id) = (directory.to_owned(), id.to_owned());
    let at = CriError::io(directory.display().to_string());
    std::fs::create_dir_all(&directory).map_err(at)?;
    blocking(move || SharedRootfs::copy_image(&image, &directory, &id, owners)).await
}

fn shared_root(guest: String, shared: SharedRootfs) -> Result<Root, CriError> {
    let root = shared.open().map_err(CriError::io(shared.host_path().display().to_string()))?;
    Ok(Root { guest, accounts: Accounts::read(&by_descriptor(&root))?, shared: Some(shared) })
}

/// The users that a container knows now: it may have changed the files since it was made. One whose root is on disks
/// has those of its image.
pub(super) fn accounts(record: &ContainerRecord) -> Result<Accounts, CriError> {
    let Holdings { share, layers, .. } = &record.holdings;
    match (share, record.order.extras.root) {
        (_, RootKind::Disk(_) | RootKind::Layers) => Accounts::of_layers(layers),
        (Some(share), _) if record.holdings.root || record.holdings.limit.is_some() => {
            let root = rootfs::open(share, &record.id).map_err(CriError::io(share.display().to_string()))?;
            Accounts::read(&by_descriptor(&root))
        }
        _ => Accounts::read(Path::new(&record.order.config.image.image)),
    }
}

async fn itself(places: &Places, path: PathBuf, id: &str) -> Result<Root, CriError> {
    match places {
        Places::Local(_) => {
            Ok(Root { guest: path.display().to_string(), accounts: Accounts::read(&path)?, shared: None })
        }
        Places::Shared(share) => {
            let (share, id) = (share.clone(), id.to_owned());
            let shared = blocking(move || SharedRootfs::share(&path, &share, &id)).await?;
            shared_root(shared.guest_path().to_owned(), shared)
        }
    }
}

async fn one_disk(
    machine: &Machine,
    image: Image,
    id: &str,
    size: Option<u64>,
    holdings: &mut Holdings,
) -> Result<Root, CriError> {
    let file = machine.image("root", id, "ext4");
    let accounts = Accounts::of_layers(&image.layers)?;
    let (layers, path) = (image.layers, file.clone());
    blocking(move || image::make_disk(&layers, size, &path)).await?;
    let disk = RootDisk::plug(machine, id, file, Access::Own).await?;
    holdings.disks.push(disk.mounted(&place(id), "ext4", &[]));
    Ok(Root { guest: place(id), accounts, shared: None })
}

async fn layer_disks(
    machine: &Machine,
    image: Image,
    id: &str,
    limit: Option<u64>,
    holdings: &mut Holdings,
) -> Result<Root, CriError> {
    let accounts = Accounts::of_layers(&image.layers)?;
    let upper = machine.image("upper", id, "ext4");
    let own: Vec<_> =
        (0..image.layers.len()).map(|n| machine.image(&format!("layer{n}"), id, "erofs")).collect();
    let plugged = plug_layers(machine, image.layers, id, limit, (&upper, &own), holdings).await;
    if plugged.is_err() {
        // Those of disks that are plugged go with them.
        for path in own.iter().chain([&upper]) {
            let _ = std::fs::remove_file(path);
        }
    }
    plugged?;
    Ok(Root { guest: place(id), accounts, shared: None })
}

/// Makes the images and plugs them in. `files` are the places for images of the container's own: of what it writes,
/// and of layers that are not in the store.
async fn plug_layers(
    machine: &Machine,
    layers: Vec<PathBuf>,
    id: &str,
    limit: Option<u64>,
    files: (&Path, &[PathBuf]),
    holdings: &mut Holdings,
) -> Result<(), CriError> {
    const MEMBER: &str = "X-kata.multi-layer=true";
    if let Some(bytes) = limit {
        let (upper, path) = (files.0.to_owned(), files.0.to_owned());
        blocking(move || image::make_empty_disk(bytes, &path)).await?;
        let disk = RootDisk::plug(machine, id, upper, Access::Own).await?;
        holdings.disks.push(disk.mounted(&place(id), "ext4", &[MEMBER, "X-kata.overlay-upper"]));
    }
    let own = files.1.to_owned();
    let images = blocking(move || {
        let store = image::Store::of_user();
        let images = layers.iter().zip(&own).map(|(layer, own)| store.erofs(layer, own));
        images.collect::<Result<Vec<_>, _>>()
    });
    // The agent wants the topmost first.
    for (path, is_own) in images.await?.into_iter().rev() {
        let access = if is_own { Access::OwnReadOnly } else { Access::Shared };
        let disk = RootDisk::plug(machine, id, path, access).await?;
        holdings.disks.push(disk.mounted(&place(id), "erofs", &[MEMBER, "X-kata.overlay-lower"]));
    }
    Ok(())
}

/// Where the agent mounts it.
fn place(id: &str) -> String {
    format!("/run/kata-containers/sandbox/storage/{id}-root")
}

/// Does what blocks on a thread for that, to its end also when nobody waits for it any more.
async fn blocking<T: Send + 'static, E: Send + 'static>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, CriError>
where
    CriError: From<E>,
{
    Ok(pending::blocking(work).await.map_err(CriError::io("root filesystem"))??)
}
