//! The supervisor's loop.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, killpg, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::MsgFlags;
use nix::unistd::Pid;

use super::channel::{Channel, ChannelError, Header, Kind, Message};
use super::entry::{Entered, Entry};
use super::error::SupervisorError;
use super::fork::{Forked, leave};
use super::holds::Holds;
use super::home::Home;
use super::lifeline::{Lifeline, ServerEnds};
use super::reaper::{self, ExitStatus};
use super::restarts::Restarts;
use crate::guest::program;
use crate::guest::rlimit::OpenFiles;
use crate::observe::console;

/// How long a server that is asked to stop may take to destroy its sandbox.
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// After how long without anything to do the supervisor takes itself to be at rest.
const PAUSE: Duration = Duration::from_millis(300);

/// How long workers that were soon done when their server died may take.
const SOON: Duration = Duration::from_secs(5);

/// Why the loop ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The server asked for it: the sandbox has been destroyed.
    ShutDown,
    /// The server is gone, and no other was tried: it had not booted, or we were asked to stop.
    Server(ExitStatus),
}

/// Whether `request` was issued by a server before the current one, the last of `servers`. The upper half of a
/// request's number is how many servers there had been before the one that issued it.
fn launched_before(request: u64, servers: u32) -> bool {
    request >> 32 < u64::from(servers.saturating_sub(1))
}

/// The signals that the loop looks at: children's ends, and the wish of the outside that we stop.
fn watched_signals() -> SigSet {
    [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT].into_iter().collect()
}

/// What is left until something is `due`, but at most `limit`.
fn until(due: Option<Instant>, limit: Duration) -> PollTimeout {
    // Rounded up, so that it is due when we wake.
    let left =
        due.map(|at| at.saturating_duration_since(Instant::now()).saturating_add(Duration::from_millis(1)));
    let wait = left.unwrap_or(Duration::MAX).min(limit);
    if wait == Duration::MAX {
        PollTimeout::NONE
    } else {
        PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX)
    }
}

/// Kills a worker that has not been reaped, with the hooks that it runs, which are in its process group.
fn end_worker(worker: Pid) {
    let _ = kill(worker, Signal::SIGKILL);
    let _ = killpg(worker, Signal::SIGKILL);
}

/// The server that runs, or when the next one starts.
#[derive(Debug)]
enum Server {
    Running { pid: Pid, channel: Channel, lifeline: Lifeline },
    Due(Instant),
}

/// What a worker is given of the supervisor's: where it replies, and where it says what to hold.
#[derive(Debug)]
pub struct WorkerChannels<'a> {
    /// To the server.
    pub replies: &'a Channel,
    /// To the supervisor.
    pub holds: &'a Channel,
}

/// The state of the one process that reaps.
#[derive(Debug)]
pub struct Supervisor<F> {
    /// What a server does.
    main: F,
    server: Server,
    /// Why there is no server, as far as it has been said.
    told: Option<String>,
    /// How many servers have been started.
    generation: u32,
    /// Whether one of them has ever listened.
    served: bool,
    signals: SignalFd,
    /// Both ends of the channel on which workers say what to hold; ours first.
    reports: (Channel, Channel),
    holds: Holds,
    home: Home,
    /// Workers of the server that runs, and whether each is soon done.
    workers: Vec<(Pid, bool)>,
    /// Those whose server has died, and by when they have to be done.
    lingering: Vec<(Pid, Instant)>,
    restarts: Restarts,
    /// Whether the server was asked to stop: then its end is ours.
    stopping: bool,
    /// By when it has to be gone.
    stop_by: Option<Instant>,
    /// The limit that workers get back.
    open_files: Option<OpenFiles>,
}

impl<F: Fn(ServerEnds, u32) -> i32> Supervisor<F> {
    /// Prepares to run `main` as the server: with its ends, and the number of servers before it. The server exits
    /// with what that returns. Workers get the limit `open_files`, if it has been raised.
    ///
    /// The calling process must be single-threaded.
    ///
    /// # Errors
    /// When the kernel has no descriptors left.
    pub fn new(main: F, open_files: Option<OpenFiles>) -> Result<Self, SupervisorError> {
        let mask = watched_signals();
        sigprocmask(SigmaskHow::SIG_BLOCK, Some(&mask), None).map_err(SupervisorError::Signals)?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let signals = SignalFd::with_flags(&mask, flags).map_err(SupervisorError::Signals)?;
        let now = Instant::now();
        Ok(Self {
            main,
            server: Server::Due(now),
            told: None,
            generation: 0,
            served: false,
            signals,
            reports: Channel::pair()?,
            holds: Holds::default(),
            home: Home::open(),
            workers: Vec::new(),
            lingering: Vec::new(),
            restarts: Restarts::new(now),
            stopping: false,
            stop_by: None,
            open_files,
        })
    }

