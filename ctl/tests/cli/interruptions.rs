//! Clients that are told to end, readers that go, logs that can't be written, attendants that are killed: what is left
//! then, and what still works.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::Child;

use super::stub_agent::Agent;
use super::{command, ctl, setup};

/// Sends a signal to a program that has been started here.
fn send(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id().unwrap().cast_signed()), signal).unwrap();
}

/// Waits for what an event will bring about: as long as the busiest machine takes.
async fn until<T>(mut seen: impl AsyncFnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        assert!(began.elapsed() < Duration::from_secs(120), "it does not come");
        if let Some(seen) = seen().await {
            return seen;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Waits until the agent has been called so, as often as that.
async fn until_called(agent: &Agent, call: &str, times: usize) {
    let is_it = |seen: &&String| seen.starts_with(call);
    until(async || (agent.calls.lock().unwrap().iter().filter(is_it).count() >= times).then_some(())).await;
}

/// vhost-device-vsock panics when it has to answer a client that has gone.
#[tokio::test]
async fn who_is_told_to_end_in_a_handshake_takes_the_answer_first() {
    let dir = tempfile::tempdir().unwrap();
    let vmm = tokio::net::UnixListener::bind(dir.path().join("vmm")).unwrap();
    let mut child = command(dir.path(), "--address hvsock://@/vmm:1024 check").spawn().unwrap();
    let (stream, _) = vmm.accept().await.unwrap();
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    stream.read_line(&mut line).await.unwrap();
    assert_eq!(line, "CONNECT 1024\n");
    send(&child, Signal::SIGINT);
    let ended = tokio::time::timeout(Duration::from_millis(300), child.wait()).await;
    assert!(ended.is_err(), "{ended:?}");
    stream.write_all(b"OK 7\n").await.unwrap();
    assert_eq!(child.wait().await.unwrap().code(), Some(130));
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).await.unwrap();
    assert_eq!(said, "");
}

/// A directory that is shared with a guest, and a root in it.
fn shared(dir: &Path) {
    for path in ["share", "root"] {
        std::fs::create_dir(dir.join(path)).unwrap();
    }
}

/// Runs `line` until the agent has been asked to create its container, and tells it to end.
async fn interrupt(dir: &Path, agent: &Agent, line: &str, id: &str) -> Child {
    let mut child = command(dir, line).stdin(Stdio::null()).spawn().unwrap();
    until_called(agent, &format!("create {id} "), 1).await;
    send(&child, Signal::SIGTERM);
    let mut said = String::new();
    BufReader::new(child.stderr.as_mut().unwrap()).read_line(&mut said).await.unwrap();
    assert!(said.starts_with("nakai-ctl: interrupted: "), "{said}");
    child
}

#[tokio::test]
async fn a_creation_that_is_interrupted_leaves_nothing() {
    let (agent, dir, _server) = setup().await;
    shared(dir.path());
    let line = "run --id late --share @/share --rootfs @/root sh";
    let mut child = interrupt(dir.path(), &agent, line, "late").await;
    // The agent makes it all the same.
    agent.close();
    assert_eq!(child.wait().await.unwrap().code(), Some(125));
    assert_eq!(agent.calls.lock().unwrap().last().unwrap(), "remove late");
    assert_eq!(std::fs::read_dir(dir.path().join("share")).unwrap().count(), 0);
    assert_eq!(ctl(dir.path(), "ps", "").await.1.lines().count(), 1);
    assert_eq!(ctl(dir.path(), line, "").await, (0, String::new(), String::new()));
}

#[tokio::test]
async fn a_creation_that_is_given_up_stays_on_record() {
    let (agent, dir, _server) = setup().await;
    shared(dir.path());
    let line = "run --id slow --share @/share --rootfs @/root sh";
    let mut child = interrupt(dir.path(), &agent, line, "slow").await;
    send(&child, Signal::SIGTERM);
    let is_given_up = async || {
        let (_, listed, _) = ctl(dir.path(), "ps", "").await;
        listed.contains("error (its making was interrupted)").then_some(())
    };
    until(is_given_up).await;
    send(&child, Signal::SIGTERM);
    assert_eq!(child.wait().await.unwrap().code(), Some(125));
    assert_eq!(ctl(dir.path(), "rm slow", "").await, (0, String::new(), String::new()));
    assert_eq!(agent.calls.lock().unwrap().last().unwrap(), "remove slow");
    assert_eq!(std::fs::read_dir(dir.path().join("share")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_program_that_ends_of_no_signal_is_left_at_the_third() {
    let (agent, dir, _server) = setup().await;
    let mut child = command(dir.path(), "run -i --id idle --rootfs @ sh").spawn().unwrap();
    until_called(&agent, "start idle", 1).await;
    // They have to come soon after each other, which a busy machine may not let them.
    let left = until(async || {
        send(&child, Signal::SIGINT);
        tokio::time::timeout(Duration::from_millis(300), child.wait()).await.ok()
    });
    assert_eq!(left.await.unwrap().code(), Some(125));
    let passed_on = |call: &&String| *call == "signal idle 2";
    assert!(agent.calls.lock().unwrap().iter().filter(passed_on).count() >= 2);
    assert_eq!(agent.calls.lock().unwrap().last().unwrap(), "remove idle");
}

#[tokio::test]
async fn a_listing_that_nobody_reads_is_no_failure() {
    let (_agent, dir, _server) = setup().await;
    let print_to = async |line: &str, stdout: OwnedFd| {
        // Its `output` would put a pipe in the place of that.
        let child = command(dir.path(), line).stdout(stdout).spawn().unwrap();
        let output = child.wait_with_output().await.unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    for line in ["ps", "ps -q", "check", "vm ls", "images ls", "--help"] {
        let (reader, writer) = std::os::unix::net::UnixStream::pair().unwrap();
        drop(reader);
        assert_eq!(print_to(line, writer.into()).await, (Some(0), String::new()), "{line}");
    }
    // What is lost for another reason is told.
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let (status, said) = print_to("ps", full.into()).await;
    assert_eq!(status, Some(125));
    assert!(said.starts_with("nakai-ctl: standard output: No space left"), "{said}");
}

/// What `ps` says of the only container, when it says that.
async fn until_listed(dir: &Path, words: &str) {
    until(async || ctl(dir, "ps", "").await.1.contains(words).then_some(())).await;
}

#[tokio::test]
async fn a_log_on_a_full_disk_ends_no_program() {
    let (agent, dir, _server) = setup().await;
    std::fs::write(dir.path().join("pod.json"), r#"{"metadata": {"name": "p"}, "log_directory": "/dev"}"#)
        .unwrap();
    let image = dir.path().join("root");
    std::fs::create_dir(&image).unwrap();
    std::fs::write(image.join("file"), "x").unwrap();
    let container = serde_json::json!({
        "metadata": {"name": "c"}, "image": {"image": image}, "command": ["cat"], "log_path": "full", "stdin": true
    });
    std::fs::write(dir.path().join("c.json"), container.to_string()).unwrap();
    let ran = ctl(dir.path(), "cri run -d --id box @/pod.json @/c.json", "").await;
    assert_eq!((ran.0, &*ran.1), (0, "box\n"), "{ran:?}");
    agent.echo.lock().unwrap().extend(b"one\ntwo\n");
    agent.close();
    until_listed(dir.path(), "stopped (0, completed)").await;
    let journal = std::fs::read_to_string(journal(dir.path())).unwrap();
    let lost: Vec<_> = journal.lines().filter(|line| line.contains(r#""action":"log""#)).collect();
    assert!(lost.len() == 1 && lost[0].contains("No space left"), "{lost:?}");
}

/// A file of the only notebook.
fn journal(dir: &Path) -> std::path::PathBuf {
    let notebooks = std::fs::read_dir(dir.join("nakai")).unwrap().map(|entry| entry.unwrap().path());
    notebooks.map(|path| path.join("events")).find(|path| path.exists()).unwrap()
}

/// Kills whoever stays with the containers of `dir`.
async fn kill_attendant(dir: &Path) {
    let socket = format!("{}/agent.sock", dir.display());
    let attends = |process: &std::path::PathBuf| {
        let words = std::fs::read(process.join("cmdline")).unwrap_or_default();
        let words = String::from_utf8_lossy(&words).into_owned();
        words.contains("\0attend\0") && words.contains(&socket)
    };
    let pid = until(async || {
        let processes = std::fs::read_dir("/proc").unwrap().filter_map(|entry| Some(entry.ok()?.path()));
        processes.filter(attends).find_map(|path| path.file_name()?.to_str()?.parse().ok())
    });
    kill(Pid::from_raw(pid.await), Signal::SIGKILL).unwrap();
}

#[tokio::test]
async fn a_container_whose_attendant_is_killed_is_not_lost() {
    let (agent, dir, _server) = setup().await;
    assert_eq!(ctl(dir.path(), "run -d -i --id box --rootfs @ cat", "").await.0, 0);
    let (status, _, stderr) = ctl(dir.path(), "start box", "").await;
    assert_eq!((status, &*stderr), (125, "nakai-ctl: container box is running\n"));
    kill_attendant(dir.path()).await;
    // It runs: all that it needs is another one.
    until(async || (ctl(dir.path(), "start box", "").await.0 == 0).then_some(())).await;
    assert_eq!(agent.calls.lock().unwrap().iter().filter(|call| *call == "start box").count(), 1);
    kill_attendant(dir.path()).await;
    assert_eq!(ctl(dir.path(), "stop box", "").await, (0, String::new(), String::new()));
    until_listed(dir.path(), "stopped (0, completed)").await;
    assert_eq!(ctl(dir.path(), "start box", "").await, (0, "box\n".to_owned(), String::new()));
    assert_eq!(agent.calls.lock().unwrap().iter().filter(|call| *call == "start box").count(), 2);
}

#[tokio::test]
async fn stop_asks_the_agent_also_of_one_that_is_on_record_as_failed() {
    let (agent, dir, _server) = setup().await;
    assert_eq!(ctl(dir.path(), "run -d -i --id box --rootfs @ cat", "").await.0, 0);
    let record = journal(dir.path()).with_file_name("containers/box.json");
    let mut noted: serde_json::Value = serde_json::from_slice(&std::fs::read(&record).unwrap()).unwrap();
    noted["state"] = serde_json::json!({"status": "error", "reason": "its attendant failed"});
    std::fs::write(&record, noted.to_string()).unwrap();
    assert_eq!(ctl(dir.path(), "stop box", "").await.0, 0);
    assert!(agent.calls.lock().unwrap().contains(&"signal box 15".to_owned()));
}

#[tokio::test]
async fn a_kill_for_want_of_memory_is_its_containers_and_no_later_ones() {
    let (_agent, dir, _server) = setup().await;
    let (status, ..) = ctl(dir.path(), "run --keep -m 16m --id greedy --rootfs @ sh", "").await;
    assert_eq!(status, 137);
    until_listed(dir.path(), "stopped (137, oom)").await;
    assert_eq!(ctl(dir.path(), "rm greedy", "").await.0, 0);
    // What nobody has asked for yet is a new one's, whatever its name.
    let (status, ..) = ctl(dir.path(), "run --keep --id greedy --rootfs @ sh", "").await;
    assert_eq!(status, 137);
    until_listed(dir.path(), "stopped (137, error)").await;
}

#[tokio::test]
async fn what_is_on_record_is_told_without_the_agent() {
    let (agent, dir, server) = setup().await;
    let ran = ctl(dir.path(), "run -d -i --id box --rootfs @ cat", "").await;
    assert_eq!(ran, (0, "box\n".to_owned(), String::new()));
    agent.echo.lock().unwrap().extend(b"one\n");
    agent.close();
    until_listed(dir.path(), "stopped (0, completed)").await;
    drop(server);
    std::fs::remove_file(dir.path().join("agent.sock")).unwrap();
    assert_eq!(ctl(dir.path(), "ps -q", "").await, (0, "box\n".to_owned(), String::new()));
    assert_eq!(ctl(dir.path(), "logs box", "").await, (0, "one\n".to_owned(), String::new()));
    let (status, noted, _) = ctl(dir.path(), "inspect box", "").await;
    assert!(status == 0 && noted.contains("\"id\": \"box\""), "{noted}");
    // A name that a container was given is not remembered for the next.
    assert!(!journal(dir.path()).with_file_name("attempts.json").exists());
}
