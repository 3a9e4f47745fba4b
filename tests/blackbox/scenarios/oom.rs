//! OOM kills are told of, by the name of the container.

use nakai_ctl::CallError;
use nakai_protocols::agent::GetOOMEventRequest;

use crate::harness::{Ctx, Outcome, Scenario, scenario};

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![scenario!(a_container_that_is_killed_for_its_memory_is_named)]
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
    let eater = "x=a; while :; do x=$x$x; done";
    let container = ctx
        .started(|spec| spec.memory_limit(16 << 20).memory_swap(16 << 20).args(["sh", "-c", eater]))
        .await?;
    event_of(&ctx, &container.id).await?;
    assert_eq!(container.wait().await?, 137);
    // Also if nobody has asked before it was removed; and then no note of it is left (see the inventory).
    let gone = ctx
        .started(|spec| spec.memory_limit(16 << 20).memory_swap(16 << 20).args(["sh", "-c", eater]))
        .await?;
    assert_eq!(gone.wait().await?, 137);
    gone.remove().await?;
    event_of(&ctx, &gone.id).await?;
    Ok(())
}
