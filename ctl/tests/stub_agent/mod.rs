//! An agent that is a table of answers. Its container `web` exists; any other can be created, but `broken`
//! can't be started, `slow` is never ready, and `late` when the input of all has ended; of further processes
//! there is only `cat`. `greedy` is killed for want of memory. `idle` says nothing and never ends. Every other process echoes its input and exits with
//! the input's length; SIGTERM ends it.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use nakai_ctl::Address;
use nakai_protocols::{agent, agent_ttrpc, empty::Empty, health, health_ttrpc};
use tokio::sync::Notify;
use ttrpc::asynchronous::{Server, TtrpcContext};
use ttrpc::{Code, Error, get_status};

fn refused(code: Code, message: &str) -> Error {
    Error::RpcStatus(get_status(code, message))
}

/// What the agent has seen, and the streams of its one process.
#[derive(Default)]
pub(crate) struct Agent {
    pub(crate) calls: Mutex<Vec<String>>,
    pub(crate) echo: Mutex<VecDeque<u8>>,
    received: Mutex<usize>,
    pub(crate) closed: Mutex<bool>,
    /// Whether nobody takes what is written.
    pub(crate) is_full: Mutex<bool>,
    /// Whether somebody has been told of the kill of `greedy`.
    told_of_kill: Mutex<bool>,
    /// Reads that have begun, and those that have ended, with an answer or with their connection.
    pub(crate) reads: Arc<(AtomicUsize, AtomicUsize)>,
    changed: Notify,
}

/// A read that ends.
struct Read(Arc<(AtomicUsize, AtomicUsize)>);

impl Drop for Read {
    fn drop(&mut self) {
        self.0.1.fetch_add(1, Ordering::SeqCst);
    }
}

impl Agent {
    /// Ends the input of every process, and the process with it.
    pub(crate) fn close(&self) {
        *self.closed.lock().unwrap() = true;
        self.changed.notify_waiters();
    }

    async fn until_closed(&self) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if *self.closed.lock().unwrap() {
                return;
            }
            changed.await;
        }
    }

    fn called(&self, call: String) {
        self.calls.lock().unwrap().push(call);
    }
}

struct Service(Arc<Agent>);

#[async_trait]
impl health_ttrpc::Health for Service {
    async fn check(
        &self,
        _: &TtrpcContext,
        _: health::CheckRequest,
    ) -> ttrpc::Result<health::HealthCheckResponse> {
        let mut answer = health::HealthCheckResponse::new();
        answer.status = health::health_check_response::ServingStatus::SERVING.into();
        Ok(answer)
    }
}

#[async_trait]
impl agent_ttrpc::AgentService for Service {
    async fn create_sandbox(&self, _: &TtrpcContext, r: agent::CreateSandboxRequest) -> ttrpc::Result<Empty> {
        let drivers: Vec<_> = r.storages.iter().map(|s| format!("{}@{}", s.driver, s.mount_point)).collect();
        let pids = if r.sandbox_pidns { " with PID namespace" } else { "" };
        self.0.called(format!("sandbox {} {} {}{pids}", r.sandbox_id, r.hostname, drivers.join(" ")));
        Ok(Empty::new())
    }

    async fn create_container(
        &self,
        _: &TtrpcContext,
        r: agent::CreateContainerRequest,
    ) -> ttrpc::Result<Empty> {
        self.0.called(format!("create {} {} {}", r.container_id, r.exec_id, r.OCI.Root.Path));
        match &*r.container_id {
            "web" => Err(refused(Code::ALREADY_EXISTS, "container web exists")),
            "slow" => std::future::pending().await,
            "late" => {
                self.0.until_closed().await;
                Ok(Empty::new())
            }
            _ => Ok(Empty::new()),
        }
    }

    async fn start_container(
        &self,
        _: &TtrpcContext,
        r: agent::StartContainerRequest,
    ) -> ttrpc::Result<Empty> {
        self.0.called(format!("start {}", r.container_id));
        if r.container_id == "broken" {
            return Err(refused(Code::INTERNAL, "no luck"));
        }
        Ok(Empty::new())
    }

    async fn remove_container(
        &self,
        _: &TtrpcContext,
        r: agent::RemoveContainerRequest,
    ) -> ttrpc::Result<Empty> {
        self.0.called(format!("remove {}", r.container_id));
        Ok(Empty::new())
    }

    async fn stats_container(
        &self,
        _: &TtrpcContext,
        _: agent::StatsContainerRequest,
    ) -> ttrpc::Result<agent::StatsContainerResponse> {
        Ok(agent::StatsContainerResponse::new())
    }

