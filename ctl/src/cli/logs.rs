//! `logs`: what a container has printed, from the file that its attendant writes.
//!
//! No call is made for it, so nothing breaks when the agent is away, and a second look finds all that the first has.

use std::time::{Duration, SystemTime};

use nakai_ctl::Address;
use nakai_ctl::cri::log_file::LogReader;
use nakai_ctl::cri::{CriError, log};
use nakai_ctl::docker::parse;
use nakai_ctl::stdio::Output;
use nakai_ctl::time::rfc3339;
use tokio::io::AsyncWriteExt as _;

use super::args::LogsOptions;
use super::error::CliError;
use super::target;

/// How often a log that is followed is looked at: files tell nobody when they grow.
const FOLLOW_POLL: Duration = Duration::from_millis(100);

/// Does it.
pub(crate) async fn logs(address: Option<&Address>, options: &LogsOptions) -> Result<u8, CliError> {
    let state = target::notebook(address).await?;
    let id = options.id.as_str();
    let none = || CriError::field("log_path", "the container has no log: its output was this client's");
    let path = target::record(&state, id)?.log.ok_or_else(none)?;
    let mut log = LogReader::new(&path);
    let since = options.since.as_deref().unwrap_or_default();
    let mut last = options.tail;
    loop {
        // Looked at first: what is written before the end is then printed.
        let ended = !state.container(id).is_some_and(|record| record.lives());
        let text = log.more().map_err(CliError::io(path.display().to_string()))?;
        print(&log::select(&text, last.take(), since)).await?;
        if !options.follow || ended {
            return Ok(0);
        }
        tokio::time::sleep(FOLLOW_POLL).await;
    }
}

async fn print(entries: &[log::Entry<'_>]) -> Result<(), CliError> {
    let (mut stdout, mut stderr) = (tokio::io::stdout(), tokio::io::stderr());
    for entry in entries {
        let text = [entry.text, if entry.partial { b"" } else { b"\n" }].concat();
        let written = match entry.output {
            Output::Stdout => stdout.write_all(&text).await,
            Output::Stderr => stderr.write_all(&text).await,
        };
        written.map_err(CliError::Output)?;
    }
    let flushed = async { stdout.flush().await.and(stderr.flush().await) };
    flushed.await.map_err(CliError::Output)
}

/// A point in time as the log's stamps begin: they are compared as texts.
pub(super) fn since(text: &str) -> Result<String, String> {
    const SHAPE: &[u8] = b"0000-00-00T00:00:00";
    let wrong = || "neither a time such as 2026-01-31T12:00:00Z nor one ago such as 10m".to_owned();
    if let Some(time) = text.strip_suffix('Z') {
        let same = |(byte, shape): (u8, &u8)| byte == *shape || (byte.is_ascii_digit() && *shape == b'0');
        let fraction = time.get(SHAPE.len()..).ok_or_else(wrong)?;
        let digits = fraction.strip_prefix('.').unwrap_or(fraction);
        let is_time = time.bytes().zip(SHAPE).all(same)
            && digits.bytes().all(|byte| byte.is_ascii_digit())
            && fraction.is_empty() == digits.is_empty();
        return if is_time { Ok(time.to_owned()) } else { Err(wrong()) };
    }
    let ago = parse::duration(text).map_err(|_| wrong())?;
    Ok(rfc3339(SystemTime::now().checked_sub(ago).unwrap_or(SystemTime::UNIX_EPOCH)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_or_refused() {
        for text in ["2026-01-31T12:00:00", "2026-01-31T12:00:00.25"] {
            assert_eq!(since(&format!("{text}Z")), Ok(text.to_owned()));
        }
        let ago = since("1m30s").unwrap();
        assert!(ago < rfc3339(SystemTime::now()) && ago > since("1h").unwrap());
        for wrong in [
            "",
            "Z",
            "yesterday",
            "2026-01-31",
            "2026-01-31T12:00:00",
            "2026-01-31T12:00:00.Z",
            "2026-01-31T12:00:00x1Z",
        ] {
            assert!(since(wrong).is_err(), "{wrong}");
        }
    }
}
