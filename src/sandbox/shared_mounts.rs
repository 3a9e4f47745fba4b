//! Mounts that a new container gets from others that run: what a program has mounted in one container, a
//! filesystem in user space for instance, is seen in a second one.

use std::sync::Arc;

use super::container::Container;
use super::error::SandboxError;
use super::process::Process;
use super::{Environment, SharedMount};
use crate::ids::ContainerId;
use crate::worker::job::{Job, ShareMountJob};

/// The annotations that hold a container's name, of one container runtime or the other.
const NAMES: [&str; 2] = ["io.kubernetes.cri.container-name", "io.kubernetes.cri-o.ContainerName"];

/// Finds the container that each mount comes from.
///
/// # Errors
/// There is none of that name, or none that is alive.
pub(super) fn find_sources(
    id: &ContainerId,
    mounts: Vec<SharedMount>,
    containers: &[Arc<Container>],
) -> Result<Vec<(SharedMount, Arc<Container>)>, SandboxError> {
    let is_named = |container: &Container, name: &str| {
        let annotations = &container.description.annotations;
        NAMES.iter().any(|key| annotations.get(*key).is_some_and(|own| own == name))
    };
    let source = |mount: &SharedMount| {
        let mut alive = containers.iter().filter(|container| container.init.exit_status().is_none());
        alive.find(|container| is_named(container, &mount.container))
    };
    let find = |mount: SharedMount| match source(&mount) {
        Some(container) => Ok((mount, container.clone())),
        None => Err(SandboxError::SharedMountSource { id: id.clone(), name: mount.container }),
    };
    mounts.into_iter().map(find).collect()
}

/// Puts the mounts into the container whose init waits to be started.
pub(super) async fn share(
    environment: &Environment,
    id: &ContainerId,
    init: &Process,
    mounts: Vec<(SharedMount, Arc<Container>)>,
) -> Result<(), SandboxError> {
    for (mount, container) in mounts {
        let failed =
            |source| SandboxError::Launch { what: format!("share a mount with container {id}"), source };
        let handles = [init, &*container.init].map(Process::handle);
        let at = |source| SandboxError::file("share the mount", mount.source.as_path())(source);
        let [to, from] = handles.map(|handle| handle.map_err(at));
        let job = Job::ShareMount(ShareMountJob {
            source_name: mount.container.clone(),
            source_pid: container.init.pid().as_raw(),
            source: mount.source.as_path().to_owned(),
            target: mount.target.as_path().to_owned(),
        });
        environment.launcher.launch(&job, vec![to?, from?]).await.map_err(failed)?;
    }
    Ok(())
}