    async fn get_oom_event(
        &self,
        _: &TtrpcContext,
        _: agent::GetOOMEventRequest,
    ) -> ttrpc::Result<agent::OOMEvent> {
        let is_made = self.0.calls.lock().unwrap().iter().any(|call| call.starts_with("start greedy"));
        if !is_made || std::mem::replace(&mut *self.0.told_of_kill.lock().unwrap(), true) {
            std::future::pending::<()>().await;
        }
        Ok(agent::OOMEvent { container_id: "greedy".to_owned(), ..Default::default() })
    }

    async fn signal_process(&self, _: &TtrpcContext, r: agent::SignalProcessRequest) -> ttrpc::Result<Empty> {
        self.0.called(format!("signal {} {}", r.container_id, r.signal));
        if r.container_id != "idle" && r.signal == 15 {
            self.0.close();
        }
        Ok(Empty::new())
    }

    async fn exec_process(&self, _: &TtrpcContext, r: agent::ExecProcessRequest) -> ttrpc::Result<Empty> {
        let user = &r.process.User;
        self.0.called(format!("as {}:{} {:?}", user.UID, user.GID, user.AdditionalGids));
        self.0.called(format!("exec {}/{} {:?}", r.container_id, r.exec_id, r.process.Args));
        if r.process.Args.first().is_some_and(|program| program == "cat") {
            return Ok(Empty::new());
        }
        Err(refused(Code::NOT_FOUND, "no container web"))
    }

    async fn write_stdin(
        &self,
        _: &TtrpcContext,
        r: agent::WriteStreamRequest,
    ) -> ttrpc::Result<agent::WriteStreamResponse> {
        if *self.0.is_full.lock().unwrap() {
            self.0.called("write to a full pipe".to_owned());
            std::future::pending::<()>().await;
        }
        // As a full pipe does: takes some of it.
        let taken = r.data.len().min(1000);
        self.0.echo.lock().unwrap().extend(&r.data[..taken]);
        *self.0.received.lock().unwrap() += taken;
        self.0.changed.notify_waiters();
        Ok(agent::WriteStreamResponse { len: taken as u32, ..Default::default() })
    }

    async fn close_stdin(&self, _: &TtrpcContext, _: agent::CloseStdinRequest) -> ttrpc::Result<Empty> {
        self.0.close();
        Ok(Empty::new())
    }

    async fn read_stdout(
        &self,
        _: &TtrpcContext,
        r: agent::ReadStreamRequest,
    ) -> ttrpc::Result<agent::ReadStreamResponse> {
        if r.exec_id == "greedy" {
            return Ok(agent::ReadStreamResponse::new());
        }
        if r.exec_id == "idle" {
            std::future::pending::<()>().await;
        }
        self.0.reads.0.fetch_add(1, Ordering::SeqCst);
        let _read = Read(self.0.reads.clone());
        loop {
            let changed = self.0.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let data: Vec<u8> = {
                let mut echo = self.0.echo.lock().unwrap();
                let len = echo.len().min(r.len as usize).min(777);
                echo.drain(..len).collect()
            };
            if !data.is_empty() || *self.0.closed.lock().unwrap() {
                return Ok(agent::ReadStreamResponse { data, ..Default::default() });
            }
            changed.await;
        }
    }

    async fn read_stderr(
        &self,
        _: &TtrpcContext,
        _: agent::ReadStreamRequest,
    ) -> ttrpc::Result<agent::ReadStreamResponse> {
        Ok(agent::ReadStreamResponse::new())
    }

    async fn wait_process(
        &self,
        _: &TtrpcContext,
        r: agent::WaitProcessRequest,
    ) -> ttrpc::Result<agent::WaitProcessResponse> {
        if matches!(&*r.exec_id, "forever" | "idle") {
            std::future::pending::<()>().await;
        }
        if r.exec_id == "greedy" {
            return Ok(agent::WaitProcessResponse { status: 137, ..Default::default() });
        }
        self.0.until_closed().await;
        let status = *self.0.received.lock().unwrap() as i32;
        Ok(agent::WaitProcessResponse { status, ..Default::default() })
    }
}

/// Serves at `address` until it is shut down or dropped.
pub(crate) async fn serve(address: &Address) -> (Arc<Agent>, Server) {
    let agent = Arc::new(Agent::default());
    let mut server = Server::new()
        .bind(&address.to_string())
        .unwrap()
        .register_service(agent_ttrpc::create_agent_service(Arc::new(Service(agent.clone()))))
        .register_service(health_ttrpc::create_health(Arc::new(Service(agent.clone()))));
    server.start().await.unwrap();
    (agent, server)
}
