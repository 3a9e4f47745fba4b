//! The server dies at any moment: the containers notice nothing, and the next server knows them.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nakai_ctl::sandbox::{request, shm_storage};
use nakai_ctl::spec::HookKind;
use nakai_ctl::vm::VmConfig;
use nakai_protocols::agent::Storage;
use tokio::time::Instant;
use ttrpc::Code;

use super::pause::{pause, resume};
use crate::harness::expect::{refused, succeeded};
use crate::harness::{Container, Ctx, Fallible, Outcome, Scenario, scenario};

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        scenario!(the_server_dies_and_the_containers_go_on).ends_its_agent(),
        scenario!(an_end_without_a_server_is_not_lost).ends_its_agent().host_only(),
        scenario!(a_server_that_dies_again_and_again_comes_back).ends_its_agent().host_only(),
        scenario!(a_crash_loop_backs_off_and_says_so).machine(with_console_in_a_file),
        scenario!(an_exec_that_hangs_without_its_server_is_ended).ends_its_agent().host_only(),
        scenario!(an_agent_that_is_asked_to_stop_leaves_nothing).ends_its_agent().host_only(),
        scenario!(an_agent_that_is_asked_to_stop_ends_with_a_server_that_hangs).ends_its_agent().host_only(),
        scenario!(a_sandbox_that_goes_takes_its_creations_with_it).ends_its_agent().host_only(),
        scenario!(what_a_killed_supervisor_had_is_given_back).ends_its_agent().host_only(),
        scenario!(what_a_killed_agent_had_is_given_back_by_the_next).ends_its_agent().host_only(),
    ]
}

/// Ends the server; found by its name, as its pid is not the same in each namespace.
pub(super) const KILL_SERVER: &str = "for p in /proc/[0-9]*; do \
     [ \"$(cat $p/comm 2> /dev/null)\" != nakai-server ] || kill -9 ${p##*/}; done";

/// Kills the server in the middle of a creation, by a hook of that container, and connects to the next one.
pub(super) async fn crash(ctx: &Ctx) -> Fallible<Ctx> {
    crash_with(ctx, []).await
}

/// The same, of a container with these storages, too.
pub(super) async fn crash_with(ctx: &Ctx, storages: impl IntoIterator<Item = Storage>) -> Fallible<Ctx> {
    let victim = ctx.container(|spec| spec.args(["true"]))?;
    // It still has a lot to do when its server is gone.
    let script = format!("{KILL_SERVER}; sleep 1000000");
    let volume =
        Storage { mount_point: format!("/run/kata-containers/{}-volume", victim.id), ..shm_storage() };
    let mut doomed = victim.request();
    doomed.storages.push(Storage { driver: "ephemeral".into(), ..volume });
    doomed.storages.extend(storages);
    doomed.OCI =
        Some(victim.spec().clone().hook(HookKind::Prestart, "/bin/sh", ["sh", "-c", &script], 0).build())
            .into();
    let created = ctx.client().create_container_with(&doomed).await;
    assert!(created.is_err(), "the server survived");
    let next = ctx.reconnected().await?;
    next.client().check().await?;
    // The creation is undone, so that the id is free.
    let victim = victim.over(&next);
    victim.create().await?;
    victim.start().await?;
    assert_eq!(victim.wait().await?, 0);
    victim.remove().await?;
    Ok(next)
}

/// Counts, a line each, until the file is there.
pub(super) const COUNT: &str =
    "n=0; while [ ! -e /stop ]; do echo $n; n=$((n+1)); sleep 0.1; done; echo end; exit 7";

/// Reads until a line has come.
async fn read_some(ctx: &Ctx, container: &str, exec: &str, text: &mut Vec<u8>) -> Outcome {
    while !text.ends_with(b"\n") || text.len() < 8 {
        let data = ctx.client().read_stdout(container, exec, 4096).await?;
        assert!(!data.is_empty(), "{container}: the stream has ended");
        text.extend(data);
    }
    Ok(())
}

async fn read_to_end(ctx: &Ctx, container: &str, exec: &str, text: &mut Vec<u8>) -> Outcome {
    loop {
        let data = ctx.client().read_stdout(container, exec, 4096).await?;
        if data.is_empty() {
            return Ok(());
        }
        text.extend(data);
    }
}

/// Every number once, in order.
pub(super) fn counted(text: Vec<u8>) -> Outcome {
    let text = String::from_utf8(text)?;
    let lines: Vec<&str> = text.lines().collect();
    let (end, numbers) = lines.split_last().ok_or("no output")?;
    assert_eq!(*end, "end");
    for (number, line) in numbers.iter().enumerate() {
        assert_eq!(*line, number.to_string(), "lost or twice: {text}");
    }
    Ok(())
}

