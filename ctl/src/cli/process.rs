//! A process as the user meets it: its streams are ours, its terminal is ours, our signals are its.

use std::io::{self, IsTerminal as _};
use std::time::{Duration, Instant};

use nakai_ctl::{Client, stdio, tty};
use tokio::io::AsyncRead;

use super::error::CliError;
use super::input::Input;
use super::say::tell;
use super::signals::Signals;

/// After so many ^C, one soon after the other, the program is left: it may be one that ends of none.
const ENOUGH: u32 = 3;

/// How soon.
const SOON: Duration = Duration::from_secs(5);

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
    let user = User { interactive, terminal, signals: &mut Signals::forwarded()? };
    beside(client, container, exec, user, work).await
}

/// What of the user's is the process's.
pub(crate) struct User<'a> {
    pub(crate) interactive: bool,
    pub(crate) terminal: bool,
    pub(crate) signals: &'a mut Signals,
}

/// Does `work` to its end with the user's terminal and signals being the process's.
pub(crate) async fn beside<T>(
    client: &Client,
    container: &str,
    exec: &str,
    user: User<'_>,
    work: impl Future<Output = Result<T, CliError>>,
) -> Result<T, CliError> {
    let User { interactive, terminal, signals } = user;
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
        error = forward_signals(client, container, exec, signals) => Err(error),
    }
}

/// A status of 8 bits, as every process has it; another one can't be an exit's.
pub(crate) fn exit_code(status: i32) -> u8 {
    u8::try_from(status).unwrap_or(u8::MAX)
}

/// Passes signals on for ever, or until the user has had enough.
async fn forward_signals(client: &Client, container: &str, exec: &str, signals: &mut Signals) -> CliError {
    let (mut interrupts, mut last) = (0_u32, Instant::now());
    loop {
        let number = signals.next().await;
        if number == libc::SIGINT {
            interrupts = if last.elapsed() < SOON { interrupts.saturating_add(1) } else { 1 };
            last = Instant::now();
            if interrupts >= ENOUGH {
                return CliError::Interrupted;
            }
        }
        let number = number.unsigned_abs();
        // The program that ends of none may not let the call end either.
        if let Err(error) = client.within(SOON).signal_process(container, exec, number).await {
            tell!("signal {number} is not passed on: {error}");
        }
    }
}
