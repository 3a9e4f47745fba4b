//! Launching a process through a worker: its streams, the job, and the [`Process`] that comes of it.

use std::os::fd::OwnedFd;
use std::time::Duration;

use slog::warn;
use tokio::sync::watch;

use super::Environment;
use super::error::SandboxError;
use super::process::Process;
use crate::spec::{ConsoleSize, LateProcess};
use crate::stdio::{StreamName, Streams};
use crate::supervisor::Place;
use crate::supervisor::client::{AtEnd, LaunchError};
use crate::worker::job::{Failure, Job, Outcome, ProcessIo};

/// How much of a hook's words is looked at, in bytes.
const MAX_WORDS: u32 = 600;

/// How a process will be connected: the worker's ends and ours.
#[derive(Debug)]
pub(super) struct Wiring {
    pub(super) io: ProcessIo,
    /// How the filter, the last of the process's in `child`, is loaded, if there is one.
    pub(super) filter_flags: Option<u32>,
    /// The process's, then duplicates of ours.
    child: Vec<OwnedFd>,
    /// Ours; a terminal's come with the reply.
    streams: Option<Streams>,
}

/// Duplicates of our ends, for the supervisor to hold: standard input, which may be closed before the others, last.
fn duplicates(streams: &Streams) -> Result<Vec<OwnedFd>, SandboxError> {
    let mut ours = streams.fds();
    ours.sort_by_key(|(name, _)| *name == StreamName::Stdin);
    let copy = |fd: &OwnedFd| fd.try_clone().map_err(|source| SandboxError::Duplicate { source });
    ours.iter().map(|(_, fd)| copy(fd)).collect()
}

impl Wiring {
    /// Makes three pipes, or nothing for a terminal, and gets the seccomp filter. `what` names the process.
    pub(super) async fn prepare(
        terminal: bool,
        size: Option<ConsoleSize>,
        late: &LateProcess,
        environment: &Environment,
        what: impl Fn() -> String,
    ) -> Result<Self, SandboxError> {
        let mut filter_flags = None;
        let mut child = Vec::new();
        let mut streams = None;
        if !terminal {
            let hint = environment.config.container_pipe_size.and_then(|size| usize::try_from(size).ok());
            let (theirs, ours) = Streams::pipes(hint).map_err(|source| SandboxError::Pipes { source })?;
            child.extend([theirs.stdin, theirs.stdout, theirs.stderr]);
            streams = Some(ours);
        }
        if let Some(profile) = &late.seccomp {
            let failed = |source| SandboxError::Launch { what: what(), source };
            let filter = environment.filters.get(&environment.launcher, profile).await.map_err(failed)?;
            child.push(filter.file().map_err(failed)?);
            filter_flags = Some(filter.flags);
        }
        let ours = streams.as_ref().map(duplicates).transpose()?.unwrap_or_default();
        let io = ProcessIo {
            terminal,
            window: size.map(|size| (size.rows, size.cols)),
            owner: late.owner,
            held: ours.len(),
        };
        child.extend(ours);
        Ok(Self { io, filter_flags, child, streams })
    }

    /// The same with another descriptor before the process's.
    pub(super) fn behind(mut self, first: OwnedFd) -> Self {
        self.child.insert(0, first);
        self
    }
}

/// Launches `job` and waits until its process is there: by the supervisor itself, if `place` says where. `end` is dropped
/// when the worker has ended.
pub(super) async fn start_process(
    environment: &Environment,
    place: Option<Place>,
    job: &Job,
    wiring: Wiring,
    end: AtEnd,
    what: impl Fn() -> String,
) -> Result<Process, SandboxError> {
    let failed = |source| SandboxError::Launch { what: what(), source };
    let launched = match environment.launcher.launch_process(place, job, wiring.child, end).await {
        Ok(launched) => launched,
        Err(LaunchError::Failed(failure)) => {
            let words = match &wiring.streams {
                Some(streams) => last_words(streams).await,
                None => None,
            };
            return Err(failed(LaunchError::Failed(with_words(failure, words))));
        }
        Err(error) => return Err(failed(error)),
    };
    if let Outcome::Started(warnings) = launched.outcome {
        for warning in warnings {
            warn!(environment.logger, "failed on the way"; "what" => what(), "warning" => warning);
        }
    }
    let mut fds = launched.fds.into_iter();
    let (Some(started), Some(pidfd)) = (launched.process, fds.next()) else {
        return Err(failed(LaunchError::SupervisorGone));
    };
    let streams = match (wiring.streams, fds.next()) {
        (Some(pipes), _) => pipes,
        (None, Some(master)) => Streams::terminal(master).map_err(|source| SandboxError::Pipes { source })?,
        (None, None) => return Err(failed(LaunchError::SupervisorGone)),
    };
    Ok(Process::new(started, pidfd, streams))
}

/// The first line on the standard error of a process that has not come to be. A createContainer hook runs where init's
/// streams are in place already: what it says goes there, and nobody else will read it.
async fn last_words(streams: &Streams) -> Option<String> {
    let (_, ended) = watch::channel(Some(()));
    let read = streams.stderr.read(MAX_WORDS, &ended, Duration::ZERO).await.ok()?;
    let text = String::from_utf8_lossy(&read);
    let line = text.lines().map(str::trim).find(|line| !line.is_empty())?;
    Some(line.chars().filter(|char| !char.is_control()).collect())
}

fn with_words(failure: Failure, words: Option<String>) -> Failure {
    match words {
        Some(words) if !failure.message.contains(&words) => {
            Failure { message: format!("{}: {words}", failure.message), ..failure }
        }
        _ => failure,
    }
}