async fn the_server_dies_and_the_containers_go_on(ctx: Ctx) -> Outcome {
    let mut wanted = request("recovery", "recovery-pod", !ctx.is_host());
    wanted.sandbox_pidns = true;
    ctx.client().create_sandbox(&wanted).await?;
    ctx.run(|spec| spec.args(["true"])).await?;
    let before = ctx.inventory().await?;
    let number = if ctx.is_host() { 20 } else { 5 };
    let mut counting = Vec::new();
    for _ in 0..number {
        let container = ctx.started(|spec| spec.args(["sh", "-c", COUNT])).await?;
        counting.push((container, Vec::new()));
    }
    for (container, text) in &mut counting {
        read_some(&ctx, &container.id, "", text).await?;
    }
    let idle = ctx.idle(|spec| spec).await?;
    ctx.client().exec_process(&idle.id, "cat", idle.process(["cat"])).await?;
    ctx.client().exec_process(&idle.id, "count", idle.process(["sh", "-c", COUNT])).await?;
    let mut terminal = idle.process(["sh", "-c", "read word; echo $word; sleep 1000000"]);
    terminal.Terminal = true;
    ctx.client().exec_process(&idle.id, "terminal", terminal).await?;
    let ended = ctx.started(|spec| spec.args(["sh", "-c", "echo last words; exit 5"])).await?;
    let created = ctx.created(|spec| spec.args(["echo", "late"])).await?;
    let paused = ctx.idle(|spec| spec).await?;
    pause(&ctx, &paused.id).await?;

    let ctx = crash(&ctx).await?;
    let ctx = crash(&ctx).await?;

    // What runs can be seen, entered, fed and ended.
    let idle = idle.over(&ctx);
    assert_eq!(idle.sh("echo alive; hostname").await?, "alive\nrecovery-pod");
    ctx.client().stats_container(&idle.id).await?;
    ctx.client().write_stdin(&idle.id, "cat", b"a word\n".to_vec()).await?;
    assert_eq!(ctx.client().read_stdout(&idle.id, "cat", 100).await?, b"a word\n");
    ctx.client().close_stdin(&idle.id, "cat").await?;
    assert_eq!(ctx.client().wait_process(&idle.id, "cat").await?, 0);
    ctx.client().write_stdin(&idle.id, "terminal", b"echoed\n".to_vec()).await?;
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains("echoed\r\nechoed") {
        seen.extend(ctx.client().read_stdout(&idle.id, "terminal", 100).await?);
    }
    ctx.client().signal_process(&idle.id, "terminal", 9).await?;
    assert_eq!(ctx.client().wait_process(&idle.id, "terminal").await?, 137);
    refused(
        ctx.client().exec_process(&idle.id, "count", idle.process(["true"])).await,
        Code::ALREADY_EXISTS,
        &[],
    );
    fs::write(idle.file("stop"), "")?;
    let mut text = Vec::new();
    read_to_end(&ctx, &idle.id, "count", &mut text).await?;
    counted(text)?;
    assert_eq!(ctx.client().wait_process(&idle.id, "count").await?, 7);

    // What had ended, waited or slept is as it was.
    let (ended, created, paused) = (ended.over(&ctx), created.over(&ctx), paused.over(&ctx));
    let finished = ended.finish(b"").await?;
    assert_eq!((finished.status, finished.stdout.as_slice()), (5, b"last words\n".as_slice()));
    created.start().await?;
    assert_eq!(succeeded(created.finish(b"").await?), "late");
    let asleep = ctx.client().exec_process(&paused.id, "x", paused.process(["true"])).await;
    refused(asleep, Code::FAILED_PRECONDITION, &["paused"]);
    resume(&ctx, &paused.id).await?;
    assert_eq!(paused.sh("echo awake").await?, "awake");

    let mut removed = vec![idle, ended, created, paused];
    for (container, mut text) in counting {
        let container = container.over(&ctx);
        fs::write(container.file("stop"), "")?;
        read_to_end(&ctx, &container.id, "", &mut text).await?;
        counted(text)?;
        assert_eq!(container.wait().await?, 7);
        removed.push(container);
    }
    for container in &removed {
        container.remove().await?;
    }
    ctx.returns_to(&before).await?;
    ctx.client().destroy_sandbox().await?;
    Ok(())
}

