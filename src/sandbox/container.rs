//! A container and the actor that owns its life.
//!
//! ```text
//! creating -> created -> starting -> running <------- resuming
//!                |          |          |  |               ^
//!                |          |          |  +--> pausing -> paused
//!                |          |          v                  |
//!                +----------+------> stopped <------------+     all: -> removing -> gone
//! ```
//!
//! - *creating*: only the directory of the sandbox knows the id (`create`).
//! - *created*: init waits before exec. Start is allowed, and whatever reads.
//! - *starting*, *running*: init has been let go. Exec is allowed once it runs; a start that fails goes back to
//!   *created*.
//! - *pausing*, *paused*, *resuming*: the cgroup is being frozen, is frozen, is being thawed (`pause`). Resume is
//!   allowed once it is paused; removal, SIGKILL for all and an update at any time. Other signals arrive when it
//!   is resumed. A created container can be paused, too, and is *created* again when it is resumed.
//! - *stopped*: init has ended; nothing but its exit status, its streams, its statistics and the removal is left.
//! - *removing*: all is being killed and given back. A start or an exec gets FAILED_PRECONDITION when that is
//!   over; waits, reads and further removals are served.
//!
//! Requests that change the container go through the actor's mailbox, one after the other; the slow part of
//! each runs in a task beside the actor, so a hanging hook never keeps a removal from being heard. Signals,
//! waits, streams and statistics don't go through the actor at all: they use the shared [`Container`].

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use slog::Logger;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use super::actor::Command;
use super::error::SandboxError;
use super::hotplug::Asked;
use super::oom::OomWatch;
use super::process::{Process, handles_sigterm};
use crate::cgroup::{Cgroup, CgroupError};
use crate::ids::{ContainerId, ExecId};
use crate::spec::ExecFacts;
use crate::stdio::Taken;
use crate::supervisor::client::Turn;
use oci_spec::runtime::Hook;

/// Where in its life a container is; see the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Init waits before exec.
    Created,
    /// Init has been let go; poststart hooks run.
    Starting,
    /// Init runs the program.
    Running,
    /// The processes are being frozen.
    Pausing,
    /// No process runs until Resume.
    Paused,
    /// The processes are being let go on.
    Resuming,
    /// Init has ended.
    Stopped,
    /// All is being killed and given back.
    Removing,
}

impl Status {
    /// The state's name, for messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Pausing => "being paused",
            Self::Paused => "paused",
            Self::Resuming => "being resumed",
            Self::Stopped => "stopped",
            Self::Removing => "being removed",
        }
    }
}

/// Which stream of a process is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// Standard output, or what a terminal shows.
    Stdout,
    /// Standard error.
    Stderr,
}

/// A place in the directory of exec'd processes.
#[derive(Debug)]
pub(super) enum Slot {
    /// The id is taken by a launch that goes on.
    Launching,
    /// The process.
    Process(Arc<Process>),
}

/// What never changes about a container.
#[derive(Debug)]
pub(super) struct Description {
    pub(super) id: ContainerId,
    pub(super) bundle: PathBuf,
    pub(super) state_root: PathBuf,
    pub(super) cgroup: Cgroup,
    pub(super) exec: ExecFacts,
    pub(super) poststart: Vec<Hook>,
    pub(super) poststop: Vec<Hook>,
    pub(super) annotations: HashMap<String, String>,
    /// Where in the guest it writes why it ended.
    pub(super) termination_log: Option<PathBuf>,
    /// Whether it has another network than the guest's.
    pub(super) own_network: bool,
}

/// How many execs of a container are launched at a time, of those that the guest may launch: in one whose files are on a
/// share that hangs they hang, too, and leave the others theirs.
const LAUNCHES: usize = 64;

/// How a removal ended: nothing, or what stayed behind.
pub(super) type Removal = Option<Vec<String>>;

/// A container that has been created. Shared by its actor and everyone who uses it.
#[derive(Debug)]
pub struct Container {
    pub(super) description: Description,
    pub(super) init: Arc<Process>,
    /// None where nobody counts OOM kills.
    pub(super) oom: Option<Arc<OomWatch>>,
    /// Held for map operations only, never across an await.
    execs: Mutex<HashMap<ExecId, Slot>>,
    status: watch::Sender<Status>,
    pub(super) removal: watch::Sender<Removal>,
    /// Held while limits are written, by a thread that may block: they depend on those in force.
    pub(super) limits: Mutex<Asked>,
    /// One for each of its execs that is being launched.
    launches: Arc<Semaphore>,
    commands: mpsc::UnboundedSender<Command>,
    pub(super) logger: Logger,
}

