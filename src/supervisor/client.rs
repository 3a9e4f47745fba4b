//! The server's side of the channel: launches, and the ends of processes.
//!
//! One task owns the channel. It matches replies and exits to those who wait for them, in the order in
//! which they arrive, which is the order in which they happened ([`super::channel`]): when the exit of a
//! process comes, the reply that named it has been seen, so an unknown pid is an orphan and nobody's loss.
//!
//! What a launch started is held by the supervisor under the launch's number until the [`Hold`] that came with it is
//! dropped; a server that takes over gets the same holds from [`Launcher::held`]. Numbers begin anew for each server,
//! far above those of the one before it.
//!
//! A caller that goes away in the middle of a launch has its worker killed, with the hooks that it runs; a
//! process that was started for a caller who is gone is killed too.

use std::collections::{HashMap, VecDeque};
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

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
#[derive(Debug)]
pub struct StartedProcess {
    /// Its pid in the supervisor's namespace.
    pub pid: Pid,
    /// Becomes `Some` once, when it has ended.
    pub exit: watch::Receiver<Option<ExitStatus>>,
    /// What the supervisor keeps of it.
    pub hold: Hold,
}

/// What the supervisor holds of an earlier server's process.
#[derive(Debug)]
pub struct Held {
    /// The process, which may have ended.
    pub process: StartedProcess,
    /// The descriptors, in the order in which they were given.
    pub fds: Vec<OwnedFd>,
}

/// What the supervisor holds under a number; it lets go when this is dropped.
pub struct Hold {
    key: u64,
    commands: mpsc::UnboundedSender<Command>,
}

impl Hold {
    /// The number.
    pub fn key(&self) -> u64 {
        self.key
    }

    /// Lets go of all descriptors but the first `count`, of which there must be one.
    pub fn keep_first(&self, count: u8) {
        let _ = self.commands.send(Command::Release { key: self.key, keep: i32::from(count) });
    }
}

impl std::fmt::Debug for Hold {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Hold").field(&self.key).finish()
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let _ = self.commands.send(Command::Release { key: self.key, keep: 0 });
    }
}

/// The number under which the listening socket is held. No launch has it.
const LISTENER: u64 = u64::MAX;

enum Command {
    Launch {
        request: u64,
        fds: Vec<OwnedFd>,
        soon_done: bool,
        answer: oneshot::Sender<Result<Launched, LaunchError>>,
    },
    Cancel {
        request: u64,
    },
    ShutDown {
        told: oneshot::Sender<()>,
    },
    Serving {
        listener: Option<OwnedFd>,
    },
    Release {
        key: u64,
        keep: i32,
    },
    List {
        answer: oneshot::Sender<Listed>,
    },
}

/// All that an earlier server has left with the supervisor.
#[derive(Debug, Default)]
pub struct Listed {
    /// The socket that it listened on.
    pub listener: Option<OwnedFd>,
    /// Its processes, by the number of their launch.
    pub processes: std::collections::HashMap<u64, Held>,
}

/// A handle for launching workers; cheap to clone.
#[derive(Debug, Clone)]
pub struct Launcher {
    commands: mpsc::UnboundedSender<Command>,
    next_request: Arc<AtomicU64>,
    stop: watch::Receiver<bool>,
}

/// Kills the worker when the caller stops waiting for it. One that is soon done may come to its end, as it would leave
/// a process that nobody has heard of: what it reports is killed then.
struct CancelOnDrop<'a> {
    launcher: &'a Launcher,
    request: u64,
    soon_done: bool,
}

/// How long a worker may take that is soon done.
const SOON: Duration = Duration::from_secs(5);

impl Drop for CancelOnDrop<'_> {
    fn drop(&mut self) {
        let (commands, request) = (self.launcher.commands.clone(), self.request);
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) if self.soon_done => drop(runtime.spawn(async move {
                tokio::time::sleep(SOON).await;
                let _ = commands.send(Command::Cancel { request });
            })),
            _ => drop(commands.send(Command::Cancel { request })),
        }
    }
}

impl Launcher {
    /// Takes the server's end of the channel and serves it in a task of its own. `generation` is how many servers
    /// there have been before.
    ///
    /// # Errors
    /// When the descriptor can't be registered with the runtime.
    pub fn start(channel: Channel, generation: u32, logger: Logger) -> std::io::Result<Self> {
        let channel = super::fds::register(channel)?;
        let (commands, receiver) = mpsc::unbounded_channel();
        let (stop, stop_asked) = watch::channel(false);
        tokio::spawn(Dispatcher::new(logger, commands.downgrade(), stop).serve(channel, receiver));
        let first = (u64::from(generation) << 32).saturating_add(1);
        Ok(Self { commands, next_request: Arc::new(AtomicU64::new(first)), stop: stop_asked })
    }

    /// Tells the supervisor that the server listens, and on what, if it does not hold that already.
    pub fn serving(&self, listener: Option<OwnedFd>) {
        let _ = self.commands.send(Command::Serving { listener });
    }

    /// Asks what an earlier server has left. To be called once, before anything is launched: what nobody keeps of it
    /// is let go of.
    pub async fn held(&self) -> Listed {
        let (answer, answered) = oneshot::channel();
        let _ = self.commands.send(Command::List { answer });
        answered.await.unwrap_or_default()
    }

