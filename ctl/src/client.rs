//! Typed calls to the agent over one connection.
//!
//! A [`Client`] is cheap to clone; clones share the connection, and any number of calls may be in
//! flight. Calls that end when a process does (wait, reads, writes) have no time limit, the others
//! have [`CALL_TIMEOUT`], as a Kata shim's have; [`Client::within`] sets another limit for all of
//! them. The limit travels with the request, so that the agent too gives up then.
//!
//! An empty `exec` names the container's init process, except in
//! [`signal_process`](Client::signal_process).

use std::time::Duration;

use nakai_protocols::agent::{
    CloseStdinRequest, CreateContainerRequest, CreateSandboxRequest, DestroySandboxRequest,
    ExecProcessRequest, GetMetricsRequest, GetOOMEventRequest, GuestDetailsRequest, GuestDetailsResponse,
    PauseContainerRequest, ReadStreamRequest, RemoveContainerRequest, RemoveStaleVirtiofsShareMountsRequest,
    ResumeContainerRequest, SignalProcessRequest, StartContainerRequest, StatsContainerRequest,
    StatsContainerResponse, TtyWinResizeRequest, WaitProcessRequest, WriteStreamRequest,
};
use nakai_protocols::agent_ttrpc::AgentServiceClient;
use nakai_protocols::health::{CheckRequest, VersionCheckResponse};
use nakai_protocols::health_ttrpc::HealthClient;
use nakai_protocols::oci;
use ttrpc::asynchronous::transport::Socket;
use ttrpc::context::Context;

use crate::address::Address;
use crate::connect::{self, CONNECT_TIMEOUT, ConnectError, Stream};
use crate::error::CallError;

/// The limit of a call that does not wait for a process.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(60);

/// A connection to an agent.
#[derive(Clone)]
pub struct Client {
    agent: AgentServiceClient,
    health: HealthClient,
    limit: Option<Duration>,
    peer: Option<String>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("limit", &self.limit).finish_non_exhaustive()
    }
}

/// The result of a call.
pub type Result<T> = std::result::Result<T, CallError>;

impl Client {
    /// Connects to the agent at `address`. Must run inside a tokio runtime.
    ///
    /// # Errors
    ///
    /// There is no connection within [`CONNECT_TIMEOUT`]. No call has been made yet:
    /// [`Client::check`] tells whether an agent answers.
    pub async fn connect(address: &Address) -> std::result::Result<Self, ConnectError> {
        let (stream, peer) = connect::connect_peer(address, CONNECT_TIMEOUT).await?;
        Ok(Self { peer, ..Self::over(stream) })
    }

    /// Speaks the protocol over a stream that is connected already. Must run inside a tokio runtime.
    pub fn over(stream: Box<dyn Stream>) -> Self {
        let client = ttrpc::asynchronous::Client::new(Socket::new(stream));
        let health = HealthClient::new(client.clone());
        Self { agent: AgentServiceClient::new(client), health, limit: None, peer: None }
    }

    /// Which process of this host answers, the agent itself or its VM's: another text for each. None where the
    /// connection does not tell.
    pub fn peer(&self) -> Option<&str> {
        self.peer.as_deref()
    }

    /// The same connection with `limit` on every call, those that wait for a process included.
    #[must_use]
    pub fn within(&self, limit: Duration) -> Self {
        Self { limit: Some(limit), ..self.clone() }
    }

    /// The generated stub, for calls or requests that have no method here.
    pub fn agent(&self) -> &AgentServiceClient {
        &self.agent
    }

    /// The generated stub of the health service.
    pub fn health(&self) -> &HealthClient {
        &self.health
    }

    /// The context that a raw call through [`Client::agent`] needs, with this client's limit.
    pub fn context(&self) -> Context {
        context(Some(self.limit.unwrap_or(CALL_TIMEOUT)))
    }

    /// The context of a call that ends with a process.
    fn patient(&self) -> Context {
        context(self.limit)
    }