/// What the agent's supervisor is told, while it can't start another server.
pub(super) async fn without_server(ctx: &Ctx, script: &str) -> Fallible<Ctx> {
    let script = format!("kill -STOP $SUPERVISOR; kill -9 $SERVER; {script}; kill -CONT $SUPERVISOR");
    ctx.guest_sh(&script).await?;
    ctx.reconnected().await
}

async fn an_end_without_a_server_is_not_lost(ctx: Ctx) -> Outcome {
    ctx.client().create_sandbox(&request("recovery", "pod", false)).await?;
    let container = ctx.started(|spec| spec.args(["sh", "-c", COUNT])).await?;
    ctx.client()
        .exec_process(
            &container.id,
            "x",
            container.process(["sh", "-c", "while [ ! -e /first ]; do sleep 0.01; done; exit 3"]),
        )
        .await?;
    let mut text = Vec::new();
    read_some(&ctx, &container.id, "", &mut text).await?;
    // Both end while nobody is there to hear of it. Each is known by the file that it waits for.
    let script = format!(
        "cgroup=$(find $CGROUP -type d -name {id} | head -n 1); \
         lives() {{ for p in $(cat $cgroup/cgroup.procs); do \
             ! grep -q $1 /proc/$p/cmdline 2> /dev/null || return 0; done; return 1; }}; \
         : > {root}/first; while lives /first; do sleep 0.05; done; \
         : > {root}/stop; while lives /stop; do sleep 0.05; done",
        id = container.id,
        root = container.root.display(),
    );
    let ctx = without_server(&ctx, &script).await?;
    let container = container.over(&ctx);
    read_to_end(&ctx, &container.id, "", &mut text).await?;
    counted(text)?;
    assert_eq!(container.wait().await?, 7);
    assert_eq!(ctx.client().wait_process(&container.id, "x").await?, 3);
    container.remove().await?;
    ctx.client().destroy_sandbox().await?;
    Ok(())
}

async fn a_server_that_dies_again_and_again_comes_back(ctx: Ctx) -> Outcome {
    ctx.client().create_sandbox(&request("recovery", "pod", false)).await?;
    let container = ctx.idle(|spec| spec).await?;
    let mut ctx = ctx;
    // Notes that make no sense are no reason to lose what runs.
    let spoil = format!(
        r#"cd $RUN/nakai/records; for kind in asked started; do echo "{{" > $kind/{}; done"#,
        container.id
    );
    for before in ["true", &spoil, "true", "true"] {
        ctx.guest_sh(&format!("{before}; kill -9 $SERVER")).await?;
        // The connection is taken although nobody is there yet; the answer comes when somebody is.
        ctx = ctx.reconnected().await?;
        ctx.client().check().await?;
    }
    let container: Container = container.over(&ctx);
    assert_eq!(container.sh("echo alive").await?, "alive");
    container.remove().await?;
    ctx.client().destroy_sandbox().await?;
    Ok(())
}

async fn an_agent_that_is_asked_to_stop_leaves_nothing(ctx: Ctx) -> Outcome {
    ctx.client().create_sandbox(&request("recovery", "pod", false)).await?;
    let container = ctx.idle(|spec| spec).await?;
    ctx.client().exec_process(&container.id, "x", container.process(["sleep", "1000000"])).await?;
    let waiting = ctx.another_client().await?;
    let id = container.id.clone();
    let waited = tokio::spawn(async move { waiting.wait_process(&id, "").await });
    ctx.guest_sh("kill -TERM $SUPERVISOR").await?;
    // Whoever waits for the container hears of its end, or that the agent is gone.
    let _ = waited.await?;
    Ok(())
}

/// The server is killed when its time is up, and no other starts.
async fn an_agent_that_is_asked_to_stop_ends_with_a_server_that_hangs(ctx: Ctx) -> Outcome {
    let gone = "while kill -0 $SUPERVISOR 2> /dev/null; do sleep 0.1; done; echo gone";
    let script = format!("kill -STOP $SERVER; kill -TERM $SUPERVISOR; {gone}");
    let ended = tokio::time::timeout(LIMIT, ctx.guest_sh(&script)).await;
    assert_eq!(ended.map_err(|_| "it goes on")??.trim(), "gone");
    // Here an agent that was killed is started again, as services are.
    let looks = Looks::begin();
    loop {
        match ctx.reconnected().await {
            Ok(next) => return Ok(next.client().destroy_sandbox().await?),
            Err(_) => looks.pause("another agent").await?,
        }
    }
}

