//! The task that owns the server's end of the channel: what handles ask goes out, replies and ends come in.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::socket::MsgFlags;
use nix::unistd::Pid;
use slog::{Logger, debug, error, warn};
use tokio::io::unix::{AsyncFd, AsyncFdReadyGuard};
use tokio::sync::{mpsc, oneshot, watch};

use super::channel::{Channel, ChannelError, Header, Kind, MAX_PAYLOAD, Message};
use super::client::{AtEnd, Held, Hold, LaunchError, Launched, Listed, StartedProcess};
use super::enter::{Asked, EnterAnswer, Entering, NotEntered};
use super::reaper::ExitStatus;
use crate::worker::job::{Failure, Outcome};

/// The number under which the listening socket is held. No launch has it.
const LISTENER: u64 = u64::MAX;
/// The number of the journal.
pub(super) const JOURNAL: u64 = u64::MAX - 1;
/// The number of the lock on the state directory.
pub(super) const STATE_LOCK: u64 = u64::MAX - 2;
/// The least number of a [`super::client::Port`].
const PORTS: u64 = u64::MAX - 5;
/// Connections have numbers from here on, by their lines in the journal.
pub(super) const CONNECTIONS: u64 = 1 << 63;
/// Connections that carry a process's streams have numbers from here on: four for each launch.
pub(super) const STREAMS: u64 = 1 << 62;

/// What the handles of [`super::client`] ask of the task.
pub(super) enum Command {
    Launch {
        request: u64,
        fds: Vec<OwnedFd>,
        soon_done: bool,
        answer: oneshot::Sender<Result<Launched, LaunchError>>,
        end: Option<AtEnd>,
    },
    Enter {
        asked: Asked,
        answer: oneshot::Sender<EnterAnswer>,
        end: Option<AtEnd>,
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
    Hold {
        key: u64,
        fds: Vec<OwnedFd>,
    },
    Release {
        key: u64,
        keep: i32,
    },
    Discard {
        key: u64,
    },
    List {
        answer: oneshot::Sender<Listed>,
    },
}

/// Kills a worker, and with it the hooks that it runs: they are in its process group. It has not been reported
/// dead, so the pid is still its own.
fn end_worker(worker: Pid) {
    let _ = kill(worker, Signal::SIGKILL);
    let _ = killpg(worker, Signal::SIGKILL);
}

struct Pending {
    answer: oneshot::Sender<Result<Launched, LaunchError>>,
    worker: Option<Pid>,
    soon_done: bool,
    /// Until the worker is there.
    end: Option<AtEnd>,
}

/// A process that the supervisor is asked to fork. Its descriptors stay until it has: it may refuse.
struct Asking {
    asked: Asked,
    answer: oneshot::Sender<EnterAnswer>,
    end: Option<AtEnd>,
}

/// The task that owns the channel.
pub(super) struct Dispatcher {
    logger: Logger,
    /// Messages not sent yet. The task never blocks on sending: it keeps reading, so that the two ends cannot wait
    /// for each other.
    outbox: VecDeque<(Header, Vec<OwnedFd>)>,
    /// Launches without an answer yet, by request.
    pending: HashMap<u64, Pending>,
    /// Processes that are to be forked without a worker, by request.
    asking: HashMap<u64, Asking>,
    /// Workers that have not been reported dead, by pid, and what is to be dropped then.
    workers: HashMap<i32, (u64, Option<AtEnd>)>,
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
    pub(super) fn new(
        logger: Logger,
        commands: mpsc::WeakUnboundedSender<Command>,
        stop: watch::Sender<bool>,
    ) -> Self {
        let (pending, workers, processes) = (HashMap::new(), HashMap::new(), HashMap::new());
        let (outbox, farewell, listing) = (VecDeque::new(), None, None);
        let asking = HashMap::new();
        Self { logger, outbox, pending, asking, workers, processes, farewell, listing, stop, commands }
    }

    /// Serves until the supervisor or the last handle is gone.
    pub(super) async fn serve(
        mut self,
        channel: AsyncFd<Channel>,
        mut commands: mpsc::UnboundedReceiver<Command>,
    ) {
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
            Err(ChannelError::NoDescriptors { header }) if header.kind == Kind::Reply => {
                // Nobody could do anything with what was started.
                self.outbox.push_back((Header::new(Kind::Discard, header.request), Vec::new()));
                self.answer(header.request, Err(LaunchError::NoDescriptors));
            }
            Err(ChannelError::NoDescriptors { header }) if header.kind == Kind::Entered => {
                self.outbox.push_back((Header::new(Kind::Discard, header.request), Vec::new()));
                if let Some(Asking { answer, .. }) = self.asking.remove(&header.request) {
                    let _ = answer.send(Err(NotEntered::NoDescriptors));
                }
            }
            Err(error) => warn!(self.logger, "message from the supervisor dropped"; "error" => %error),
        }
        true
    }

