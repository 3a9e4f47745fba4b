//! The container's mounts, in words that libcontainer carries out.
//!
//! libcontainer takes what it does not know for filesystem data, which it then ignores on a bind mount, and
//! parses propagation words only to ignore them. So each option is sorted here: kept, said another way, taken
//! out to be done by others ([`MountPropagation`]), or refused by name.
//!
//! `/dev` is a tmpfs of the container's own, in which nodes and links are made: one is added where the spec has none. Or
//! it is the guest's, bound there, in which nothing is made; libcontainer knows no difference.

use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::{Linux, Mount, Spec};

use super::SpecError;
use super::propagation::{self, MountPropagation, Word};

/// See [`take_copy_up`].
const COPY_UP: &str = "tmpcopyup";

/// Whether it is a word of mount(8) that libcontainer carries out, or that names a default; or one of those that are
/// applied to everything below the mount too (`rro`, ...), see mount_setattr(2). (To look through lists of them took
/// a quarter of all that is done to a specification.)
fn is_known(word: &str) -> bool {
    #[rustfmt::skip]
    let is_known = matches!(
        word,
        "defaults" | "ro" | "rw" | "suid" | "nosuid" | "dev" | "nodev" | "exec" | "noexec" | "async" | "nomand"
            | "atime" | "noatime" | "diratime" | "nodiratime" | "relatime" | "norelatime" | "strictatime"
            | "nostrictatime" | "bind" | "rbind" | "loud" | "silent" | "nolazytime"
            | "rro" | "rrw" | "rsuid" | "rnosuid" | "rdev" | "rnodev" | "rexec" | "rnoexec" | "ratime" | "rnoatime"
            | "rdiratime" | "rnodiratime" | "rrelatime" | "rnorelatime" | "rstrictatime" | "rnostrictatime"
            | "rsymfollow" | "rnosymfollow"
    );
    is_known
}

/// Rewrites `mounts` and `linux.rootfsPropagation`; returns what is left to be set, in the order of the
/// mounts.
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
    propagation::divide(linux, words)
}

/// Takes the option `tmpcopyup` out of `mounts`: Podman and CRI-O say with it that a memory filesystem begins with what
/// it hides. libcontainer would hand it to the kernel.
pub(super) fn take_copy_up(spec: &mut Spec) -> Result<Vec<PathBuf>, SpecError> {
    let mut destinations = Vec::new();
    for mount in spec.mounts_mut().iter_mut().flatten().filter(|mount| has(mount, COPY_UP)) {
        if mount.typ().as_deref() != Some("tmpfs") || is_bind(mount) || has(mount, "ro") {
            return Err(refuse(mount, format!("option {COPY_UP:?} is for a writable tmpfs")));
        }
        let options = mount.options().iter().flatten().filter(|option| *option != COPY_UP).cloned().collect();
        mount.set_options(Some(options));
        destinations.push(Path::new("/").join(mount.destination()));
    }
    Ok(destinations)
}

/// Takes the word out of the mount on `/dev` by which nothing may be made there; tells whether it was the last one. Nodes
/// and links are made there first.
pub(super) fn take_read_only_dev(spec: &mut Spec) -> bool {
    let is_dev = |mount: &&mut Mount| mount.destination() == Path::new("/dev") && !is_bind(mount);
    let Some(dev) = spec.mounts_mut().iter_mut().flatten().rev().find(is_dev) else { return false };
    let is_about = |option: &String| matches!(option.as_str(), "ro" | "rro" | "rw" | "rrw");
    let (words, kept): (Vec<String>, Vec<String>) =
        dev.options().clone().unwrap_or_default().into_iter().partition(is_about);
    dev.set_options(Some(kept));
    words.last().is_some_and(|word| word.ends_with("ro"))
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
fn edit(mount: &mut Mount, warnings: &mut Vec<String>) -> Result<Option<Word>, SpecError> {
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

fn options(mount: &mut Mount, warnings: &mut Vec<String>) -> Result<Option<Word>, SpecError> {
    let (bind, recursive) = (is_bind(mount), has(mount, "rbind"));
    let mut word = None;
    let mut kept = Vec::new();
    let given = mount.options().clone().unwrap_or_default();
    for option in given.iter().flat_map(|given| split(given, bind)) {
        if let Some(found) = propagation::word(&option) {
            word = Some(found);
            continue;
        }
        match option.as_str() {
            "" => {}
            // Others have taken it for no bind mount.
            "bind" | "rbind" if !bind => {
                return Err(refuse(mount, format!("option {option:?} has to stand by itself")));
            }
            "remount" => {
                return Err(refuse(mount, format!("option {option:?} is not supported")));
            }
            // On the one mount that there is, the recursive word means the same.
            "symfollow" | "nosymfollow" if !recursive => kept.push(format!("r{option}")),
            "symfollow" | "nosymfollow" => kept.push(option),
            "sync" | "dirsync" | "mand" if !bind => {
                return Err(refuse(mount, format!("option {option:?} is not supported")));
            }
            word if is_known(word) => kept.push(option),
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

/// Options for a filesystem may be joined by commas, as in fstab(5): to mount(2) that is the same. A comma belongs to the
/// value within quotes or behind a backslash.
fn split(options: &str, bind: bool) -> Vec<String> {
    let (mut quoted, mut escaped) = (false, false);
    let parts = options.split(|letter| {
        let ends = letter == ',' && !bind && !quoted && !escaped;
        quoted ^= letter == '"' && !escaped;
        escaped = letter == '\\' && !escaped;
        ends
    });
    parts.map(str::to_owned).collect()
}

/// libcontainer knows the recursive word only.
pub(super) fn refuse_topmost_links(spec: &Spec) -> Result<(), SpecError> {
    for word in ["symfollow", "nosymfollow"] {
        if let Some(mount) = spec.mounts().iter().flatten().find(|mount| has(mount, word)) {
            let why = format!(
                "option {word:?} is not supported with 'rbind' where libcontainer makes the mount, \"r{word}\" is"
            );
            return Err(refuse(mount, why));
        }
    }
    Ok(())
}

/// libcontainer would make its nodes and links in what is bound on `/dev`: it may have no such container.
pub(super) fn refuse_bound_dev(spec: &Spec) -> Result<(), SpecError> {
    let mut mounts = spec.mounts().iter().flatten();
    match mounts.find(|mount| mount.destination() == Path::new("/dev") && is_bind(mount)) {
        Some(mount) => Err(refuse(
            mount,
            "a bind mount of /dev is not supported where libcontainer is needed: for hooks, for units of systemd",
        )),
        None => Ok(()),
    }
}

fn ensure_dev(mounts: &mut Vec<Mount>) -> Result<(), SpecError> {
    let dev = Path::new("/dev");
    if let Some(mount) = mounts.iter().find(|mount| mount.destination() == dev) {
        if mount.typ().as_deref() == Some("tmpfs") || is_bind(mount) {
            return Ok(());
        }
        return Err(refuse(mount, "it is a tmpfs with the nodes of linux.devices, or a bind mount"));
    }
    let mut mount = Mount::default();
    mount.set_destination(dev.to_owned()).set_typ(Some("tmpfs".to_owned())).set_source(Some("tmpfs".into()));
    let options = ["nosuid", "strictatime", "mode=755", "size=65536k"];
    mount.set_options(Some(options.map(str::to_owned).to_vec()));
    let below = mounts.iter().position(|mount| mount.destination().starts_with(dev)).unwrap_or(mounts.len());
    mounts.insert(below, mount);
    Ok(())
}

#[cfg(test)]
#[path = "mounts_tests.rs"]
mod tests;
