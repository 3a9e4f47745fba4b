//! A guest that grows: OnlineCPUMem, MemHotplugByProbe, AddSwap and AddSwapPath.
//!
//! When CPUs or memory nodes have come online, the CPU sets of all containers follow ([`Container::follow`]): one
//! that asked for more than there was gets what it asked for. A container that asked for none has all, which
//! cgroup v2 does by itself; on v1 its set is a copy that was made when it was created, and has to be widened.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use oci_spec::runtime::{LinuxCpu, LinuxResources};
use serde::{Deserialize, Serialize};
use slog::{info, warn};

use super::container::{Container, Status};
use super::create::blocking;
use super::error::SandboxError;
use super::{Sandbox, facts};
use crate::cgroup::{CgroupError, Hierarchy};
use crate::device::{Address, DeviceError};
use crate::guest::swap::swap_on;
use crate::ids::GuestPath;
use crate::spec;

/// How long CPUs are waited for at least: hosts plug them in one by one, and go on before the guest has seen them.
const CPU_LIMIT: Duration = Duration::from_secs(5);

/// OnlineCPUMem, checked.
#[derive(Debug, Clone, Copy)]
pub struct Grow {
    /// How many CPUs the guest shall have online; 0 leaves them alone.
    pub cpus: u32,
    /// Whether memory is left alone.
    pub cpu_only: bool,
    /// Whether it is an error if CPUs don't come. Shims don't ask for that, and rely on them all the same.
    pub wait: bool,
}

/// Where swap space is.
#[derive(Debug, Clone)]
pub enum Swap {
    /// On a block device, which may still have to come.
    Device(Address),
    /// In a file.
    File(GuestPath),
}

/// The CPUs and memory nodes that a container was last asked to have: texts of the host's that may name more
/// than is online.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Asked {
    cpus: Option<String>,
    nodes: Option<String>,
}

impl Asked {
    pub(super) fn of(resources: Option<&LinuxResources>) -> Self {
        let mut asked = Self::default();
        if let Some(resources) = resources {
            asked.update(resources);
        }
        asked
    }

    /// What `resources` does not name stays as it is.
    pub(super) fn update(&mut self, resources: &LinuxResources) {
        let Some(cpu) = resources.cpu() else { return };
        let named = |text: &Option<String>| text.clone().filter(|text| !text.trim().is_empty());
        self.cpus = named(cpu.cpus()).or_else(|| self.cpus.take());
        self.nodes = named(cpu.mems()).or_else(|| self.nodes.take());
    }
}

impl Sandbox {
    /// Brings CPUs and memory online, and containers have them then. CPUs that are not there yet are waited for. If they
    /// don't come in time, that is an error if the host asked to wait; else they come online when they come.
    ///
    /// # Errors
    /// [`SandboxError::Device`]: CPUs did not come. [`SandboxError::Cgroup`]: a container can't have them.
    pub async fn grow(&self, grow: Grow) -> Result<(), SandboxError> {
        let sandbox = self.clone();
        // A task of its own: what is online is the containers', also if the caller has gone away.
        let work = tokio::spawn(async move { sandbox.grow_and_follow(grow).await });
        work.await.unwrap_or(Err(SandboxError::TaskEnded("the task of the call")))
    }

    async fn grow_and_follow(&self, grow: Grow) -> Result<(), SandboxError> {
        let devices = &self.inner.environment.devices;
        if !grow.cpu_only {
            devices.online_memory().await?;
        }
        let cpus = devices.online_cpus(grow.cpus, self.cpu_limit()).await;
        let followed = self.follow().await;
        match cpus {
            Err(late @ DeviceError::Cpus { .. }) if !grow.wait => {
                warn!(self.inner.environment.logger, "CPUs come late, if at all"; "cause" => %late);
                self.grow_later(grow);
            }
            other => other?,
        }
        followed
    }

    fn cpu_limit(&self) -> Duration {
        self.inner.environment.config.hotplug_timeout.max(CPU_LIMIT)
    }

    fn grow_later(&self, grow: Grow) {
        let (sandbox, logger) = (self.clone(), self.inner.environment.logger.clone());
        tokio::spawn(async move {
            let limit = sandbox.cpu_limit();
            let cpus = sandbox.inner.environment.devices.online_cpus(grow.cpus, limit).await;
            let followed = sandbox.follow().await;
            if let Err(error) = cpus.map_err(SandboxError::from).and(followed) {
                warn!(logger, "the guest has not grown as it should"; "error" => %error);
            }
        });
    }

    /// Gives all containers what has come online.
    async fn follow(&self) -> Result<(), SandboxError> {
        // Before the list is made: a container that is not in it yet sees that it has to look itself.
        self.inner.grown.fetch_add(1, Ordering::SeqCst);
        let mut outcome = Ok(());
        for container in self.containers() {
            outcome = outcome.and(container.follow().await);
        }
        outcome
    }

