//! How mounts made later on one side reach the other.
//!
//! libcontainer sets the root's propagation but no mount's. When no mount asks for more than `private`, which
//! is the rule, making the root private before anything is mounted does for all of them, and nothing is left
//! to do. When one asks for `slave` or `shared`, the root must be so too, or the mount would have nothing in
//! the guest to be tied to.

use std::path::PathBuf;

use oci_spec::runtime::Linux;
use serde::{Deserialize, Serialize};

use super::SpecError;

/// How mounts below a mount reach its peers, see mount_namespaces(7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Propagation {
    /// Both ways (MS_SHARED).
    Shared,
    /// From the guest to the container only (MS_SLAVE).
    Slave,
    /// Not at all (MS_PRIVATE).
    Private,
    /// Not at all, and it can't be bound elsewhere (MS_UNBINDABLE).
    Unbindable,
}

/// A propagation type to set with mount(2) in the container's mount namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountPropagation {
    /// The mount point, absolute, in the container.
    pub destination: PathBuf,
    /// The type to set.
    pub propagation: Propagation,
    /// Whether also on what is mounted below it (MS_REC).
    pub recursive: bool,
}

impl MountPropagation {
    /// Of the root by itself.
    pub(super) fn of_root(propagation: Propagation) -> Self {
        Self { destination: PathBuf::from("/"), propagation, recursive: false }
    }
}

/// A propagation word of a mount's options: the type, and whether it holds for all below.
pub(super) type Word = (Propagation, bool);

/// Reads an option, if it is such a word.
pub(super) fn word(option: &str) -> Option<Word> {
    Some(match option {
        "shared" => (Propagation::Shared, false),
        "rshared" => (Propagation::Shared, true),
        "slave" => (Propagation::Slave, false),
        "rslave" => (Propagation::Slave, true),
        "private" => (Propagation::Private, false),
        "rprivate" => (Propagation::Private, true),
        "unbindable" => (Propagation::Unbindable, false),
        "runbindable" => (Propagation::Unbindable, true),
        _ => return None,
    })
}

/// Sets `linux.rootfsPropagation` in libcontainer's words; returns what is left to be set, in the order of
/// `mounts`: each with its destination and its word.
pub(super) fn divide(
    linux: &mut Linux,
    mounts: Vec<(PathBuf, Option<Word>)>,
) -> Result<Vec<MountPropagation>, SpecError> {
    let given = linux.rootfs_propagation().clone().filter(|word| !word.is_empty());
    let root = match given.as_deref() {
        None => Propagation::Slave,
        Some(text) => word(text).map(|(propagation, _)| propagation).ok_or_else(|| SpecError::Invalid {
            field: "linux.rootfsPropagation",
            value: text.to_owned(),
            reason: "it is none of shared, slave, private and unbindable",
        })?,
    };
    let asks =
        |mount: &(_, Option<Word>), wanted| mount.1.is_some_and(|(propagation, _)| propagation == wanted);
    let any = |wanted| mounts.iter().any(|mount| asks(mount, wanted));
    let quiet = matches!(root, Propagation::Slave | Propagation::Private);
    if quiet && mounts.iter().all(|mount| asks(mount, Propagation::Private)) {
        linux.set_rootfs_propagation(Some("private".to_owned()));
        return Ok(Vec::new());
    }
    let root = match root {
        _ if any(Propagation::Shared) => Propagation::Shared,
        Propagation::Private if any(Propagation::Slave) => Propagation::Slave,
        root => root,
    };
    let name = match root {
        Propagation::Shared => "shared",
        Propagation::Slave => "slave",
        Propagation::Private => "private",
        Propagation::Unbindable => "unbindable",
    };
    linux.set_rootfs_propagation(Some(name.to_owned()));
    // Below a shared root a bind mount without a word would be shared as well.
    let fallback = (root == Propagation::Shared).then_some((Propagation::Private, true));
    let set = |(destination, word): (PathBuf, Option<_>)| {
        let (propagation, recursive) = word.or(fallback)?;
        Some(MountPropagation { destination, propagation, recursive })
    };
    Ok(mounts.into_iter().filter_map(set).collect())
}
