//! GetOOMEvent.

use nakai_protocols::agent::OOMEvent;

use super::{Agent, Answer, RpcError};

/// Waits for as long as it takes, with or without a sandbox: shims ask again at once when this fails. Nothing may be
/// awaited after the event has been taken, or it could be lost; that it is told is noted beside this.
pub(super) async fn next(agent: &Agent) -> Answer<OOMEvent> {
    let sandbox = agent.sandbox().await?;
    let id = sandbox.environment().oom_events.next().await.ok_or(RpcError::Ending)?;
    sandbox.note_told(&id);
    Ok(OOMEvent { container_id: id.to_string(), ..Default::default() })
}
