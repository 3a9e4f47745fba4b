//! UpdateEphemeralMounts and RemoveStaleVirtiofsShareMounts.

use nakai_protocols::agent::UpdateEphemeralMountsRequest;
use nakai_protocols::empty::Empty;

use super::{Agent, Answer};
use crate::storage::StorageRequest;

/// All are checked before the first is changed; then they are changed in order, up to the first that fails.
pub(super) async fn update_ephemeral(agent: &Agent, request: UpdateEphemeralMountsRequest) -> Answer<Empty> {
    let storages: Vec<StorageRequest> =
        request.storages.iter().map(StorageRequest::try_from).collect::<Result<_, _>>()?;
    let sandbox = agent.sandbox().await?;
    for storage in storages {
        sandbox.environment().storages.remount_ephemeral(storage).await?;
    }
    Ok(Empty::new())
}

pub(super) async fn look_at_shares(agent: &Agent) -> Answer<Empty> {
    agent.sandbox().await?.look_at_shares().await;
    Ok(Empty::new())
}
