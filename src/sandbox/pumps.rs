//! Moves bytes between the streams of a process and connections of the host's ([`crate::stdio::ports`]).
//!
//! A task for each stream. It ends with the stream, or when the host hangs up; what a process writes after that can
//! still be read by ReadStdout. WaitProcess answers when the host has been given all output, so that it need not
//! wait for its own end of the connections. The supervisor holds the connections, from before anybody is told of the
//! process: the next server goes on with them.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::process::Process;
use crate::stdio::Link;
use crate::stdio::ports::StreamConnections;
use crate::supervisor::client::{HeldStreams, Hold, Launcher, stream_key};

/// Connections for the three streams, that the supervisor holds.
#[derive(Debug, Default)]
pub(super) struct Links([Option<(Link, Hold)>; 3]);

impl Links {
    /// Has connections held for a process. One that can't be is closed.
    pub(super) fn hold(connections: StreamConnections, launcher: &Launcher, process: &Process) -> Self {
        let StreamConnections { stdin, stdout, stderr } = connections;
        let mut links = Self::default();
        for ((number, place), connection) in (0..).zip(&mut links.0).zip([stdin, stdout, stderr]) {
            let Some(connection) = connection else { continue };
            let is_terminal = process.streams().is_terminal();
            if let Ok(link) = Link::new(connection, is_terminal)
                && let Ok(fds) = link.duplicates()
            {
                *place = Some((link, launcher.hold_stream(process.key(), number, fds)));
            }
        }
        links
    }

    /// Those that an earlier server had.
    pub(super) fn held(streams: &mut HeldStreams, process: u64) -> Self {
        let mut links = Self::default();
        for (number, place) in (0..).zip(&mut links.0) {
            let held = streams.remove(&stream_key(process, number));
            *place = held.and_then(|(fds, hold)| Some((Link::held(fds)?, hold)));
        }
        links
    }
}

/// The tasks that serve a process.
#[derive(Debug)]
pub(super) struct Pumps {
    tasks: Mutex<Vec<AbortHandle>>,
    /// How many outputs are not at their end.
    outputs: watch::Sender<usize>,
}

/// Counts an output as ended when its task does, however it does.
struct Running(Arc<Process>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.pumps().outputs.send_modify(|count| *count = count.saturating_sub(1));
    }
}

impl Default for Pumps {
    fn default() -> Self {
        Self { tasks: Mutex::default(), outputs: watch::Sender::new(0) }
    }
}

impl Pumps {
    /// Waits until the host has all output, but no longer than `limit`.
    pub(super) async fn delivered(&self, limit: Duration) {
        let mut outputs = self.outputs.subscribe();
        let _ = tokio::time::timeout(limit, outputs.wait_for(|count| *count == 0)).await;
    }

    /// Ends all tasks and closes the connections.
    pub(super) fn stop(&self) {
        for task in self.tasks.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            task.abort();
        }
    }
}

/// Serves the streams of `process` over `links`. A stream that a background child holds ends when it has been
/// silent for `quiet` after the process's exit.
pub(super) fn start(process: &Arc<Process>, links: Links, quiet: Duration) {
    let Links([stdin, stdout, stderr]) = links;
    let mut tasks = Vec::new();
    if let Some(from) = stdin {
        tasks.push(tokio::spawn(input(from, process.clone())).abort_handle());
    }
    for (is_stdout, to) in [(true, stdout), (false, stderr)] {
        let Some(to) = to else { continue };
        process.pumps().outputs.send_modify(|count| *count = count.saturating_add(1));
        let running = Running(process.clone());
        tasks.push(tokio::spawn(output(running, is_stdout, to, quiet)).abort_handle());
    }
    *process.pumps().tasks.lock().unwrap_or_else(PoisonError::into_inner) = tasks;
}

/// The host's end is the end of the input.
async fn input((from, _hold): (Link, Hold), process: Arc<Process>) {
    tokio::select! {
        () = from.carry_input(&process.streams().stdin) => process.close_stdin(),
        _ = process.wait() => {}
    }
}

async fn output(running: Running, is_stdout: bool, (to, _hold): (Link, Hold), quiet: Duration) {
    let process = &running.0;
    let streams = process.streams();
    let stream = if is_stdout { &streams.stdout } else { &streams.stderr };
    to.carry_output(stream, process.exit(), quiet).await;
}