impl Container {
    pub(super) fn new(
        description: Description,
        init: Arc<Process>,
        oom: Option<Arc<OomWatch>>,
        asked: Asked,
        commands: mpsc::UnboundedSender<Command>,
        logger: Logger,
    ) -> Self {
        Self {
            description,
            init,
            oom,
            execs: Mutex::default(),
            status: watch::Sender::new(Status::Created),
            removal: watch::Sender::new(None),
            limits: Mutex::new(asked),
            launches: Arc::new(Semaphore::new(LAUNCHES)),
            commands,
            logger,
        }
    }

    /// Waits until another of its execs may be launched: to be kept until its worker has ended.
    pub(super) async fn turn_to_exec(&self) -> Turn {
        self.launches.clone().acquire_owned().await.ok()
    }

    /// Its id.
    pub fn id(&self) -> &ContainerId {
        &self.description.id
    }

    /// Its cgroup.
    pub fn cgroup(&self) -> &Cgroup {
        &self.description.cgroup
    }

    /// Where in its life it is.
    pub fn status(&self) -> Status {
        match *self.status.borrow() {
            Status::Removing => Status::Removing,
            _ if self.init.exit_status().is_some() => Status::Stopped,
            status => status,
        }
    }

    /// Where the actor has brought it, whether or not init has ended since.
    pub(super) fn reached(&self) -> Status {
        *self.status.borrow()
    }

    pub(super) fn set_status(&self, status: Status) {
        self.status.send_replace(status);
    }

    /// Goes on to `to`, unless it is somewhere else than `from` by now.
    pub(super) fn leave_status(&self, from: Status, to: Status) {
        self.status.send_if_modified(|status| {
            let still = *status == from;
            if still {
                *status = to;
            }
            still
        });
    }

    /// Refuses with the state's name unless the container is as `needed`.
    pub(super) fn expect(&self, needed: Status) -> Result<(), SandboxError> {
        if self.status() == needed { Ok(()) } else { Err(self.refuse(needed)) }
    }

    /// The refusal of what needs another state.
    pub(super) fn refuse(&self, needed: Status) -> SandboxError {
        SandboxError::ContainerState {
            id: self.id().clone(),
            state: self.status().name(),
            needed: needed.name(),
        }
    }

    /// The refusal of a start that came too late.
    pub(super) fn refuse_ended(&self) -> SandboxError {
        let (state, needed) = (Status::Stopped.name(), Status::Created.name());
        SandboxError::ContainerState { id: self.id().clone(), state, needed }
    }

    /// Lets init go.
    pub async fn start(&self) -> Result<(), SandboxError> {
        self.ask(Command::Start).await
    }

    /// Starts another process in the container.
    pub async fn exec(&self, request: super::ExecRequest) -> Result<(), SandboxError> {
        let request = Box::new(request);
        self.ask(|answer| Command::Exec(request, answer)).await
    }

    /// Stops all processes until [`Container::resume`]; returns when they have stopped.
    ///
    /// # Errors
    /// [`SandboxError::ContainerState`] unless it is created or running; [`SandboxError::Cgroup`] if they don't
    /// stop in time, and then they run on.
    pub async fn pause(&self) -> Result<(), SandboxError> {
        self.ask(Command::Pause).await
    }

    /// Lets the processes of a paused container go on.
    ///
    /// # Errors
    /// [`SandboxError::ContainerState`] unless it is paused; [`SandboxError::Cgroup`].
    pub async fn resume(&self) -> Result<(), SandboxError> {
        self.ask(Command::Resume).await
    }

