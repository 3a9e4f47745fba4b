//! The container's mounts, in words that libcontainer carries out.
//!
//! libcontainer takes what it does not know for filesystem data, which it then ignores on a bind mount, and parses
//! propagation words only to ignore them. So each option is sorted here: kept, said another way, taken out to be done
//! by others ([`MountPropagation`]), or refused by name.
//!
//! `/dev` must be a tmpfs of the container's own, as libcontainer makes nodes and links in it and stumbles over those that
//! are there already: one is added where the spec has none.
//!
//! Propagation: when no mount asks for more than `private`, which is the rule, making the root private before anything is
//! mounted does for all of them, and nothing is left to do. When one asks for `shared`, the root must be shared, or it would have
//! no peer in the guest.

use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::{Linux, Mount, Spec};
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

/// The words of mount(8) that libcontainer carries out, and those that name a default.
const KNOWN: [&str; 24] = [
    "defaults",
    "ro",
    "rw",
    "suid",
    "nosuid",
    "dev",
    "nodev",
    "exec",
    "noexec",
    "async",
    "nomand",
    "atime",
    "noatime",
    "diratime",
    "nodiratime",
    "relatime",
    "norelatime",
    "strictatime",
    "nostrictatime",
    "bind",
    "rbind",
    "loud",
    "silent",
    "nolazytime",
];

/// The same, applied to everything below the mount too (`rro`, ...), see mount_setattr(2).
const RECURSIVE: [&str; 18] = [
    "rro",
    "rrw",
    "rsuid",
    "rnosuid",
    "rdev",
    "rnodev",
    "rexec",
    "rnoexec",
    "ratime",
    "rnoatime",
    "rdiratime",
    "rnodiratime",
    "rrelatime",
    "rnorelatime",
    "rstrictatime",
    "rnostrictatime",
    "rsymfollow",
    "rnosymfollow",
];

/// Rewrites `mounts` and `linux.rootfsPropagation`; returns what is left to be set, in the order of the mounts.
pub(super) fn apply(
    spec: &mut Spec,
    linux: &mut Linux,
    warnings: &mut Vec<String>,
) -> Result<Vec<MountPropagation>, SpecError> {
    let mut mounts = spec.mounts_mut().take().unwrap_or_default();
    let mut words = Vec::with_capacity(mounts.len());
    for mount in &mut mounts {
        let word = edit(mount, warnings)?;
        if is_bind(mount) || word.is_some() {
            words.push((mount.destination().clone(), word));
        }
    }
    ensure_dev(&mut mounts)?;
    spec.set_mounts(Some(mounts));
    propagation(linux, words)
}

fn is_bind(mount: &Mount) -> bool {
    mount.typ().as_deref() == Some("bind") || has(mount, "bind") || has(mount, "rbind")
}

fn has(mount: &Mount, option: &str) -> bool {
    mount.options().iter().flatten().any(|o| o == option)
}

fn refuse(mount: &Mount, reason: impl Into<String>) -> SpecError {
    SpecError::Mount { destination: mount.destination().clone(), reason: reason.into() }
}

/// Brings one mount into shape; returns its propagation word.
fn edit(mount: &mut Mount, warnings: &mut Vec<String>) -> Result<Option<(Propagation, bool)>, SpecError> {
    // Relative to the container's root, by the specification before 1.1.
    let destination = Path::new("/").join(mount.destination());
    if destination.components().any(|part| matches!(part, Component::ParentDir)) {
        return Err(refuse(mount, "its destination has a '..' part"));
    }
    let destination: PathBuf = destination.components().filter(|part| *part != Component::CurDir).collect();
    if destination == Path::new("/") {
        return Err(refuse(mount, "it would hide the root filesystem"));
    }
    mount.set_destination(destination);
    let maps = |list: &Option<Vec<_>>| list.as_ref().is_some_and(|l| !l.is_empty());
    if maps(mount.uid_mappings()) || maps(mount.gid_mappings()) || has(mount, "idmap") || has(mount, "ridmap")
    {
        return Err(refuse(mount, "id-mapped mounts are not supported"));
    }
    mount.set_uid_mappings(None).set_gid_mappings(None);
    source(mount)?;
    options(mount, warnings)
}