/// Whoever asks for a container while its sandbox goes gets none; nothing of it is left, which the harness looks for.
async fn a_sandbox_that_goes_takes_its_creations_with_it(ctx: Ctx) -> Outcome {
    ctx.client().create_sandbox(&request("recovery", "pod", false)).await?;
    let container = ctx.container(|spec| spec.args(["sleep", "1000000"]))?;
    let (gate, guest) = ctx.directory(&container, "gate")?;
    let script = format!(": > {guest}/waiting; exec sleep 1000000");
    let container = container.edit(|spec| spec.hook(HookKind::Prestart, "/bin/sh", ["sh", "-c", &script], 0));
    let other = ctx.another_client().await?;
    let request = container.request();
    let create = tokio::spawn(async move { other.create_container_with(&request).await });
    let looks = Looks::begin();
    while !gate.join("waiting").exists() {
        looks.pause("the hook runs").await?;
    }
    ctx.client().destroy_sandbox().await?;
    refused(create.await?, Code::FAILED_PRECONDITION, &["stopping"]);
    Ok(())
}

/// Longer than anything here takes, on however busy a machine.
const LIMIT: Duration = Duration::from_secs(180);

/// Pauses between looks at something that comes to be.
pub(super) struct Looks(Instant);

impl Looks {
    pub(super) fn begin() -> Self {
        Self(Instant::now() + LIMIT)
    }

