//! Under fire: connections cut and servers killed at random moments, waits that never end; and after all of it nothing
//! is left, and nobody else has waited.
//!
//! | variable | what | else |
//! |---|---|---|
//! | `NAKAI_CUTS` | how many calls are cut off | a few dozen |
//! | `NAKAI_KILLS` | how many servers are killed, later and later | a few |
//! | `NAKAI_SOAK` | how many times as much a soak does | 1 |

use std::time::Duration;

use nakai_ctl::CallError;
use nakai_ctl::connect::connect;
use nakai_ctl::sandbox::{request, shm_storage};
use nakai_ctl::spec::HookKind;
use nakai_protocols::agent::{RemoveContainerRequest, Storage, VolumeStatsRequest};
use protobuf::Message as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use ttrpc::Code;

use super::recovery::crash;
use crate::harness::context::{SHELL_LIMIT, WARM};
use crate::harness::expect::{refused, succeeded};
use crate::harness::{Container, Ctx, Fallible, Outcome, Scenario, scenario};

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        scenario!(calls_that_are_cut_off_leave_nothing),
        scenario!(connections_end_with_their_clients),
        scenario!(servers_killed_at_any_moment_leave_nothing).ends_its_agent().host_only(),
        scenario!(what_hangs_keeps_nobody_waiting).vm_only(),
        scenario!(a_server_that_dies_while_a_share_hangs_has_a_successor).ends_its_agent(),
        scenario!(a_share_that_hangs_keeps_no_sandbox_from_ending).vm_only().ends_its_agent(),
        scenario!(a_removal_that_takes_too_long_says_so_and_goes_on),
        scenario!(a_soak_ends_where_it_began),
        scenario!(an_exec_that_cannot_be_is_refused_by_its_cause),
        scenario!(a_removal_takes_those_that_got_away),
    ]
}

/// How often, by an environment variable or else.
fn times(variable: &str, or_else: u64) -> Fallible<u64> {
    match std::env::var(variable) {
        Ok(text) if !text.is_empty() => {
            Ok(text.parse().map_err(|error| format!("{variable}={text}: {error}"))?)
        }
        _ => Ok(or_else),
    }
}

/// Numbers that look random and are the same each time (splitmix64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }
}

/// How long the calls of this agent take, about, in microseconds.
fn usual_time(ctx: &Ctx) -> u64 {
    if ctx.is_host() { 40_000 } else { 400_000 }
}

/// A storage of the container's own, which goes with it.
fn volume(container: &Container) -> Storage {
    Storage {
        driver: "bind".into(),
        source: shm_storage().mount_point,
        mount_point: format!("/run/kata-containers/{}-volume", container.id),
        fstype: "bind".into(),
        options: vec!["bind".into()],
        ..Default::default()
    }
}

async fn calls_that_are_cut_off_leave_nothing(ctx: Ctx) -> Outcome {
    let idle = ctx.idle(|spec| spec).await?;
    assert_eq!(idle.sh(WARM).await?, "warm");
    let victim = ctx.container(|spec| spec.args(["echo", "works"]))?;
    let before = ctx.inventory().await?;
    let (mut dice, mut execs) = (Dice(1), Vec::new());
    for round in 0..times("NAKAI_CUTS", if ctx.is_host() { 40 } else { 10 })? {
        let other = ctx.another_client().await?;
        let moment = Duration::from_micros(dice.below(usual_time(&ctx)));
        if round % 2 == 0 {
            let mut create = victim.request();
            create.storages.push(volume(&victim));
            let call = async { other.create_container_with(&create).await };
            let _ = tokio::time::timeout(moment, call).await;
        } else {
            let exec = ctx.fresh_exec_id();
            let call = other.exec_process(&idle.id, &exec, idle.process(["sleep", "1000000"]));
            let _ = tokio::time::timeout(moment, call).await;
            execs.push(exec);
        }
        // The connection goes with the client. A container that was there before is there for us to remove.
        drop(other);
        let _ = victim.remove().await;
    }
    gone(&ctx, &victim).await?;
    // A process whose start was answered before the line was cut is there, and ours to end.
    for exec in execs {
        if ctx.client().signal_process(&idle.id, &exec, 9).await.is_ok() {
            assert_eq!(ctx.client().wait_process(&idle.id, &exec).await?, 137);
        }
    }
    ctx.returns_to(&before).await?;
    victim.create().await?;
    victim.start().await?;
    assert_eq!(succeeded(victim.finish(b"").await?), "works");
    Ok(())
}