    /// `Health.Check`: the agent answers calls.
    ///
    /// # Errors
    ///
    /// No answer, or one that is not `SERVING` (as [`ttrpc::Code::UNAVAILABLE`]).
    pub async fn check(&self) -> Result<()> {
        use nakai_protocols::health::health_check_response::ServingStatus;
        let answer = self.health.check(self.context(), &CheckRequest::new()).await;
        let status = answer.map_err(|e| CallError::new("Check", "", e))?.status;
        match status.enum_value() {
            Ok(ServingStatus::SERVING) => Ok(()),
            other => {
                let message = format!("the agent's status is {other:?}");
                let status = ttrpc::get_status(ttrpc::Code::UNAVAILABLE, message);
                Err(CallError::new("Check", "", ttrpc::Error::RpcStatus(status)))
            }
        }
    }

    /// `Health.Version`.
    ///
    /// # Errors
    ///
    /// The call's own.
    pub async fn version(&self) -> Result<VersionCheckResponse> {
        let answer = self.health.version(self.context(), &CheckRequest::new()).await;
        answer.map_err(|e| CallError::new("Version", "", e))
    }

    /// `GetGuestDetails` with all details.
    ///
    /// # Errors
    ///
    /// The call's own.
    pub async fn guest_details(&self) -> Result<GuestDetailsResponse> {
        let request =
            GuestDetailsRequest { mem_block_size: true, mem_hotplug_probe: true, ..Default::default() };
        let answer = self.agent.get_guest_details(self.context(), &request).await;
        answer.map_err(|e| CallError::new("GetGuestDetails", "", e))
    }

    /// `GetMetrics`: numbers of agent and guest in Prometheus' text format.
    ///
    /// # Errors
    ///
    /// The call's own.
    pub async fn metrics(&self) -> Result<String> {
        let answer = self.agent.get_metrics(self.context(), &GetMetricsRequest::new()).await;
        answer.map(|a| a.metrics).map_err(|e| CallError::new("GetMetrics", "", e))
    }

    /// `CreateSandbox`; [`crate::sandbox::request`] builds what a shim sends.
    ///
    /// # Errors
    ///
    /// The call's own.
    pub async fn create_sandbox(&self, request: &CreateSandboxRequest) -> Result<()> {
        let answer = self.agent.create_sandbox(self.context(), request).await;
        answer.map(drop).map_err(|e| CallError::new("CreateSandbox", &request.sandbox_id, e))
    }

    /// `DestroySandbox`: the agent removes all containers and ends; a PID 1 powers the guest off.
    ///
    /// # Errors
    ///
    /// The call's own.
    pub async fn destroy_sandbox(&self) -> Result<()> {
        let answer = self.agent.destroy_sandbox(self.context(), &DestroySandboxRequest::new()).await;
        answer.map(drop).map_err(|e| CallError::new("DestroySandbox", "", e))
    }

    /// `CreateContainer` from a specification alone, as the Go shim sends it (`exec_id` is the
    /// container's id).
    ///
    /// # Errors
    ///
    /// The call's own.
    pub async fn create_container(&self, id: &str, spec: oci::Spec) -> Result<()> {
        let request = CreateContainerRequest {
            container_id: id.to_owned(),
            exec_id: id.to_owned(),
            OCI: Some(spec).into(),
            ..Default::default()
        };
        self.create_container_with(&request).await
    }

    /// `CreateContainer` with a request of the caller's: devices, storages, shared mounts.
    ///
    /// # Errors
    ///
    /// The call's own.
    pub async fn create_container_with(&self, request: &CreateContainerRequest) -> Result<()> {
        let answer = self.agent.create_container(self.context(), request).await;
        answer.map(drop).map_err(|e| CallError::new("CreateContainer", &request.container_id, e))
    }

    /// `StartContainer`: lets the created init process run its program.
    ///
    /// # Errors
    ///
    /// The call's own.
    pub async fn start_container(&self, id: &str) -> Result<()> {
        let request = StartContainerRequest { container_id: id.to_owned(), ..Default::default() };
        let answer = self.agent.start_container(self.context(), &request).await;
        answer.map(drop).map_err(|e| CallError::new("StartContainer", id, e))
    }

