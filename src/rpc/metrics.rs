//! GetMetrics.

use std::time::Duration;

use nakai_protocols::agent::Metrics;
use tokio::sync::Semaphore;

use super::{Agent, Answer, RpcError};
use crate::guest::filesystems;
use crate::observe::metrics::Filesystem;

/// How long the filesystems may take to say how full they are.
const PATIENCE: Duration = Duration::from_secs(2);

/// One look at them at a time: a device that hangs holds one thread, however often it is asked.
static LOOK: Semaphore = Semaphore::const_new(1);

pub(super) async fn get(agent: &Agent) -> Answer<Metrics> {
    let metrics = agent.metrics.clone();
    let filesystems = look().await;
    let rendered = tokio::task::spawn_blocking(move || metrics.render(&filesystems));
    let metrics = rendered.await.map_err(|_| RpcError::Task("gathering the metrics"))?;
    Ok(Metrics { metrics, ..Default::default() })
}

/// How full the filesystems are; nothing when one does not say.
async fn look() -> Vec<Filesystem> {
    let look = async {
        let turn = LOOK.acquire().await.ok()?;
        let look = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            filesystems::writable()
        });
        look.await.ok()
    };
    tokio::time::timeout(PATIENCE, look).await.ok().flatten().unwrap_or_default()
}
