//! The gate: every call of the agent is checked against the policy before anything else looks at it.
//!
//! It stands in front of the agent's service, with all of its methods from one list, so that no call passes it
//! by. Health is not gated. Built with the feature `policy`; without it there is no gate, and SetPolicy is not found.
//!
//! A read is checked before it takes bytes from a stream. One that is refused gets the stream's end, and no error: so a
//! shim goes on to wait for the process, whose output is nobody's.

use std::sync::Arc;

use async_trait::async_trait;
use nakai_protocols::agent::{self, *};
use nakai_protocols::agent_ttrpc::AgentService;
use nakai_protocols::csi::VolumeStatsResponse;
use nakai_protocols::empty::Empty;
use nakai_protocols::types::Interface;
use protobuf::MessageDyn;
use slog::{info, warn};
use ttrpc::r#async::TtrpcContext;

use super::{Agent, Answer, RpcError};
use crate::policy::Policy;

/// The agent behind its policy.
#[derive(Debug, Clone)]
pub struct Gated {
    agent: Agent,
    policy: Arc<Policy>,
}

impl Gated {
    /// Puts `policy` in front of `agent`.
    pub fn new(agent: Agent, policy: Policy) -> Self {
        Self { agent, policy: Arc::new(policy) }
    }

    /// Lets a request through, and gives it back.
    async fn check<R: MessageDyn>(&self, call: &'static str, request: R) -> ttrpc::Result<R> {
        let policy = self.policy.clone();
        // A policy may take its time, with a large specification.
        let checked =
            tokio::task::spawn_blocking(move || policy.check(&request).map(|tolerated| (request, tolerated)));
        let checked = checked.await.map_err(|_| RpcError::Task("asking the policy"));
        match checked.and_then(|checked| Ok(checked?)) {
            Ok((request, None)) => Ok(request),
            Ok((request, Some(tolerated))) => {
                warn!(self.agent.logger, "allowed by a policy that is being developed"; "call" => call, "error" => tolerated.0);
                Ok(request)
            }
            Err(error) => {
                info!(self.agent.logger, "call refused"; "call" => call, "error" => %error);
                Err(error.into())
            }
        }
    }

    async fn replace(&self, request: SetPolicyRequest) -> Answer<Empty> {
        let policy = self.policy.clone();
        tokio::task::spawn_blocking(move || policy.replace(&request.policy))
            .await
            .map_err(|_| RpcError::Task("setting the policy"))??;
        info!(self.agent.logger, "the policy was set");
        Ok(Empty::new())
    }
}

macro_rules! gated {
    ($($method:ident($request:ty) -> $response:ty;)*) => {
        /// The methods that are gated, but for those that are written out.
        #[cfg(test)]
        const METHODS: &[&str] = &[$(stringify!($method)),*];

        #[async_trait]
        impl AgentService for Gated {
            async fn read_stdout(&self, context: &TtrpcContext, r: ReadStreamRequest) -> ttrpc::Result<ReadStreamResponse> {
                match self.check("read_stdout", r).await {
                    Ok(r) => self.agent.read_stdout(context, r).await,
                    Err(_) => Ok(ReadStreamResponse::new()),
                }
            }

            async fn read_stderr(&self, context: &TtrpcContext, r: ReadStreamRequest) -> ttrpc::Result<ReadStreamResponse> {
                match self.check("read_stderr", r).await {
                    Ok(r) => self.agent.read_stderr(context, r).await,
                    Err(_) => Ok(ReadStreamResponse::new()),
                }
            }

            $(
                async fn $method(&self, context: &TtrpcContext, request: $request) -> ttrpc::Result<$response> {
                    let request = self.check(stringify!($method), request).await?;
                    self.agent.$method(context, request).await
                }
            )*

            async fn set_policy(&self, _: &TtrpcContext, request: SetPolicyRequest) -> ttrpc::Result<Empty> {
                let request = self.check("set_policy", request).await?;
                self.agent.call("SetPolicy", self.replace(request)).await
            }
        }
    };
}

gated! {
    create_container(CreateContainerRequest) -> Empty;
    start_container(StartContainerRequest) -> Empty;
    remove_container(RemoveContainerRequest) -> Empty;
    stats_container(StatsContainerRequest) -> StatsContainerResponse;
    exec_process(ExecProcessRequest) -> Empty;
    signal_process(SignalProcessRequest) -> Empty;
    wait_process(WaitProcessRequest) -> WaitProcessResponse;
    write_stdin(WriteStreamRequest) -> WriteStreamResponse;
    close_stdin(CloseStdinRequest) -> Empty;
    tty_win_resize(TtyWinResizeRequest) -> Empty;
    create_sandbox(CreateSandboxRequest) -> Empty;
    destroy_sandbox(DestroySandboxRequest) -> Empty;
    get_guest_details(GuestDetailsRequest) -> GuestDetailsResponse;
    update_container(UpdateContainerRequest) -> Empty;
    update_ephemeral_mounts(UpdateEphemeralMountsRequest) -> Empty;
    pause_container(PauseContainerRequest) -> Empty;
    resume_container(ResumeContainerRequest) -> Empty;
    remove_stale_virtiofs_share_mounts(RemoveStaleVirtiofsShareMountsRequest) -> Empty;
    get_diagnostic_data(GetDiagnosticDataRequest) -> GetDiagnosticDataResponse;
    update_interface(UpdateInterfaceRequest) -> Interface;
    update_routes(UpdateRoutesRequest) -> Routes;
    list_interfaces(ListInterfacesRequest) -> Interfaces;
    list_routes(ListRoutesRequest) -> Routes;
    add_arp_neighbors(AddARPNeighborsRequest) -> Empty;
    get_ip_tables(GetIPTablesRequest) -> GetIPTablesResponse;
    set_ip_tables(SetIPTablesRequest) -> SetIPTablesResponse;
    get_metrics(GetMetricsRequest) -> agent::Metrics;
    mem_agent_memcg_set(MemAgentMemcgConfig) -> Empty;
    mem_agent_compact_set(MemAgentCompactConfig) -> Empty;
    online_cpu_mem(OnlineCPUMemRequest) -> Empty;
    reseed_random_dev(ReseedRandomDevRequest) -> Empty;
    mem_hotplug_by_probe(MemHotplugByProbeRequest) -> Empty;
    set_guest_date_time(SetGuestDateTimeRequest) -> Empty;
    copy_file(CopyFileRequest) -> Empty;
    get_oom_event(GetOOMEventRequest) -> OOMEvent;
    add_swap(AddSwapRequest) -> Empty;
    add_swap_path(AddSwapPathRequest) -> Empty;
    get_volume_stats(VolumeStatsRequest) -> VolumeStatsResponse;
    resize_volume(ResizeVolumeRequest) -> Empty;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A method that the list lacks would be answered by the stub's own default.
    #[test]
    fn no_call_passes_the_gate_by() {
        let letters = |name: &str| name.replace('_', "").to_lowercase();
        let mut gated: Vec<String> = METHODS.iter().map(|name| letters(name)).collect();
        gated.extend(["set_policy", "read_stdout", "read_stderr"].map(letters));
        let service = agent::file_descriptor().proto().service.first().unwrap();
        for method in &service.method {
            assert!(gated.contains(&letters(method.name())), "{} is not gated", method.name());
        }
        assert_eq!(gated.len(), service.method.len());
    }
}
