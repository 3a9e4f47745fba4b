//! Mounts that the worker makes: all of them, where it makes init itself (`own_init`), or else on the container's root
//! before libcontainer, which brings them along.
//!
//! libcontainer makes each mount in 65 to 80 system calls, most of them to look at the place again and again. What
//! needs nothing of the container's init, which is all but procfs in the usual case, can be mounted beforehand by a
//! process that has not entered the container, in a mount namespace of its own (`worker::mounts`): libcontainer binds the
//! root with all that is mounted beneath it.
//!
//! The order of the mounts holds: one that is left to libcontainer keeps all that lie beneath or above it later in the
//! list. Where it makes init and a hook or the propagation of the root has to do with the mounts, it makes all of them.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{Linux, LinuxNamespace, LinuxNamespaceType as Type, Mount, Spec};
use serde::{Deserialize, Serialize};

use super::{MountPropagation, Propagation};

/// What the worker mounts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnMounts {
    /// In this order.
    pub mounts: Vec<OwnMount>,
    /// Destinations on whose path no symbolic link is allowed: procfs, sysfs, and what libcontainer mounts later.
    pub left: Vec<PathBuf>,
    /// Whether mounts that the guest makes later stay away from the container.
    pub private: bool,
    /// The IPC namespace that a mount belongs to.
    pub ipc: Option<PathBuf>,
}

impl OwnMounts {
    /// Whether the container's `/dev` is a directory of the guest's.
    pub fn binds_dev(&self) -> bool {
        let is_it = |mount: &OwnMount| {
            mount.destination == Path::new("/dev") && matches!(mount.what, Mounted::Bind { .. })
        };
        self.mounts.iter().any(is_it)
    }
}

/// A mount of the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnMount {
    /// In the container, absolute.
    pub destination: PathBuf,
    /// What is to be seen there.
    pub what: Mounted,
    /// How.
    pub attributes: MountAttributes,
    /// Propagation kept between the volume and the guest's mount of it; none for the other mounts.
    pub tie: Option<Tie>,
}

/// What a volume has to do with the guest's mount of it (mount_namespaces(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Tie {
    /// What is mounted in one of them later is mounted in the other.
    Peer,
    /// What the guest mounts is seen, too.
    Follower,
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mounted {
    /// A new filesystem.
    Filesystem {
        /// Its type.
        kind: String,
        /// What the mount table calls its source.
        source: String,
        /// Its own options: `name` or `name=value`.
        options: Vec<String>,
    },
    /// A file or directory of the guest.
    Bind {
        /// Its path in the guest.
        source: PathBuf,
        /// With all that is mounted beneath it.
        recursive: bool,
    },
    /// The container's own cgroup (v2).
    Cgroup,
}

/// The attributes of a mount in bits of mount_setattr(2): those to be set and cleared for it, and for it and all
/// beneath it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MountAttributes {
    /// Set for the mount.
    pub set: u64,
    /// Cleared for the mount.
    pub clear: u64,
    /// Set for it and all beneath it.
    pub set_below: u64,
    /// Cleared for it and all beneath it.
    pub clear_below: u64,
}

impl MountAttributes {
    /// Whether nothing is to be changed below the mount.
    pub fn is_flat(&self) -> bool {
        self.set_below == 0 && self.clear_below == 0
    }
}

/// What a mount may need that not every container has.
struct Guest {
    /// The container is in the guest's network.
    shares_network: bool,
    /// The container joins an IPC namespace.
    joins_ipc: bool,
    /// The worker makes the container's cgroup, on v2.
    has_cgroup: bool,
    /// The container's init makes the mounts: where it is, all of them can be made.
    is_init: bool,
}

impl Guest {
    fn of(linux: &Linux, has_cgroup: bool, is_init: bool) -> Self {
        let cgroup = namespace(linux, Type::Cgroup);
        Self {
            shares_network: namespace(linux, Type::Network).is_none(),
            joins_ipc: namespace(linux, Type::Ipc).is_some_and(|ipc| ipc.path().is_some()),
            has_cgroup: has_cgroup && cgroup.is_some_and(|cgroup| cgroup.path().is_none()),
            is_init,
        }
    }
}

fn namespace(linux: &Linux, kind: Type) -> Option<&LinuxNamespace> {
    linux.namespaces().iter().flatten().find(|namespace| namespace.typ() == kind)
}

/// Whether the guest's later mounts stay away; nothing for a root that is to be shared.
fn is_private(linux: &Linux) -> Option<bool> {
    match linux.rootfs_propagation().as_deref() {
        Some("private") => Some(true),
        Some("slave") | None => Some(false),
        Some(_) => None,
    }
}

