//! GetMetrics.

use nakai_protocols::agent::Metrics;

use super::{Agent, Answer, RpcError};
use crate::guest::filesystems;

pub(super) async fn get(agent: &Agent) -> Answer<Metrics> {
    let metrics = agent.metrics.clone();
    let rendered = tokio::task::spawn_blocking(move || metrics.render(&filesystems::writable()));
    let metrics = rendered.await.map_err(|_| RpcError::Task("gathering the metrics"))?;
    Ok(Metrics { metrics, ..Default::default() })
}
