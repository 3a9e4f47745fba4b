//! MemAgentMemcgSet and MemAgentCompactSet.

use nakai_protocols::agent::{MemAgentCompactConfig, MemAgentMemcgConfig};
use nakai_protocols::empty::Empty;

use super::{Agent, Answer};

pub(super) async fn set_memcg(agent: &Agent, request: MemAgentMemcgConfig) -> Answer<Empty> {
    agent.sandbox().await?.environment().mem_agent.set_memcg(&request).await?;
    Ok(Empty::new())
}

pub(super) async fn set_compact(agent: &Agent, request: MemAgentCompactConfig) -> Answer<Empty> {
    agent.sandbox().await?.environment().mem_agent.set_compact(&request).await?;
    Ok(Empty::new())
}