/// Whether what is mounted in the container's root is to be seen by whoever copies its namespace.
pub(super) fn is_shared(linux: &Linux) -> bool {
    linux.rootfs_propagation().as_deref() == Some("shared")
}

/// Takes all mounts out of the specification, for an init that is made without libcontainer; nothing if there is one
/// that only libcontainer can make.
///
/// Below a shared root each mount is private but for those that `propagation` ties to the guest: what is mounted in the
/// others while the container is made would else stay in the guest.
pub(super) fn take_all(
    spec: &mut Spec,
    linux: &Linux,
    has_cgroup: bool,
    propagation: &[MountPropagation],
) -> Option<OwnMounts> {
    let is_shared = is_shared(linux);
    let private = is_shared || is_private(linux)?;
    let guest = Guest::of(linux, has_cgroup, true);
    let tie = |mount: OwnMount| {
        let of_it = propagation.iter().rev().find(|one| one.destination == mount.destination);
        let tie = match of_it.map(|one| one.propagation) {
            Some(Propagation::Shared) => Some(Tie::Peer),
            Some(Propagation::Slave) => Some(Tie::Follower),
            _ => None,
        };
        let can_be_tied = is_shared && matches!(mount.what, Mounted::Bind { .. });
        OwnMount { tie: tie.filter(|_| can_be_tied), ..mount }
    };
    let read = |mount: &Mount| read(mount, &guest).map(tie);
    let mounts = spec.mounts().iter().flatten().map(read).collect::<Option<_>>()?;
    let of_the_kernel = |mount: &&Mount| matches!(mount.typ().as_deref(), Some("proc" | "sysfs"));
    let all = spec.mounts_mut().take().unwrap_or_default();
    let left = all.iter().filter(of_the_kernel).map(|mount| mount.destination().clone()).collect();
    Some(OwnMounts { mounts, left, private, ipc: None })
}

/// Takes the mounts out of the specification that the worker can make; nothing if libcontainer has to make all.
/// `has_cgroup` says that the worker makes the container's cgroup on v2; `copies_up` that memory filesystems are filled
/// with what they hide.
pub(super) fn take(spec: &mut Spec, linux: &Linux, has_cgroup: bool, copies_up: bool) -> Option<OwnMounts> {
    let private = is_private(linux)?;
    if spec.hooks().is_some() || copies_up {
        return None;
    }
    namespace(linux, Type::Mount)?;
    let ipc = namespace(linux, Type::Ipc).and_then(|ipc| ipc.path().clone());
    let guest = Guest::of(linux, has_cgroup, false);
    let (mut own, mut left): (Vec<OwnMount>, Vec<Mount>) = (Vec::new(), Vec::new());
    for mount in spec.mounts_mut().take().unwrap_or_default() {
        let in_the_way = |other: &Mount| overlap(other.destination(), mount.destination());
        match (!left.iter().any(in_the_way)).then(|| read(&mount, &guest)).flatten() {
            Some(read) => own.push(read),
            None => left.push(mount),
        }
    }
    let places = left.iter().map(|mount| mount.destination().clone()).collect();
    spec.set_mounts(Some(left));
    let is_mqueue =
        |mount: &OwnMount| matches!(&mount.what, Mounted::Filesystem { kind, .. } if kind == "mqueue");
    let ipc = ipc.filter(|_| own.iter().any(is_mqueue));
    Some(OwnMounts { mounts: own, left: places, private, ipc })
}

/// Whether one of the paths is the other, or beneath it.
fn overlap(a: &Path, b: &Path) -> bool {
    a.starts_with(b) || b.starts_with(a)
}

/// The mount, if the worker can make it.
fn read(mount: &Mount, guest: &Guest) -> Option<OwnMount> {
    let has = |word: &str| mount.options().iter().flatten().any(|option| option == word);
    let kind = mount.typ().clone().unwrap_or_default();
    let (attributes, options) = words(mount)?;
    let destination = mount.destination().clone();
    let source = mount.source().clone().unwrap_or_default();
    let what = if kind == "bind" || has("bind") || has("rbind") {
        // Who looks into /proc may find another there than libcontainer does.
        if source.starts_with("/proc") && !guest.is_init {
            return None;
        }
        Mounted::Bind { source, recursive: has("rbind") }
    } else {
        match kind.as_str() {
            "tmpfs" | "devpts" => {}
            "proc" if guest.is_init => {}
            "sysfs" if guest.shares_network || guest.is_init => {}
            "mqueue" if guest.joins_ipc || guest.is_init => {}
            "cgroup" if guest.has_cgroup && options.is_empty() => {
                return Some(OwnMount { destination, what: Mounted::Cgroup, attributes, tie: None });
            }
            _ => return None,
        }
        Mounted::Filesystem { kind, source: source.to_str()?.to_owned(), options }
    };
    Some(OwnMount { destination, what, attributes, tie: None })
}

