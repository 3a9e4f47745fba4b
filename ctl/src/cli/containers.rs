//! What is done to a container by its name, whichever front end has made it: start, stop, pause, resume, kill, rm,
//! inspect.

use std::time::Duration;

use nakai_ctl::Address;
use nakai_ctl::cri::{CriError, Engine};

use super::error::CliError;
use super::say::{say, tell};
use super::{attend, target};

/// Does something to one container after the other. What fails is told, and the others have their turn; the status is
/// that of the last failure.
async fn each<T>(
    address: Option<&Address>,
    ids: &[String],
    step: impl AsyncFn(&Engine, &str) -> Result<T, CriError>,
) -> Result<u8, CliError> {
    let engine = target::engine(address).await?;
    let mut status = 0;
    for id in ids {
        if let Err(error) = step(&engine, id).await {
            let error = CliError::from(error);
            tell!("{error}");
            status = error.status();
        }
    }
    Ok(status)
}

/// `start`
pub(crate) async fn start(address: Option<&Address>, ids: &[String]) -> Result<u8, CliError> {
    let at = address.ok_or(CliError::NoAddress)?;
    each(address, ids, async |engine, id| {
        let runs = engine.find_out(id).await?.lives();
        let turn = engine.state().try_attend(id);
        // One that runs, and that nobody stays with, is only attended.
        if !runs || turn.is_none() {
            engine.start(id).await?;
        }
        let left = attend::leave(at, id, turn);
        left.map_err(|error| CriError::io(id)(std::io::Error::other(error)))?;
        say!("{id}");
        Ok(())
    })
    .await
}

/// `stop`
pub(crate) async fn stop(address: Option<&Address>, ids: &[String], seconds: u64) -> Result<u8, CliError> {
    each(address, ids, async |engine, id| engine.stop(id, Duration::from_secs(seconds)).await).await
}

/// `pause`
pub(crate) async fn pause(address: Option<&Address>, ids: &[String]) -> Result<u8, CliError> {
    each(address, ids, async |engine, id| engine.pause(id).await).await
}

/// `resume`
pub(crate) async fn resume(address: Option<&Address>, ids: &[String]) -> Result<u8, CliError> {
    each(address, ids, async |engine, id| engine.resume(id).await).await
}

/// `kill`
pub(crate) async fn kill(
    address: Option<&Address>,
    id: &str,
    signal: i32,
    all: bool,
) -> Result<u8, CliError> {
    // SIGTERM is what no signal on the command line means; all are killed with SIGKILL only.
    let default = signal == libc::SIGTERM;
    if all && signal != libc::SIGKILL && !default {
        return Err(CliError::SignalAll { signal });
    }
    let signal = if all { libc::SIGKILL } else { signal };
    target::engine(address).await?.kill(id, signal.unsigned_abs(), all).await?;
    Ok(0)
}

/// `rm`
pub(crate) async fn rm(address: Option<&Address>, ids: &[String]) -> Result<u8, CliError> {
    each(address, ids, async |engine, id| engine.remove(id).await).await
}

/// `inspect`
pub(crate) async fn inspect(address: Option<&Address>, id: &str) -> Result<u8, CliError> {
    let record = target::record(&target::notebook(address).await?, id)?;
    let text = serde_json::to_string_pretty(&record);
    say!("{}", text.map_err(|error| CliError::io("container")(error.into()))?);
    Ok(0)
}
