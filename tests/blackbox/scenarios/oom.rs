//! OOM kills are told of, by the name of the container.

use nakai_ctl::sandbox::request;
use nakai_ctl::{CallError, SpecBuilder};
use nakai_protocols::agent::GetOOMEventRequest;

use super::recovery::{Looks, without_server};
use crate::harness::{Container, Ctx, Fallible, Outcome, Scenario, scenario};

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        scenario!(a_container_that_is_killed_for_its_memory_is_named),
        scenario!(a_kill_is_told_once_whichever_server_there_is).ends_its_agent().host_only(),
    ]
}

/// What has no end.
pub(super) const EAT: &str = "x=a; while :; do x=$x$x; done";

fn little(spec: SpecBuilder, script: &str) -> SpecBuilder {
    spec.memory_limit(16 << 20).memory_swap(16 << 20).args(["sh", "-c", script])
}

/// Whose kill is told next.
async fn event(ctx: &Ctx) -> Fallible<String> {
    Ok(ctx.client().oom_event().await?)
}

/// Waits for the next event of `id`; other scenarios may have left theirs.
async fn event_of(ctx: &Ctx, id: &str) -> Result<(), CallError> {
    loop {
        let answer =
            ctx.client().agent().get_oom_event(ctx.client().context(), &GetOOMEventRequest::new()).await;
        let event = answer.map_err(|error| CallError::new("GetOOMEvent", id, error))?;
        if event.container_id == id {
            return Ok(());
        }
    }
}

pub(super) async fn a_container_that_is_killed_for_its_memory_is_named(ctx: Ctx) -> Outcome {
    let container = ctx.started(|spec| little(spec, EAT)).await?;
    event_of(&ctx, &container.id).await?;
    assert_eq!(container.wait().await?, 137);
    // Also if nobody has asked before it was removed.
    let gone = ctx.started(|spec| little(spec, EAT)).await?;
    assert_eq!(gone.wait().await?, 137);
    gone.remove().await?;
    event_of(&ctx, &gone.id).await?;
    Ok(())
}

async fn a_kill_is_told_once_whichever_server_there_is(ctx: Ctx) -> Outcome {
    ctx.client().create_sandbox(&request("oom", "pod", false)).await?;
    ctx.run(|spec| spec.args(["true"])).await?;
    let before = ctx.inventory().await?;
    // One that a server has seen, and did not come to tell before its container was removed.
    let seen = ctx.started(|spec| little(spec, EAT)).await?;
    assert_eq!(seen.wait().await?, 137);
    seen.remove().await?;
    // One that no server sees, of init, and one of an exec'd process. Each is known by the file that it waits for.
    let unseen =
        ctx.started(|spec| little(spec, &format!("until [ -e /init ]; do sleep 0.05; done; {EAT}"))).await?;
    let other = ctx.idle(|spec| little(spec, "exec sleep 1000000")).await?;
    let script = format!("until [ -e /exec ]; do sleep 0.05; done; {EAT}");
    ctx.client().exec_process(&other.id, "x", other.process(["sh", "-c", &script])).await?;
    let eat = |container: &Container, word: &str| {
        format!(
            "cgroup=$(find $CGROUP -type d -name {} | head -n 1); : > {}; \
             lives() {{ for p in $(cat $cgroup/cgroup.procs); do \
                 ! grep -q '{word} ' /proc/$p/cmdline 2> /dev/null || return 0; done; return 1; }}; \
             while lives; do sleep 0.05; done",
            container.id,
            container.file(word).display(),
        )
    };
    let both = format!("{}; {}", eat(&unseen, "/init"), eat(&other, "/exec"));
    let ctx = without_server(&ctx, &both).await?;
    let (unseen, other) = (unseen.over(&ctx), other.over(&ctx));
    let mut told = [event(&ctx).await?, event(&ctx).await?, event(&ctx).await?];
    told.sort_unstable();
    let mut expected = [&seen.id, &unseen.id, &other.id].map(String::clone);
    expected.sort_unstable();
    assert_eq!(told, expected);
    assert_eq!((unseen.wait().await?, ctx.client().wait_process(&other.id, "x").await?), (137, 137));
    unseen.remove().await?;
    other.remove().await?;
    ctx.returns_to(&before).await?;
    // None is told again, also not by another server, once it is on record that they have been told.
    let looks = Looks::begin();
    while !ctx.guest_sh("ls $RUN/nakai/records/oom").await?.is_empty() {
        looks.pause("the end of all records").await?;
    }
    let ctx = without_server(&ctx, ":").await?;
    let last = ctx.started(|spec| little(spec, EAT)).await?;
    assert_eq!(event(&ctx).await?, last.id);
    last.remove().await?;
    ctx.client().destroy_sandbox().await?;
    Ok(())
}
