//! The client and the stream pump against an agent that is a table of answers, over a real socket.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use nakai_ctl::{Address, Client, SpecBuilder, sandbox, stdio};
use nakai_protocols::{agent, agent_ttrpc, empty::Empty, health, health_ttrpc};
use tokio::sync::Notify;
use ttrpc::asynchronous::{Server, TtrpcContext};
use ttrpc::{Code, Error, get_status};

fn refused(code: Code, message: &str) -> Error {
    Error::RpcStatus(get_status(code, message))
}

/// An agent with one container, `web`, that echoes its input and exits with the input's length.
#[derive(Default)]
struct Agent {
    calls: Mutex<Vec<String>>,
    echo: Mutex<VecDeque<u8>>,
    received: Mutex<usize>,
    closed: Mutex<bool>,
    changed: Notify,
}

impl Agent {
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
        self.0.called(format!("sandbox {} {} {}", r.sandbox_id, r.hostname, drivers.join(" ")));
        Ok(Empty::new())
    }

    async fn create_container(
        &self,
        _: &TtrpcContext,
        r: agent::CreateContainerRequest,
    ) -> ttrpc::Result<Empty> {
        self.0.called(format!("create {} {} {}", r.container_id, r.exec_id, r.OCI.Root.Path));
        Err(refused(Code::ALREADY_EXISTS, "container web exists"))
    }

    async fn exec_process(&self, _: &TtrpcContext, r: agent::ExecProcessRequest) -> ttrpc::Result<Empty> {
        self.0.called(format!("exec {}/{} {:?}", r.container_id, r.exec_id, r.process.Args));
        Err(refused(Code::NOT_FOUND, "no container web"))
    }

    async fn write_stdin(
        &self,
        _: &TtrpcContext,
        r: agent::WriteStreamRequest,
    ) -> ttrpc::Result<agent::WriteStreamResponse> {
        // As a full pipe does: takes some of it.
        let taken = r.data.len().min(1000);
        self.0.echo.lock().unwrap().extend(&r.data[..taken]);
        *self.0.received.lock().unwrap() += taken;
        self.0.changed.notify_waiters();
        Ok(agent::WriteStreamResponse { len: taken as u32, ..Default::default() })
    }

    async fn close_stdin(&self, _: &TtrpcContext, _: agent::CloseStdinRequest) -> ttrpc::Result<Empty> {
        *self.0.closed.lock().unwrap() = true;
        self.0.changed.notify_waiters();
        Ok(Empty::new())
    }

    async fn read_stdout(
        &self,
        _: &TtrpcContext,
        r: agent::ReadStreamRequest,
    ) -> ttrpc::Result<agent::ReadStreamResponse> {
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
        if r.exec_id == "forever" {
            std::future::pending::<()>().await;
        }
        loop {
            let changed = self.0.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if *self.0.closed.lock().unwrap() {
                let status = *self.0.received.lock().unwrap() as i32;
                return Ok(agent::WaitProcessResponse { status, ..Default::default() });
            }
            changed.await;
        }
    }
}

struct Setup {
    agent: Arc<Agent>,
    client: Client,
    server: Server,
    _dir: tempfile::TempDir,
}

async fn setup() -> Setup {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.sock");
    let address = Address::Unix(path);
    let agent = Arc::new(Agent::default());
    let mut server = Server::new()
        .bind(&address.to_string())
        .unwrap()
        .register_service(agent_ttrpc::create_agent_service(Arc::new(Service(agent.clone()))))
        .register_service(health_ttrpc::create_health(Arc::new(Service(agent.clone()))));
    server.start().await.unwrap();
    let client = Client::connect(&address).await.unwrap();
    Setup { agent, client, server, _dir: dir }
}

#[tokio::test]
async fn calls_carry_what_a_shim_sends() {
    let setup = setup().await;
    setup.client.check().await.unwrap();
    setup.client.create_sandbox(&sandbox::request("pod", "host", true)).await.unwrap();
    setup.client.create_container("web", SpecBuilder::new("web", "/r").build()).await.unwrap_err();
    let calls = setup.agent.calls.lock().unwrap();
    let share = "virtio-fs@/run/kata-containers/shared/containers/";
    let shm = "ephemeral@/run/kata-containers/sandbox/shm";
    assert_eq!(*calls, [format!("sandbox pod host {share} {shm}"), "create web web /r".to_owned()]);
}

#[tokio::test]
async fn errors_name_call_object_and_reason() {
    let Setup { client, mut server, .. } = setup().await;
    let spec = SpecBuilder::new("web", "/r");
    let error = client.create_container("web", spec.build()).await.unwrap_err();
    assert_eq!(error.code, Code::ALREADY_EXISTS);
    assert_eq!(error.to_string(), "CreateContainer web: ALREADY_EXISTS: container web exists");
    let error = client.exec_process("web", "e1", spec.process()).await.unwrap_err();
    assert_eq!(error.to_string(), "ExecProcess web/e1: NOT_FOUND: no container web");
    let error = client.version().await.unwrap_err();
    assert_eq!(error.to_string(), "Version: NOT_FOUND: /grpc.Health/Version is not supported");
    let error = client.within(Duration::from_millis(1)).wait_process("web", "forever").await.unwrap_err();
    assert_eq!((error.code, &*error.object), (Code::DEADLINE_EXCEEDED, "web/forever"));

    server.shutdown().await.unwrap();
    let error = client.check().await.unwrap_err();
    assert!(error.to_string().starts_with("Check: "), "{error}");
    assert!(error.connection_lost, "{error:?}");
}

#[tokio::test]
async fn every_byte_goes_in_and_comes_out() {
    let setup = setup().await;
    let input: Vec<u8> = (0..300_000_u32).map(|n| (n % 251) as u8).collect();
    let finished = stdio::finish(&setup.client, "web", "web", &input).await.unwrap();
    assert_eq!(finished.status, 300_000);
    assert!(finished.stdout == input, "{} bytes came out", finished.stdout.len());
    assert!(finished.stderr.is_empty());
}

#[tokio::test]
async fn attach_ends_with_the_outputs_though_the_input_stays_open() {
    let setup = setup().await;
    *setup.agent.closed.lock().unwrap() = true;
    let (_keyboard, stdin) = tokio::io::duplex(16);
    let mut stdout = Vec::new();
    let stderr = None::<tokio::io::Sink>;
    stdio::attach(&setup.client, "web", "", Some(stdin), &mut stdout, stderr).await.unwrap();
    assert!(stdout.is_empty());
}

#[tokio::test]
async fn a_broken_output_of_the_client_is_told() {
    let setup = setup().await;
    setup.agent.echo.lock().unwrap().extend(b"text");
    let (broken, other) = tokio::io::duplex(16);
    drop(other);
    let output = stdio::Output::Stdout;
    let error = stdio::pump_output(&setup.client, "web", "", output, broken).await.unwrap_err();
    assert!(error.to_string().starts_with("stdout of the client: "), "{error}");
}