    pub(super) async fn pause(&self, what: &str) -> Outcome {
        if Instant::now() > self.0 {
            return Err(format!("not within {LIMIT:?}: {what}").into());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        Ok(())
    }
}

const CONSOLE: &str = "console";

fn with_console_in_a_file(config: &mut VmConfig, directory: &Path) -> Outcome {
    config.console = Some(directory.join(CONSOLE));
    Ok(())
}

/// Ends servers, each as soon as it is there, until there is the file `$1`: on a busy host some may live for so long that
/// the row begins again. It outlives the hook that it is.
const KILL_MANY: &str = r#"setsid sh -c 'last=
while [ ! -e "$0" ]; do
    for p in $(cat /proc/1/task/1/children); do
        if [ "$(cat /proc/$p/comm 2> /dev/null)" = nakai-server ] && [ $p != "$last" ]; then
            last=$p
            kill -9 $p
        fi
    done
done' "$1" > /dev/null 2>&1 < /dev/null & sleep 1000000"#;

async fn a_crash_loop_backs_off_and_says_so(ctx: Ctx) -> Outcome {
    ctx.client().create_sandbox(&request("recovery", "pod", true)).await?;
    let idle = ctx.idle(|spec| spec).await?;
    let doomed = ctx.container(|spec| spec.args(["true"]))?;
    let (host, guest) = ctx.directory(&doomed, "enough")?;
    let doomed = doomed.edit(|spec| {
        let killer = ["sh", "-c", KILL_MANY, "sh", &format!("{guest}/enough")];
        spec.hook(HookKind::Prestart, "/bin/sh", killer, 0)
    });
    let line = |deaths: u32, pause: u32| {
        format!("{deaths} in a row; containers run on, another starts in {pause} ms")
    };
    let console = ctx.files()?.join(CONSOLE);
    let seen = async {
        let looks = Looks::begin();
        while !fs::read_to_string(&console)?.contains(&line(5, 200)) {
            looks.pause("five deaths").await?;
        }
        fs::write(host.join("enough"), "")?;
        Outcome::Ok(())
    };
    let (created, seen) = tokio::join!(doomed.create(), seen);
    seen?;
    assert!(created.is_err(), "the server survived");
    let text = fs::read_to_string(&console)?;
    let mut rest = text.as_str();
    for (deaths, pause) in [(1, 0), (2, 0), (3, 0), (4, 100), (5, 200)] {
        let line = line(deaths, pause);
        let (_, after) = rest.split_once(&line).ok_or_else(|| format!("no {line:?} in order: {text}"))?;
        rest = after;
    }
    let ctx = ctx.reconnected().await?;
    assert_eq!(idle.over(&ctx).sh("echo alive").await?, "alive");
    Ok(())
}

/// Stops all processes of a container behind the agent's back, or lets them go on.
pub(super) fn freeze(id: &str, frozen: bool) -> String {
    let (v1, v2) = if frozen { ("FROZEN", 1) } else { ("THAWED", 0) };
    format!(
        "for group in $(find $CGROUP -type d -name {id}); do \
         [ ! -e $group/freezer.state ] || echo {v1} > $group/freezer.state; \
         [ ! -e $group/cgroup.freeze ] || echo {v2} > $group/cgroup.freeze; done"
    )
}

/// The pids of the supervisor's children, as this host sees them.
async fn children(ctx: &Ctx) -> Fallible<Vec<String>> {
    let text = ctx.guest_sh("cat $PROC/$SUPERVISOR/task/*/children").await?;
    Ok(text.split_whitespace().map(str::to_owned).collect())
}

async fn an_exec_that_hangs_without_its_server_is_ended(ctx: Ctx) -> Outcome {
    ctx.client().create_sandbox(&request("recovery", "pod", false)).await?;
    ctx.run(|spec| spec.args(["true"])).await?;
    let before = ctx.inventory().await?;
    let idle = ctx.idle(|spec| spec).await?;
    assert_eq!(idle.sh("echo warm").await?, "warm");
    let usual = children(&ctx).await?;
    ctx.guest_sh(&freeze(&idle.id, true)).await?;
    let (other, id, process) = (ctx.another_client().await?, idle.id.clone(), idle.process(["true"]));
    let hung = tokio::spawn(async move { other.exec_process(&id, "hung", process).await });
    let looks = Looks::begin();
    let child = loop {
        if let Some(child) = children(&ctx).await?.into_iter().find(|child| !usual.contains(child)) {
            break Path::new("/proc").join(child);
        }
        looks.pause("the process").await?;
    };
    ctx.guest_sh("kill -9 $SERVER").await?;
    assert!(hung.await?.is_err(), "the server survived");
    let ctx = ctx.reconnected().await?;
    ctx.client().check().await?;
    // To the next server it was paused.
    resume(&ctx, &idle.id).await?;
    // Nobody waits for it any more. One that is in a frozen cgroup (v1) can't end before.
    let looks = Looks::begin();
    while child.exists() {
        looks.pause("the end of the process").await?;
    }
    let idle = idle.over(&ctx);
    ctx.client().exec_process(&idle.id, "hung", idle.process(["true"])).await?;
    assert_eq!(ctx.client().wait_process(&idle.id, "hung").await?, 0);
    assert_eq!(idle.sh("echo alive").await?, "alive");
    idle.remove().await?;
    ctx.returns_to(&before).await?;
    ctx.client().destroy_sandbox().await?;
    Ok(())
}

/// Where a container's processes are, and which, as this host sees it.
async fn traces(ctx: &Ctx, container: &Container) -> Fallible<Vec<PathBuf>> {
    let script = format!(
        "for group in $(find $CGROUP -type d -name {id}); do echo $group; \
         sed s,^,/proc/, $group/cgroup.procs; done",
        id = container.id
    );
    let text = ctx.guest_sh(&script).await?;
    Ok(text.lines().map(PathBuf::from).collect())
}

/// Kills a part of an agent that has a container with processes, streams and a volume. Whatever serves then has
/// nothing of it, and room for the same again.
async fn killed(ctx: Ctx, victims: &str) -> Outcome {
    let wanted = || {
        let mut wanted = request("recovery", "pod", false);
        wanted.sandbox_pidns = true;
        wanted
    };
    ctx.client().create_sandbox(&wanted()).await?;
    let container = ctx.container(|spec| spec.args(["sleep", "1000000"]))?;
    let volume = format!("/run/kata-containers/{}-volume", container.id);
    let mut create = container.request();
    create.storages.push(Storage { driver: "ephemeral".into(), mount_point: volume, ..shm_storage() });
    ctx.client().create_container_with(&create).await?;
    container.start().await?;
    ctx.client().exec_process(&container.id, "x", container.process(["sleep", "1000000"])).await?;
    let traces = traces(&ctx, &container).await?;
    assert!(traces.len() > 2, "{traces:?}");

    ctx.guest_sh(&format!("kill -9 {victims}")).await?;
    let looks = Looks::begin();
    let ctx = loop {
        if let Ok(ctx) = ctx.reconnected().await
            // The one that is ending has a sandbox still.
            && ctx.client().create_sandbox(&wanted()).await.is_ok()
        {
            break ctx;
        }
        looks.pause("another agent without a sandbox").await?;
    };
    while traces.iter().any(|trace| trace.exists()) {
        looks.pause("the end of all that there was").await?;
    }
    let container = container.over(&ctx);
    ctx.client().create_container_with(&create).await?;
    container.start().await?;
    assert_eq!(container.sh("echo alive").await?, "alive");
    container.remove().await?;
    ctx.client().destroy_sandbox().await?;
    Ok(())
}

async fn what_a_killed_supervisor_had_is_given_back(ctx: Ctx) -> Outcome {
    killed(ctx, "$SUPERVISOR").await
}

async fn what_a_killed_agent_had_is_given_back_by_the_next(ctx: Ctx) -> Outcome {
    killed(ctx, "$SUPERVISOR $SERVER").await
}
