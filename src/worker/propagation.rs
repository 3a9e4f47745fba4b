//! What becomes of a container's mounts once all is in its place: their propagation, which libcontainer ignores for
//! single mounts, and a read-only `/dev`. Set in the container's mount namespace between create and start.

use std::os::fd::OwnedFd;

use nix::fcntl::OFlag;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::Mode;

use super::job::{CreateJob, Failure};
use super::sys;
use crate::spec::{MountPropagation, Propagation};

/// Enters the mount namespace of `init` for good and sets what is asked for. Paths are resolved in the container's root.
pub(super) fn apply(init: &OwnedFd, job: &CreateJob) -> Result<(), Failure> {
    if job.propagation.is_empty() && !job.read_only_dev {
        return Ok(());
    }
    setns(init, CloneFlags::CLONE_NEWNS)
        .map_err(|errno| Failure::internal(format!("enter the container's mount namespace: {errno}")))?;
    set(&job.propagation)?;
    if job.read_only_dev { make_dev_read_only() } else { Ok(()) }
}

/// Lets nothing be made in `/dev` any more, in a process as above.
pub(super) fn make_dev_read_only() -> Result<(), Failure> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    nix::fcntl::open("/dev", flags, Mode::empty())
        .and_then(|dev| sys::set_mount_attributes(&dev, libc::MOUNT_ATTR_RDONLY, 0, false))
        .map_err(|errno| Failure::internal(format!("make /dev read-only: {errno}")))
}

/// The same in a process whose mount namespace and root are the container's.
pub(super) fn set(wanted: &[MountPropagation]) -> Result<(), Failure> {
    for mount_point in wanted {
        let kind = match mount_point.propagation {
            Propagation::Shared => MsFlags::MS_SHARED,
            Propagation::Slave => MsFlags::MS_SLAVE,
            Propagation::Private => MsFlags::MS_PRIVATE,
            Propagation::Unbindable => MsFlags::MS_UNBINDABLE,
        };
        let recursive = if mount_point.recursive { MsFlags::MS_REC } else { MsFlags::empty() };
        let target = &mount_point.destination;
        mount(None::<&str>, target, None::<&str>, kind | recursive, None::<&str>).map_err(|errno| {
            Failure::internal(format!(
                "make the mount on {} {:?}: {errno}",
                target.display(),
                mount_point.propagation
            ))
        })?;
    }
    Ok(())
}
