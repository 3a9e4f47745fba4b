//! The program itself, against an agent that is a table of answers: exit status, output, and what it
//! leaves behind.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod stub_agent;

use std::path::Path;
use std::process::{Output, Stdio};
use std::sync::Arc;

use nakai_ctl::Address;
use stub_agent::Agent;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

/// Runs `nakai-ctl` with the words of `line`, `@` being the directory, and gives it `input`.
async fn ctl(dir: &Path, line: &str, input: &str) -> (i32, String, String) {
    let directory = dir.to_str().unwrap();
    let address = format!("unix://{directory}/agent.sock");
    let mut child = Command::new(env!("CARGO_BIN_EXE_nakai-ctl"))
        .args(line.split_whitespace().map(|word| word.replace('@', directory)))
        .env("NAKAI_ADDRESS", address)
        .env("XDG_RUNTIME_DIR", dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It may have ended without reading.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes()).await;
    let Output { status, stdout, stderr } = child.wait_with_output().await.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

async fn setup() -> (Arc<Agent>, tempfile::TempDir, ttrpc::asynchronous::Server) {
    let dir = tempfile::tempdir().unwrap();
    let (agent, server) = stub_agent::serve(&Address::Unix(dir.path().join("agent.sock"))).await;
    (agent, dir, server)
}

#[tokio::test]
async fn run_streams_and_exits_with_the_containers_status() {
    let (agent, dir, _server) = setup().await;
    let (status, stdout, stderr) = ctl(dir.path(), "run -i --id box --rootfs @ cat", "seven b").await;
    assert_eq!((status, &*stdout, &*stderr), (7, "seven b", ""));
    let root = dir.path().canonicalize().unwrap();
    let create = format!("create box box {}", root.display());
    let shm = "ephemeral@/run/kata-containers/sandbox/shm";
    let expected = [format!("sandbox box box {shm}"), create, "start box".into(), "remove box".into()];
    assert_eq!(*agent.calls.lock().unwrap(), expected);
}

#[tokio::test]
async fn without_i_the_input_is_at_its_end() {
    let (_agent, dir, _server) = setup().await;
    let (status, stdout, _) = ctl(dir.path(), "run --rootfs @ cat", "not read").await;
    assert_eq!((status, &*stdout), (0, ""));
}

#[tokio::test]
async fn own_failures_are_125_and_name_call_object_and_reason() {
    let (_agent, dir, server) = setup().await;
    let table = [
        (
            "run --id web --rootfs @ sh",
            "nakai-ctl: CreateContainer web: ALREADY_EXISTS: container web exists\n",
        ),
        ("version", "nakai-ctl: Version: NOT_FOUND: /grpc.Health/Version is not supported\n"),
        (
            "kill --all web HUP",
            "nakai-ctl: kill --all 1: the protocol can only kill all processes with SIGKILL\n",
        ),
    ];
    for (line, expected) in table {
        let (status, stdout, stderr) = ctl(dir.path(), line, "").await;
        assert_eq!((status, &*stdout, &*stderr), (125, "", expected), "{line}");
    }
    let (status, _, stderr) = ctl(dir.path(), "exec web true", "").await;
    assert_eq!(status, 125);
    assert!(stderr.starts_with("nakai-ctl: ExecProcess web/exec-"), "{stderr}");
    assert!(stderr.ends_with(": NOT_FOUND: no container web\n"), "{stderr}");
    assert_eq!(ctl(dir.path(), "run", "").await.0, 125);

    drop(server);
    std::fs::remove_file(dir.path().join("agent.sock")).unwrap();
    let (status, _, stderr) = ctl(dir.path(), "check", "").await;
    assert_eq!(status, 125);
    assert!(stderr.contains("agent.sock: No such file or directory"), "{stderr}");
}

#[tokio::test]
async fn a_detached_container_is_listed_until_it_is_removed() {
    let (agent, dir, _server) = setup().await;
    let (status, stdout, stderr) = ctl(dir.path(), "run -d --id box --rootfs @ sleep 9", "").await;
    assert_eq!((status, &*stdout, &*stderr), (0, "box\n", ""));
    let (_, stdout, _) = ctl(dir.path(), "ps", "").await;
    assert!(stdout.lines().nth(1).unwrap().starts_with("box "), "{stdout}");
    assert!(stdout.ends_with("sleep 9\n"), "{stdout}");
    assert_eq!(ctl(dir.path(), "rm box", "").await.0, 0);
    assert_eq!(ctl(dir.path(), "ps", "").await.1.lines().count(), 1);
    assert_eq!(agent.calls.lock().unwrap().last().unwrap(), "remove box");
}