    /// `ExecProcess`: starts a further process in a container under the name `exec`.
    ///
    /// # Errors
    ///
    /// The call's own.
    pub async fn exec_process(&self, container: &str, exec: &str, process: oci::Process) -> Result<()> {
        let request = ExecProcessRequest {
            container_id: container.to_owned(),
            exec_id: exec.to_owned(),
            process: Some(process).into(),
            ..Default::default()
        };
        let answer = self.agent.exec_process(self.context(), &request).await;
        answer.map(drop).map_err(|e| CallError::new("ExecProcess", object(container, exec), e))
    }

    /// `SignalProcess`. On the wire an empty `exec` with SIGKILL means every process of the container
    /// and with any other signal its init only; the container's id as `exec` always means init.
    ///
    /// # Errors
    ///
    /// The call's own.
    pub async fn signal_process(&self, container: &str, exec: &str, signal: u32) -> Result<()> {
        let request = SignalProcessRequest {
            container_id: container.to_owned(),
            exec_id: exec.to_owned(),
            signal,
            ..Default::default()
        };
        let answer = self.agent.signal_process(self.context(), &request).await;
        answer.map(drop).map_err(|e| CallError::new("SignalProcess", object(container, exec), e))
    }

    /// `WaitProcess`: waits for the exit and gives the status, 128 + N after signal N.
    ///
    /// # Errors
    ///
    /// The call's own.
    pub async fn wait_process(&self, container: &str, exec: &str) -> Result<i32> {
        let request = WaitProcessRequest {
            container_id: container.to_owned(),
            exec_id: exec.to_owned(),
            ..Default::default()
        };
        let answer = self.agent.wait_process(self.patient(), &request).await;
        answer.map(|a| a.status).map_err(|e| CallError::new("WaitProcess", object(container, exec), e))
    }

    /// `RemoveContainer`: kills what still runs and gives everything back.
    ///
    /// # Errors
    ///
    /// The call's own.
    pub async fn remove_container(&self, id: &str) -> Result<()> {
        let request = RemoveContainerRequest { container_id: id.to_owned(), ..Default::default() };
        let answer = self.agent.remove_container(self.context(), &request).await;
        answer.map(drop).map_err(|e| CallError::new("RemoveContainer", id, e))
    }

    /// `PauseContainer`: freezes its processes.
    ///
    /// # Errors
    ///
    /// The call's own.
    pub async fn pause_container(&self, id: &str) -> Result<()> {
        let request = PauseContainerRequest { container_id: id.to_owned(), ..Default::default() };
        let answer = self.agent.pause_container(self.context(), &request).await;
        answer.map(drop).map_err(|e| CallError::new("PauseContainer", id, e))
    }

    /// `ResumeContainer`: thaws them.
    ///
    /// # Errors
    ///
    /// The call's own.
    pub async fn resume_container(&self, id: &str) -> Result<()> {
        let request = ResumeContainerRequest { container_id: id.to_owned(), ..Default::default() };
        let answer = self.agent.resume_container(self.context(), &request).await;
        answer.map(drop).map_err(|e| CallError::new("ResumeContainer", id, e))
    }

    /// `RemoveStaleVirtiofsShareMounts`: the guest lets go of what the host no longer shares.
    ///
    /// # Errors
    ///
    /// The call's own.
    pub async fn look_at_shares(&self) -> Result<()> {
        let request = RemoveStaleVirtiofsShareMountsRequest::new();
        let answer = self.agent.remove_stale_virtiofs_share_mounts(self.context(), &request).await;
        answer.map(drop).map_err(|e| CallError::new("RemoveStaleVirtiofsShareMounts", "", e))
    }

    /// `WriteStdin`: writes some of `data`, returns how much.
    ///
    /// # Errors
    ///
    /// The call's own.
    pub async fn write_stdin(&self, container: &str, exec: &str, data: Vec<u8>) -> Result<usize> {
        let request = WriteStreamRequest {
            container_id: container.to_owned(),
            exec_id: exec.to_owned(),
            data,
            ..Default::default()
        };
        let answer = self.agent.write_stdin(self.patient(), &request).await;
        let written = answer.map_err(|e| CallError::new("WriteStdin", object(container, exec), e))?.len;
        Ok(usize::try_from(written).unwrap_or(usize::MAX))
    }

