//! A process's streams, carried over the calls.
//!
//! Output is read until the agent answers with nothing, which it does after the last byte. Input is
//! written in full, then closed. The three run at once; the end of the outputs ends the whole, for
//! nobody reads the input any more.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::client::Client;
use crate::error::CallError;

/// How much is asked for or written at once, as shims do.
const CHUNK: u32 = 32 << 10;

/// An output stream of a process.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Output {
    /// Standard output, and all output of a terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Why a stream broke.
#[derive(Debug, thiserror::Error)]
pub enum StdioError {
    /// The agent's side.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The agent took none of the input without an error.
    #[error("WriteStdin {0}: the agent accepts no bytes")]
    NothingWritten(String),
    /// This side.
    #[error("{stream} of the client: {source}")]
    Local {
        /// Which stream.
        stream: &'static str,
        /// The system's reason.
        source: io::Error,
    },
}

/// Copies an output stream to its end; returns how many bytes it had.
///
/// # Errors
///
/// A read is refused, or `writer` fails.
pub async fn pump_output<W: AsyncWrite + Unpin>(
    client: &Client,
    container: &str,
    exec: &str,
    output: Output,
    mut writer: W,
) -> Result<u64, StdioError> {
    let stream = if output == Output::Stdout { "stdout" } else { "stderr" };
    let local = |source| StdioError::Local { stream, source };
    let mut total = 0_u64;
    loop {
        let data = match output {
            Output::Stdout => client.read_stdout(container, exec, CHUNK).await?,
            Output::Stderr => client.read_stderr(container, exec, CHUNK).await?,
        };
        if data.is_empty() {
            return Ok(total);
        }
        writer.write_all(&data).await.map_err(local)?;
        writer.flush().await.map_err(local)?;
        total = total.saturating_add(data.len() as u64);
    }
}

/// Copies `reader` to a process's input and closes it; returns how many bytes there were.
///
/// # Errors
///
/// A write is refused, as it is once the process has ended, or `reader` fails.
pub async fn pump_input<R: AsyncRead + Unpin>(
    client: &Client,
    container: &str,
    exec: &str,
    mut reader: R,
) -> Result<u64, StdioError> {
    let mut total = 0_u64;
    loop {
        let mut data = Vec::with_capacity(CHUNK as usize);
        let read = reader.read_buf(&mut data).await;
        if read.map_err(|source| StdioError::Local { stream: "stdin", source })? == 0 {
            client.close_stdin(container, exec).await?;
            return Ok(total);
        }
        total = total.saturating_add(data.len() as u64);
        while !data.is_empty() {
            let written = client.write_stdin(container, exec, data.clone()).await?;
            if written == 0 {
                return Err(StdioError::NothingWritten(container.to_owned()));
            }
            data.drain(..written.min(data.len()));
        }
    }
}

/// Carries all streams until the outputs have ended. A process with a terminal has no `stderr`.
/// Without `stdin`, nothing is written and nothing closed.
///
/// # Errors
///
/// An output breaks. That the input does is no error: the process may have ended before it read all.
pub async fn attach<I, O, E>(
    client: &Client,
    container: &str,
    exec: &str,
    stdin: Option<I>,
    stdout: O,
    stderr: Option<E>,
) -> Result<(), StdioError>
where
    I: AsyncRead + Unpin,
    O: AsyncWrite + Unpin,
    E: AsyncWrite + Unpin,
{
    let outputs = async {
        let errors = async {
            match stderr {
                Some(stderr) => pump_output(client, container, exec, Output::Stderr, stderr).await,
                None => Ok(0),
            }
        };
        tokio::try_join!(pump_output(client, container, exec, Output::Stdout, stdout), errors)
    };
    let input = async {
        if let Some(stdin) = stdin {
            let _ = pump_input(client, container, exec, stdin).await;
        }
        std::future::pending().await
    };
    tokio::select! {
        result = outputs => result.map(drop),
        () = input => Ok(()),
    }
}

/// What a process wrote, and how it ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Finished {
    /// The exit status, 128 + N after signal N.
    pub status: i32,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
}

/// Gives `stdin` to a process without a terminal, closes it, collects all output and waits.
///
/// # Errors
///
/// A stream breaks or the wait fails.
pub async fn finish(
    client: &Client,
    container: &str,
    exec: &str,
    stdin: &[u8],
) -> Result<Finished, StdioError> {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let attached = attach(client, container, exec, Some(stdin), &mut stdout, Some(&mut stderr));
    let waited = async { Ok(client.wait_process(container, exec).await?) };
    let ((), status) = tokio::try_join!(attached, waited)?;
    Ok(Finished { status, stdout, stderr })
}
