//! What is in a container's `/dev`, which is a memory filesystem of its own: nodes, links, and the console. Nothing
//! is added to a `/dev` that is the guest's.
//!
//! Nodes and links are made relative to one descriptor. They are those that libcontainer makes: the specification's
//! devices, six that every container has, and links into procfs.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, SFlag, fstat, fstatat, major, minor, mknodat, umask};
use nix::unistd::{UnlinkatFlags, symlinkat, unlinkat};
use oci_spec::runtime::{Linux, LinuxDevice};

use super::super::job::Failure;
use super::super::nodes;
use super::paths::put_copy;
use crate::guest::beneath::Root;

/// The devices of every container, by the runtime specification: name, major, minor.
const DEFAULT: [(&str, i64, i64); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("tty", 5, 0), ("urandom", 1, 9), ("random", 1, 8)];

const LINKS: [(&str, &str); 4] = [
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
];

/// The `/dev` of `root`.
pub(super) fn open(root: &Root) -> Result<Root, Failure> {
    let dev = root.open_path(Path::new("dev"), OFlag::O_PATH | OFlag::O_DIRECTORY, Mode::empty());
    Ok(Root::of(dev.map_err(|error| Failure::internal(error.to_string()))?, Path::new("/dev")))
}

/// Fills `dev`. `proc` is the agent's `/proc`.
pub(super) fn furnish(dev: &Root, linux: &Linux, proc: &OwnedFd) -> Result<(), Failure> {
    let before = umask(Mode::empty());
    let given = linux.devices().as_deref().unwrap_or_default();
    let made = make_nodes(dev, given).and_then(|()| make_links(dev, proc));
    umask(before);
    made
}

fn make_nodes(dev: &Root, given: &[LinuxDevice]) -> Result<(), Failure> {
    for node in given {
        nodes::make_in_dev(dev, node).map_err(|error| about(node.path(), &error))?;
    }
    for (name, major, minor) in DEFAULT {
        if given.iter().any(|node| node.path().strip_prefix("/dev").is_ok_and(|path| path == Path::new(name)))
        {
            continue;
        }
        let mut node = LinuxDevice::default();
        node.set_path(Path::new("/dev").join(name)).set_major(major).set_minor(minor);
        nodes::make_in_dev(dev, &node).map_err(|error| about(node.path(), &error))?;
    }
    Ok(())
}

fn make_links(dev: &Root, proc: &OwnedFd) -> Result<(), Failure> {
    let has_kcore = fstatat(proc, "kcore", AtFlags::empty()).is_ok();
    let kcore = has_kcore.then_some(("/proc/kcore", "kcore"));
    for (target, name) in LINKS.into_iter().chain(kcore) {
        match symlinkat(target, dev.as_fd(), name) {
            // Something has been mounted there.
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(about(&Path::new("/dev").join(name), &errno.desc())),
        }
    }
    let ptmx = || symlinkat("pts/ptmx", dev.as_fd(), "ptmx");
    let made = match ptmx() {
        // A node of the specification's: only that of the container's own terminals is of use.
        Err(Errno::EEXIST) => match unlinkat(dev.as_fd(), "ptmx", UnlinkatFlags::NoRemoveDir) {
            // But for what has been mounted there.
            Err(Errno::EBUSY | Errno::EISDIR) => Ok(()),
            removed => removed.and_then(|()| ptmx()),
        },
        other => other,
    };
    made.map_err(|errno| about(Path::new("/dev/ptmx"), &errno.desc()))
}

fn about(path: &Path, cause: &dyn std::fmt::Display) -> Failure {
    Failure::internal(format!("make {}: {cause}", path.display()))
}

/// A handle of the container's null device, and of nothing else that may be in its place.
pub(super) fn null(dev: &Root) -> Result<OwnedFd, Failure> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let failed = |cause: &str| Failure::internal(format!("open /dev/null: {cause}"));
    let null = openat(dev, "null", flags, Mode::empty()).map_err(|errno| failed(errno.desc()))?;
    let found = fstat(&null).map_err(|errno| failed(errno.desc()))?;
    let is_it = SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT == SFlag::S_IFCHR
        && (major(found.st_rdev), minor(found.st_rdev)) == (1, 3);
    if is_it { Ok(null) } else { Err(failed("it is another device")) }
}

/// Mounts the process's terminal on `/dev/console`.
pub(super) fn show_console(dev: &Root, terminal: &OwnedFd) -> Result<(), Failure> {
    let failed = |cause: &str| Failure::internal(format!("mount the terminal on /dev/console: {cause}"));
    match mknodat(dev, "console", SFlag::S_IFREG, Mode::from_bits_truncate(0o666), 0) {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(errno) => return Err(failed(errno.desc())),
    }
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let place = openat(dev, "console", flags, Mode::empty()).map_err(|errno| failed(errno.desc()))?;
    let kind = fstat(&place).map_err(|errno| failed(errno.desc()))?.st_mode;
    let kind = SFlag::from_bits_truncate(kind) & SFlag::S_IFMT;
    if !matches!(kind, SFlag::S_IFREG | SFlag::S_IFCHR) {
        return Err(failed("it is neither a file nor a device"));
    }
    put_copy(terminal.as_fd(), &place).map_err(|errno| failed(&errno.to_string()))
}