    /// Sends the oldest message of the outbox; false when nobody can receive it.
    fn send(&mut self, channel: &AsyncFd<Channel>, mut ready: AsyncFdReadyGuard<'_, Channel>) -> bool {
        let Some((header, fds)) = self.outbox.front() else { return true };
        let asking = self.asking.get(&header.request).filter(|_| header.kind == Kind::Enter);
        let fds = asking.map_or(fds, |asking| &asking.asked.fds);
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
                if header.kind == Kind::List {
                    // Nothing will be told. Without the socket of the one before it this server ends, and another asks.
                    self.listing = None;
                }
                self.outbox.pop_front();
                let source = match error {
                    ChannelError::Io { source, .. } => source,
                    _ => Errno::EBADMSG,
                };
                if self.refused(request) {
                    return true;
                }
                let step = "send it to the supervisor";
                self.answer(request, Err(LaunchError::HandOver { step, source: source.into() }));
            }
        }
        true
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Launch { request, fds, soon_done, answer, end } => {
                self.pending.insert(request, Pending { answer, worker: None, soon_done, end });
                let launch = Header { status: soon_done.into(), ..Header::new(Kind::Launch, request) };
                self.outbox.push_back((launch, fds));
            }
            Command::Enter { asked, answer, end } => {
                let header = Header {
                    kind: Kind::Enter,
                    request: asked.request,
                    pid: asked.job_len,
                    status: asked.status,
                };
                self.asking.insert(asked.request, Asking { asked, answer, end });
                self.outbox.push_back((header, Vec::new()));
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
            Command::Hold { key, fds } => self.outbox.push_back((Header::new(Kind::Hold, key), fds)),
            Command::Release { key, keep } => {
                let release = Header { status: keep, ..Header::new(Kind::Release, key) };
                self.outbox.push_back((release, Vec::new()));
            }
            Command::Discard { key } => {
                self.outbox.push_back((Header::new(Kind::Discard, key), Vec::new()));
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
            Kind::Entered => self.entered(message),
            Kind::ForkFailed if self.refused(header.request) => {}
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
            | Kind::Enter
            | Kind::List => {}
        }
    }

    /// Hands back what was asked of the supervisor and can't be; false if that was nothing of the kind.
    fn refused(&mut self, request: u64) -> bool {
        let Some(Asking { asked, answer, end }) = self.asking.remove(&request) else { return false };
        let _ = answer.send(Err(NotEntered::Refused(asked, end)));
        true
    }

    fn entered(&mut self, mut message: Message) {
        let header = message.header;
        let Some(Asking { answer, end, .. }) = self.asking.remove(&header.request) else { return };
        let exit = self.watch(header.pid);
        let (Some(process), Some(commands)) = (self.process(header, exit), self.commands.upgrade()) else {
            return;
        };
        // One that nobody takes is killed.
        let _ = answer.send(Ok(Entering::new(process, message.fds.pop(), end, commands)));
    }

    fn held(&mut self, header: Header, exit: watch::Receiver<Option<ExitStatus>>, mut fds: Vec<OwnedFd>) {
        let process = self.process(header, exit);
        let (Some((_, listed)), Some(process)) = (&mut self.listing, process) else { return };
        match header.request {
            LISTENER => listed.listener = fds.pop(),
            JOURNAL => listed.journal = Some(fds),
            STATE_LOCK => listed.state_lock = fds.pop(),
            key if key >= PORTS => listed.ports.extend(fds.pop().map(|fd| (key, fd))),
            key if key >= CONNECTIONS => {
                if let (Some(fd), Ok(line)) = (fds.pop(), u16::try_from(key ^ CONNECTIONS)) {
                    listed.connections.push((line, fd, process.hold));
                }
                return;
            }
            key if key >= STREAMS => {
                listed.streams.insert(key, (fds, process.hold));
                return;
            }
            key => {
                listed.processes.insert(key, Held { process, fds });
                return;
            }
        }
        // It stays held: a hold that is never dropped lets nothing go.
        std::mem::forget(process.hold);
    }

    /// The process that is held under the number of `header`. `None` when the server is ending.
    fn process(&self, header: Header, exit: watch::Receiver<Option<ExitStatus>>) -> Option<StartedProcess> {
        let hold = Hold { key: header.request, commands: self.commands.upgrade()? };
        Some(StartedProcess { pid: Pid::from_raw(header.pid), exit, hold })
    }

    fn forked(&mut self, request: u64, pid: i32) {
        let pending = self.pending.get_mut(&request);
        let end = pending.and_then(|pending| pending.end.take());
        self.workers.insert(pid, (request, end));
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
        } else if let Some((request, _end)) = self.workers.remove(&pid) {
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
            // Before the hold goes with it.
            self.outbox.push_back((Header::new(Kind::Discard, request), Vec::new()));
        }
    }
}
