//! The container's mounts that libcontainer does not make: see `spec::own_mounts` for which, and why.
//!
//! An init that is made without libcontainer (`init`) makes them itself. Else they are made on the container's root in a
//! mount namespace of the worker's own, from which init's is copied: nothing of them is seen in the guest, and nothing
//! stays when both have ended.
//!
//! The image is somebody else's: a place is looked for with the root as `/`, links included, and from then on it is a
//! descriptor. Where a link leads to procfs or sysfs, or to a place at which libcontainer mounts something later, the
//! container is refused: the mount would hide what is there, be hidden, or lie where it does not belong.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::{Mode, SFlag, fstat, mkdirat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

use super::job::{Failure, FailureKind};
use super::sys;
use crate::guest::beneath::{Root, fd_path};
use crate::spec::{MountAttributes, Mounted, OwnMount, OwnMounts, Tie};

/// Gives this process and its children a mount namespace of their own, in which mounts do not reach the guest's. `mounts`
/// says whether those of the guest reach it; without it nothing is changed but for what is mounted there later.
pub(super) fn leave_guest(mounts: Option<&OwnMounts>) -> Result<(), Failure> {
    let failed = |errno| Failure::internal(format!("begin a mount namespace: {errno}"));
    unshare(CloneFlags::CLONE_NEWNS).map_err(failed)?;
    // As libcontainer does in init, where it then changes nothing.
    mounts.map_or(Ok(()), |mounts| keep_from_guest(mounts.private))
}

/// In a mount namespace of its own: mounts do not reach the guest's, nor the guest's this one if it is `private`.
pub(super) fn keep_from_guest(private: bool) -> Result<(), Failure> {
    let kind = if private { MsFlags::MS_PRIVATE } else { MsFlags::MS_SLAVE };
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | kind, None::<&str>)
        .map_err(|errno| Failure::internal(format!("begin a mount namespace: {errno}")))
}

/// Mounts all of `mounts` on the root at `rootfs`. `cgroup` is the container's on v2.
pub(super) fn make(rootfs: &Path, mounts: &OwnMounts, cgroup: Option<&Path>) -> Result<(), Failure> {
    if let Some(path) = &mounts.ipc {
        // libcontainer has init join it in any case.
        join_ipc(path).map_err(|error| Failure::internal(format!("join {}: {error}", path.display())))?;
    }
    let root = Root::open(rootfs).map_err(|error| Failure::internal(error.to_string()))?;
    make_in(&root, mounts, cgroup, Tied::default())
}

/// Mounts that are mounted nowhere yet, by what they will be mounted for.
#[derive(Debug, Default)]
pub(super) struct Tied(Vec<(OwnMount, Tree)>);

/// A mount, mounted nowhere yet, and whether it shows a directory.
type Tree = (OwnedFd, bool);

/// Clones the volumes with shared or slave propagation. Must run before this mount namespace is made private: a clone
/// of a private mount has no peers.
pub(super) fn copy_tied(mounts: &OwnMounts) -> Result<Tied, Failure> {
    let mut tied = Vec::new();
    for mount in &mounts.mounts {
        let (Some(tie), Mounted::Bind { source, recursive }) = (mount.tie, &mount.what) else { continue };
        let copied = bind(source, *recursive, &mount.attributes).and_then(|tree| match tie {
            Tie::Peer => Ok(tree),
            Tie::Follower => sys::make_mounts_follow(&tree.0)
                .map(|()| tree)
                .map_err(|errno| Cause::new(format!("have it follow the guest: {errno}"))),
        });
        tied.push((mount.clone(), copied.map_err(|cause| about(mount, cause))?));
    }
    Ok(Tied(tied))
}

/// The same on a root that is open, by a process that is in the IPC namespace.
pub(super) fn make_in(
    root: &Root,
    mounts: &OwnMounts,
    cgroup: Option<&Path>,
    mut tied: Tied,
) -> Result<(), Failure> {
    for mount in &mounts.mounts {
        let copied = tied.0.iter().position(|(of, _)| of == mount).map(|at| tied.0.swap_remove(at).1);
        make_one(root, mount, &mounts.left, cgroup, copied).map_err(|cause| about(mount, cause))?;
    }
    Ok(())
}