    /// Serves until the server asks for the end, or has not booted.
    ///
    /// # Errors
    /// Only for what a supervisor can't go on after.
    pub fn run(mut self) -> Result<Ended, SupervisorError> {
        loop {
            if let Some(ended) = self.take_dead_children()? {
                return Ok(ended);
            }
            self.start_server_if_due()?;
            self.wait()?;
            if self.is_asked_to_stop() && !self.ask_server_to_stop() {
                return Ok(Ended::ShutDown);
            }
            self.take_reports();
            if let Some(message) = self.next_message()
                && self.serve(message)
            {
                return Ok(Ended::ShutDown);
            }
        }
    }

    /// Waits for a signal, a message, or the time of something that is due.
    fn wait(&mut self) -> Result<(), SupervisorError> {
        let (channel, pipe, due) = match &self.server {
            Server::Running { channel, lifeline, .. } => {
                (Some(channel.as_fd()), lifeline.pipe(), lifeline.due())
            }
            Server::Due(at) => (None, None, Some(*at)),
        };
        let done = self.lingering.iter().map(|(_, by)| *by);
        let due = due.into_iter().chain(self.stop_by).chain(done).min();
        let mut watched = vec![
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.reports.0.as_fd(), PollFlags::POLLIN),
        ];
        watched.extend(channel.into_iter().chain(pipe).map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        let mut woken = poll(&mut watched, until(due, PAUSE));
        if woken == Ok(0) {
            program::let_go();
            woken = poll(&mut watched, until(due, Duration::MAX));
        }
        match woken {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(SupervisorError::Poll(errno)),
        }
        // The pipe is the last one.
        let is_cut = pipe.is_some() && watched.last().is_some_and(|fd| fd.any() == Some(true));
        if let (true, Server::Running { lifeline, .. }) = (is_cut, &mut self.server) {
            lifeline.is_cut(Instant::now());
        }
        if self.stop_by.is_some_and(|by| by <= Instant::now())
            && let Server::Running { pid, .. } = &self.server
        {
            let _ = kill(*pid, Signal::SIGKILL);
            self.stop_by = None;
        }
        self.end_lingering();
        Ok(())
    }

    /// Ends workers whose server has died and that are not done in time. They have not been reaped.
    fn end_lingering(&mut self) {
        let now = Instant::now();
        for (worker, _) in self.lingering.extract_if(.., |(_, by)| *by <= now) {
            end_worker(worker);
        }
    }

    /// Notes, reports and reaps all that have ended. Something, if that is the end of us too.
    fn take_dead_children(&mut self) -> Result<Option<Ended>, SupervisorError> {
        while let Some((pid, status)) = reaper::next_dead_child().map_err(SupervisorError::Wait)? {
            // A process that a worker started is ours only after the worker has ended, and so has told of it.
            self.take_reports();
            let is_server = matches!(&self.server, Server::Running { pid: server, .. } if *server == pid);
            let ended = if is_server { self.server_ended(status) } else { self.child_ended(pid, status) };
            reaper::reap(pid);
            if ended.is_some() {
                return Ok(ended);
            }
        }
        // It is reaped when it can be.
        let lost = match &mut self.server {
            Server::Running { pid, lifeline, .. } => lifeline.lost(*pid, Instant::now()),
            Server::Due(_) => None,
        };
        Ok(lost.and_then(|status| self.server_ended(status)))
    }

    fn child_ended(&mut self, pid: Pid, status: ExitStatus) -> Option<Ended> {
        self.workers.retain(|(worker, _)| *worker != pid);
        self.lingering.retain(|(worker, _)| *worker != pid);
        self.holds.exited(pid.as_raw(), status);
        self.tell(Header { kind: Kind::Exited, request: 0, pid: pid.as_raw(), status: status.to_wire() });
        None
    }

    fn server_ended(&mut self, status: ExitStatus) -> Option<Ended> {
        // What it has said before it died is as good as if it lived, but for launches: who waits for one is gone.
        while let Some(message) = self.next_message() {
            if !message.header.kind.asks_for_process() && self.serve(message) {
                return Some(Ended::ShutDown);
            }
        }
        if !self.served || self.stopping || self.generation == u32::MAX {
            return Some(Ended::Server(status));
        }
        let now = Instant::now();
        for (worker, soon_done) in std::mem::take(&mut self.workers) {
            match now.checked_add(SOON).filter(|_| soon_done) {
                Some(by) => self.lingering.push((worker, by)),
                None => end_worker(worker),
            }
        }
        let pause = self.restarts.pause_after_death(now);
        self.server = Server::Due(now.checked_add(pause).unwrap_or(now));
        let (deaths, pause) = (self.restarts.in_a_row(), pause.as_millis());
        console::say(format_args!(
            "the server died ({status}), {deaths} in a row; containers run on, another starts in {pause} ms"
        ));
        None
    }

