//! The client and the stream pump against an agent that is a table of answers, over a real socket.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod stub_agent;

use std::sync::Arc;
use std::time::Duration;

use nakai_ctl::{Address, Client, SpecBuilder, sandbox, stdio};
use stub_agent::Agent;
use ttrpc::Code;
use ttrpc::asynchronous::Server;

struct Setup {
    agent: Arc<Agent>,
    client: Client,
    server: Server,
    _dir: tempfile::TempDir,
}

async fn setup() -> Setup {
    let dir = tempfile::tempdir().unwrap();
    let address = Address::Unix(dir.path().join("agent.sock"));
    let (agent, server) = stub_agent::serve(&address).await;
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