    /// Kills all, gives all back, and returns when that is done, or after `timeout`. What could not be given back is
    /// told and has been logged; the container is gone all the same.
    ///
    /// # Errors
    /// [`SandboxError::RemovalTimeout`]; the removal goes on, and can be waited for by asking again.
    pub async fn remove(&self, timeout: Option<Duration>) -> Result<Vec<String>, SandboxError> {
        let mut removal = self.removal.subscribe();
        let _ = self.commands.send(Command::Remove);
        let done = removal.wait_for(Option::is_some);
        let outcome = match timeout {
            None => done.await,
            Some(limit) => match tokio::time::timeout(limit, done).await {
                Ok(outcome) => outcome,
                Err(_) => {
                    let seconds = u32::try_from(limit.as_secs()).unwrap_or(u32::MAX);
                    return Err(SandboxError::RemovalTimeout { id: self.id().clone(), seconds });
                }
            },
        };
        let leftovers = outcome.map_err(|_| SandboxError::TaskEnded("the container's actor"))?;
        Ok(leftovers.clone().unwrap_or_default())
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, SandboxError>>) -> Command,
    ) -> Result<T, SandboxError> {
        let (answer, answered) = oneshot::channel();
        let gone = || SandboxError::Removing(self.id().clone());
        self.commands.send(command(answer)).map_err(|_| gone())?;
        answered.await.unwrap_or_else(|_| Err(gone()))
    }

    /// Finds a process. Init is named by nothing or by the container's own id: shims do both.
    ///
    /// # Errors
    /// [`SandboxError::NoProcess`].
    pub fn process(&self, exec_id: &str) -> Result<Arc<Process>, SandboxError> {
        if exec_id.is_empty() || exec_id == self.id().as_str() {
            return Ok(self.init.clone());
        }
        match self.execs().get(exec_id) {
            Some(Slot::Process(process)) => Ok(process.clone()),
            Some(Slot::Launching) | None => Err(self.no_process(exec_id)),
        }
    }

    /// Waits for the end of a process and forgets it; who waits at the same time gets the status too.
    ///
    /// # Errors
    /// [`SandboxError::NoProcess`], also when it has been waited for before.
    pub async fn wait(self: &Arc<Self>, exec_id: &str, linger: Duration) -> Result<i32, SandboxError> {
        let process = self.process(exec_id)?;
        if process.is_waited() {
            return Err(self.no_process(exec_id));
        }
        let status = process.wait().await.ok_or(SandboxError::TaskEnded("the supervisor's channel"))?;
        // A host that has its streams as connections takes them for complete when it learns of the end.
        process.pumps().delivered(linger).await;
        // The host learns of the kill before it learns of the end that came of it.
        if status.code() != 0 {
            self.look_for_oom_kills().await;
        }
        if process.set_waited() && !Arc::ptr_eq(&process, &self.init) {
            self.forget_when_read(exec_id, &process, linger);
        }
        Ok(status.code())
    }

    /// When this returns, every OOM kill so far has been added to the sandbox's events.
    pub(super) async fn look_for_oom_kills(&self) {
        if let Some(oom) = &self.oom {
            oom.look_after(self.init.exit_status()).await;
        }
    }

    /// A waited process can't be found any more, but for reading what it wrote: until all is read, or for `linger`.
    fn forget_when_read(self: &Arc<Self>, exec_id: &str, process: &Arc<Process>, linger: Duration) {
        if process.streams().is_drained() {
            self.execs().remove(exec_id);
            return;
        }
        let (container, exec_id, process) =
            (Arc::downgrade(self), exec_id.to_owned(), Arc::downgrade(process));
        tokio::spawn(async move {
            // The limit itself: who reads all before it forgets the process, too.
            tokio::time::sleep(linger).await;
            if let (Some(container), Some(process)) = (container.upgrade(), process.upgrade()) {
                container.forget(&exec_id, &process);
            }
        });
    }

    /// Removes `process` from the directory, unless its id names another by now.
    fn forget(&self, exec_id: &str, process: &Arc<Process>) {
        let mut execs = self.execs();
        if matches!(execs.get(exec_id), Some(Slot::Process(known)) if Arc::ptr_eq(known, process)) {
            execs.remove(exec_id);
        }
    }

    /// Reads from a stream of a process: see [`crate::stdio::OutputStream::take`].
    pub async fn read(
        &self,
        exec_id: &str,
        output: Output,
        len: u32,
        quiet: Duration,
    ) -> Result<Taken, SandboxError> {
        let process = self.process(exec_id)?;
        let (stream, name) = match output {
            Output::Stdout => (&process.streams().stdout, "stdout"),
            Output::Stderr => (&process.streams().stderr, "stderr"),
        };
        let bytes = stream.take(len, process.exit(), quiet).await.map_err(self.stdio_error(exec_id, name))?;
        if bytes.is_empty() && process.is_waited() && process.streams().is_drained() {
            self.forget(exec_id, &process);
        }
        Ok(bytes)
    }

    /// Writes to the standard input of a process; nothing to write closes it.
    pub async fn write(&self, exec_id: &str, data: Vec<u8>) -> Result<u32, SandboxError> {
        let process = self.process(exec_id)?;
        if data.is_empty() {
            process.close_stdin();
            return Ok(0);
        }
        process.streams().stdin.write(data).await.map_err(self.stdio_error(exec_id, "stdin"))
    }

    /// Closes the standard input of a process.
    pub fn close_stdin(&self, exec_id: &str) -> Result<(), SandboxError> {
        self.process(exec_id)?.close_stdin();
        Ok(())
    }

    /// Sets the size of the terminal of a process.
    pub fn resize(&self, exec_id: &str, rows: u32, columns: u32) -> Result<(), SandboxError> {
        let process = self.process(exec_id)?;
        process.streams().resize(rows, columns).map_err(self.stdio_error(exec_id, "terminal"))
    }

    fn stdio_error(
        &self,
        exec_id: &str,
        stream: &'static str,
    ) -> impl FnOnce(crate::stdio::StdioError) -> SandboxError {
        let (container, process) = (self.id().clone(), exec_id.to_owned());
        move |source| SandboxError::Stdio { container, process, stream, source }
    }

    /// Sends a signal: SIGKILL without an exec id ends everything in the container, any other goes to the one process.
    pub async fn signal(self: &Arc<Self>, exec_id: &str, signal: u32) -> Result<(), SandboxError> {
        if exec_id.is_empty() && signal == libc::SIGKILL as u32 {
            return match self.kill_all().await {
                // All have their signal. One that takes its time to end, with a lot of memory to give back, is not to be
                // killed again.
                Err(SandboxError::Cgroup { source: CgroupError::Busy { .. }, .. }) => Ok(()),
                result => result,
            };
        }
        let process = self.process(exec_id)?;
        if process.is_waited() {
            return Err(self.no_process(exec_id));
        }
        let is_init = Arc::ptr_eq(&process, &self.init);
        let signal =
            if is_init && signal == libc::SIGTERM as u32 { self.term_or_kill(&process) } else { signal };
        process.signal(signal).map_err(|source| SandboxError::Signal {
            container: self.id().clone(),
            process: exec_id.to_owned(),
            signal,
            source,
        })
    }

    /// An init that does nothing about SIGTERM would never end of it.
    fn term_or_kill(&self, init: &Process) -> u32 {
        match std::fs::read_to_string(format!("/proc/{}/status", init.pid())) {
            Ok(status) if !handles_sigterm(&status) => libc::SIGKILL as u32,
            _ => libc::SIGTERM as u32,
        }
    }

    /// Ends everything in the container's cgroup.
    pub(super) async fn kill_all(self: &Arc<Self>) -> Result<(), SandboxError> {
        let container = self.clone();
        tokio::task::spawn_blocking(move || {
            let killed = container.cgroup().kill_all();
            // Also whoever has left the cgroup, or is not in it yet.
            for process in container.processes() {
                let _ = process.signal(libc::SIGKILL as u32);
            }
            killed.map_err(|source| SandboxError::Cgroup { id: container.id().clone(), source })
        })
        .await
        .unwrap_or(Err(SandboxError::TaskEnded("the killing")))
    }

    /// Init and all exec'd processes.
    pub(super) fn processes(&self) -> Vec<Arc<Process>> {
        let execs = self.execs();
        let execs = execs.values().filter_map(|slot| match slot {
            Slot::Process(process) => Some(process.clone()),
            Slot::Launching => None,
        });
        std::iter::once(self.init.clone()).chain(execs).collect()
    }

    pub(super) fn no_process(&self, exec_id: &str) -> SandboxError {
        SandboxError::NoProcess { container: self.id().clone(), process: exec_id.to_owned() }
    }

    pub(super) fn execs(&self) -> std::sync::MutexGuard<'_, HashMap<ExecId, Slot>> {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
