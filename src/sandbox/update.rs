//! UpdateContainer: new limits for a container that exists, in whichever state but *removing*.
//!
//! Goes past the actor: limits change nothing that a start, an exec or a pause depends on. Two updates of one
//! container are done one after the other, by the container's own lock.

use std::sync::{Arc, PoisonError};

use oci_spec::runtime::LinuxResources;
use slog::warn;

use super::container::{Container, Status};
use super::create::blocking;
use super::error::SandboxError;
use super::facts;
use crate::spec;

impl Container {
    /// Puts limits in force; what `resources` does not name stays as it is. CPUs and memory nodes that are not
    /// online are left out, as they are for a new container, until they come online.
    ///
    /// # Errors
    /// [`SandboxError::Removing`], [`SandboxError::Spec`] for a CPU set that is none, [`SandboxError::Cgroup`].
    pub async fn update(self: &Arc<Self>, resources: LinuxResources) -> Result<(), SandboxError> {
        let (container, mut resources) = (self.clone(), resources);
        blocking(move || {
            if container.status() == Status::Removing {
                return Err(SandboxError::Removing(container.id().clone()));
            }
            let mut asked = container.limits.lock().unwrap_or_else(PoisonError::into_inner);
            let mut wanted = asked.clone();
            wanted.update(&resources);
            let (cpus, nodes) = facts::online()?;
            let mut warnings = Vec::new();
            spec::narrow_to_online(&mut resources, &cpus, nodes.as_ref(), &mut warnings)?;
            for warning in warnings {
                warn!(container.logger, "update"; "warning" => warning);
            }
            let updated = container.cgroup().update(&resources);
            updated.map_err(|source| SandboxError::Cgroup { id: container.id().clone(), source })?;
            *asked = wanted;
            Ok(())
        })
        .await
    }
}