/// A frame of the protocol that asks `method` of `service` for something, without arguments.
fn question(stream: u32, service: &str, method: &str) -> Fallible<Vec<u8>> {
    let (service, method) = (service.to_owned(), method.to_owned());
    let body = ttrpc::Request { service, method, ..Default::default() }.write_to_bytes()?;
    let mut frame = u32::try_from(body.len())?.to_be_bytes().to_vec();
    frame.extend(stream.to_be_bytes());
    frame.extend([1, 0]);
    frame.extend(body);
    Ok(frame)
}

/// Clients that vanish: with an answer half read, with more answers than the sockets hold, within a request.
async fn connections_end_with_their_clients(ctx: Ctx) -> Outcome {
    assert!(!ctx.guest_sh("echo warm").await?.is_empty());
    let before = ctx.inventory().await?;
    for questions in [1, 1, 1, 200, 200] {
        let mut client = connect(ctx.address(), Duration::from_secs(180)).await?;
        for number in 0..questions {
            let frame = question(2 * number + 1, "grpc.AgentService", "GetMetrics")?;
            client.write_all(&frame).await?;
        }
        client.read_exact(&mut [0]).await?;
    }
    let mut client = connect(ctx.address(), Duration::from_secs(180)).await?;
    let frame = question(1, "grpc.Health", "Check")?;
    client.write_all(&frame[..frame.len() - 1]).await?;
    drop(client);
    ctx.returns_to(&before).await
}