fn about(mount: &OwnMount, Cause { kind, text }: Cause) -> Failure {
    let message = format!("mount {} on {}: {text}", name(&mount.what), mount.destination.display());
    Failure { kind, message }
}

fn join_ipc(path: &Path) -> std::io::Result<()> {
    Ok(setns(std::fs::File::open(path)?, CloneFlags::CLONE_NEWIPC)?)
}

/// What is mounted, for messages.
fn name(what: &Mounted) -> String {
    match what {
        Mounted::Filesystem { kind, .. } => kind.clone(),
        Mounted::Bind { source, .. } => source.display().to_string(),
        Mounted::Cgroup => "the cgroup".to_owned(),
    }
}

/// Why a mount can't be made.
struct Cause {
    kind: FailureKind,
    text: String,
}

impl Cause {
    fn new(text: impl Into<String>) -> Self {
        Self { kind: FailureKind::Internal, text: text.into() }
    }

    fn step(step: &str) -> impl Fn(rustix::io::Errno) -> Self {
        move |errno| Self::new(format!("{step}: {errno}"))
    }
}

/// `copied` is what is mounted, if it has been copied already.
fn make_one(
    root: &Root,
    mount: &OwnMount,
    left: &[PathBuf],
    cgroup: Option<&Path>,
    copied: Option<Tree>,
) -> Result<(), Cause> {
    let attributes = &mount.attributes;
    let (tree, is_directory) = match &mount.what {
        Mounted::Filesystem { kind, source, options } => {
            let mode = if kind == "tmpfs" { covered_mode(root, &mount.destination, options)? } else { None };
            let options: Vec<&str> = options.iter().map(String::as_str).chain(mode.as_deref()).collect();
            (new_filesystem(kind, source, &options, attributes)?, true)
        }
        Mounted::Bind { source, recursive } => match copied {
            Some(tree) => tree,
            None => bind(source, *recursive, attributes)?,
        },
        Mounted::Cgroup => {
            let tree = bind(cgroup.ok_or_else(|| Cause::new("it is not made"))?, false, attributes)?;
            // A new mount, and no part of the guest's.
            sys::make_mount_private(&tree.0)
                .map_err(|errno| Cause::new(format!("make it the container's own: {errno}")))?;
            tree
        }
    };
    if !attributes.is_flat() {
        sys::set_mount_attributes(&tree, attributes.set_below, attributes.clear_below, true)
            .map_err(|errno| Cause::new(format!("set its attributes: {errno}")))?;
    }
    let place = place(root, &mount.destination, is_directory, left)?;
    if matches!(&mount.what, Mounted::Filesystem { kind, .. } if kind == "proc" || kind == "sysfs")
        || mount.destination == Path::new("/dev")
    {
        must_be_plain(root, &mount.destination)?;
    }
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(&tree, "", &place, "", flags).map_err(Cause::step("put it there"))
}

/// The option by which a memory filesystem has the permissions of the directory that it covers, as with runc; if it
/// brings none of its own. The kernel's default is for a place that is not there yet.
fn covered_mode(root: &Root, destination: &Path, options: &[String]) -> Result<Option<String>, Cause> {
    if options.iter().any(|option| option.starts_with("mode=")) {
        return Ok(None);
    }
    let Ok(covered) = root.open_path(destination, OFlag::O_PATH | OFlag::O_DIRECTORY, Mode::empty()) else {
        return Ok(None);
    };
    let mode = fstat(&covered).map_err(|errno| Cause::new(format!("look at what it covers: {errno}")))?;
    Ok(Some(format!("mode={:o}", mode.st_mode & 0o7777)))
}

