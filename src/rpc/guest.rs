//! GetGuestDetails.

use nakai_protocols::agent::{AgentDetails, GuestDetailsRequest, GuestDetailsResponse};

use super::{Answer, RpcError};
use crate::guest::details::Hardware;

pub(super) async fn details(request: GuestDetailsRequest) -> Answer<GuestDetailsResponse> {
    tokio::task::spawn_blocking(move || gather(&request))
        .await
        .map_err(|_| RpcError::Task("asking the guest"))?
}

fn gather(request: &GuestDetailsRequest) -> Answer<GuestDetailsResponse> {
    let hardware = Hardware::default();
    let mut response = GuestDetailsResponse::new();
    if request.mem_block_size {
        response.mem_block_size_bytes = hardware.memory_block_size()?;
    }
    if request.mem_hotplug_probe {
        response.support_mem_hotplug_probe = hardware.has_memory_probe();
    }
    let mut agent = AgentDetails::new();
    agent.version = env!("CARGO_PKG_VERSION").to_owned();
    // The server is never PID 1 itself: the supervisor, its parent, may be.
    agent.init_daemon = nix::unistd::getppid().as_raw() == 1;
    agent.supports_seccomp = true;
    agent.storage_handlers = crate::storage::Storages::drivers().into_iter().map(str::to_owned).collect();
    agent.device_handlers = crate::device::TYPES.iter().map(|name| (*name).to_owned()).collect();
    agent.extra_features = vec!["seccomp".to_owned()];
    if cfg!(feature = "policy") {
        agent.extra_features.push("agent-policy".to_owned());
    }
    response.agent_details = Some(agent).into();
    Ok(response)
}
