//! Launching a process through a worker: its streams, the job, and the [`Process`] that comes of it.

use std::os::fd::OwnedFd;

use super::Environment;
use super::error::SandboxError;
use super::process::Process;
use crate::spec::{ConsoleSize, LateProcess};
use crate::stdio::Streams;
use crate::supervisor::client::LaunchError;
use crate::worker::job::{Job, ProcessIo};

/// How a process will be connected: the worker's ends and ours.
#[derive(Debug)]
pub(super) struct Wiring {
    pub(super) io: ProcessIo,
    child: Vec<OwnedFd>,
    /// Ours; a terminal's come with the reply.
    streams: Option<Streams>,
}

impl Wiring {
    /// Makes three pipes, or nothing for a terminal.
    pub(super) fn prepare(
        terminal: bool,
        size: Option<ConsoleSize>,
        late: &LateProcess,
        environment: &Environment,
    ) -> Result<Self, SandboxError> {
        let io = ProcessIo {
            terminal,
            window: size.map(|size| (size.rows, size.cols)),
            owner: (late.uid, late.gid),
        };
        if terminal {
            return Ok(Self { io, child: Vec::new(), streams: None });
        }
        let hint = environment.config.container_pipe_size.and_then(|size| usize::try_from(size).ok());
        let (child, streams) = Streams::pipes(hint).map_err(|source| SandboxError::Pipes { source })?;
        Ok(Self { io, child: vec![child.stdin, child.stdout, child.stderr], streams: Some(streams) })
    }
}

/// Launches `job` and waits until its process is there.
pub(super) async fn start_process(
    environment: &Environment,
    job: &Job,
    wiring: Wiring,
    what: impl Fn() -> String,
) -> Result<Process, SandboxError> {
    let failed = |source| SandboxError::Launch { what: what(), source };
    let launched = environment.launcher.launch(job, wiring.child).await.map_err(failed)?;
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
