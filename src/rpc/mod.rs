//! The ttrpc services, `grpc.AgentService` and `grpc.Health`.
//!
//! This room only translates: it checks a request, calls the sandbox, and maps the error. One file for each
//! group of calls; `error` gives every failure its code. A call that is not there yet answers UNIMPLEMENTED
//! with its name.
//!
//! Health answers from the moment the socket is open. A call that needs the sandbox waits for the rest of
//! the boot, which goes on meanwhile.

mod container;
mod diagnostics;
mod error;
mod guest;
mod health;
mod oom;
mod process;
mod sandbox;
mod server;
mod stdio;
mod storage;

use std::sync::Arc;

use async_trait::async_trait;
use nakai_protocols::agent::{self, *};
use nakai_protocols::agent_ttrpc::AgentService;
use nakai_protocols::csi::VolumeStatsResponse;
use nakai_protocols::empty::Empty;
use nakai_protocols::types::Interface;
use slog::{Logger, debug, info};
use tokio::sync::{Notify, watch};
use ttrpc::r#async::TtrpcContext;

pub use error::RpcError;
pub use health::HealthService;
pub use server::{ServeError, Server};

use crate::sandbox::Sandbox;

type Answer<T> = Result<T, RpcError>;

/// The agent as the host sees it.
#[derive(Debug, Clone)]
pub struct Agent {
    /// The sandbox, once the guest has booted far enough to have one.
    sandbox: watch::Receiver<Option<Sandbox>>,
    /// Told when the sandbox has been destroyed: the guest's work is done.
    destroyed: Arc<Notify>,
    logger: Logger,
}

impl Agent {
    /// The agent of a guest that will have its `sandbox` soon.
    pub fn new(sandbox: watch::Receiver<Option<Sandbox>>, destroyed: Arc<Notify>, logger: Logger) -> Self {
        Self { sandbox, destroyed, logger }
    }

    /// The sandbox; waits for the boot to get there.
    async fn sandbox(&self) -> Answer<Sandbox> {
        let mut sandbox = self.sandbox.clone();
        let ready = sandbox.wait_for(Option::is_some).await.map_err(|_| RpcError::BootFailed)?;
        ready.clone().ok_or(RpcError::BootFailed)
    }

    /// Runs the body of a call, logs how it went, and maps its error.
    async fn call<T>(&self, name: &'static str, body: impl Future<Output = Answer<T>>) -> ttrpc::Result<T> {
        let result = body.await;
        match &result {
            Ok(_) => debug!(self.logger, "call"; "call" => name),
            Err(error) => info!(self.logger, "call refused"; "call" => name, "error" => %error),
        }
        result.map_err(Into::into)
    }

    async fn missing<T>(&self, name: &'static str) -> ttrpc::Result<T> {
        self.call(name, async { Err(RpcError::Unimplemented { call: name }) }).await
    }
}

type Context = TtrpcContext;

#[async_trait]
impl AgentService for Agent {
    async fn create_container(&self, _: &Context, r: CreateContainerRequest) -> ttrpc::Result<Empty> {
        self.call("CreateContainer", container::create(self, r)).await
    }

    async fn start_container(&self, _: &Context, r: StartContainerRequest) -> ttrpc::Result<Empty> {
        self.call("StartContainer", container::start(self, r)).await
    }

    async fn remove_container(&self, _: &Context, r: RemoveContainerRequest) -> ttrpc::Result<Empty> {
        self.call("RemoveContainer", container::remove(self, r)).await
    }

    async fn stats_container(
        &self,
        _: &Context,
        r: StatsContainerRequest,
    ) -> ttrpc::Result<StatsContainerResponse> {
        self.call("StatsContainer", container::stats(self, r)).await
    }

    async fn exec_process(&self, _: &Context, r: ExecProcessRequest) -> ttrpc::Result<Empty> {
        self.call("ExecProcess", process::exec(self, r)).await
    }

    async fn signal_process(&self, _: &Context, r: SignalProcessRequest) -> ttrpc::Result<Empty> {
        self.call("SignalProcess", process::signal(self, r)).await
    }

    async fn wait_process(&self, _: &Context, r: WaitProcessRequest) -> ttrpc::Result<WaitProcessResponse> {
        self.call("WaitProcess", process::wait(self, r)).await
    }

    async fn write_stdin(&self, _: &Context, r: WriteStreamRequest) -> ttrpc::Result<WriteStreamResponse> {
        self.call("WriteStdin", stdio::write(self, r)).await
    }

    async fn read_stdout(&self, _: &Context, r: ReadStreamRequest) -> ttrpc::Result<ReadStreamResponse> {
        self.call("ReadStdout", stdio::read(self, r, crate::sandbox::Output::Stdout)).await
    }

    async fn read_stderr(&self, _: &Context, r: ReadStreamRequest) -> ttrpc::Result<ReadStreamResponse> {
        self.call("ReadStderr", stdio::read(self, r, crate::sandbox::Output::Stderr)).await
    }

    async fn close_stdin(&self, _: &Context, r: CloseStdinRequest) -> ttrpc::Result<Empty> {
        self.call("CloseStdin", stdio::close(self, r)).await
    }

    async fn tty_win_resize(&self, _: &Context, r: TtyWinResizeRequest) -> ttrpc::Result<Empty> {
        self.call("TtyWinResize", stdio::resize(self, r)).await
    }

    async fn create_sandbox(&self, _: &Context, r: CreateSandboxRequest) -> ttrpc::Result<Empty> {
        self.call("CreateSandbox", sandbox::create(self, r)).await
    }

