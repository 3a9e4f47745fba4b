//! GetVolumeStats and ResizeVolume.

use nakai_protocols::agent::{ResizeVolumeRequest, VolumeStatsRequest};
use nakai_protocols::csi::volume_usage::Unit;
use nakai_protocols::csi::{VolumeCondition, VolumeStatsResponse, VolumeUsage};
use nakai_protocols::empty::Empty;

use super::{Agent, Answer, RpcError};
use crate::guest::volume::{self, Amount, Usage, VolumeError};
use crate::ids::GuestPath;

pub(super) async fn stats(agent: &Agent, request: VolumeStatsRequest) -> Answer<VolumeStatsResponse> {
    let path = GuestPath::try_from(request.volume_guest_path.as_str())?;
    let usage = at_volumes(agent, move |base| volume::usage(base, path.as_path())).await?;
    Ok(response(usage))
}

pub(super) async fn resize(agent: &Agent, request: ResizeVolumeRequest) -> Answer<Empty> {
    let path = GuestPath::try_from(request.volume_guest_path.as_str())?;
    at_volumes(agent, move |base| volume::grow(base, path.as_path(), request.size)).await?;
    Ok(Empty::new())
}

/// Does something, which may block, with the directory where volumes are.
async fn at_volumes<T: Send + 'static>(
    agent: &Agent,
    work: impl FnOnce(&std::path::Path) -> Result<T, VolumeError> + Send + 'static,
) -> Answer<T> {
    let config = agent.sandbox().await?.environment().config.clone();
    let done = tokio::task::spawn_blocking(move || work(&config.kata_dir)).await;
    Ok(done.map_err(|_| RpcError::Task("looking at a volume"))??)
}

fn response(usage: Usage) -> VolumeStatsResponse {
    let part = |amount: Amount, unit: Unit| VolumeUsage {
        total: amount.total,
        used: amount.used,
        available: amount.available,
        unit: unit.into(),
        ..Default::default()
    };
    let well = VolumeCondition { abnormal: false, message: "OK".to_owned(), ..Default::default() };
    VolumeStatsResponse {
        usage: vec![part(usage.bytes, Unit::BYTES), part(usage.inodes, Unit::INODES)],
        volume_condition: Some(well).into(),
        ..Default::default()
    }
}
