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
use super::records::asked_name;
use crate::records::Records;
use crate::spec;

impl Container {
    /// Puts limits in force; what `resources` does not name stays as it is. CPUs and memory nodes that are not
    /// online are left out, as they are for a new container, until they come online. The next server is told in
    /// `records`.
    ///
    /// # Errors
    /// [`SandboxError::Removing`], [`SandboxError::Spec`] for a CPU set that is none, [`SandboxError::Cgroup`],
    /// [`SandboxError::Record`].
    pub async fn update(
        self: &Arc<Self>,
        resources: LinuxResources,
        records: &Arc<Records>,
    ) -> Result<(), SandboxError> {
        let (container, mut resources, records) = (self.clone(), resources, records.clone());
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
            if wanted != *asked {
                let name = asked_name(container.id().as_str());
                records.write(&name, &wanted)?;
                // A removal that has begun meanwhile may have forgotten the container already.
                if container.status() == Status::Removing {
                    records.remove(&name)?;
                }
            }
            *asked = wanted;
            Ok(())
        })
        .await
    }
}