/// Waits until there is no such container, and its id is free.
async fn gone(ctx: &Ctx, container: &Container) -> Outcome {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    loop {
        let _ = container.remove().await;
        match container.create().await {
            Ok(()) => break,
            Err(error) if tokio::time::Instant::now() > deadline => return Err(error.into()),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
    ctx.client().remove_container(&container.id).await?;
    Ok(())
}

const LIFE_OF_A_SERVER_THAT_IS_WELL: Duration = Duration::from_millis(2100);

async fn servers_killed_at_any_moment_leave_nothing(ctx: Ctx) -> Outcome {
    ctx.client().create_sandbox(&request("fire", "pod", false)).await?;
    ctx.run(|spec| spec.args(["true"])).await?;
    let idle = ctx.idle(|spec| spec).await?;
    assert_eq!(idle.sh(WARM).await?, "warm");
    let victim = ctx.container(|spec| spec.args(["echo", "works"]))?;
    let before = ctx.inventory().await?;
    let (mut ctx, mut idle, mut victim) = (ctx, idle, victim);
    let (mut dice, mut execs) = (Dice(2), Vec::new());
    for round in 0..times("NAKAI_KILLS", 6)? {
        if round % 6 == 5 {
            // Or they would be a row, and wait for each other longer and longer.
            tokio::time::sleep(LIFE_OF_A_SERVER_THAT_IS_WELL).await;
        }
        let mut create = victim.request();
        create.storages.push(volume(&victim));
        let (creator, execer) = (ctx.another_client().await?, ctx.another_client().await?);
        let created = tokio::spawn(async move {
            creator.create_container_with(&create).await?;
            creator.start_container(&create.container_id).await?;
            creator.remove_container(&create.container_id).await
        });
        let (id, exec, process) = (idle.id.clone(), ctx.fresh_exec_id(), idle.process(["sleep", "0"]));
        execs.push(exec.clone());
        let run = tokio::spawn(async move {
            execer.exec_process(&id, &exec, process).await?;
            execer.wait_process(&id, &exec).await
        });
        tokio::time::sleep(Duration::from_micros(dice.below(usual_time(&ctx)))).await;
        ctx.guest_sh("kill -9 $SERVER").await?;
        let _ = tokio::join!(created, run);
        ctx = ctx.reconnected().await?;
        ctx.client().check().await?;
        (idle, victim) = (idle.over(&ctx), victim.over(&ctx));
        assert_eq!(idle.sh("echo alive").await?, "alive");
        // The next one is to die while it is created, started or removed, too.
        let _ = victim.remove().await;
    }
    gone(&ctx, &victim).await?;
    // What had been started is still known, and ends when it has been asked for.
    for exec in execs {
        if ctx.client().wait_process(&idle.id, &exec).await.is_ok() {
            let _ = ctx.client().read_stdout(&idle.id, &exec, 100).await;
            let _ = ctx.client().read_stderr(&idle.id, &exec, 100).await;
        }
    }
    ctx.returns_to(&before).await?;
    idle.remove().await?;
    ctx.client().destroy_sandbox().await?;
    Ok(())
}

/// A file system whose server never answers, from a hook in the guest: whoever looks at it waits, until its owner ends.
const HANG: &str = "mkdir -p /run/kata-containers/hung; exec 9<>/dev/fuse; \
     mount -t fuse -o fd=9,rootmode=40000,user_id=0,group_id=0 hung /run/kata-containers/hung; \
     exec setsid sleep 1000000 > /dev/null 2>&1 &";

/// What nobody's hanging may keep waiting: each call has its own limit.
async fn others_go_on(ctx: &Ctx, other: &Container, full: &Container) -> Outcome {
    for round in 0..3 {
        let exec = format!("round{round}");
        ctx.client().check().await?;
        assert_eq!(other.sh("echo alive").await?, "alive");
        assert_eq!(ctx.output("echo another", |spec| spec).await?, "another");
        ctx.client().stats_container(&other.id).await?;
        ctx.client().stats_container(&full.id).await?;
        ctx.client().exec_process(&other.id, &exec, other.process(["sleep", "1000000"])).await?;
        ctx.client().signal_process(&other.id, &exec, 9).await?;
        assert_eq!(ctx.client().within(SHELL_LIMIT).wait_process(&other.id, &exec).await?, 137);
    }
    Ok(())
}

async fn what_hangs_keeps_nobody_waiting(ctx: Ctx) -> Outcome {
    // Storages and roots on a share that hangs: together more than there are threads.
    const STORAGES: usize = 80;
    const ROOTS: usize = 560;
    let other = ctx.idle(|spec| spec).await?;
    let full = ctx.idle(|spec| spec).await?;

    let hanging =
        ctx.container(|spec| spec.args(["true"]).hook(HookKind::Prestart, "/bin/sh", ["sh", "-c", HANG], 0))?;
    hanging.create().await?;
    let stuck = ctx.another_client().await?;
    let mut creations = tokio::task::JoinSet::new();
    let mut create = |request| {
        let stuck = stuck.clone();
        creations.spawn(async move { stuck.create_container_with(&request).await });
    };
    for number in 0..STORAGES {
        let container = ctx.container(|spec| spec.args(["true"]))?;
        let mut request = container.request();
        let source = format!("/run/kata-containers/hung/{number}");
        request.storages.push(Storage { source, ..volume(&container) });
        create(request);
    }
    for number in 0..ROOTS {
        let mut request = hanging.request();
        request.container_id = format!("{}-{number}", hanging.id);
        let root = format!("/run/kata-containers/hung/{number}");
        request.OCI.mut_or_insert_default().Root.mut_or_insert_default().Path = root;
        request.OCI.mut_or_insert_default().Hooks = None.into();
        create(request);
    }
    // Hooks without a time-out that never end: before a start, and after one. They are found by what they have open.
    let script = "exec 9<>/dev/fuse; exec sleep 1000000";
    let hook =
        |kind| ctx.container(|spec| spec.args(["true"]).hook(kind, "/bin/sh", ["sh", "-c", script], 0));
    let (before, after) = (hook(HookKind::Prestart)?, hook(HookKind::Poststart)?);
    create(before.request());
    after.create().await?;
    let (client, id) = (ctx.another_client().await?, after.id.clone());
    let start = tokio::spawn(async move { client.start_container(&id).await });
    // A process that reads nothing, and more than its pipe takes.
    ctx.client().exec_process(&full.id, "full", full.process(["sleep", "1000000"])).await?;
    let (client, id) = (ctx.another_client().await?, full.id.clone());
    let write = tokio::spawn(async move { client.write_stdin(&id, "full", vec![0; 1 << 20]).await });

    others_go_on(&ctx, &other, &full).await?;
    ctx.client().stats_container(&after.id).await?;
    assert_eq!(after.wait().await?, 0, "the process of the container whose hook hangs has run");
    ctx.client().signal_process(&full.id, "full", 9).await?;
    assert_eq!(ctx.client().wait_process(&full.id, "full").await?, 137);
    refused(write.await?.map(drop), Code::FAILED_PRECONDITION, &["stdin"]);
    after.remove().await?;
    let _ = start.await?;
    // The caller's end is the hook's; its owner's end is the file system's: whoever waits for it is told.
    other.remove().await?;
    full.remove().await?;
    let ended = ctx.container(|spec| {
        let script = "for p in /proc/[0-9]*; do \
             [ \"$(readlink $p/fd/9)\" != /dev/fuse ] || kill -9 ${p##*/}; done; \
             umount -l /run/kata-containers/hung; rmdir /run/kata-containers/hung";
        spec.args(["true"]).hook(HookKind::Prestart, "/bin/sh", ["sh", "-c", script], 0)
    })?;
    ended.create().await?;
    while let Some(created) = creations.join_next().await {
        assert!(created?.is_err(), "what hung has succeeded");
    }
    hanging.remove().await?;
    ended.remove().await?;
    Ok(())
}

/// As [`HANG`], with a server that takes each request and answers the first alone, for a minute: who waits for an
/// answer is not even ended by SIGKILL. The file `asked` has what has been asked since, `server` the server's pid.
const HANG_FOR_A_MINUTE: &str = r"cd /run/kata-containers; mkdir hung; exec 9<>/dev/fuse;
     mount -t fuse -o fd=9,rootmode=40000,user_id=0,group_id=0 hung hung;
     dd bs=64k count=1 <&9 > init;
     { printf '\120\0\0\0\0\0\0\0'; dd if=init bs=8 skip=1 count=1; printf '\7\0\0\0\37\0\0\0'; head -c 56 /dev/zero; } |
     dd obs=80 >&9;
     exec setsid sh -c 'echo $$ > server; exec timeout 60 dd bs=64k' <&9 > asked 2> /dev/null &";

async fn a_server_that_dies_while_a_share_hangs_has_a_successor(ctx: Ctx) -> Outcome {
    ctx.client().create_sandbox(&request("hung", "pod", !ctx.is_host())).await?;
    let other = ctx.idle(|spec| spec).await?;
    if ctx.is_host() {
        // What a hook mounts there stays the hook's.
        let script = format!("nsenter -t $SUPERVISOR -m sh 2> /dev/null << 'END'\n{HANG_FOR_A_MINUTE}\nEND");
        ctx.guest_sh(&script).await?;
    } else {
        let hook = ["sh", "-c", HANG_FOR_A_MINUTE];
        let hooked =
            ctx.container(|spec| spec.args(["true"]).hook(HookKind::Prestart, "/bin/sh", hook, 0))?;
        hooked.create().await?;
    }
    let stuck = ctx.another_client().await?;
    let volume = "/run/kata-containers/hung/v".to_owned();
    let stats = VolumeStatsRequest { volume_guest_path: volume, ..Default::default() };
    let stats = tokio::spawn(async move { stuck.agent().get_volume_stats(stuck.context(), &stats).await });
    while !ctx.guest_sh("[ -s $RUN/kata-containers/asked ] || echo not yet").await?.is_empty() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let ctx = crash(&ctx).await?;
    let other = other.over(&ctx);
    assert_eq!(other.sh("echo alive").await?, "alive");
    assert_eq!(ctx.output("echo another", |spec| spec).await?, "another");
    other.remove().await?;
    stats.abort();
    if ctx.is_host() {
        // Namespaces end when all in them have, and so do the scenario's.
        ctx.guest_sh("kill $(cat $RUN/kata-containers/server)").await?;
    }
    ctx.client().destroy_sandbox().await?;
    Ok(())
}

/// Whoever works at a storage there never comes back.
async fn a_share_that_hangs_keeps_no_sandbox_from_ending(ctx: Ctx) -> Outcome {
    ctx.client().create_sandbox(&request("hung", "pod", true)).await?;
    let hanging =
        ctx.container(|spec| spec.args(["true"]).hook(HookKind::Prestart, "/bin/sh", ["sh", "-c", HANG], 0))?;
    hanging.create().await?;
    let container = ctx.container(|spec| spec.args(["true"]))?;
    let mut create = container.request();
    create.storages.push(Storage { source: "/run/kata-containers/hung/v".into(), ..volume(&container) });
    let impatient = ctx.another_client().await?.within(Duration::from_secs(10));
    refused(impatient.create_container_with(&create).await, Code::DEADLINE_EXCEEDED, &[]);
    let patient = ctx.client().within(Duration::from_secs(150));
    refused(patient.destroy_sandbox().await, Code::INTERNAL, &["-volume is not released after"]);
    Ok(())
}

/// RemoveContainer with a time-out, in seconds.
async fn remove_within(ctx: &Ctx, container: &Container, timeout: u32) -> Result<(), CallError> {
    let request =
        RemoveContainerRequest { container_id: container.id.clone(), timeout, ..Default::default() };
    let answer = ctx.client().agent().remove_container(ctx.client().context(), &request).await;
    answer.map(drop).map_err(|error| CallError::new("RemoveContainer", &container.id, error))
}

async fn a_removal_that_takes_too_long_says_so_and_goes_on(ctx: Ctx) -> Outcome {
    let container = ctx.container(|spec| spec.args(["sleep", "1000000"]))?;
    let (host, guest) = ctx.directory(&container, "gate")?;
    let script = format!("until [ -e {guest}/open ]; do sleep 0.1; done");
    let container =
        container.edit(|spec| spec.hook(HookKind::Poststop, "/bin/sh", ["sh", "-c", &script], 600));
    container.create().await?;
    container.start().await?;
    for _ in 0..2 {
        refused(remove_within(&ctx, &container, 1).await, Code::DEADLINE_EXCEEDED, &[&container.id]);
    }
    // It is being removed, and nothing else can be done with it.
    let exec = ctx.client().exec_process(&container.id, "x", container.process(["true"])).await;
    refused(exec, Code::FAILED_PRECONDITION, &[]);
    refused(container.create().await, Code::ALREADY_EXISTS, &[&container.id]);
    std::fs::write(host.join("open"), "")?;
    // Who was told that it takes too long hears of its end whenever they ask again; nobody hears of it twice.
    while !matches!(ctx.client().stats_container(&container.id).await, Err(error) if error.code == Code::NOT_FOUND)
    {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    remove_within(&ctx, &container, 1).await?;
    refused(container.remove().await, Code::NOT_FOUND, &[&container.id]);
    container.create().await?;
    container.start().await?;
    assert_eq!(container.sh("echo again").await?, "again");
    container.remove().await?;
    Ok(())
}

/// Threads and memory are compared by the inventory's user; here it is what can be counted.
async fn a_soak_ends_where_it_began(ctx: Ctx) -> Outcome {
    let factor = times("NAKAI_SOAK", 1)?;
    let (execs, lives, at_once) = if ctx.is_host() { (100, 20, 20) } else { (30, 8, 8) };
    let idle = ctx.idle(|spec| spec).await?;
    assert_eq!(idle.sh(WARM).await?, "warm");
    let before = ctx.inventory().await?;
    let memory = server_memory(&ctx).await?;
    for number in 0..factor * execs {
        let said = idle.sh(&format!("echo {number}; echo {number}")).await?;
        assert_eq!(said, format!("{number}\n{number}"));
    }
    for _ in 0..factor * lives {
        assert_eq!(ctx.output("echo alive", |spec| spec).await?, "alive");
    }
    // As many as make sense at once, whatever the factor.
    let mut all = Vec::new();
    for _ in 0..(factor * at_once).min(200) {
        all.push(ctx.idle(|spec| spec).await?);
    }
    for container in &all {
        container.remove().await?;
    }
    ctx.returns_to(&before).await?;
    let grown = server_memory(&ctx).await?.saturating_sub(memory);
    assert!(grown < 16 << 10, "the server has grown by {grown} KiB");
    idle.remove().await?;
    Ok(())
}

/// The server's own memory, in KiB.
async fn server_memory(ctx: &Ctx) -> Fallible<u64> {
    let text = ctx.guest_sh("sed -n 's/^RssAnon:[^0-9]*\\([0-9]*\\) kB/\\1/p' $PROC/$SERVER/status").await?;
    Ok(text.trim().parse()?)
}

async fn an_exec_that_cannot_be_is_refused_by_its_cause(ctx: Ctx) -> Outcome {
    let container = ctx.idle(|spec| spec.pids_limit(8)).await?;
    let exec = |process| ctx.client().exec_process(&container.id, "x", process);
    refused(exec(container.process(["no-such-program"])).await, Code::NOT_FOUND, &["no-such-program"]);
    refused(exec(container.process(["/etc/passwd"])).await, Code::PERMISSION_DENIED, &["/etc/passwd"]);
    let mut lost = container.process(["true"]);
    lost.Cwd = "/no/such/place".to_owned();
    refused(exec(lost).await, Code::INVALID_ARGUMENT, &["/no/such/place"]);
    let mut nobody = container.process(["true"]);
    nobody.User.mut_or_insert_default().UID = u32::MAX;
    refused(exec(nobody).await, Code::INVALID_ARGUMENT, &["4294967295"]);
    // One process after the other, until there is no room for another.
    let mut full = None;
    for n in 0..20 {
        let another = container.process(["sleep", "1000000"]);
        if let Err(error) = ctx.client().exec_process(&container.id, &format!("n{n}"), another).await {
            full = Some(error);
            break;
        }
    }
    refused(full.map_or(Ok(()), Err), Code::RESOURCE_EXHAUSTED, &["pids"]);
    ctx.client().signal_process(&container.id, "", 9).await?;
    assert_eq!(container.wait().await?, 137);
    refused(exec(container.process(["true"])).await, Code::FAILED_PRECONDITION, &["stopped"]);
    container.remove().await?;
    Ok(())
}

/// Children in sessions of their own, whose parents are gone.
const GET_AWAY: &str = "for n in 1 2 3; do (setsid sh -c 'sleep 1000000 & sleep 1000000 & exit' > /dev/null 2>&1 &); \
     done; while [ $(ps | grep -c '[s]leep 1000000') -lt 6 ]; do sleep 0.05; done; echo ready";

async fn a_removal_takes_those_that_got_away(ctx: Ctx) -> Outcome {
    let before = ctx.inventory().await?;
    let container = ctx.idle(|spec| spec).await?;
    ctx.client().exec_process(&container.id, "x", container.process(["sh", "-c", GET_AWAY])).await?;
    let mut said = Vec::new();
    while !said.ends_with(b"ready\n") {
        let data = ctx.client().read_stdout(&container.id, "x", 100).await?;
        assert!(!data.is_empty(), "{}", String::from_utf8_lossy(&said));
        said.extend(data);
    }
    ctx.client().signal_process(&container.id, "", 9).await?;
    assert_eq!(container.wait().await?, 137);
    let cgroup = ctx.cgroup(&container.id);
    let left = format!(
        "for try in $(seq 2000); do \
         found=$(find $CGROUP -path '*{cgroup}*' -name cgroup.procs -exec cat {{}} + 2> /dev/null); \
         [ -n \"$found\" ] || break; sleep 0.05; done; echo left: $found"
    );
    assert_eq!(ctx.guest_sh(&left).await?.trim_end(), "left:");
    container.remove().await?;
    ctx.returns_to(&before).await
}