    /// Adds memory blocks that the host has plugged in at these physical addresses.
    ///
    /// # Errors
    /// [`SandboxError::Device`].
    pub async fn probe_memory(&self, addresses: Vec<u64>) -> Result<(), SandboxError> {
        Ok(self.inner.environment.devices.probe_memory(addresses).await?)
    }

    /// Adds swap space.
    ///
    /// # Errors
    /// [`SandboxError::Device`]: it did not come. [`SandboxError::Swap`]: it is none.
    pub async fn add_swap(&self, swap: Swap) -> Result<(), SandboxError> {
        let path = match swap {
            Swap::Device(address) => self.inner.environment.devices.find_block(&address).await?,
            Swap::File(path) => path.as_path().to_owned(),
        };
        let logger = self.inner.environment.logger.clone();
        blocking(move || {
            swap_on(&path)?;
            info!(logger, "swap space"; "path" => %path.display());
            Ok(())
        })
        .await
    }
}

impl Container {
    /// Widens its CPU and memory node sets to what it asked for, as far as that is online.
    pub(super) async fn follow(self: &Arc<Self>) -> Result<(), SandboxError> {
        let container = self.clone();
        blocking(move || {
            let asked = container.limits.lock().unwrap_or_else(PoisonError::into_inner);
            if container.status() == Status::Removing {
                return Ok(());
            }
            let Some(resources) = sets(&asked, container.cgroup().hierarchy())? else { return Ok(()) };
            match container.cgroup().update(&resources) {
                Ok(()) | Err(CgroupError::NotFound { .. }) => Ok(()),
                Err(source) => Err(SandboxError::Cgroup { id: container.id().clone(), source }),
            }
        })
        .await
    }
}

/// The sets that a container gets now, if they have to be written at all.
fn sets(asked: &Asked, hierarchy: &Hierarchy) -> Result<Option<LinuxResources>, SandboxError> {
    let (online_cpus, online_nodes) = facts::online()?;
    let mut cpu = LinuxCpu::default();
    cpu.set_cpus(asked.cpus.clone()).set_mems(asked.nodes.clone());
    let mut resources = LinuxResources::default();
    resources.set_cpu(Some(cpu));
    spec::narrow_to_online(&mut resources, &online_cpus, online_nodes.as_ref(), &mut Vec::new())?;
    let copied = !hierarchy.is_v2() && hierarchy.controller("cpuset").is_some();
    if let Some(cpu) = resources.cpu_mut().as_mut().filter(|_| copied) {
        let cpus = cpu.cpus().clone().or_else(|| Some(online_cpus.to_string()));
        let nodes = cpu.mems().clone().or_else(|| online_nodes.map(|nodes| nodes.to_string()));
        cpu.set_cpus(cpus).set_mems(nodes);
    }
    let any = resources.cpu().as_ref().is_some_and(|cpu| cpu.cpus().is_some() || cpu.mems().is_some());
    Ok(any.then_some(resources))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;

    fn asked(cpu: serde_json::Value) -> Asked {
        Asked::of(Some(&serde_json::from_value(json!({ "cpu": cpu })).unwrap()))
    }

    #[test]
    fn the_last_set_that_was_named_counts() {
        let mut asked = asked(json!({"cpus": "0-3", "mems": "0"}));
        asked.update(&serde_json::from_value(json!({"cpu": {"cpus": "0-7", "mems": ""}})).unwrap());
        asked.update(&serde_json::from_value(json!({"pids": {"limit": 3}})).unwrap());
        assert_eq!((asked.cpus.as_deref(), asked.nodes.as_deref()), (Some("0-7"), Some("0")));
    }

    #[test]
    fn only_v1_is_told_what_nobody_asked_for() {
        let v2 = Hierarchy::V2 { mount_point: "/sys/fs/cgroup".into() };
        let named = |name: &str| (name.to_owned(), "/sys/fs/cgroup/x".into());
        let v1 = Hierarchy::V1 { controllers: BTreeMap::from([named("cpuset")]) };
        let without = Hierarchy::V1 { controllers: BTreeMap::from([named("memory")]) };
        let cpus = |asked: &Asked, hierarchy: &Hierarchy| {
            let resources = sets(asked, hierarchy).unwrap();
            resources.and_then(|resources| resources.cpu().as_ref().and_then(|cpu| cpu.cpus().clone()))
        };
        let all = facts::online().unwrap().0.to_string();
        let (nothing, first) = (Asked::default(), asked(json!({"cpus": "0,8191"})));
        assert_eq!(cpus(&nothing, &v2), None);
        assert_eq!(cpus(&nothing, &without), None);
        assert_eq!(cpus(&nothing, &v1).as_deref(), Some(&*all));
        assert_eq!(cpus(&first, &v1).as_deref(), Some("0"));
        assert_eq!(cpus(&first, &v2).as_deref(), Some("0"));
    }
}
