//! The server's side of the channel: launches, and the ends of processes.
//!
//! One task owns the channel. It matches replies and exits to those who wait for them, in the order in
//! which they arrive, which is the order in which they happened ([`super::channel`]): when the exit of a
//! process comes, the reply that named it has been seen, so an unknown pid is an orphan and nobody's loss.
//!
//! A caller that goes away in the middle of a launch has its worker killed, with the hooks that it runs; a
//! process that was started for a caller who is gone is killed too.

use std::collections::{HashMap, VecDeque};
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::socket::MsgFlags;
use nix::unistd::Pid;
use slog::{Logger, debug, error, warn};
use tokio::io::unix::{AsyncFd, AsyncFdReadyGuard};
use tokio::sync::{mpsc, oneshot, watch};

use super::channel::{Channel, ChannelError, Header, Kind, MAX_PAYLOAD, Message};
use super::reaper::ExitStatus;
use crate::worker::job::{Failure, Job, Outcome};

/// Why a launch brought nothing.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The worker did its work and says why it could not finish it.
    #[error(transparent)]
    Failed(#[from] Failure),
    /// The job could not be handed over.
    #[error("hand the job to a worker: {step}")]
    HandOver {
        /// What was tried.
        step: &'static str,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// The supervisor could not fork.
    #[error("fork a worker")]
    Fork(#[source] Errno),
    /// The worker ended without an answer.
    #[error("the worker ended without an answer ({0:?})")]
    WorkerDied(ExitStatus),
    /// The worker's answer made no sense.
    #[error("the worker's answer can't be read")]
    Garbled(#[source] serde_json::Error),
    /// There is no supervisor any more.
    #[error("the supervisor is gone")]
    SupervisorGone,
}

/// What a worker brought back.
#[derive(Debug)]
pub struct Launched {
    /// What it says.
    pub outcome: Outcome,
    /// Descriptors that came with it, in the order that the job documents.
    pub fds: Vec<OwnedFd>,
    /// The process that it started, if it started one.
    pub process: Option<StartedProcess>,
}

/// A process that a worker started and that the supervisor will report on.
#[derive(Debug, Clone)]
pub struct StartedProcess {
    /// Its pid in the supervisor's namespace.
    pub pid: Pid,
    /// Becomes `Some` once, when it has ended.
    pub exit: watch::Receiver<Option<ExitStatus>>,
}

enum Command {
    Launch { request: u64, fds: Vec<OwnedFd>, answer: oneshot::Sender<Result<Launched, LaunchError>> },
    Cancel { request: u64 },
    ShutDown { told: oneshot::Sender<()> },
}

/// A handle for launching workers; cheap to clone.
#[derive(Debug, Clone)]
pub struct Launcher {
    commands: mpsc::UnboundedSender<Command>,
    next_request: Arc<AtomicU64>,
}

/// Kills the worker when the caller stops waiting for it.
struct CancelOnDrop<'a> {
    launcher: &'a Launcher,
    request: u64,
}

impl Drop for CancelOnDrop<'_> {
    fn drop(&mut self) {
        let _ = self.launcher.commands.send(Command::Cancel { request: self.request });
    }
}

impl Launcher {
    /// Takes the server's end of the channel and serves it in a task of its own.
    ///
    /// # Errors
    /// When the descriptor can't be registered with the runtime.
    pub fn start(channel: Channel, logger: Logger) -> std::io::Result<Self> {
        let channel = super::fds::register(channel)?;
        let (commands, receiver) = mpsc::unbounded_channel();
        tokio::spawn(Dispatcher::new(logger).serve(channel, receiver));
        Ok(Self { commands, next_request: Arc::new(AtomicU64::new(1)) })
    }

    /// Runs `job` in a worker with `fds`, and waits for what it brings back.
    ///
    /// # Errors
    /// [`LaunchError::Failed`] with the cause when the worker could not do the job.
    pub async fn launch(&self, job: &Job, fds: Vec<OwnedFd>) -> Result<Launched, LaunchError> {
        let mut all = vec![job_file(job)?];
        all.extend(fds);
        let request = self.next_request.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        let launch = Command::Launch { request, fds: all, answer };
        self.commands.send(launch).map_err(|_| LaunchError::SupervisorGone)?;
        let guard = CancelOnDrop { launcher: self, request };
        let result = answered.await.unwrap_or(Err(LaunchError::SupervisorGone));
        std::mem::forget(guard);
        result
    }

    /// Tells the supervisor that the sandbox is gone; comes back when it has been told.
    pub async fn shut_down(&self) {
        let (told, done) = oneshot::channel();
        let _ = self.commands.send(Command::ShutDown { told });
        let _ = done.await;
    }
}

/// Kills a worker, and with it the hooks that it runs: they are in its process group. It has not been reported
/// dead, so the pid is still its own.
fn end_worker(worker: Pid) {
    let _ = kill(worker, Signal::SIGKILL);
    let _ = killpg(worker, Signal::SIGKILL);
}

/// The job as JSON in a memory file: the supervisor passes it on without a look.
fn job_file(job: &Job) -> Result<OwnedFd, LaunchError> {
    let step = |step| move |source: std::io::Error| LaunchError::HandOver { step, source };
    let bytes = serde_json::to_vec(job).map_err(|e| step("encode it")(e.into()))?;
    let file =
        memfd_create("nakai-job", MFdFlags::MFD_CLOEXEC).map_err(|e| step("memfd_create")(e.into()))?;
    let mut file = std::fs::File::from(file);
    file.write_all(&bytes).map_err(step("write it"))?;
    Ok(file.into())
}

struct Pending {
    answer: oneshot::Sender<Result<Launched, LaunchError>>,
    worker: Option<Pid>,
}

struct Dispatcher {
    logger: Logger,
    /// What is still to be sent; the channel is never waited for without being read, too.
    outbox: VecDeque<(Header, Vec<OwnedFd>)>,
    /// Launches without an answer yet, by request.
    pending: HashMap<u64, Pending>,
    /// Workers that have not been reported dead, by pid.
    workers: HashMap<i32, u64>,
    /// Processes that somebody may wait for, by pid.
    processes: HashMap<i32, watch::Sender<Option<ExitStatus>>>,
    /// Who waits for the shut-down message to be sent.
    farewell: Option<oneshot::Sender<()>>,
}

impl Dispatcher {
    fn new(logger: Logger) -> Self {
        let (pending, workers, processes) = (HashMap::new(), HashMap::new(), HashMap::new());
        Self { logger, outbox: VecDeque::new(), pending, workers, processes, farewell: None }
    }

    async fn serve(mut self, channel: AsyncFd<Channel>, mut commands: mpsc::UnboundedReceiver<Command>) {
        loop {
            let served = tokio::select! {
                ready = channel.readable() => ready.map(|ready| self.receive(&channel, ready)),
                ready = channel.writable(), if !self.outbox.is_empty() => {
                    ready.map(|ready| self.send(&channel, ready))
                }
                command = commands.recv() => match command {
                    Some(command) => { self.obey(command); Ok(true) }
                    None => return,
                },
            };
            if !served.unwrap_or(false) {
                error!(self.logger, "the supervisor is gone");
                return;
            }
        }
    }

    /// Takes one message; false when there will be no more.
    fn receive(&mut self, channel: &AsyncFd<Channel>, mut ready: AsyncFdReadyGuard<'_, Channel>) -> bool {
        match channel.get_ref().receive(MAX_PAYLOAD, MsgFlags::MSG_DONTWAIT) {
            Ok(message) => self.take(message),
            Err(ChannelError::WouldBlock) => ready.clear_ready(),
            Err(ChannelError::Closed) => return false,
            Err(error) => warn!(self.logger, "message from the supervisor dropped"; "error" => %error),
        }
        true
    }

    /// Sends the oldest message of the outbox; false when nobody can receive it.
    fn send(&mut self, channel: &AsyncFd<Channel>, mut ready: AsyncFdReadyGuard<'_, Channel>) -> bool {
        let Some((header, fds)) = self.outbox.front() else { return true };
        let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        match channel.get_ref().send(*header, b"", &borrowed, MsgFlags::MSG_DONTWAIT) {
            Ok(()) => {
                if header.kind == Kind::ShutDown {
                    // Dropped is told.
                    self.farewell = None;
                }
                self.outbox.pop_front();
            }
            Err(ChannelError::WouldBlock) => ready.clear_ready(),
            Err(ChannelError::Closed) => return false,
            Err(error) => {
                error!(self.logger, "message to the supervisor not sent"; "error" => %error);
                let request = header.request;
                self.outbox.pop_front();
                self.answer(request, Err(LaunchError::SupervisorGone));
            }
        }
        true
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Launch { request, fds, answer } => {
                self.pending.insert(request, Pending { answer, worker: None });
                self.outbox.push_back((Header::new(Kind::Launch, request), fds));
            }
            Command::Cancel { request } => {
                if let Some(pid) = self.pending.get(&request).and_then(|pending| pending.worker) {
                    end_worker(pid);
                }
            }
            Command::ShutDown { told } => {
                self.outbox.push_back((Header::new(Kind::ShutDown, 0), Vec::new()));
                self.farewell = Some(told);
            }
        }
    }

    fn take(&mut self, message: Message) {
        let header = message.header;
        match header.kind {
            Kind::Forked => self.forked(header.request, header.pid),
            Kind::ForkFailed => {
                self.answer(header.request, Err(LaunchError::Fork(Errno::from_raw(header.status))));
            }
            Kind::Exited => self.exited(header.pid, ExitStatus::from_wire(header.status)),
            Kind::Reply => self.replied(message),
            Kind::Launch | Kind::ShutDown => {}
        }
    }

    fn forked(&mut self, request: u64, pid: i32) {
        self.workers.insert(pid, request);
        if let Some(pending) = self.pending.get_mut(&request) {
            pending.worker = Some(Pid::from_raw(pid));
            if pending.answer.is_closed() {
                end_worker(Pid::from_raw(pid));
            }
        }
    }

    fn exited(&mut self, pid: i32, status: ExitStatus) {
        if let Some(waiters) = self.processes.remove(&pid) {
            waiters.send_replace(Some(status));
        } else if let Some(request) = self.workers.remove(&pid) {
            self.answer(request, Err(LaunchError::WorkerDied(status)));
        } else {
            debug!(self.logger, "orphan reaped"; "process" => pid, "status" => status.code());
        }
    }

    fn replied(&mut self, message: Message) {
        let request = message.header.request;
        let result: Result<Result<Outcome, Failure>, _> = serde_json::from_slice(&message.payload);
        match result {
            Ok(Ok(outcome)) => {
                let process = (message.header.pid > 0).then(|| self.watch(message.header.pid));
                self.answer(request, Ok(Launched { outcome, fds: message.fds, process }));
            }
            Ok(Err(failure)) => self.answer(request, Err(failure.into())),
            Err(error) => self.answer(request, Err(LaunchError::Garbled(error))),
        }
    }

    fn watch(&mut self, pid: i32) -> StartedProcess {
        let (sender, exit) = watch::channel(None);
        self.processes.insert(pid, sender);
        StartedProcess { pid: Pid::from_raw(pid), exit }
    }

    fn answer(&mut self, request: u64, result: Result<Launched, LaunchError>) {
        let Some(pending) = self.pending.remove(&request) else { return };
        if let Err(Ok(launched)) = pending.answer.send(result)
            && let Some(process) = launched.process
        {
            warn!(self.logger, "killing a process whose caller is gone"; "process" => process.pid.as_raw());
            let _ = kill(process.pid, Signal::SIGKILL);
        }
    }
}