    /// `ReadStdout`: waits for output and returns up to `len` bytes of it; nothing means its end.
    ///
    /// # Errors
    ///
    /// The call's own.
    pub async fn read_stdout(&self, container: &str, exec: &str, len: u32) -> Result<Vec<u8>> {
        let answer = self.agent.read_stdout(self.patient(), &read_request(container, exec, len)).await;
        answer.map(|a| a.data).map_err(|e| CallError::new("ReadStdout", object(container, exec), e))
    }

    /// `ReadStderr`, like [`Client::read_stdout`].
    ///
    /// # Errors
    ///
    /// The call's own.
    pub async fn read_stderr(&self, container: &str, exec: &str, len: u32) -> Result<Vec<u8>> {
        let answer = self.agent.read_stderr(self.patient(), &read_request(container, exec, len)).await;
        answer.map(|a| a.data).map_err(|e| CallError::new("ReadStderr", object(container, exec), e))
    }

    /// `CloseStdin`: the process reads the end of file once it has read what was written.
    ///
    /// # Errors
    ///
    /// The call's own.
    pub async fn close_stdin(&self, container: &str, exec: &str) -> Result<()> {
        let request = CloseStdinRequest {
            container_id: container.to_owned(),
            exec_id: exec.to_owned(),
            ..Default::default()
        };
        let answer = self.agent.close_stdin(self.context(), &request).await;
        answer.map(drop).map_err(|e| CallError::new("CloseStdin", object(container, exec), e))
    }

    /// `TtyWinResize`.
    ///
    /// # Errors
    ///
    /// The call's own.
    pub async fn tty_win_resize(&self, container: &str, exec: &str, rows: u16, columns: u16) -> Result<()> {
        let request = TtyWinResizeRequest {
            container_id: container.to_owned(),
            exec_id: exec.to_owned(),
            row: rows.into(),
            column: columns.into(),
            ..Default::default()
        };
        let answer = self.agent.tty_win_resize(self.context(), &request).await;
        answer.map(drop).map_err(|e| CallError::new("TtyWinResize", object(container, exec), e))
    }

    /// `GetOOMEvent`: waits until the kernel has killed a process of a container for want of memory, and names the
    /// container. Each event is told to one caller.
    ///
    /// # Errors
    ///
    /// The call's own.
    pub async fn oom_event(&self) -> Result<String> {
        let answer = self.agent.get_oom_event(self.patient(), &GetOOMEventRequest::new()).await;
        answer.map(|a| a.container_id).map_err(|e| CallError::new("GetOOMEvent", "", e))
    }

    /// `StatsContainer`.
    ///
    /// # Errors
    ///
    /// The call's own.
    pub async fn stats_container(&self, id: &str) -> Result<StatsContainerResponse> {
        let request = StatsContainerRequest { container_id: id.to_owned(), ..Default::default() };
        let answer = self.agent.stats_container(self.context(), &request).await;
        answer.map_err(|e| CallError::new("StatsContainer", id, e))
    }
}

/// A limit as the wire has it: nanoseconds, 0 for none.
fn context(limit: Option<Duration>) -> Context {
    let nanos = limit.map_or(0, |limit| i64::try_from(limit.as_nanos()).unwrap_or(i64::MAX).max(1));
    ttrpc::context::with_timeout(nanos)
}

fn read_request(container: &str, exec: &str, len: u32) -> ReadStreamRequest {
    ReadStreamRequest {
        container_id: container.to_owned(),
        exec_id: exec.to_owned(),
        len,
        ..Default::default()
    }
}

/// A process as an error names it.
fn object(container: &str, exec: &str) -> String {
    if exec.is_empty() || exec == container { container.to_owned() } else { format!("{container}/{exec}") }
}
