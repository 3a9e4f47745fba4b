//! Mount propagation inside a container: libcontainer ignores it for single mounts, so it is set in the
//! container's mount namespace between create and start.

use std::os::fd::OwnedFd;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns};

use super::job::Failure;
use crate::spec::{MountPropagation, Propagation};

/// Enters the mount namespace of `init` for good and sets what is asked for. Paths are resolved in the container's root.
pub(super) fn apply(init: &OwnedFd, wanted: &[MountPropagation]) -> Result<(), Failure> {
    if wanted.is_empty() {
        return Ok(());
    }
    setns(init, CloneFlags::CLONE_NEWNS)
        .map_err(|errno| Failure::internal(format!("enter the container's mount namespace: {errno}")))?;
    set(wanted)
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