fn source(mount: &mut Mount) -> Result<(), SpecError> {
    let typ = mount.typ().clone().filter(|typ| !typ.is_empty());
    let source = mount.source().clone().filter(|source| !source.as_os_str().is_empty());
    if is_bind(mount) {
        match &source {
            Some(source) if source.is_absolute() => {}
            _ => return Err(refuse(mount, "a bind mount needs an absolute source")),
        }
    } else if typ.is_none() {
        return Err(refuse(mount, "it has neither a type nor the option 'bind'"));
    }
    mount.set_source(source.or_else(|| typ.clone().map(PathBuf::from))).set_typ(typ);
    Ok(())
}

fn options(mount: &mut Mount, warnings: &mut Vec<String>) -> Result<Option<(Propagation, bool)>, SpecError> {
    let (bind, recursive) = (is_bind(mount), has(mount, "rbind"));
    let mut word = None;
    let mut kept = Vec::new();
    for option in mount.options().clone().unwrap_or_default() {
        if let Some(found) = propagation_word(&option) {
            word = Some(found);
            continue;
        }
        match option.as_str() {
            "" => {}
            "tmpcopyup" | "remount" => {
                return Err(refuse(mount, format!("option {option:?} is not supported")));
            }
            // On the one mount that there is, the recursive word means the same.
            "symfollow" | "nosymfollow" if !recursive => kept.push(format!("r{option}")),
            "symfollow" | "nosymfollow" => {
                return Err(refuse(
                    mount,
                    format!("option {option:?} is not supported with 'rbind', \"r{option}\" is"),
                ));
            }
            "sync" | "dirsync" | "mand" if !bind => {
                return Err(refuse(mount, format!("option {option:?} is not supported")));
            }
            known if KNOWN.contains(&known) || RECURSIVE.contains(&known) => kept.push(option),
            // Of the filesystem, not of the mount: mount(2) ignores it on a bind mount.
            _ if bind => warnings.push(format!(
                "mount on {}: option {option:?} left out: a bind mount can't change it",
                mount.destination().display()
            )),
            _ => kept.push(option),
        }
    }
    mount.set_options((!kept.is_empty()).then_some(kept));
    Ok(word)
}

fn propagation_word(option: &str) -> Option<(Propagation, bool)> {
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

fn ensure_dev(mounts: &mut Vec<Mount>) -> Result<(), SpecError> {
    let dev = Path::new("/dev");
    if let Some(mount) = mounts.iter().find(|mount| mount.destination() == dev) {
        if mount.typ().as_deref() == Some("tmpfs") && !is_bind(mount) {
            return Ok(());
        }
        return Err(refuse(mount, "/dev must be a tmpfs, its nodes are listed in linux.devices"));
    }
    let mut mount = Mount::default();
    mount.set_destination(dev.to_owned()).set_typ(Some("tmpfs".to_owned())).set_source(Some("tmpfs".into()));
    let options = ["nosuid", "strictatime", "mode=755", "size=65536k"];
    mount.set_options(Some(options.map(str::to_owned).to_vec()));
    let below = mounts.iter().position(|mount| mount.destination().starts_with(dev)).unwrap_or(mounts.len());
    mounts.insert(below, mount);
    Ok(())
}

type Words = Vec<(PathBuf, Option<(Propagation, bool)>)>;

fn propagation(linux: &mut Linux, words: Words) -> Result<Vec<MountPropagation>, SpecError> {
    let given = linux.rootfs_propagation().clone().filter(|word| !word.is_empty());
    let root = match given.as_deref() {
        None => Propagation::Slave,
        Some(word) => {
            propagation_word(word).map(|(propagation, _)| propagation).ok_or_else(|| SpecError::Invalid {
                field: "linux.rootfsPropagation",
                value: word.to_owned(),
                reason: "it is none of shared, slave, private and unbindable",
            })?
        }
    };
    let is = |wanted| {
        move |word: &(PathBuf, Option<(Propagation, bool)>)| word.1.is_some_and(|(p, _)| p == wanted)
    };
    let any_shared = words.iter().any(is(Propagation::Shared));
    let quiet = matches!(root, Propagation::Slave | Propagation::Private);
    if quiet && words.iter().all(is(Propagation::Private)) {
        linux.set_rootfs_propagation(Some("private".to_owned()));
        return Ok(Vec::new());
    }
    let root = if any_shared { Propagation::Shared } else { root };
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
    Ok(words.into_iter().filter_map(set).collect())
}

#[cfg(test)]
#[path = "mounts_tests.rs"]
mod tests;
