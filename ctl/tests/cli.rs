//! The program itself, against an agent that is a table of answers: exit status, output, and what it
//! leaves behind.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "cli/interruptions.rs"]
mod interruptions;
mod stub_agent;

use std::path::Path;
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use nakai_ctl::Address;
use stub_agent::Agent;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::Command;

/// Runs `nakai-ctl` with the words of `line`, `@` being the directory, and gives it `input`.
async fn ctl(dir: &Path, line: &str, input: &str) -> (i32, String, String) {
    let mut child = command(dir, line).spawn().unwrap();
    // It may have ended without reading.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes()).await;
    let Output { status, stdout, stderr } = child.wait_with_output().await.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

/// `nakai-ctl` with the words of `line`.
fn command(dir: &Path, line: &str) -> Command {
    let directory = dir.to_str().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_nakai-ctl"));
    command
        .args(line.split_whitespace().map(|word| word.replace('@', directory)))
        .env("NAKAI_ADDRESS", format!("unix://{directory}/agent.sock"))
        .env("XDG_RUNTIME_DIR", dir)
        .env("NAKAI_IMAGES", dir.join("images"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
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
    let sandbox = format!("sandbox box box {shm} with PID namespace");
    let expected = [sandbox, create, "start box".into(), "remove box".into()];
    assert_eq!(*agent.calls.lock().unwrap(), expected);
}

/// Carries connections to the agent until `cut` is told, which ends them all; then it carries new ones.
fn wire(dir: &Path, cut: Arc<tokio::sync::Notify>) {
    let listener = tokio::net::UnixListener::bind(dir.join("wire.sock")).unwrap();
    let agent = dir.join("agent.sock");
    tokio::spawn(async move {
        let mut carried = tokio::task::JoinSet::new();
        loop {
            tokio::select! {
                Ok((mut near, _)) = listener.accept() => {
                    let agent = agent.clone();
                    carried.spawn(async move {
                        let mut far = tokio::net::UnixStream::connect(agent).await.unwrap();
                        let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                    });
                }
                () = cut.notified() => carried.abort_all(),
            }
        }
    });
}

/// What `line` runs prints all that its program does, though its connection is cut on the way; `last` is the last call.
async fn goes_on_by_another_connection(line: &str, last: &str) {
    let (agent, dir, _server) = setup().await;
    let cut = Arc::new(tokio::sync::Notify::new());
    wire(dir.path(), cut.clone());
    let at = "--address unix://@/wire.sock";
    if line.starts_with("exec") {
        let made = ctl(dir.path(), &format!("{at} run -d -i --id idle --rootfs @ sleep 9"), "").await;
        assert_eq!(made.0, 0, "{made:?}");
    }
    let mut child = command(dir.path(), &format!("{at} {line}")).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut said = BufReader::new(child.stderr.take().unwrap()).lines();
    stdin.write_all(b"one\n").await.unwrap();
    assert_eq!(lines.next_line().await.unwrap().as_deref(), Some("one"));
    let until_reads = async |is_it: &dyn Fn(usize, usize) -> bool| loop {
        let (begun, ended) = (agent.reads.0.load(Ordering::SeqCst), agent.reads.1.load(Ordering::SeqCst));
        if is_it(begun, ended) {
            return ended;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    };
    // A read of this connection would take what is meant for the next one's.
    let before = until_reads(&|begun, ended| begun > ended).await;
    cut.notify_one();
    until_reads(&|_, ended| ended > before).await;
    let words = said.next_line().await.unwrap().unwrap();
    assert!(words.contains("connection lost") && words.ends_with("; looking for the agent again"), "{words}");
    // What the program prints meanwhile is read by the next connection.
    agent.echo.lock().unwrap().extend(b"two\n");
    agent.close();
    assert_eq!(lines.next_line().await.unwrap().as_deref(), Some("two"));
    assert_eq!((lines.next_line().await.unwrap(), said.next_line().await.unwrap()), (None, None));
    assert_eq!(child.wait().await.unwrap().code(), Some(4));
    let calls = agent.calls.lock().unwrap();
    assert!(calls.last().unwrap().starts_with(last), "{calls:?}");
}

/// Input of which nobody knows whether it has arrived: the program may not go on as if nothing had been.
#[tokio::test]
async fn input_that_was_under_way_is_not_passed_over() {
    let (agent, dir, _server) = setup().await;
    let cut = Arc::new(tokio::sync::Notify::new());
    wire(dir.path(), cut.clone());
    let at = "--address unix://@/wire.sock";
    let made = ctl(dir.path(), &format!("{at} run -d -i --id idle --rootfs @ sleep 9"), "").await;
    assert_eq!(made.0, 0, "{made:?}");
    *agent.is_full.lock().unwrap() = true;
    let mut child = command(dir.path(), &format!("{at} exec -i idle cat")).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"one\n").await.unwrap();
    while agent.calls.lock().unwrap().last().is_none_or(|call| call != "write to a full pipe") {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    cut.notify_one();
    let mut words = String::new();
    child.stderr.take().unwrap().read_to_string(&mut words).await.unwrap();
    assert!(words.contains("connection lost") && !words.contains("again"), "{words}");
    assert_eq!(child.wait().await.unwrap().code(), Some(125));
}

#[tokio::test]
async fn a_run_goes_on_by_another_connection() {
    goes_on_by_another_connection("run -i --id box --rootfs @ cat", "remove box").await;
}

#[tokio::test]
async fn an_exec_goes_on_by_another_connection() {
    // It is not begun again.
    goes_on_by_another_connection("exec -i idle cat", "exec idle/").await;
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
async fn a_further_process_is_a_user_of_the_containers_own_files() {
    let (agent, dir, _server) = setup().await;
    std::fs::create_dir_all(dir.path().join("tree/etc")).unwrap();
    for (file, text) in [("passwd", "web:x:33:34::/:/bin/sh\n"), ("group", "www:x:34:\naudio:x:29:web\n")] {
        std::fs::write(dir.path().join("tree/etc").join(file), text).unwrap();
    }
    for root in ["--image", "--rootfs"] {
        let line = format!("run -d -i --id box{root} {root} @/tree sh");
        assert_eq!(ctl(dir.path(), &line, "").await.0, 0);
        for (user, is) in [("web", "33:34 [34, 29]"), ("33:audio", "33:29 [29]"), ("7:8", "7:8 [8]")] {
            ctl(dir.path(), &format!("exec -u {user} box{root} true"), "").await;
            let calls = agent.calls.lock().unwrap();
            assert_eq!(calls.iter().rfind(|call| call.starts_with("as ")).unwrap(), &format!("as {is}"));
        }
    }
    let (status, _, stderr) = ctl(dir.path(), "exec -u nobody box--image true", "").await;
    assert_eq!(status, 125);
    assert!(stderr.contains("--user: the container's /etc/passwd has no user \"nobody\""), "{stderr}");
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

#[tokio::test]
async fn what_a_killed_client_leaves_goes_with_its_container() {
    let (agent, dir, _server) = setup().await;
    for path in ["share", "root"] {
        std::fs::create_dir(dir.path().join(path)).unwrap();
    }
    let line = "run -d --id slow --share @/share --rootfs @/root sh";
    let mut client = command(dir.path(), line).spawn().unwrap();
    while !agent.calls.lock().unwrap().iter().any(|call| call.starts_with("create slow")) {
        assert_eq!(client.try_wait().unwrap(), None);
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    client.kill().await.unwrap();
    assert!(dir.path().join("share/slow/rootfs").exists());
    let (status, stdout, _) = ctl(dir.path(), "ps", "").await;
    assert!(status == 0 && stdout.contains("\nslow "), "{stdout}");
    let (status, _, stderr) = ctl(dir.path(), "rm slow", "").await;
    assert_eq!((status, &*stderr), (0, ""));
    assert_eq!(std::fs::read_dir(dir.path().join("share")).unwrap().count(), 0);
}

#[tokio::test]
async fn what_fails_is_undone_and_stays_on_record_with_its_reason() {
    let (agent, dir, _server) = setup().await;
    let (status, _, stderr) = ctl(dir.path(), "run -d --id broken --rootfs @ sh", "").await;
    assert_eq!((status, &*stderr), (125, "nakai-ctl: StartContainer broken: INTERNAL: no luck\n"));
    assert_eq!(agent.calls.lock().unwrap().last().unwrap(), "remove broken");
    let (_, stdout, _) = ctl(dir.path(), "ps", "").await;
    assert!(stdout.contains("error (StartContainer broken: INTERNAL: no luck)"), "{stdout}");
    assert_eq!(ctl(dir.path(), "rm broken", "").await.0, 0);
    assert_eq!(ctl(dir.path(), "ps", "").await.1.lines().count(), 1);
    // In the foreground nothing stays.
    assert_eq!(ctl(dir.path(), "run --id broken --rootfs @ sh", "").await.0, 125);
    assert_eq!(ctl(dir.path(), "ps", "").await.1.lines().count(), 1);
}

#[tokio::test]
async fn of_two_that_take_a_name_one_gets_it() {
    let (agent, dir, _server) = setup().await;
    let line = "run -d --id box --rootfs @ sleep 9";
    let (one, two) = tokio::join!(ctl(dir.path(), line, ""), ctl(dir.path(), line, ""));
    let (won, lost) = if one.0 == 0 { (one, two) } else { (two, one) };
    assert_eq!((won.0, lost.0), (0, 125), "{won:?} {lost:?}");
    assert!(lost.2.starts_with("nakai-ctl: container box is there already: "), "{}", lost.2);
    let calls = agent.calls.lock().unwrap();
    assert_eq!(calls.iter().filter(|call| call.starts_with("create box")).count(), 1);
}

#[tokio::test]
async fn events_tell_each_step_as_it_happens() {
    let (agent, dir, _server) = setup().await;
    let mut follower = command(dir.path(), "events --all").spawn().unwrap();
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    ctl(dir.path(), "run -d -i --id box --rootfs @ sleep 9", "").await;
    ctl(dir.path(), "exec box true", "").await;
    // Its end is told by the attendant.
    agent.close();
    let mut seen = Vec::new();
    while seen.last().is_none_or(|last: &String| !last.starts_with("die")) {
        let line = lines.next_line().await.unwrap().unwrap();
        let event: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(event["container"], "box", "{line}");
        let word = |key: &str| event[key].as_str().unwrap_or_default().to_owned();
        seen.push(format!("{} {}", word("action"), word("phase")));
    }
    let expected =
        ["create begin", "create done", "start begin", "start done", "exec begin", "exec failed", "die "];
    assert_eq!(seen, expected);
    ctl(dir.path(), "rm box", "").await;
    assert!(lines.next_line().await.unwrap().unwrap().contains(r#""action":"remove""#));
}

#[tokio::test]
async fn a_container_of_an_image_has_a_root_of_its_own() {
    let (agent, dir, _server) = setup().await;
    std::fs::create_dir(dir.path().join("tree")).unwrap();
    std::fs::write(dir.path().join("tree/file"), "x").unwrap();
    assert_eq!(
        ctl(dir.path(), "run -d --id box --image @/tree sh", "").await,
        (0, "box\n".into(), "".into())
    );
    let create = agent.calls.lock().unwrap().iter().find(|call| call.starts_with("create")).unwrap().clone();
    let root = Path::new(create.strip_prefix("create box box ").unwrap()).to_owned();
    assert!(root.starts_with(dir.path()) && !root.starts_with(dir.path().join("tree")));
    assert_eq!(std::fs::read_to_string(root.join("file")).unwrap(), "x");
    assert_eq!(ctl(dir.path(), "rm box", "").await.0, 0);
    assert!(!root.exists() && dir.path().join("tree/file").exists());
    let (status, _, stderr) = ctl(dir.path(), "run --image @/none sh", "").await;
    assert_eq!(status, 125);
    assert!(stderr.contains("none: no such file or directory"), "{stderr}");
}

#[tokio::test]
async fn a_named_sandbox_is_found_and_a_dead_one_is_forgotten() {
    let (_agent, dir, _server) = setup().await;
    let header = ctl(dir.path(), "vm ls", "").await.1;
    assert_eq!(header.lines().count(), 1);
    // As the keeper of a VM would note it; the stub is in this process.
    let me = std::process::id();
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let start = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(19).unwrap().to_owned();
    let note = |name: &str, start: &str| {
        let address = format!("unix://{}/agent.sock", dir.path().display());
        let record = serde_json::json!({"name": name, "keeper": format!("{me}@{start}"), "address": address, "started": 1});
        std::fs::create_dir_all(dir.path().join("nakai/vms")).unwrap();
        std::fs::write(dir.path().join(format!("nakai/vms/{name}.json")), record.to_string()).unwrap();
    };
    note("live", &start);
    note("dead", "1");
    let listed = ctl(dir.path(), "vm ls", "").await.1;
    assert_eq!(listed.lines().count(), 2, "{listed}");
    assert!(listed.lines().nth(1).unwrap().starts_with("live "), "{listed}");
    assert!(!dir.path().join("nakai/vms/dead.json").exists());
    let answer = (0, "the agent serves\n".to_owned(), String::new());
    assert_eq!(ctl(dir.path(), "check --sandbox live", "").await, answer);
    let (status, _, stderr) = ctl(dir.path(), "--sandbox dead check", "").await;
    assert_eq!((status, &*stderr), (125, "nakai-ctl: no VM dead (there are: live)\n"));
    let mut check = command(dir.path(), "check");
    check.env_remove("NAKAI_ADDRESS").env("NAKAI_SANDBOX", "live");
    assert_eq!(check.output().await.unwrap().stdout, b"the agent serves\n");
    let (status, _, stderr) = ctl(dir.path(), "vm start --name live --kernel /k --initrd /i", "").await;
    assert_eq!((status, &*stderr), (125, "nakai-ctl: VM live is there already\n"));
    // What is typed counts more than what the environment names.
    let (status, _, stderr) = ctl(dir.path(), "run --kernel /none --initrd /none --rootfs @ sh", "").await;
    assert_eq!(
        (status, &*stderr),
        (125, "nakai-ctl: kernel /none: No such file or directory (os error 2)\n")
    );
    let both =
        ctl(dir.path(), "run --address unix://@/a --kernel /none --initrd /none --rootfs @ sh", "").await;
    assert!(both.0 == 125 && both.2.contains("not with --address or --sandbox"), "{both:?}");
    // A keeper that can't boot leaves nothing.
    let (status, _, stderr) = ctl(dir.path(), "vm start --name new --kernel /none --initrd /i", "").await;
    assert_eq!(
        (status, &*stderr),
        (125, "nakai-ctl: VM new: kernel /none: No such file or directory (os error 2)\n")
    );
    assert_eq!(ctl(dir.path(), "vm ls", "").await.1.lines().count(), 2);
}
