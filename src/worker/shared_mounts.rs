//! A mount of one container that another one sees too: taken out of the first one's mount namespace and put into
//! the second one's, as it is, with all that is mounted beneath (open_tree(2), move_mount(2)).

use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};

use super::job::{Failure, FailureKind, ShareMountJob};
use super::sys;
use crate::guest::mountinfo;

/// How long the mount may take to be there: what mounts it is a program in the first container.
const PATIENCE: Duration = Duration::from_secs(10);

/// Paths are resolved in the root of the container that they belong to. The descriptors are handles of the inits of
/// the container that gets the mount and of the one that has it.
pub(super) fn share(job: &ShareMountJob, fds: Vec<OwnedFd>) -> Result<(), Failure> {
    let [to, from] = fds.as_slice() else {
        return Err(Failure::internal("a mount is shared between two containers"));
    };
    let mounts = File::open(format!("/proc/{}/mountinfo", job.source_pid));
    let mut mounts = mounts.map_err(|error| gone(job, &error))?;
    wait_for_mount(job, &mut mounts, from)?;
    enter(from)?;
    let source = job.source.display();
    let tree = sys::open_tree(&job.source)
        .map_err(|errno| Failure::internal(format!("take the mount {source}: {errno}")))?;
    enter(to)?;
    let target = job.target.display();
    make_target(&job.target, &tree)
        .map_err(|error| Failure::internal(format!("make the mount point {target}: {error}")))?;
    sys::move_mount(&tree, &job.target)
        .map_err(|errno| Failure::internal(format!("mount {source} on {target}: {errno}")))
}

fn gone(job: &ShareMountJob, error: &dyn std::fmt::Display) -> Failure {
    let message = format!("the mounts of container {}: {error}", job.source_name);
    Failure { kind: FailureKind::ContainerState, message }
}

fn enter(init: &OwnedFd) -> Result<(), Failure> {
    setns(init, CloneFlags::CLONE_NEWNS)
        .map_err(|errno| Failure::internal(format!("enter a container's mount namespace: {errno}")))
}

/// Waits until the path is a mount point. The kernel tells of changes by an exceptional condition of the open file
/// (proc_pid_mounts(5)).
fn wait_for_mount(job: &ShareMountJob, mounts: &mut File, init: &OwnedFd) -> Result<(), Failure> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut text = Vec::new();
        let read = mounts.rewind().and_then(|()| mounts.read_to_end(&mut text));
        read.map_err(|error| gone(job, &error))?;
        if mountinfo::parse(&text).iter().any(|mount| mount.mount_point == job.source) {
            return Ok(());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut watched =
            [PollFd::new(mounts.as_fd(), PollFlags::POLLPRI), PollFd::new(init.as_fd(), PollFlags::POLLIN)];
        let ready = poll(&mut watched, timeout);
        let ended = watched.last().is_some_and(|init| init.any() == Some(true));
        let why = match ready {
            Ok(0) => format!("it did not come within {} s", PATIENCE.as_secs()),
            Ok(_) if ended => "the container has ended".to_owned(),
            Ok(_) | Err(nix::errno::Errno::EINTR) => continue,
            Err(errno) => errno.to_string(),
        };
        let message = format!("the mount {} of container {}: {why}", job.source.display(), job.source_name);
        return Err(Failure { kind: FailureKind::ContainerState, message });
    }
}

/// A directory for a directory, an empty file for anything else.
fn make_target(target: &Path, tree: &OwnedFd) -> std::io::Result<()> {
    if target.exists() {
        return Ok(());
    }
    let stat = nix::sys::stat::fstat(tree)?;
    if stat.st_mode & libc::S_IFMT == libc::S_IFDIR {
        return std::fs::create_dir_all(target);
    }
    if let Some(parent) = target.parent() {
        std::fs::create_dir_all(parent)?;
    }
    File::create_new(target).map(drop)
}
