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

use std::collections::HashMap;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::Pid;
use slog::Logger;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};

use super::channel::Channel;
use super::dispatcher::{CONNECTIONS, Command, Dispatcher, JOURNAL, STATE_LOCK, STREAMS};
use super::reaper::ExitStatus;
use crate::worker::job::{Failure, Job, Outcome};

/// Why a launch brought nothing.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The worker did its work and says why it could not finish it.
    #[error(transparent)]
    Failed(#[from] Failure),
    /// The job could not be handed over.
    #[error("hand the job to a worker: {step}: {source}")]
    HandOver {
        /// What was tried.
        step: &'static str,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// The supervisor could not fork.
    #[error("fork a worker: {}", .0.desc())]
    Fork(#[source] Errno),
    /// The worker ended without an answer.
    #[error("the worker ended without an answer ({0:?})")]
    WorkerDied(ExitStatus),
    /// The answer came, but not its descriptors.
    #[error("there is no room for the descriptors of the answer to the launch")]
    NoDescriptors,
    /// The worker's answer made no sense.
    #[error("the worker's answer can't be read: {0}")]
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
    pub(super) key: u64,
    pub(super) commands: mpsc::UnboundedSender<Command>,
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

/// All that an earlier server has left with the supervisor.
#[derive(Debug, Default)]
pub struct Listed {
    /// The socket that it listened on.
    pub listener: Option<OwnedFd>,
    /// Its journal.
    pub journal: Option<Vec<OwnedFd>>,
    /// Its lock on the state directory.
    pub state_lock: Option<OwnedFd>,
    /// The sockets on which it listened beside that.
    pub(super) ports: HashMap<u64, OwnedFd>,
    /// Its connections, by their lines.
    pub connections: Vec<(u16, OwnedFd, Hold)>,
    /// Its processes, by the number of their launch.
    pub processes: HashMap<u64, Held>,
    /// The connections that carry their streams.
    pub streams: HeldStreams,
}

/// What a server listens on beside the socket of its calls. A server that has died may still have it bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    /// For streams.
    Streams = 3,
    /// For the log.
    Log = 4,
    /// For the debug console.
    Console = 5,
}

impl Port {
    fn key(self) -> u64 {
        u64::MAX - self as u64
    }
}

/// Connections that carry streams, each with what else that takes, by [`stream_key`].
pub type HeldStreams = HashMap<u64, (Vec<OwnedFd>, Hold)>;

/// The number under which the connection for a stream is held, of a process that was launched under `process`.
pub fn stream_key(process: u64, stream: u8) -> u64 {
    STREAMS | (process.wrapping_mul(4) % STREAMS) | u64::from(stream % 4)
}

/// A handle for launching workers; cheap to clone.
#[derive(Debug, Clone)]
pub struct Launcher {
    commands: mpsc::UnboundedSender<Command>,
    next_request: Arc<AtomicU64>,
    stop: watch::Receiver<bool>,
    turns: Arc<Turns>,
}

/// How many workers there may be at a time, by what they do: each is a process, with some MiB of memory and a dozen
/// descriptors of the server's. Hooks, and what the guest itself needs, are not among them.
#[derive(Debug)]
struct Turns {
    creations: Arc<Semaphore>,
    execs: Arc<Semaphore>,
}

/// Creations run hooks, which may hang: far more than a guest makes at once.
const CREATIONS: usize = 128;
/// No container gets all of them (`sandbox::container`).
const EXECS: usize = 256;

/// The right to a worker.
pub type Turn = Option<OwnedSemaphorePermit>;

/// What is dropped when a worker has ended.
pub type AtEnd = Box<dyn Send>;

/// A launch under way. When the caller stops waiting for it, its worker is killed. One that is soon done may come to its
/// end, as it would leave a process that nobody has heard of: what it reports is killed then, as is what it has reported
/// already and the caller has not looked at.
struct Launching<'a> {
    launcher: &'a Launcher,
    request: u64,
    soon_done: bool,
    answered: oneshot::Receiver<Result<Launched, LaunchError>>,
}

/// How long a worker may take that is soon done.
const SOON: Duration = Duration::from_secs(5);

impl Drop for Launching<'_> {
    fn drop(&mut self) {
        if self.answered.is_terminated() {
            return;
        }
        let (commands, request) = (self.launcher.commands.clone(), self.request);
        self.answered.close();
        if let Ok(answer) = self.answered.try_recv() {
            // Said before the hold goes with the answer.
            if answer.as_ref().is_ok_and(|launched| launched.process.is_some()) {
                let _ = commands.send(Command::Discard { key: request });
            }
            return;
        }
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
        let turns =
            Turns { creations: Arc::new(Semaphore::new(CREATIONS)), execs: Arc::new(Semaphore::new(EXECS)) };
        let next_request = Arc::new(AtomicU64::new(first));
        Ok(Self { commands, next_request, stop: stop_asked, turns: Arc::new(turns) })
    }

    /// Waits until there may be another worker that makes a container: to be kept until that has ended.
    pub async fn turn_to_create(&self) -> Turn {
        self.turns.creations.clone().acquire_owned().await.ok()
    }

    /// The same for one that starts a process in a container.
    pub async fn turn_to_exec(&self) -> Turn {
        self.turns.execs.clone().acquire_owned().await.ok()
    }

    /// Tells the supervisor that the server listens, and on what, if it does not hold that already.
    pub fn serving(&self, listener: Option<OwnedFd>) {
        let _ = self.commands.send(Command::Serving { listener });
    }

    /// Has the journal held, for as long as there is an agent.
    pub fn hold_journal(&self, fds: Vec<OwnedFd>) {
        let _ = self.commands.send(Command::Hold { key: JOURNAL, fds });
    }

    /// The socket of an earlier server's for `port`, or what `bind` makes, which is held from now on.
    ///
    /// # Errors
    /// Those of `bind`.
    pub fn listener<E>(
        &self,
        port: Port,
        listed: &mut Listed,
        bind: impl FnOnce() -> Result<OwnedFd, E>,
    ) -> Result<OwnedFd, E> {
        if let Some(listener) = listed.ports.remove(&port.key()) {
            return Ok(listener);
        }
        let listener = bind()?;
        if let Ok(copy) = listener.try_clone() {
            let _ = self.commands.send(Command::Hold { key: port.key(), fds: vec![copy] });
        }
        Ok(listener)
    }

    /// Has the lock on the state directory held, for as long as there is an agent.
    pub fn hold_state_lock(&self, lock: OwnedFd) {
        let _ = self.commands.send(Command::Hold { key: STATE_LOCK, fds: vec![lock] });
    }

    /// Has the connection on a line of the journal held.
    pub fn hold_connection(&self, line: u16, connection: OwnedFd) -> Hold {
        let key = CONNECTIONS | u64::from(line);
        let _ = self.commands.send(Command::Hold { key, fds: vec![connection] });
        Hold { key, commands: self.commands.clone() }
    }

    /// Has the connection held that carries a stream of a process, and what else that takes.
    pub fn hold_stream(&self, process: u64, stream: u8, fds: Vec<OwnedFd>) -> Hold {
        let key = stream_key(process, stream);
        let _ = self.commands.send(Command::Hold { key, fds });
        Hold { key, commands: self.commands.clone() }
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
        self.launch_watched(job, fds, None).await
    }

    /// The same; `end` is dropped when the worker has ended, also if nobody waits for what it brings back any more.
    ///
    /// # Errors
    /// As [`Launcher::launch`].
    pub async fn launch_watched(
        &self,
        job: &Job,
        fds: Vec<OwnedFd>,
        end: Option<AtEnd>,
    ) -> Result<Launched, LaunchError> {
        let mut all = vec![job_file(job)?];
        all.extend(fds);
        let request = self.next_request();
        let (answer, answered) = oneshot::channel();
        // It runs no hooks, and ends as soon as the process is its program.
        let soon_done = matches!(job, Job::Exec(_));
        let launch = Command::Launch { request, fds: all, soon_done, answer, end };
        self.send(launch)?;
        let mut launching = Launching { launcher: self, request, soon_done, answered };
        (&mut launching.answered).await.unwrap_or(Err(LaunchError::SupervisorGone))
    }

    pub(super) fn next_request(&self) -> u64 {
        self.next_request.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn send(&self, command: Command) -> Result<(), LaunchError> {
        self.commands.send(command).map_err(|_| LaunchError::SupervisorGone)
    }

    /// Tells the supervisor that the sandbox is gone; comes back when it has been told.
    pub async fn shut_down(&self) {
        let (told, done) = oneshot::channel();
        let _ = self.commands.send(Command::ShutDown { told });
        let _ = done.await;
    }
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

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::task::{Context, Poll, Waker};

    use nix::sys::socket::MsgFlags;
    use slog::{Discard, o};

    use super::super::channel::{Header, Kind};
    use super::*;

    /// The next message to the supervisor.
    async fn told(supervisor: &Channel) -> (Kind, u64) {
        let begun = std::time::Instant::now();
        while begun.elapsed() < Duration::from_secs(60) {
            match supervisor.receive(0, MsgFlags::MSG_DONTWAIT) {
                Ok(message) => return (message.header.kind, message.header.request),
                Err(_) => tokio::task::yield_now().await,
            }
        }
        panic!("the supervisor is told nothing")
    }

    /// The caller has gone at the very moment at which the answer has come.
    #[tokio::test]
    async fn a_process_whose_caller_never_looked_at_the_answer_is_ended() {
        let (supervisor, server) = Channel::pair().unwrap();
        let launcher = Launcher::start(server, 0, Logger::root(Discard, o!())).unwrap();
        let job = Job::CompileFilter(crate::spec::SeccompProfile::from(""));
        let mut launch = Box::pin(launcher.launch(&job, Vec::new()));
        assert!(matches!(launch.as_mut().poll(&mut Context::from_waker(Waker::noop())), Poll::Pending));
        let (kind, request) = told(&supervisor).await;
        assert_eq!(kind, Kind::Launch);
        let reply = Header { pid: 4711, ..Header::new(Kind::Reply, request) };
        let outcome = serde_json::to_vec(&Ok::<_, Failure>(Outcome::Started(Vec::new()))).unwrap();
        let pidfd = std::fs::File::open("/dev/null").unwrap();
        supervisor.send(reply, &outcome, &[pidfd.as_fd()], MsgFlags::empty()).unwrap();
        supervisor.send(Header::new(Kind::Stop, 0), b"", &[], MsgFlags::empty()).unwrap();
        // The reply has been taken, as what came after it has been.
        launcher.stop_asked().await;
        drop(launch);
        assert_eq!(told(&supervisor).await, (Kind::Discard, request));
        assert_eq!(told(&supervisor).await, (Kind::Release, request));
    }

    /// Who gives a launch up can wait until its worker does no more harm.
    #[tokio::test]
    async fn the_end_of_a_worker_is_told_to_who_has_given_it_up() {
        // No process has such a number.
        let nobody = i32::MAX;
        let (supervisor, server) = Channel::pair().unwrap();
        let launcher = Launcher::start(server, 0, Logger::root(Discard, o!())).unwrap();
        let job = Job::CompileFilter(crate::spec::SeccompProfile::from(""));
        let (end, mut ended) = oneshot::channel::<()>();
        let mut launch = Box::pin(launcher.launch_watched(&job, Vec::new(), Some(Box::new(end))));
        assert!(matches!(launch.as_mut().poll(&mut Context::from_waker(Waker::noop())), Poll::Pending));
        let (_, request) = told(&supervisor).await;
        drop(launch);
        let forked = Header { pid: nobody, ..Header::new(Kind::Forked, request) };
        supervisor.send(forked, b"", &[], MsgFlags::empty()).unwrap();
        supervisor.send(Header::new(Kind::Stop, 0), b"", &[], MsgFlags::empty()).unwrap();
        launcher.stop_asked().await;
        assert_eq!(ended.try_recv(), Err(oneshot::error::TryRecvError::Empty));
        let exited = Header { pid: nobody, ..Header::new(Kind::Exited, 0) };
        supervisor.send(exited, b"", &[], MsgFlags::empty()).unwrap();
        assert!(ended.await.is_err(), "it is dropped");
    }
}
