//! Moves bytes between the streams of a process and connections of the host's ([`crate::stdio::ports`]).
//!
//! A task for each stream. It ends with the stream, or when the host hangs up; what a process writes after that can
//! still be read by ReadStdout. WaitProcess answers when the host has been given all output, so that it need not
//! wait for its own end of the connections.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::container::Output;
use super::process::Process;
use crate::stdio::ports::{Connection, StreamConnections};

/// How much of the input is taken at a time: memory that a silent stream holds.
const INPUT: usize = 8 << 10;

/// How much of the output is taken at a time, if there is so much.
const OUTPUT: u32 = 64 << 10;

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

/// Serves the streams of `process` over `connections`. A stream that a background child holds ends when it has been
/// silent for `quiet` after the process's exit.
pub(super) fn start(process: &Arc<Process>, connections: StreamConnections, quiet: Duration) {
    let StreamConnections { stdin, stdout, stderr } = connections;
    let mut tasks = Vec::new();
    if let Some(from) = stdin {
        tasks.push(tokio::spawn(input(from, process.clone())).abort_handle());
    }
    for (output, to) in [(Output::Stdout, stdout), (Output::Stderr, stderr)] {
        let Some(to) = to else { continue };
        process.pumps().outputs.send_modify(|count| *count = count.saturating_add(1));
        let running = Running(process.clone());
        tasks.push(tokio::spawn(copy_output(running, output, to, quiet)).abort_handle());
    }
    *process.pumps().tasks.lock().unwrap_or_else(PoisonError::into_inner) = tasks;
}

/// The host's end is the end of the input. What the process does not read holds up nobody but the host.
async fn input(mut from: Connection, process: Arc<Process>) {
    let copied = async {
        let mut buffer = vec![0; INPUT];
        loop {
            let bytes = match from.read(&mut buffer).await {
                Ok(read) if read > 0 => buffer.get(..read).unwrap_or_default().to_vec(),
                _ => break,
            };
            if process.streams().stdin.write(bytes).await.is_err() {
                break;
            }
        }
        process.close_stdin();
    };
    tokio::select! {
        () = copied => {}
        _ = process.wait() => {}
    }
}

async fn copy_output(running: Running, output: Output, mut to: Connection, quiet: Duration) {
    let process = &running.0;
    let stream = match output {
        Output::Stdout => &process.streams().stdout,
        Output::Stderr => &process.streams().stderr,
    };
    while let Ok(bytes) = stream.read(OUTPUT, process.exit(), quiet).await {
        if bytes.is_empty() || to.write_all(&bytes).await.is_err() {
            break;
        }
    }
    let _ = to.shutdown().await;
}
