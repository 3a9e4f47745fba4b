//! GetVolumeStats and ResizeVolume.

use std::path::Path;

use nakai_protocols::agent::{ResizeVolumeRequest, VolumeStatsRequest};
use nakai_protocols::csi::volume_usage::Unit;
use nakai_protocols::csi::{VolumeCondition, VolumeStatsResponse, VolumeUsage};
use nakai_protocols::empty::Empty;

use super::{Agent, Answer, RpcError};
use crate::guest::kata_dir::base_of;
use crate::guest::volume::{self, Amount, Usage, VolumeError};
use crate::ids::GuestPath;

pub(super) async fn stats(agent: &Agent, request: VolumeStatsRequest) -> Answer<VolumeStatsResponse> {
    let path = GuestPath::try_from(request.volume_guest_path.as_str())?;
    let usage = at_volumes(agent, path, volume::usage).await?;
    Ok(response(usage))
}

pub(super) async fn resize(agent: &Agent, request: ResizeVolumeRequest) -> Answer<Empty> {
    let path = GuestPath::try_from(request.volume_guest_path.as_str())?;
    at_volumes(agent, path, move |base, path| volume::grow(base, path, request.size)).await?;
    Ok(Empty::new())
}

/// Does something, which may block or hang, with the directory where volumes are and the path of one.
async fn at_volumes<T: Send + 'static>(
    agent: &Agent,
    path: GuestPath,
    work: impl FnOnce(&Path, &Path) -> Result<T, VolumeError> + Send + 'static,
) -> Answer<T> {
    let sandbox = agent.sandbox().await?;
    let config = sandbox.environment().config.clone();
    let bulkhead = &sandbox.environment().bulkhead;
    let place = path.clone();
    let done = bulkhead
        .run(place.as_path(), move || work(&base_of(&config.kata_dir, path.as_path()), path.as_path()))
        .await;
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
