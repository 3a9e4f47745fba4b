//! What is done to a container by its name, whichever front end has made it: start, stop, pause, resume, kill, rm,
//! inspect, logs.

use std::time::Duration;

use nakai_ctl::Address;
use nakai_ctl::cri::{CriError, Engine, log};
use nakai_ctl::stdio::Output;
use tokio::io::AsyncWriteExt as _;

use super::error::CliError;
use super::{attend, target};

/// How often a log that is followed is looked at: files tell nobody when they grow.
const FOLLOW_POLL: Duration = Duration::from_millis(100);

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
            eprintln!("nakai-ctl: {error}");
            status = error.status();
        }
    }
    Ok(status)
}

/// `start`
pub(crate) async fn start(address: Option<&Address>, ids: &[String]) -> Result<u8, CliError> {
    let at = address.ok_or(CliError::NoAddress)?;
    let leave =
        |id: &str| attend::leave(at, id).map_err(|error| CriError::io(id)(std::io::Error::other(error)));
    each(address, ids, async |engine, id| {
        engine.start(id).await?;
        leave(id)?;
        println!("{id}");
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
    let record = target::engine(address).await?.record(id)?;
    let text = serde_json::to_string_pretty(&record);
    println!("{}", text.map_err(|error| CliError::io("container")(error.into()))?);
    Ok(0)
}

/// `logs`
pub(crate) async fn logs(address: Option<&Address>, id: &str, follow: bool) -> Result<u8, CliError> {
    print_logs(&target::engine(address).await?, id, follow).await
}

async fn print_logs(engine: &Engine, id: &str, follow: bool) -> Result<u8, CliError> {
    let none = || CriError::field("log_path", "the container has no log: its output was this client's");
    let path = engine.record(id)?.log.ok_or_else(none)?;
    let mut offset = 0;
    loop {
        // Looked at first: what is written before the end is then printed.
        let ended = !engine.record(id).is_ok_and(|record| record.lives());
        let bytes = match std::fs::read(&path) {
            // Nothing has been written yet.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            bytes => bytes.map_err(CliError::io(path.display().to_string()))?,
        };
        let fresh = bytes.get(offset..).unwrap_or_default();
        let whole = fresh.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end.saturating_add(1));
        print_log(fresh.get(..whole).unwrap_or_default()).await?;
        offset = offset.saturating_add(whole);
        if !follow || ended {
            return Ok(0);
        }
        tokio::time::sleep(FOLLOW_POLL).await;
    }
}

async fn print_log(text: &[u8]) -> Result<(), CliError> {
    let (mut stdout, mut stderr) = (tokio::io::stdout(), tokio::io::stderr());
    for line in text.split_inclusive(|&byte| byte == b'\n') {
        let Some(entry) = log::parse(line.strip_suffix(b"\n").unwrap_or(line)) else { continue };
        let text = [entry.text, if entry.partial { b"" } else { b"\n" }].concat();
        let written = match entry.output {
            Output::Stdout => stdout.write_all(&text).await,
            Output::Stderr => stderr.write_all(&text).await,
        };
        written.map_err(CliError::io("output"))?;
    }
    let flushed = async { stdout.flush().await.and(stderr.flush().await) };
    flushed.await.map_err(CliError::io("output"))
}
