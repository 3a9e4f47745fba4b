//! The ttrpc services, `grpc.AgentService` and `grpc.Health`.
//!
//! This room only translates: it checks a request, calls the sandbox, and maps the error. One file for each
//! group of calls; `error` gives every failure its code.
//!
//! Health answers from the moment the socket is open. A call that needs the sandbox waits for the rest of
//! the boot, which goes on meanwhile.

mod connection;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use connection::{read_frames, read_request};
mod container;
mod continuity;
mod diagnostics;
mod error;
mod files;
#[cfg(feature = "policy")]
mod gate;
mod guest;
mod health;
mod hotplug;
mod kernel;
mod listener;
mod mem_agent;
mod metrics;
mod network;
mod oom;
mod process;
mod sandbox;
mod server;
mod stdio;
mod storage;
mod volumes;
mod watchdog;

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use nakai_protocols::agent::{self, *};
use nakai_protocols::agent_ttrpc::AgentService;
use nakai_protocols::csi::VolumeStatsResponse;
use nakai_protocols::empty::Empty;
use nakai_protocols::oci;
use nakai_protocols::types::Interface;
use slog::{Logger, debug, info, warn};
use tokio::sync::{Notify, watch};
use ttrpc::r#async::TtrpcContext;

pub use error::RpcError;
#[cfg(feature = "policy")]
pub use gate::Gated;
pub use health::HealthService;
pub use server::{Continuity, ServeError, Server};

use crate::guest::allocator::GiveBack;
use crate::guest::net_dev::OwnTraffic;
use crate::guest::spare_thread::SpareThread;
use crate::journal::Journal;
use crate::observe::metrics::Metrics;
use crate::sandbox::{KeptFiles, Sandbox};

type Answer<T> = Result<T, RpcError>;

/// The agent as the host sees it.
#[derive(Debug, Clone)]
pub struct Agent {
    /// The sandbox, once the guest has booted far enough to have one.
    sandbox: watch::Receiver<Option<Sandbox>>,
    /// Told when the sandbox has been destroyed: the guest's work is done.
    destroyed: Arc<Notify>,
    metrics: Arc<Metrics>,
    logger: Logger,
    /// Calls leave memory behind.
    memory: GiveBack,
    kept: Arc<Kept>,
    /// For calls that wait for a thread.
    spare: SpareThread,
}

/// Files that stay open while statistics are asked for often. At rest they are closed.
#[derive(Debug, Default)]
struct Kept {
    cgroups: KeptFiles,
    network: OwnTraffic,
}

impl Agent {
    /// The agent of a guest that will have its `sandbox` soon.
    /// What its calls leave in the `journal` is given back with other memory.
    pub fn new(
        sandbox: watch::Receiver<Option<Sandbox>>,
        destroyed: Arc<Notify>,
        logger: Logger,
        journal: Arc<Journal>,
    ) -> Self {
        let kept = Arc::<Kept>::default();
        let open = kept.clone();
        let memory = GiveBack::start(move || {
            open.cgroups.clear();
            open.network.close();
            journal.trim();
        });
        let spare = SpareThread::start(&tokio::runtime::Handle::current());
        Self { sandbox, destroyed, metrics: Arc::default(), logger, memory, kept, spare }
    }

    /// The sandbox; waits for the boot to get there.
    async fn sandbox(&self) -> Answer<Sandbox> {
        let mut sandbox = self.sandbox.clone();
        let ready = sandbox.wait_for(Option::is_some).await.map_err(|_| RpcError::BootFailed)?;
        ready.clone().ok_or(RpcError::BootFailed)
    }

    /// What can't be granted is told, and is no failure (runtime specification, `config.md`, process).
    fn warn_of_unknown_capabilities(&self, container: &str, process: &oci::Process) {
        for name in nakai_protocols::spec::unknown_capabilities(process) {
            let name: String = name.chars().take(80).collect();
            warn!(self.logger, "no such capability"; "container_id" => container, "name" => name);
        }
    }

    /// Runs the body of a call, logs how it went, and maps its error.
    async fn call<T>(&self, name: &'static str, body: impl Future<Output = Answer<T>>) -> ttrpc::Result<T> {
        self.call_on(name, "", body).await
    }

