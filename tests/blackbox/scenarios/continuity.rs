//! A shim keeps one connection for as long as its sandbox lives. It outlives the agent's servers, with all calls
//! under way.

use std::fs;
use std::time::Duration;

use nakai_ctl::CallError;
use nakai_ctl::sandbox::request;
use nakai_ctl::spec::HookKind;
use tokio::task::JoinHandle;
use ttrpc::Code;

use super::recovery::{COUNT, KILL_SERVER, counted};
use crate::harness::expect::{noise, refused, same_bytes, succeeded};
use crate::harness::{Container, Ctx, Outcome, Scenario, scenario};

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        scenario!(a_connection_and_its_calls_outlive_servers).ends_its_agent(),
        scenario!(bytes_under_way_arrive_once).ends_its_agent().host_only(),
        scenario!(a_write_that_waits_outlives_servers).ends_its_agent().host_only(),
    ]
}

/// Everything that a stream has from here on.
async fn read_all(ctx: Ctx, container: String, exec: String) -> Result<Vec<u8>, CallError> {
    let mut text = Vec::new();
    loop {
        let data = ctx.client().read_stdout(&container, &exec, 32 << 10).await?;
        if data.is_empty() {
            return Ok(text);
        }
        text.extend(data);
    }
}

/// A container that is waited for and read from, as a shim does.
struct Watched {
    container: Container,
    output: JoinHandle<Result<Vec<u8>, CallError>>,
    status: JoinHandle<Result<i32, CallError>>,
}

fn watch(ctx: &Ctx, container: Container) -> Watched {
    let (waiting, id) = (ctx.clone(), container.id.clone());
    let output = tokio::spawn(read_all(ctx.clone(), container.id.clone(), String::new()));
    let status = tokio::spawn(async move { waiting.client().wait_process(&id, "").await });
    Watched { container, output, status }
}

/// Has the server killed within a creation, and waits for what becomes of that.
pub(super) async fn killed_within_a_creation(ctx: &Ctx) -> Outcome {
    let victim = ctx.container(|spec| spec.args(["echo", "works"]))?;
    let mut doomed = victim.request();
    // It outlives the hook's end, which comes with that of the worker.
    let script = format!("{KILL_SERVER}; sleep 1000000");
    let hook = ["sh", "-c", &script];
    doomed.OCI = Some(victim.spec().clone().hook(HookKind::Prestart, "/bin/sh", hook, 0).build()).into();
    let created = ctx.client().create_container_with(&doomed).await;
    refused(created, Code::UNAVAILABLE, &["CreateContainer", &victim.id, "undone"]);
    ctx.client().check().await?;
    victim.create().await?;
    victim.start().await?;
    assert_eq!(succeeded(victim.finish(b"").await?), "works");
    victim.remove().await?;
    Ok(())
}

async fn a_connection_and_its_calls_outlive_servers(ctx: Ctx) -> Outcome {
    ctx.client().create_sandbox(&request("continuity", "pod", !ctx.is_host())).await?;
    ctx.run(|spec| spec.args(["true"])).await?;
    let before = ctx.inventory().await?;
    let events = ctx.clone();
    let oom = tokio::spawn(async move { events.client().oom_event().await });
    let mut watched = Vec::new();
    for _ in 0..if ctx.is_host() { 20 } else { 5 } {
        let container = ctx.started(|spec| spec.args(["sh", "-c", COUNT])).await?;
        watched.push(watch(&ctx, container));
    }
    let idle = ctx.idle(|spec| spec).await?;
    // Nobody reads it before the server has died, and nobody has to.
    ctx.client().exec_process(&idle.id, "early", idle.process(["echo", "before"])).await?;
    for _ in 0..3 {
        killed_within_a_creation(&ctx).await?;
    }
    assert_eq!(idle.sh("echo alive").await?, "alive");
    assert_eq!(read_all(ctx.clone(), idle.id.clone(), "early".to_owned()).await?, b"before\n");
    assert_eq!(ctx.client().wait_process(&idle.id, "early").await?, 0);
    ctx.client().stats_container(&idle.id).await?;
    idle.remove().await?;
    for Watched { container, output, status } in watched {
        assert!(!status.is_finished(), "{} still runs", container.id);
        fs::write(container.file("stop"), "")?;
        counted(output.await??)?;
        assert_eq!(status.await??, 7);
        container.remove().await?;
    }
    assert!(!oom.is_finished(), "nothing has run out of memory");
    ctx.returns_to(&before).await?;
    oom.abort();
    ctx.client().destroy_sandbox().await?;
    Ok(())
}

