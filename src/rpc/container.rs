//! CreateContainer, StartContainer, PauseContainer, ResumeContainer, UpdateContainer, RemoveContainer and
//! StatsContainer.

use std::time::Duration;

use nakai_protocols::agent::{
    self, CreateContainerRequest, NetworkStats, PauseContainerRequest, RemoveContainerRequest,
    ResumeContainerRequest, StartContainerRequest, StatsContainerRequest, StatsContainerResponse,
    UpdateContainerRequest,
};
use nakai_protocols::empty::Empty;

use super::{Agent, Answer, RpcError};
use crate::device::DeviceRequest;
use crate::guest::net_dev::Traffic;
use crate::ids::{ContainerId, GuestPath};
use crate::sandbox::{CreateContainer, SandboxError, SharedMount};
use crate::stdio::ports::StreamPorts;
use crate::storage::StorageRequest;

pub(super) async fn create(agent: &Agent, request: CreateContainerRequest) -> Answer<Empty> {
    let id = ContainerId::try_from(request.container_id.as_str())?;
    let spec = request.OCI.as_ref().ok_or(RpcError::Missing { field: "OCI" })?;
    if let Some(process) = spec.Process.as_ref() {
        agent.warn_of_unknown_capabilities(id.as_str(), process);
    }
    let checked = CreateContainer {
        id,
        spec: Box::new(nakai_protocols::spec::from_wire(spec)?),
        devices: request.devices.iter().map(DeviceRequest::try_from).collect::<Result<_, _>>()?,
        storages: request.storages.iter().map(StorageRequest::try_from).collect::<Result<_, _>>()?,
        sandbox_pidns: request.sandbox_pidns,
        ports: StreamPorts {
            stdin: request.stdin_port,
            stdout: request.stdout_port,
            stderr: request.stderr_port,
        },
        shared_mounts: request.shared_mounts.iter().map(shared_mount).collect::<Result<_, _>>()?,
    };
    // It is as large as what was made of it, and a creation takes its time.
    drop(request);
    agent.sandbox().await?.create_container(checked).await?;
    Ok(Empty::new())
}

fn shared_mount(wire: &agent::SharedMount) -> Answer<SharedMount> {
    if wire.src_ctr.is_empty() {
        return Err(RpcError::Missing { field: "shared_mounts.src_ctr" });
    }
    Ok(SharedMount {
        container: wire.src_ctr.clone(),
        source: GuestPath::try_from(wire.src_path.as_str())?,
        target: GuestPath::try_from(wire.dst_path.as_str())?,
    })
}

pub(super) async fn start(agent: &Agent, request: StartContainerRequest) -> Answer<Empty> {
    agent.sandbox().await?.container(&request.container_id)?.start().await?;
    Ok(Empty::new())
}

pub(super) async fn remove(agent: &Agent, request: RemoveContainerRequest) -> Answer<Empty> {
    let timeout = (request.timeout > 0).then(|| Duration::from_secs(request.timeout.into()));
    let sandbox = agent.sandbox().await?;
    let container = sandbox.container(&request.container_id).ok();
    let removed = sandbox.remove_container(&request.container_id, timeout).await;
    // Nothing is left open once nobody has a container to ask about; what asks again opens it again.
    if let Some(container) = container {
        agent.kept.cgroups.forget(container.cgroup());
    }
    agent.kept.network.close();
    removed?;
    Ok(Empty::new())
}

pub(super) async fn pause(agent: &Agent, request: PauseContainerRequest) -> Answer<Empty> {
    agent.sandbox().await?.container(&request.container_id)?.pause().await?;
    Ok(Empty::new())
}

pub(super) async fn resume(agent: &Agent, request: ResumeContainerRequest) -> Answer<Empty> {
    agent.sandbox().await?.container(&request.container_id)?.resume().await?;
    Ok(Empty::new())
}

pub(super) async fn update(agent: &Agent, request: UpdateContainerRequest) -> Answer<Empty> {
    let sandbox = agent.sandbox().await?;
    let container = sandbox.container(&request.container_id)?;
    if let Some(resources) = request.resources.as_ref() {
        let resources = nakai_protocols::spec::resources_from_wire(resources)?;
        container.update(resources, &sandbox.environment().records).await?;
    }
    Ok(Empty::new())
}

/// The number of the field for them in the response.
const CGROUP_STATS: u32 = 1;

/// Reads the statistics on the runtime's own thread. They are some twenty short reads of cgroupfs and procfs, which the
/// kernel answers from its memory: no disk, server or process can make them wait. Handing them to another thread and
/// being woken by it takes as long again.
pub(super) async fn stats(agent: &Agent, request: StatsContainerRequest) -> Answer<StatsContainerResponse> {
    let container = agent.sandbox().await?.container(&request.container_id)?;
    let id = container.id().clone();
    let cgroup = container
        .cgroup()
        .stats(&agent.kept.cgroups)
        .map_err(|source| SandboxError::Cgroup { id, source })?;
    let mut response = StatsContainerResponse::new();
    // Encoded already. What the generated message does not know it sends as it is.
    response.special_fields.mut_unknown_fields().add_length_delimited(CGROUP_STATS, cgroup);
    response.network_stats = container.traffic(&agent.kept.network)?.into_iter().map(network_stats).collect();
    Ok(response)
}

fn network_stats(traffic: Traffic) -> NetworkStats {
    let Traffic { name, received, sent } = traffic;
    NetworkStats {
        name,
        rx_bytes: received.bytes,
        rx_packets: received.packets,
        rx_errors: received.errors,
        rx_dropped: received.dropped,
        tx_bytes: sent.bytes,
        tx_packets: sent.packets,
        tx_errors: sent.errors,
        tx_dropped: sent.dropped,
        ..Default::default()
    }
}