/// A new filesystem, mounted nowhere yet.
fn new_filesystem(
    kind: &str,
    source: &str,
    options: &[&str],
    attributes: &MountAttributes,
) -> Result<OwnedFd, Cause> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).map_err(Cause::step("open the filesystem"))?;
    let context = context.as_fd();
    fsconfig_set_string(context, "source", source).map_err(Cause::step("name its source"))?;
    for option in options {
        match option.split_once('=') {
            Some((name, value)) => fsconfig_set_string(context, name, value),
            None => fsconfig_set_flag(context, *option),
        }
        .map_err(|errno| Cause::new(format!("option {option:?}: {errno}")))?;
    }
    fsconfig_create(context).map_err(Cause::step("make the filesystem"))?;
    let flags = MountAttrFlags::from_bits_retain(u32::try_from(attributes.set).unwrap_or_default());
    fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, flags).map_err(Cause::step("make the mount"))
}

/// A copy of the mount at `source`, mounted nowhere yet, and whether it shows a directory.
fn bind(source: &Path, recursive: bool, attributes: &MountAttributes) -> Result<Tree, Cause> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    let tree = open_tree(rustix::fs::CWD, source, flags).map_err(Cause::step("look at it"))?;
    let kind = fstat(&tree).map_err(|errno| Cause::new(format!("look at it: {errno}")))?.st_mode;
    if attributes.set != 0 || attributes.clear != 0 {
        sys::set_mount_attributes(&tree, attributes.set, attributes.clear, false)
            .map_err(|errno| Cause::new(format!("set its attributes: {errno}")))?;
    }
    Ok((tree, SFlag::from_bits_truncate(kind) & SFlag::S_IFMT == SFlag::S_IFDIR))
}

/// The place of a mount, made if it is missing.
fn place(root: &Root, destination: &Path, is_directory: bool, left: &[PathBuf]) -> Result<OwnedFd, Cause> {
    let inside = destination.strip_prefix("/").unwrap_or(destination);
    match plain(root, inside) {
        // Most often it is a directory that is missing in one that is there.
        Err(Errno::ENOENT) if is_directory => {
            if let (Some(parent), Some(name)) = (inside.parent(), inside.file_name())
                && let Ok(parent) = plain(root, parent)
                && mkdirat(&parent, name, Mode::from_bits_truncate(0o755)).is_ok()
                && let Ok(made) = plain(root, inside)
            {
                return Ok(made);
            }
        }
        Ok(place) => return Ok(place),
        Err(_) => {}
    }
    let made = if is_directory { root.create_dir(inside, 0o755) } else { root.create_file(inside, 0o644) };
    let made = made.map_err(|error| Cause::new(error.to_string()))?;
    let path = std::fs::read_link(fd_path(made.as_fd()))
        .map_err(|error| Cause::new(format!("find out where its place is: {error}")))?;
    let inside = path.strip_prefix(root.path()).unwrap_or_else(|_| Path::new(""));
    let real = Path::new("/").join(inside);
    let in_the_way = left.iter().any(|left| left.starts_with(&real) || real.starts_with(left));
    if inside.as_os_str().is_empty() || in_the_way && real != destination {
        let text = format!("links in the image lead to {}, where nothing may be mounted", real.display());
        return Err(Cause { kind: FailureKind::InvalidSpec, text });
    }
    Ok(made)
}

/// What tells of the kernel lies where it is looked for: an image that had a link there could have another mount moved in
/// its way, and what is to be covered in it would not be (CVE-2019-19921).
fn must_be_plain(root: &Root, destination: &Path) -> Result<(), Cause> {
    plain(root, destination.strip_prefix("/").unwrap_or(destination)).map(drop).map_err(|_| Cause {
        kind: FailureKind::InvalidSpec,
        // The words of runc's, which others look for.
        text: "a link of the image's is on the way, and it must be mounted on ordinary directory".to_owned(),
    })
}

/// Opens what is beneath the root on a path without links: that path says already where it is.
fn plain(root: &Root, inside: &Path) -> nix::Result<OwnedFd> {
    let inside = if inside.as_os_str().is_empty() { Path::new(".") } else { inside };
    let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC).resolve(
        ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS,
    );
    openat2(root, inside, how)
}