    async fn destroy_sandbox(&self, _: &Context, _: DestroySandboxRequest) -> ttrpc::Result<Empty> {
        self.call("DestroySandbox", sandbox::destroy(self)).await
    }

    async fn get_guest_details(
        &self,
        _: &Context,
        r: GuestDetailsRequest,
    ) -> ttrpc::Result<GuestDetailsResponse> {
        self.call("GetGuestDetails", guest::details(r)).await
    }

    async fn update_container(&self, _: &Context, r: UpdateContainerRequest) -> ttrpc::Result<Empty> {
        self.call("UpdateContainer", container::update(self, r)).await
    }

    async fn update_ephemeral_mounts(
        &self,
        _: &Context,
        r: UpdateEphemeralMountsRequest,
    ) -> ttrpc::Result<Empty> {
        self.call("UpdateEphemeralMounts", storage::update_ephemeral(self, r)).await
    }

    async fn pause_container(&self, _: &Context, r: PauseContainerRequest) -> ttrpc::Result<Empty> {
        self.call("PauseContainer", container::pause(self, r)).await
    }

    async fn resume_container(&self, _: &Context, r: ResumeContainerRequest) -> ttrpc::Result<Empty> {
        self.call("ResumeContainer", container::resume(self, r)).await
    }

    async fn remove_stale_virtiofs_share_mounts(
        &self,
        _: &Context,
        _: RemoveStaleVirtiofsShareMountsRequest,
    ) -> ttrpc::Result<Empty> {
        self.call("RemoveStaleVirtiofsShareMounts", storage::look_at_shares(self)).await
    }

    async fn get_diagnostic_data(
        &self,
        _: &Context,
        r: GetDiagnosticDataRequest,
    ) -> ttrpc::Result<GetDiagnosticDataResponse> {
        self.call("GetDiagnosticData", diagnostics::get(self, r)).await
    }

    async fn update_interface(&self, _: &Context, _: UpdateInterfaceRequest) -> ttrpc::Result<Interface> {
        self.missing("UpdateInterface").await
    }

    async fn update_routes(&self, _: &Context, _: UpdateRoutesRequest) -> ttrpc::Result<Routes> {
        self.missing("UpdateRoutes").await
    }

    async fn list_interfaces(&self, _: &Context, _: ListInterfacesRequest) -> ttrpc::Result<Interfaces> {
        self.missing("ListInterfaces").await
    }

    async fn list_routes(&self, _: &Context, _: ListRoutesRequest) -> ttrpc::Result<Routes> {
        self.missing("ListRoutes").await
    }

    async fn add_arp_neighbors(&self, _: &Context, _: AddARPNeighborsRequest) -> ttrpc::Result<Empty> {
        self.missing("AddARPNeighbors").await
    }

    async fn get_ip_tables(&self, _: &Context, _: GetIPTablesRequest) -> ttrpc::Result<GetIPTablesResponse> {
        self.missing("GetIPTables").await
    }

    async fn set_ip_tables(&self, _: &Context, _: SetIPTablesRequest) -> ttrpc::Result<SetIPTablesResponse> {
        self.missing("SetIPTables").await
    }

    async fn get_metrics(&self, _: &Context, _: GetMetricsRequest) -> ttrpc::Result<agent::Metrics> {
        self.missing("GetMetrics").await
    }

    async fn mem_agent_memcg_set(&self, _: &Context, _: MemAgentMemcgConfig) -> ttrpc::Result<Empty> {
        self.missing("MemAgentMemcgSet").await
    }

    async fn mem_agent_compact_set(&self, _: &Context, _: MemAgentCompactConfig) -> ttrpc::Result<Empty> {
        self.missing("MemAgentCompactSet").await
    }

    async fn online_cpu_mem(&self, _: &Context, _: OnlineCPUMemRequest) -> ttrpc::Result<Empty> {
        self.missing("OnlineCPUMem").await
    }

    async fn reseed_random_dev(&self, _: &Context, _: ReseedRandomDevRequest) -> ttrpc::Result<Empty> {
        self.missing("ReseedRandomDev").await
    }

    async fn mem_hotplug_by_probe(&self, _: &Context, _: MemHotplugByProbeRequest) -> ttrpc::Result<Empty> {
        self.missing("MemHotplugByProbe").await
    }

    async fn set_guest_date_time(&self, _: &Context, _: SetGuestDateTimeRequest) -> ttrpc::Result<Empty> {
        self.missing("SetGuestDateTime").await
    }

    async fn copy_file(&self, _: &Context, _: CopyFileRequest) -> ttrpc::Result<Empty> {
        self.missing("CopyFile").await
    }

    async fn get_oom_event(&self, _: &Context, _: GetOOMEventRequest) -> ttrpc::Result<OOMEvent> {
        self.call("GetOOMEvent", oom::next(self)).await
    }

    async fn add_swap(&self, _: &Context, _: AddSwapRequest) -> ttrpc::Result<Empty> {
        self.missing("AddSwap").await
    }

    async fn add_swap_path(&self, _: &Context, _: AddSwapPathRequest) -> ttrpc::Result<Empty> {
        self.missing("AddSwapPath").await
    }

    async fn get_volume_stats(
        &self,
        _: &Context,
        _: VolumeStatsRequest,
    ) -> ttrpc::Result<VolumeStatsResponse> {
        self.missing("GetVolumeStats").await
    }

    async fn resize_volume(&self, _: &Context, _: ResizeVolumeRequest) -> ttrpc::Result<Empty> {
        self.missing("ResizeVolume").await
    }

    async fn set_policy(&self, _: &Context, _: SetPolicyRequest) -> ttrpc::Result<Empty> {
        self.missing("SetPolicy").await
    }
}