    /// As [`Agent::call`], with the id of what the call is about.
    async fn call_on<T>(
        &self,
        name: &'static str,
        object: &str,
        body: impl Future<Output = Answer<T>>,
    ) -> ttrpc::Result<T> {
        let result = if watchdog::waits(name) {
            body.await
        } else {
            let begun = Instant::now();
            let result = watchdog::watch(&self.logger, &self.spare, (name, object), body).await;
            self.metrics.calls.note(name, begun.elapsed(), result.is_err());
            result
        };
        self.memory.soon();
        match &result {
            Ok(_) => debug!(self.logger, "call"; "call" => name),
            Err(error) => info!(self.logger, "call refused"; "call" => name, "error" => %error),
        }
        result.map_err(Into::into)
    }
}

type Context = TtrpcContext;

#[async_trait]
impl AgentService for Agent {
    async fn create_container(&self, _: &Context, r: CreateContainerRequest) -> ttrpc::Result<Empty> {
        self.call_on("CreateContainer", &r.container_id.clone(), container::create(self, r)).await
    }

    async fn start_container(&self, _: &Context, r: StartContainerRequest) -> ttrpc::Result<Empty> {
        self.call_on("StartContainer", &r.container_id.clone(), container::start(self, r)).await
    }

    async fn remove_container(&self, _: &Context, r: RemoveContainerRequest) -> ttrpc::Result<Empty> {
        self.call_on("RemoveContainer", &r.container_id.clone(), container::remove(self, r)).await
    }

    async fn stats_container(
        &self,
        _: &Context,
        r: StatsContainerRequest,
    ) -> ttrpc::Result<StatsContainerResponse> {
        self.call_on("StatsContainer", &r.container_id.clone(), container::stats(self, r)).await
    }

    async fn exec_process(&self, _: &Context, r: ExecProcessRequest) -> ttrpc::Result<Empty> {
        self.call_on("ExecProcess", &r.container_id.clone(), process::exec(self, r)).await
    }

    async fn signal_process(&self, _: &Context, r: SignalProcessRequest) -> ttrpc::Result<Empty> {
        self.call_on("SignalProcess", &r.container_id.clone(), process::signal(self, r)).await
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
        self.call_on("CloseStdin", &r.container_id.clone(), stdio::close(self, r)).await
    }

    async fn tty_win_resize(&self, _: &Context, r: TtyWinResizeRequest) -> ttrpc::Result<Empty> {
        self.call_on("TtyWinResize", &r.container_id.clone(), stdio::resize(self, r)).await
    }

    async fn create_sandbox(&self, _: &Context, r: CreateSandboxRequest) -> ttrpc::Result<Empty> {
        self.call_on("CreateSandbox", &r.sandbox_id.clone(), sandbox::create(self, r)).await
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
        self.call_on("UpdateContainer", &r.container_id.clone(), container::update(self, r)).await
    }

    async fn update_ephemeral_mounts(
        &self,
        _: &Context,
        r: UpdateEphemeralMountsRequest,
    ) -> ttrpc::Result<Empty> {
        self.call("UpdateEphemeralMounts", storage::update_ephemeral(self, r)).await
    }

    async fn pause_container(&self, _: &Context, r: PauseContainerRequest) -> ttrpc::Result<Empty> {
        self.call_on("PauseContainer", &r.container_id.clone(), container::pause(self, r)).await
    }

