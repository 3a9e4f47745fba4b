//! A process as the user meets it: its streams are ours, its terminal is ours, our signals are its.

use std::io::{self, IsTerminal as _};

use nakai_ctl::{Client, stdio, tty};
use tokio::io::AsyncRead;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::error::CliError;
use super::input::Input;

/// The signals that are passed on.
const FORWARDED: [i32; 6] =
    [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGUSR1, libc::SIGUSR2];

/// Stays with a started process until it has ended and all its output is written; gives its status.
pub(crate) async fn attend(
    client: &Client,
    container: &str,
    exec: &str,
    input: Option<Input>,
    terminal: bool,
) -> Result<u8, CliError> {
    let interactive = input.is_some();
    let streams = async {
        // Without input the process reads the end at once, as from /dev/null. A terminal has no end.
        let stdin: Option<Box<dyn AsyncRead + Unpin>> = match (input, terminal) {
            (Some(input), _) => Some(Box::new(input)),
            (None, false) => Some(Box::new(tokio::io::empty())),
            (None, true) => None,
        };
        let stderr = (!terminal).then(tokio::io::stderr);
        Ok(stdio::attach(client, container, exec, stdin, tokio::io::stdout(), stderr).await?)
    };
    let exit = async { Ok::<_, CliError>(client.wait_process(container, exec).await?) };
    let work = async { Ok(exit_code(tokio::try_join!(streams, exit)?.1)) };
    beside(client, container, exec, interactive, terminal, work).await
}

/// Does `work` to its end with the user's terminal and signals being the process's.
pub(crate) async fn beside<T>(
    client: &Client,
    container: &str,
    exec: &str,
    interactive: bool,
    terminal: bool,
    work: impl Future<Output = Result<T, CliError>>,
) -> Result<T, CliError> {
    // Dropped at the end, whatever that is: the user's terminal is never left raw.
    let _raw = if terminal && interactive && io::stdin().is_terminal() {
        Some(tty::RawMode::enter(io::stdin()).map_err(CliError::io("terminal"))?)
    } else {
        None
    };
    let window = async {
        if terminal {
            tty::follow_window_size(client, container, exec).await?;
        }
        std::future::pending::<io::Result<()>>().await
    };
    tokio::select! {
        ended = work => ended,
        Err(error) = window => Err(CliError::io("SIGWINCH")(error)),
        Err(error) = forward_signals(client, container, exec) => Err(CliError::io("signals")(error)),
    }
}

/// A status of 8 bits, as every process has it; another one can't be an exit's.
pub(crate) fn exit_code(status: i32) -> u8 {
    u8::try_from(status).unwrap_or(u8::MAX)
}

async fn forward_signals(client: &Client, container: &str, exec: &str) -> io::Result<()> {
    let mut received = signals(&FORWARDED)?;
    // The channel stays open: its senders never end.
    while let Some(number) = received.recv().await {
        let number = number.unsigned_abs();
        if let Err(error) = client.signal_process(container, exec, number).await {
            eprintln!("nakai-ctl: signal {number} is not passed on: {error}");
        }
    }
    Ok(())
}

fn signals(numbers: &[i32]) -> io::Result<mpsc::Receiver<i32>> {
    let (sender, receiver) = mpsc::channel(8);
    for &number in numbers {
        let mut stream = signal(SignalKind::from_raw(number))?;
        let sender = sender.clone();
        tokio::spawn(
            async move { while stream.recv().await.is_some() && sender.send(number).await.is_ok() {} },
        );
    }
    Ok(receiver)
}

/// Waits for ^C, or for being told to end.
pub(crate) async fn interrupted() -> Result<(), CliError> {
    let wait = signals(&[libc::SIGINT, libc::SIGTERM, libc::SIGHUP]);
    wait.map_err(CliError::io("signals"))?.recv().await;
    Ok(())
}

/// Runs `work` to its end, or gives it up (with its guards) at ^C.
pub(crate) async fn unless_interrupted<T>(
    work: impl Future<Output = Result<T, CliError>>,
) -> Result<T, CliError> {
    tokio::select! {
        result = work => result,
        result = interrupted() => Err(result.err().unwrap_or(CliError::Interrupted)),
    }
}
