//! ReseedRandomDev and SetGuestDateTime.

use std::time::Duration;

use nakai_protocols::agent::{ReseedRandomDevRequest, SetGuestDateTimeRequest};
use nakai_protocols::empty::Empty;
use slog::{info, warn};

use super::{Agent, Answer, RpcError};
use crate::guest::clock::{self, DateTime};
use crate::guest::random;

/// A clock that jumps so far was not drifting: the guest was paused, or is a copy of another.
const JUMP: Duration = Duration::from_secs(1);

pub(super) async fn reseed(request: ReseedRandomDevRequest) -> Answer<Empty> {
    blocking("reseeding the random number generator", move || random::reseed(&request.data)).await??;
    Ok(Empty::new())
}

pub(super) async fn set_clock(agent: &Agent, request: SetGuestDateTimeRequest) -> Answer<Empty> {
    let time = DateTime::new(request.Sec, request.Usec)?;
    // A system call of a microsecond, and a late answer would be a wrong time: not worth a thread.
    let jump = clock::set(time)?;
    if jump >= JUMP {
        info!(agent.logger, "the clock jumped"; "seconds" => jump.as_secs_f64());
        // A copy has its original's generator. What differs between the two is the time, and what the machine has.
        let hint: Vec<u8> = [request.Sec, request.Usec].into_iter().flat_map(i64::to_ne_bytes).collect();
        let stirred = blocking("reseeding the random number generator", move || random::stir(&hint)).await?;
        if let Err(error) = stirred {
            warn!(agent.logger, "not reseeded after a jump of the clock"; "error" => %error);
        }
    }
    Ok(Empty::new())
}

async fn blocking<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Answer<T> {
    tokio::task::spawn_blocking(work).await.map_err(|_| RpcError::Task(what))
}
