//! The signals of a command, from its begin to its end.
//!
//! A command that has something to undo, or to pass on, claims them; [`unless_ended`] ends every other one. None of them
//! ends the program in the middle of a step that must come to its end (`nakai_ctl::pending`).

use std::future::poll_fn;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use nakai_ctl::pending;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::error::CliError;

/// Those that end a program.
const ENDING: [i32; 4] = [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM];

/// Those that a program in a container is given.
const FORWARDED: [i32; 6] =
    [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGUSR1, libc::SIGUSR2];

/// How long what is under way may take when the command has ended.
const SETTLES: Duration = Duration::from_secs(10);

/// How many commands of this process have claimed them: one at most, but for those within it.
static CLAIMS: AtomicUsize = AtomicUsize::new(0);

/// Signals that this command has claimed. None is lost while it has them.
pub(crate) struct Signals(Received);

impl Signals {
    /// Those that end a program.
    pub(crate) fn ending() -> Result<Self, CliError> {
        Self::claim(&ENDING)
    }

    /// Those that a program in a container is given, too.
    pub(crate) fn forwarded() -> Result<Self, CliError> {
        Self::claim(&FORWARDED)
    }

    fn claim(numbers: &[i32]) -> Result<Self, CliError> {
        let received = Received::new(numbers)?;
        CLAIMS.fetch_add(1, Ordering::SeqCst);
        Ok(Self(received))
    }

    /// The next one.
    pub(crate) async fn next(&mut self) -> i32 {
        self.0.next().await
    }

    /// Waits for one that is to end the command.
    pub(crate) async fn end(&mut self) {
        while !ENDING.contains(&self.next().await) {}
    }

    /// Whether one has come that is to end the command.
    pub(crate) async fn is_ended(&mut self) -> bool {
        tokio::select! {
            biased;
            () = self.end() => true,
            () = std::future::ready(()) => false,
        }
    }

    /// Runs `work` to its end, or gives it up (with its guards) when one comes.
    pub(crate) async fn unless<T>(
        &mut self,
        work: impl Future<Output = Result<T, CliError>>,
    ) -> Result<T, CliError> {
        tokio::select! {
            result = work => result,
            () = self.end() => Err(CliError::Interrupted),
        }
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        CLAIMS.fetch_sub(1, Ordering::SeqCst);
    }
}

struct Received(Vec<(i32, Signal)>);

impl Received {
    fn new(numbers: &[i32]) -> Result<Self, CliError> {
        let streams = numbers.iter().map(|&number| Ok((number, signal(SignalKind::from_raw(number))?)));
        Ok(Self(streams.collect::<Result<_, _>>().map_err(CliError::io("signals"))?))
    }

    async fn next(&mut self) -> i32 {
        poll_fn(|context| {
            let mut streams = self.0.iter_mut();
            let come =
                streams.find_map(|(number, stream)| stream.poll_recv(context).is_ready().then_some(*number));
            come.map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }
}

/// Runs a command to its end, and then what it has left under way, for a while. A signal that it has not claimed ends
/// it, and the next one ends the wait.
pub(crate) async fn unless_ended(work: impl Future<Output = Result<u8, CliError>>) -> Result<u8, CliError> {
    let mut received = Received::new(&ENDING)?;
    let told = async {
        loop {
            let number = received.next().await;
            if CLAIMS.load(Ordering::SeqCst) == 0 {
                return number;
            }
        }
    };
    let result = tokio::select! {
        // First, so that a signal which has come before a claim is not taken for one of the claim's.
        biased;
        number = told => Err(CliError::Signal(number)),
        result = work => result,
    };
    tokio::select! {
        () = pending::settled() => {}
        _ = received.next() => {}
        () = tokio::time::sleep(SETTLES) => {}
    }
    result
}

/// [`Signals::unless`] for a command that has no other use for them.
pub(crate) async fn unless_interrupted<T>(
    work: impl Future<Output = Result<T, CliError>>,
) -> Result<T, CliError> {
    Signals::ending()?.unless(work).await
}