/// The attributes that the options ask for, in libcontainer's reading, and the options that are the filesystem's;
/// nothing if there is a word that only libcontainer knows what to do with.
fn words(mount: &Mount) -> Option<(MountAttributes, Vec<String>)> {
    let (mut flags, mut cleared, mut atime, mut options) = (0, 0, 0, Vec::new());
    let mut attributes = MountAttributes::default();
    for option in mount.options().iter().flatten() {
        if let Some((is_set, bit)) = flag(option) {
            (flags, cleared) =
                if is_set { (flags | bit, cleared & !bit) } else { (flags & !bit, cleared | bit) };
        } else if let Some((is_set, bit)) = access_time(option) {
            atime = if is_set { atime | bit } else { atime & !bit };
        } else if let Some((is_set, bit)) = option.strip_prefix('r').and_then(flag_below) {
            let side = if is_set { &mut attributes.set_below } else { &mut attributes.clear_below };
            *side |= bit;
        } else {
            match option.as_str() {
                "defaults" | "async" | "nomand" | "bind" | "rbind" => {}
                word if is_odd(word) => return None,
                word => options.push(word.to_owned()),
            }
        }
    }
    attributes.set = flags;
    // A bind mount begins with those of its source; libcontainer leaves them to it.
    attributes.clear = cleared;
    if atime != 0 {
        attributes.clear |= libc::MOUNT_ATTR__ATIME;
        attributes.set |= match atime {
            _ if atime & STRICT != 0 => libc::MOUNT_ATTR_STRICTATIME,
            _ if atime & NEVER != 0 => libc::MOUNT_ATTR_NOATIME,
            _ => 0,
        };
    }
    Some((attributes, options))
}

fn flag(word: &str) -> Option<(bool, u64)> {
    Some(match word {
        "ro" => (true, libc::MOUNT_ATTR_RDONLY),
        "rw" => (false, libc::MOUNT_ATTR_RDONLY),
        "nosuid" => (true, libc::MOUNT_ATTR_NOSUID),
        "suid" => (false, libc::MOUNT_ATTR_NOSUID),
        "nodev" => (true, libc::MOUNT_ATTR_NODEV),
        "dev" => (false, libc::MOUNT_ATTR_NODEV),
        "noexec" => (true, libc::MOUNT_ATTR_NOEXEC),
        "exec" => (false, libc::MOUNT_ATTR_NOEXEC),
        "nodiratime" => (true, libc::MOUNT_ATTR_NODIRATIME),
        "diratime" => (false, libc::MOUNT_ATTR_NODIRATIME),
        "nosymfollow" => (true, libc::MOUNT_ATTR_NOSYMFOLLOW),
        "symfollow" => (false, libc::MOUNT_ATTR_NOSYMFOLLOW),
        _ => return None,
    })
}

/// The same for all beneath the mount, behind the `r`.
fn flag_below(word: &str) -> Option<(bool, u64)> {
    match word {
        "nodiratime" | "diratime" => None,
        word => flag(word),
    }
}

const NEVER: u8 = 1;
const RELATIVE: u8 = 2;
const STRICT: u8 = 4;

fn access_time(word: &str) -> Option<(bool, u8)> {
    Some(match word {
        "noatime" => (true, NEVER),
        "atime" => (false, NEVER),
        "relatime" => (true, RELATIVE),
        "norelatime" => (false, RELATIVE),
        "strictatime" => (true, STRICT),
        "nostrictatime" => (false, STRICT),
        _ => return None,
    })
}

/// Words of mount(8) that are none of a filesystem's, and that libcontainer has its own way with.
fn is_odd(word: &str) -> bool {
    const RECURSIVE: [&str; 8] = [
        "ratime",
        "rnoatime",
        "rdiratime",
        "rnodiratime",
        "rrelatime",
        "rnorelatime",
        "rstrictatime",
        "rnostrictatime",
    ];
    RECURSIVE.contains(&word) || matches!(word, "loud" | "silent" | "nolazytime")
}

#[cfg(test)]
#[path = "own_mounts_tests.rs"]
mod tests;