    fn start_server_if_due(&mut self) -> Result<(), SupervisorError> {
        match &self.server {
            Server::Due(at) if *at <= Instant::now() => {}
            _ => return Ok(()),
        }
        let is_first = !self.served;
        let ends = Channel::pair().and_then(|channels| Ok((channels, Lifeline::pair()?)));
        let (ours, lifeline, theirs) = match ends {
            Ok(((ours, channel), (lifeline, tied))) => {
                (ours, lifeline, ServerEnds { channel, lifeline: tied })
            }
            Err(error) if is_first => return Err(error.into()),
            Err(error) => {
                self.start_server_later(&crate::worker::chain(&error));
                return Ok(());
            }
        };
        match self.home.fork() {
            Ok(Forked::Child) => {
                drop((ours, lifeline));
                drop((std::mem::take(&mut self.holds), std::mem::take(&mut self.home)));
                self.close_inherited();
                let _ = nix::unistd::close(self.reports.1.as_raw_fd());
                // SIGTERM and SIGINT stay blocked: whoever wants us to stop says so to the supervisor.
                let children = SigSet::from(Signal::SIGCHLD);
                let unblocked = sigprocmask(SigmaskHow::SIG_UNBLOCK, Some(&children), None);
                unblocked.map_err(SupervisorError::Signals)?;
                std::process::exit((self.main)(theirs, self.generation))
            }
            Ok(Forked::Parent(pid)) => {
                drop(theirs);
                self.server = Server::Running { pid, channel: ours, lifeline };
                self.generation = self.generation.saturating_add(1);
                self.restarts.started(Instant::now());
                self.told = None;
            }
            Err(errno) if is_first => return Err(SupervisorError::ForkServer(errno)),
            Err(errno) => self.start_server_later(&errno),
        }
        Ok(())
    }

    /// What a server needs has run out, for now.
    fn start_server_later(&mut self, why: &dyn std::fmt::Display) {
        let now = Instant::now();
        let pause = self.restarts.pause_after_death(now).max(Duration::from_millis(100));
        self.server = Server::Due(now.checked_add(pause).unwrap_or(now));
        let why = why.to_string();
        // It is tried again and again.
        if self.told.as_ref() != Some(&why) {
            console::say(format_args!("no process for a server: {why}; it is tried until there is one"));
            self.told = Some(why);
        }
    }

    /// In a forked child, which never comes back here: what only the supervisor needs.
    fn close_inherited(&self) {
        let _ = nix::unistd::close(self.signals.as_raw_fd());
        let _ = nix::unistd::close(self.reports.0.as_raw_fd());
    }

    /// Empties the signal descriptor; true if somebody wants us to stop.
    fn is_asked_to_stop(&self) -> bool {
        let mut asked = false;
        while let Ok(Some(info)) = self.signals.read_signal() {
            asked |= info.ssi_signo != Signal::SIGCHLD as u32;
        }
        asked
    }

    /// False if there is no server.
    fn ask_server_to_stop(&mut self) -> bool {
        if matches!(self.server, Server::Due(_)) {
            console::say(format_args!("asked to stop while there is no server: containers are left behind"));
            return false;
        }
        if !self.stopping {
            self.stopping = true;
            self.stop_by = Instant::now().checked_add(STOP_LIMIT);
        }
        self.tell(Header::new(Kind::Stop, 0));
        true
    }

    /// Tells the server. One that is gone needs no telling.
    fn tell(&self, header: Header) {
        if let Server::Running { channel, .. } = &self.server {
            let _ = channel.send(header, b"", &[], MsgFlags::empty());
        }
    }

    /// Takes what workers want held. What a worker of an earlier server has started is nobody's.
    fn take_reports(&mut self) {
        loop {
            let (header, fds) = match self.reports.0.receive(0, MsgFlags::MSG_DONTWAIT) {
                Ok(Message { header, fds, .. }) => (header, fds),
                // How it ends is still worth to know.
                Err(ChannelError::NoDescriptors { header }) => (header, Vec::new()),
                Err(_) => return,
            };
            if matches!(self.server, Server::Running { .. })
                && launched_before(header.request, self.generation)
            {
                let _ = kill(Pid::from_raw(header.pid), Signal::SIGKILL);
            } else {
                self.holds.keep(header.request, header.pid, fds);
            }
        }
    }

