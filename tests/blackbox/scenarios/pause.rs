//! Pause and resume.

use nakai_ctl::CallError;
use nakai_protocols::agent::{PauseContainerRequest, ResumeContainerRequest};
use ttrpc::Code;

use crate::harness::expect::refused;
use crate::harness::{Container, Ctx, Fallible, Outcome, Scenario, scenario};

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        scenario!(a_paused_container_stands_still_until_it_is_resumed),
        scenario!(states_that_do_not_fit_are_named),
        scenario!(a_signal_arrives_when_the_container_is_resumed),
        scenario!(a_paused_container_can_be_removed),
        scenario!(sigkill_for_all_reaches_a_paused_container),
        scenario!(a_created_container_can_be_paused),
        scenario!(a_pause_waits_for_the_execs_before_it),
    ]
}

pub(super) async fn pause(ctx: &Ctx, id: &str) -> Result<(), CallError> {
    let request = PauseContainerRequest { container_id: id.to_owned(), ..Default::default() };
    let answer = ctx.client().agent().pause_container(ctx.client().context(), &request).await;
    answer.map(drop).map_err(|error| CallError::new("PauseContainer", id, error))
}

pub(super) async fn resume(ctx: &Ctx, id: &str) -> Result<(), CallError> {
    let request = ResumeContainerRequest { container_id: id.to_owned(), ..Default::default() };
    let answer = ctx.client().agent().resume_container(ctx.client().context(), &request).await;
    answer.map(drop).map_err(|error| CallError::new("ResumeContainer", id, error))
}

/// The CPU time that the container has had.
async fn cpu_time(ctx: &Ctx, container: &Container) -> Fallible<u64> {
    let stats = ctx.client().stats_container(&container.id).await?;
    Ok(stats.cgroup_stats.cpu_stats.cpu_usage.total_usage)
}

pub(super) async fn a_paused_container_stands_still_until_it_is_resumed(ctx: Ctx) -> Outcome {
    let container = ctx.started(|spec| spec.args(["sh", "-c", "while :; do :; done"])).await?;
    pause(&ctx, &container.id).await?;
    let before = cpu_time(&ctx, &container).await?;
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    assert_eq!(cpu_time(&ctx, &container).await?, before, "nothing runs");
    resume(&ctx, &container.id).await?;
    // The harness' own limit ends this if it never goes on.
    while cpu_time(&ctx, &container).await? == before {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    assert_eq!(container.sh("echo on").await?, "on");
    Ok(())
}

async fn states_that_do_not_fit_are_named(ctx: Ctx) -> Outcome {
    let container = ctx.idle(|spec| spec).await?;
    let id = container.id.as_str();
    refused(resume(&ctx, id).await, Code::FAILED_PRECONDITION, &[id, "running"]);
    pause(&ctx, id).await?;
    refused(pause(&ctx, id).await, Code::FAILED_PRECONDITION, &[id, "paused"]);
    let exec = ctx.client().exec_process(id, "x", container.process(["true"])).await;
    refused(exec, Code::FAILED_PRECONDITION, &[id, "paused"]);
    resume(&ctx, id).await?;
    container.signal(libc::SIGKILL).await?;
    container.wait().await?;
    refused(pause(&ctx, id).await, Code::FAILED_PRECONDITION, &[id, "stopped"]);
    refused(pause(&ctx, "nobody").await, Code::NOT_FOUND, &["nobody"]);
    refused(resume(&ctx, "nobody").await, Code::NOT_FOUND, &["nobody"]);
    Ok(())
}

async fn a_signal_arrives_when_the_container_is_resumed(ctx: Ctx) -> Outcome {
    let script = "trap 'echo bye; exit 5' TERM; echo ready; while :; do sleep 0.1; done";
    let container = ctx.started(|spec| spec.args(["sh", "-c", script])).await?;
    assert_eq!(ctx.client().read_stdout(&container.id, "", 100).await?, b"ready\n");
    pause(&ctx, &container.id).await?;
    container.signal(libc::SIGTERM).await?;
    // Not before.
    let glance = ctx.client().within(std::time::Duration::from_millis(300));
    refused(glance.wait_process(&container.id, "").await, Code::DEADLINE_EXCEEDED, &[]);
    resume(&ctx, &container.id).await?;
    let finished = container.finish(b"").await?;
    assert_eq!((finished.status, &*finished.stdout), (5, &b"bye\n"[..]));
    Ok(())
}

async fn a_paused_container_can_be_removed(ctx: Ctx) -> Outcome {
    let container = ctx.idle(|spec| spec).await?;
    ctx.client().exec_process(&container.id, "other", container.process(["sleep", "1000000"])).await?;
    pause(&ctx, &container.id).await?;
    container.remove().await?;
    // In the middle of it, too.
    let container = ctx.idle(|spec| spec).await?;
    let (_either, removed) = tokio::join!(pause(&ctx, &container.id), container.remove());
    removed?;
    Ok(())
}

pub(super) async fn sigkill_for_all_reaches_a_paused_container(ctx: Ctx) -> Outcome {
    let container = ctx.idle(|spec| spec).await?;
    ctx.client().exec_process(&container.id, "other", container.process(["sleep", "1000000"])).await?;
    pause(&ctx, &container.id).await?;
    ctx.client().signal_process(&container.id, "", 9).await?;
    let (init, other) = tokio::join!(container.wait(), ctx.client().wait_process(&container.id, "other"));
    assert_eq!((init?, other?), (137, 137));
    Ok(())
}

async fn a_created_container_can_be_paused(ctx: Ctx) -> Outcome {
    let container = ctx.created(|spec| spec.args(["sh", "-c", "echo started"])).await?;
    pause(&ctx, &container.id).await?;
    refused(container.start().await, Code::FAILED_PRECONDITION, &[&container.id, "paused"]);
    resume(&ctx, &container.id).await?;
    container.start().await?;
    assert_eq!(container.finish(b"").await?.stdout, b"started\n");
    Ok(())
}

async fn a_pause_waits_for_the_execs_before_it(ctx: Ctx) -> Outcome {
    let container = ctx.idle(|spec| spec).await?;
    let (process, long) = (container.process(["true"]), container.process(["sleep", "1000000"]));
    // Whichever is first: an exec is done, or refused, but never stuck.
    let (one, two, paused) = tokio::join!(
        ctx.client().exec_process(&container.id, "one", process),
        ctx.client().exec_process(&container.id, "two", long),
        pause(&ctx, &container.id),
    );
    paused?;
    for error in [one, two].into_iter().filter_map(Result::err) {
        refused(Err::<(), _>(error), Code::FAILED_PRECONDITION, &["paused"]);
    }
    resume(&ctx, &container.id).await?;
    assert_eq!(container.sh("echo on").await?, "on");
    Ok(())
}