/// A process does not read for now, and its pipe is full.
async fn a_write_that_waits_outlives_servers(ctx: Ctx) -> Outcome {
    ctx.client().create_sandbox(&request("continuity", "pod", false)).await?;
    let idle = ctx.idle(|spec| spec).await?;
    let script = "until [ -e /go ]; do sleep 0.1; done; exec cat";
    ctx.client().exec_process(&idle.id, "slow", idle.process(["sh", "-c", script])).await?;
    let sent = noise(300_000, 3);
    let (writing, id, data) = (ctx.clone(), idle.id.clone(), sent.clone());
    let written = tokio::spawn(async move { writing.client().write_stdin(&id, "slow", data).await });
    // The server has all of the write when later calls of the connection have been answered; then it has more time
    // than it takes to keep it, by its own clock.
    idle.sh("true").await?;
    idle.sh("sleep 2").await?;
    for _ in 0..3 {
        killed_within_a_creation(&ctx).await?;
    }
    assert!(!written.is_finished(), "it waits for its process");
    fs::write(idle.file("go"), "")?;
    let output = tokio::spawn(read_all(ctx.clone(), idle.id.clone(), "slow".to_owned()));
    assert_eq!(written.await??, 300_000);
    ctx.client().close_stdin(&idle.id, "slow").await?;
    same_bytes(&output.await??, &sent);
    assert_eq!(ctx.client().wait_process(&idle.id, "slow").await?, 0);
    idle.remove().await?;
    ctx.client().destroy_sandbox().await?;
    Ok(())
}

/// Writes so fast that there is always something under way, and a lot of it.
const POUR: &str = "seq 1 3000000; echo end";

/// Ends servers at moments that have to do with nothing, each when it has been there for a while.
const KILL_AGAIN_AND_AGAIN: &str = r#"last=; n=0
while [ $n -lt 6 ]; do
    for child in $(cat $PROC/$SUPERVISOR/task/*/children); do
        if [ "$(cat $PROC/$child/comm 2> /dev/null)" = nakai-server ] && [ $child != "$last" ]; then
            sleep 0.2$n
            kill -9 $child
            last=$child
            n=$((n + 1))
        fi
    done
done"#;

async fn bytes_under_way_arrive_once(ctx: Ctx) -> Outcome {
    ctx.client().create_sandbox(&request("continuity", "pod", false)).await?;
    let mut watched = Vec::new();
    for _ in 0..2 {
        let container = ctx.started(|spec| spec.args(["sh", "-c", POUR])).await?;
        watched.push(watch(&ctx, container));
    }
    let idle = ctx.idle(|spec| spec).await?;
    // A script on this host blocks its thread.
    let killing = ctx.clone();
    let killer = std::thread::spawn(move || {
        let runtime =
            tokio::runtime::Builder::new_current_thread().build().map_err(|error| error.to_string())?;
        runtime.block_on(killing.guest_sh(KILL_AGAIN_AND_AGAIN)).map(drop).map_err(|error| error.to_string())
    });
    // Questions are asked all the time, and all are answered.
    let mut asked = 0;
    while !killer.is_finished() {
        ctx.client().check().await?;
        ctx.client().stats_container(&idle.id).await?;
        asked += 1;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    killer.join().map_err(|_| "the killer has panicked")??;
    assert!(asked > 0);
    for Watched { container, output, status } in watched {
        let (output, status) = (output.await??, status.await??);
        let text = String::from_utf8(output)?;
        let mut lines = text.lines();
        for number in 1..=3_000_000 {
            let line = lines.next().unwrap_or("nothing");
            assert!(line == number.to_string(), "{line} in place of {number}");
        }
        assert_eq!((lines.next(), lines.next(), status), (Some("end"), None, 0));
        container.remove().await?;
    }
    idle.remove().await?;
    ctx.client().destroy_sandbox().await?;
    Ok(())
}