    async fn resume_container(&self, _: &Context, r: ResumeContainerRequest) -> ttrpc::Result<Empty> {
        self.call_on("ResumeContainer", &r.container_id.clone(), container::resume(self, r)).await
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

    async fn update_interface(&self, _: &Context, r: UpdateInterfaceRequest) -> ttrpc::Result<Interface> {
        self.call("UpdateInterface", network::update_interface(self, r)).await
    }

    async fn update_routes(&self, _: &Context, r: UpdateRoutesRequest) -> ttrpc::Result<Routes> {
        self.call("UpdateRoutes", network::update_routes(self, r)).await
    }

    async fn list_interfaces(&self, _: &Context, _: ListInterfacesRequest) -> ttrpc::Result<Interfaces> {
        self.call("ListInterfaces", network::list_interfaces(self)).await
    }

    async fn list_routes(&self, _: &Context, _: ListRoutesRequest) -> ttrpc::Result<Routes> {
        self.call("ListRoutes", network::list_routes(self)).await
    }

    async fn add_arp_neighbors(&self, _: &Context, r: AddARPNeighborsRequest) -> ttrpc::Result<Empty> {
        self.call("AddARPNeighbors", network::add_neighbors(self, r)).await
    }

    async fn get_ip_tables(&self, _: &Context, r: GetIPTablesRequest) -> ttrpc::Result<GetIPTablesResponse> {
        self.call("GetIPTables", network::get_ip_tables(self, r)).await
    }

    async fn set_ip_tables(&self, _: &Context, r: SetIPTablesRequest) -> ttrpc::Result<SetIPTablesResponse> {
        self.call("SetIPTables", network::set_ip_tables(self, r)).await
    }

    async fn get_metrics(&self, _: &Context, _: GetMetricsRequest) -> ttrpc::Result<agent::Metrics> {
        self.call("GetMetrics", metrics::get(self)).await
    }

    async fn mem_agent_memcg_set(&self, _: &Context, r: MemAgentMemcgConfig) -> ttrpc::Result<Empty> {
        self.call("MemAgentMemcgSet", mem_agent::set_memcg(self, r)).await
    }

    async fn mem_agent_compact_set(&self, _: &Context, r: MemAgentCompactConfig) -> ttrpc::Result<Empty> {
        self.call("MemAgentCompactSet", mem_agent::set_compact(self, r)).await
    }

    async fn online_cpu_mem(&self, _: &Context, r: OnlineCPUMemRequest) -> ttrpc::Result<Empty> {
        self.call("OnlineCPUMem", hotplug::online(self, r)).await
    }

    async fn reseed_random_dev(&self, _: &Context, r: ReseedRandomDevRequest) -> ttrpc::Result<Empty> {
        self.call("ReseedRandomDev", kernel::reseed(r)).await
    }

    async fn mem_hotplug_by_probe(&self, _: &Context, r: MemHotplugByProbeRequest) -> ttrpc::Result<Empty> {
        self.call("MemHotplugByProbe", hotplug::probe_memory(self, r)).await
    }

    async fn set_guest_date_time(&self, _: &Context, r: SetGuestDateTimeRequest) -> ttrpc::Result<Empty> {
        self.call("SetGuestDateTime", kernel::set_clock(self, r)).await
    }

    async fn copy_file(&self, _: &Context, r: CopyFileRequest) -> ttrpc::Result<Empty> {
        self.call("CopyFile", files::copy(self, r)).await
    }

    async fn get_oom_event(&self, _: &Context, _: GetOOMEventRequest) -> ttrpc::Result<OOMEvent> {
        self.call("GetOOMEvent", oom::next(self)).await
    }

    async fn add_swap(&self, _: &Context, r: AddSwapRequest) -> ttrpc::Result<Empty> {
        self.call("AddSwap", hotplug::add_swap(self, r)).await
    }

    async fn add_swap_path(&self, _: &Context, r: AddSwapPathRequest) -> ttrpc::Result<Empty> {
        self.call("AddSwapPath", hotplug::add_swap_path(self, r)).await
    }

    async fn get_volume_stats(
        &self,
        _: &Context,
        r: VolumeStatsRequest,
    ) -> ttrpc::Result<VolumeStatsResponse> {
        self.call("GetVolumeStats", volumes::stats(self, r)).await
    }

    async fn resize_volume(&self, _: &Context, r: ResizeVolumeRequest) -> ttrpc::Result<Empty> {
        self.call("ResizeVolume", volumes::resize(self, r)).await
    }

    async fn set_policy(&self, _: &Context, _: SetPolicyRequest) -> ttrpc::Result<Empty> {
        self.call("SetPolicy", async { Err(RpcError::NoPolicyEngine) }).await
    }
}