    /// The next message of the server, if there is one. A closed channel is a dead server, and SIGCHLD tells of that.
    fn next_message(&self) -> Option<Message> {
        let Server::Running { channel, .. } = &self.server else { return None };
        loop {
            match channel.receive(0, MsgFlags::MSG_DONTWAIT) {
                Ok(message) => return Some(message),
                // Somebody waits for an answer.
                Err(ChannelError::NoDescriptors { header }) if header.kind.asks_for_process() => {
                    self.tell(Header { kind: Kind::ForkFailed, status: Errno::EMFILE as i32, ..header });
                }
                Err(ChannelError::NoDescriptors { .. }) => {}
                Err(_) => return None,
            }
        }
    }

    /// Does what the server wants; true when it is the end.
    fn serve(&mut self, message: Message) -> bool {
        let header = message.header;
        // What the server says of a hold it has from the worker that reported it: that report is here by now.
        self.take_reports();
        match header.kind {
            Kind::Launch => self.launch(header, message.fds),
            Kind::Enter => self.enter(header, message.fds),
            Kind::ShutDown => return true,
            Kind::Serving => {
                // Nothing shall keep the first server from its first answer, and from here on it will ask for workers.
                if !self.served {
                    super::text::share_with_forks();
                    crate::worker::prepare_for_workers();
                }
                self.served = true;
            }
            Kind::Hold => self.holds.keep(header.request, header.pid, message.fds),
            Kind::Release => self.holds.release(header.request, header.status),
            Kind::Discard => {
                // It has not been reaped, so the pid is still its own.
                if let Some(pid) = self.holds.discard(header.request) {
                    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                }
            }
            Kind::List => {
                if let Server::Running { channel, .. } = &self.server {
                    let _ = self.holds.tell(channel);
                }
            }
            Kind::Forked
            | Kind::ForkFailed
            | Kind::Exited
            | Kind::Reply
            | Kind::Held
            | Kind::HeldEnded
            | Kind::Listed
            | Kind::Stop
            | Kind::Entered => {}
        }
        false
    }

    fn launch(&mut self, header: Header, fds: Vec<OwnedFd>) {
        let request = header.request;
        let answer = match self.home.fork() {
            Ok(Forked::Child) => self.become_worker(request, fds),
            Ok(Forked::Parent(pid)) => {
                self.workers.push((pid, header.status != 0));
                Header { kind: Kind::Forked, request, pid: pid.as_raw(), status: 0 }
            }
            Err(errno) => Header { kind: Kind::ForkFailed, request, pid: 0, status: errno as i32 },
        };
        self.tell(answer);
    }

    /// Forks a process into a container, holds it and tells the server of it, or why there is none.
    fn enter(&mut self, header: Header, fds: Vec<OwnedFd>) {
        let request = header.request;
        let (holds, open_files) = (&mut self.holds, self.open_files);
        let entered = Entry::read(header, fds).ok_or(Errno::EBADMSG).and_then(|entry| {
            entry.start(&mut self.home, |keep| leave(keep, holds, &watched_signals(), open_files))
        });
        let errno = match (entered, &self.server) {
            (Ok(Entered { pid, pidfd, ours }), Server::Running { channel, .. }) => {
                let entered = Header { kind: Kind::Entered, request, pid: pid.as_raw(), status: 0 };
                if channel.send(entered, b"", &[pidfd.as_fd()], MsgFlags::empty()).is_ok() {
                    let held = std::iter::once(pidfd).chain(ours).collect();
                    return self.holds.keep(request, pid.as_raw(), held);
                }
                // Nobody knows of it, and it has not been reaped.
                let _ = kill(pid, Signal::SIGKILL);
                Errno::EMFILE
            }
            (Ok(_), Server::Due(_)) => return,
            (Err(errno), _) => errno,
        };
        self.tell(Header { kind: Kind::ForkFailed, request, pid: 0, status: errno as i32 });
    }

    /// In the forked child: hands over to the worker, with the signals and the limit as they were.
    fn become_worker(&mut self, request: u64, fds: Vec<OwnedFd>) -> ! {
        let mut keep: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        keep.push(self.reports.1.as_fd().as_raw_fd());
        if let Server::Running { channel, .. } = &self.server {
            keep.push(channel.as_fd().as_raw_fd());
        }
        leave(&mut keep, &mut self.holds, &watched_signals(), self.open_files);
        match &self.server {
            Server::Running { channel, .. } => {
                let channels = WorkerChannels { replies: channel, holds: &self.reports.1 };
                crate::worker::run(&channels, request, fds)
            }
            Server::Due(_) => std::process::exit(1),
        }
    }
}