    /// Waits until the supervisor has been asked to stop, or is no more: then it was killed, and so was the agent.
    pub async fn stop_asked(&self) {
        let mut stop = self.stop.clone();
        let _asked_or_gone = stop.wait_for(|stop| *stop).await;
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
        // It runs no hooks, and ends as soon as the process is its program.
        let soon_done = matches!(job, Job::Exec(_));
        let launch = Command::Launch { request, fds: all, soon_done, answer };
        self.commands.send(launch).map_err(|_| LaunchError::SupervisorGone)?;
        let guard = CancelOnDrop { launcher: self, request, soon_done };
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
    soon_done: bool,
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
    /// What the supervisor tells of an earlier server, and who asked.
    listing: Option<(oneshot::Sender<Listed>, Listed)>,
    stop: watch::Sender<bool>,
    /// For the holds that are handed out.
    commands: mpsc::WeakUnboundedSender<Command>,
}

impl Dispatcher {
    fn new(logger: Logger, commands: mpsc::WeakUnboundedSender<Command>, stop: watch::Sender<bool>) -> Self {
        let (pending, workers, processes) = (HashMap::new(), HashMap::new(), HashMap::new());
        let (outbox, farewell, listing) = (VecDeque::new(), None, None);
        Self { logger, outbox, pending, workers, processes, farewell, listing, stop, commands }
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
            Command::Launch { request, fds, soon_done, answer } => {
                self.pending.insert(request, Pending { answer, worker: None, soon_done });
                let launch = Header { status: soon_done.into(), ..Header::new(Kind::Launch, request) };
                self.outbox.push_back((launch, fds));
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
            Command::Serving { listener } => {
                if let Some(listener) = listener {
                    self.outbox.push_back((Header::new(Kind::Hold, LISTENER), vec![listener]));
                }
                self.outbox.push_back((Header::new(Kind::Serving, 0), Vec::new()));
            }
            Command::Release { key, keep } => {
                let release = Header { status: keep, ..Header::new(Kind::Release, key) };
                self.outbox.push_back((release, Vec::new()));
            }
            Command::List { answer } => {
                self.listing = Some((answer, Listed::default()));
                self.outbox.push_back((Header::new(Kind::List, 0), Vec::new()));
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
            Kind::Held => {
                let exit = self.watch(header.pid);
                self.held(header, exit, message.fds);
            }
            Kind::HeldEnded => {
                let (_, exit) = watch::channel(Some(ExitStatus::from_wire(header.status)));
                self.held(header, exit, message.fds);
            }
            Kind::Listed => {
                if let Some((answer, listed)) = self.listing.take() {
                    let _ = answer.send(listed);
                }
            }
            Kind::Stop => drop(self.stop.send_replace(true)),
            Kind::Launch
            | Kind::ShutDown
            | Kind::Serving
            | Kind::Hold
            | Kind::Release
            | Kind::Discard
            | Kind::List => {}
        }
    }

    fn held(&mut self, header: Header, exit: watch::Receiver<Option<ExitStatus>>, mut fds: Vec<OwnedFd>) {
        let process = self.process(header, exit);
        let Some((_, listed)) = &mut self.listing else { return };
        if header.request == LISTENER {
            // It stays held: a hold that is never dropped lets nothing go.
            process.into_iter().for_each(|process| std::mem::forget(process.hold));
            listed.listener = fds.pop();
        } else if let Some(process) = process {
            listed.processes.insert(header.request, Held { process, fds });
        }
    }

    /// The process that is held under the number of `header`. `None` when the server is ending.
    fn process(&self, header: Header, exit: watch::Receiver<Option<ExitStatus>>) -> Option<StartedProcess> {
        let hold = Hold { key: header.request, commands: self.commands.upgrade()? };
        Some(StartedProcess { pid: Pid::from_raw(header.pid), exit, hold })
    }

    fn forked(&mut self, request: u64, pid: i32) {
        self.workers.insert(pid, request);
        if let Some(pending) = self.pending.get_mut(&request) {
            pending.worker = Some(Pid::from_raw(pid));
            if pending.answer.is_closed() && !pending.soon_done {
                end_worker(Pid::from_raw(pid));
            }
        }
    }

    fn exited(&mut self, pid: i32, status: ExitStatus) {
        if let Some(waiters) = self.processes.remove(&pid) {
            waiters.send_replace(Some(status));
        } else if let Some(request) = self.workers.remove(&pid) {
            if self.pending.contains_key(&request) {
                // It may have been killed between its report to the supervisor and its reply to us.
                self.outbox.push_back((Header::new(Kind::Discard, request), Vec::new()));
            }
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
                let process = if message.header.pid > 0 {
                    let exit = self.watch(message.header.pid);
                    self.process(message.header, exit)
                } else {
                    None
                };
                self.answer(request, Ok(Launched { outcome, fds: message.fds, process }));
            }
            Ok(Err(failure)) => self.answer(request, Err(failure.into())),
            Err(error) => self.answer(request, Err(LaunchError::Garbled(error))),
        }
    }

    fn watch(&mut self, pid: i32) -> watch::Receiver<Option<ExitStatus>> {
        let (sender, exit) = watch::channel(None);
        self.processes.insert(pid, sender);
        exit
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
