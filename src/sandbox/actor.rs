//! The actor of a container: start, exec, pause, resume and removal, in the order in which they are asked for.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use slog::{info, warn};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::container::{Container, Slot, Status};
use super::create::blocking;
use super::error::SandboxError;
use super::launch::{self, Wiring};
use super::oom::OomWatch;
use super::pause::Freezer;
use super::process::Process;
use super::pumps::{self, Links};
use super::records::started_name;
use super::start_words::StartWords;
use super::undo::{Undo, Why};
use super::{Environment, ExecRequest};
use crate::spec::{self, LateProcess};
use crate::stdio::ports;
use crate::supervisor::Place;
use crate::worker::job::{ExecCgroups, ExecJob, Job, RunHooksJob};
use oci_spec::runtime::Hook;

/// How long a removal waits for a host that does not take the streams' last bytes.
const LAST_OUTPUT: Duration = Duration::from_secs(1);
/// What hooks may take together beyond their own limits: more than a worker takes to be made on a busy machine.
const HOOKS_SLACK: Duration = Duration::from_secs(20);

pub(super) type Answer = oneshot::Sender<Result<(), SandboxError>>;

/// What a container's actor is asked to do.
#[derive(Debug)]
pub(super) enum Command {
    Start(Answer),
    Exec(Box<ExecRequest>, Answer),
    Pause(Answer),
    Resume(Answer),
    /// Its end is published in [`Container::removal`].
    Remove,
}

/// Starts the actor of `container`; `undo` takes back what made it. If it is paused, `paused_from` is where a
/// resumption leads to.
pub(super) fn spawn(
    environment: Arc<Environment>,
    container: Arc<Container>,
    commands: mpsc::UnboundedReceiver<Command>,
    undo: Undo,
    paused_from: Option<Status>,
) {
    let work = JoinSet::new();
    let mut oom_watch: JoinSet<()> = container.oom.clone().map(OomWatch::run).into_iter().collect();
    if let (Some(oom), Some(_)) = (&container.oom, container.cgroup().unit()) {
        oom_watch.spawn(oom.clone().look_at_end_of(container.init.clone()));
    }
    let freezer = Freezer::paused_from(paused_from);
    let actor = Actor { environment, container, work, oom_watch, freezer, undo };
    tokio::spawn(actor.run(commands));
}

pub(super) struct Actor {
    environment: Arc<Environment>,
    pub(super) container: Arc<Container>,
    /// Starts and execs under way.
    pub(super) work: JoinSet<()>,
    /// Watches for OOM kills, if anybody counts them.
    oom_watch: JoinSet<()>,
    pub(super) freezer: Freezer,
    undo: Undo,
}

impl Actor {
    async fn run(mut self, mut commands: mpsc::UnboundedReceiver<Command>) {
        loop {
            tokio::select! {
                Some(_) = self.work.join_next() => self.freeze_if_idle(),
                Some(_) = self.freezer.task.join_next() => {}
                command = commands.recv() => match command {
                    Some(Command::Start(answer)) => self.start(answer),
                    Some(Command::Exec(request, answer)) => self.exec(*request, answer),
                    Some(Command::Pause(answer)) => self.pause(answer),
                    Some(Command::Resume(answer)) => self.resume(answer),
                    Some(Command::Remove) | None => break,
                },
            }
        }
        // Whoever asks for something else is refused at once, and does not wait for the removal.
        drop(commands);
        self.remove().await;
    }

    fn start(&mut self, answer: Answer) {
        if let Err(error) = self.container.expect(Status::Created) {
            let _ = answer.send(Err(error));
            return;
        }
        self.container.set_status(Status::Starting);
        let (environment, container) = (self.environment.clone(), self.container.clone());
        self.work.spawn(async move {
            let started = start(&environment, &container).await;
            container.set_status(if started.is_ok() { Status::Running } else { Status::Created });
            let _ = answer.send(started);
        });
    }

    fn exec(&mut self, request: ExecRequest, mut answer: Answer) {
        if let Err(error) = self.container.expect(Status::Running).and_then(|()| self.reserve(&request)) {
            let _ = answer.send(Err(error));
            return;
        }
        let (environment, container) = (self.environment.clone(), self.container.clone());
        self.work.spawn(async move {
            let exec_id = request.exec_id.clone();
            let result = tokio::select! {
                result = exec(&environment, &container, request) => result,
                () = answer.closed() => Err(SandboxError::CallerGone),
            };
            let mut execs = container.execs();
            match result {
                Ok(process) => {
                    execs.insert(exec_id.clone(), Slot::Process(process.clone()));
                    drop(execs);
                    if answer.send(Ok(())).is_err() {
                        // Nobody knows of it: the caller gave up while it was being started.
                        let _ = process.signal(libc::SIGKILL as u32);
                        container.execs().remove(&exec_id);
                    }
                }
                Err(error) => {
                    execs.remove(&exec_id);
                    drop(execs);
                    let _ = answer.send(Err(error));
                }
            }
        });
    }

    fn reserve(&self, request: &ExecRequest) -> Result<(), SandboxError> {
        let exec = request.exec_id.clone();
        let container = self.container.id().clone();
        if exec.as_str() == container.as_str() {
            return Err(SandboxError::ProcessExists { container, exec });
        }
        match self.container.execs().entry(exec.clone()) {
            // One that has been waited for is gone, but for its output.
            std::collections::hash_map::Entry::Occupied(mut place) => match place.get() {
                Slot::Process(process) if process.is_waited() => {
                    place.insert(Slot::Launching);
                    Ok(())
                }
                _ => Err(SandboxError::ProcessExists { container, exec }),
            },
            std::collections::hash_map::Entry::Vacant(place) => {
                place.insert(Slot::Launching);
                Ok(())
            }
        }
    }

    /// Kills first, then gives back, the newest first; nothing that fails keeps the rest from being tried.
    async fn remove(mut self) {
        let container = self.container;
        container.set_status(Status::Removing);
        // Launches under way are given up; their workers are killed.
        self.work.shutdown().await;
        self.freezer.finish().await;
        if let Err(error) = container.kill_all().await {
            warn!(container.logger, "not all could be killed at once"; "error" => %error);
        }
        let processes = container.processes();
        for process in &processes {
            process.wait().await;
            process.streams().stdin.abandon();
        }
        // The host has so long for all of them together.
        let begun = Instant::now();
        for process in &processes {
            process.pumps().delivered(LAST_OUTPUT.saturating_sub(begun.elapsed())).await;
            process.pumps().stop();
        }
        wait_until_empty(&container).await;
        self.oom_watch.shutdown().await;
        container.look_for_oom_kills().await;
        run_hooks(&self.environment, &container, &container.description.poststop, false).await;
        let leftovers = self.undo.run(Why::Removed, &container.logger).await;
        container.execs().clear();
        info!(container.logger, "container removed");
        container.removal.send_replace(Some(leftovers));
    }
}

/// Waits for whoever is still in the cgroup: children that nobody tracks. The removal is over when all are gone.
async fn wait_until_empty(container: &Arc<Container>) {
    const ROUND: Duration = Duration::from_secs(1);
    loop {
        let waiting = container.clone();
        let empty = tokio::task::spawn_blocking(move || waiting.cgroup().wait_empty(ROUND)).await;
        match empty {
            Ok(Ok(false)) => {
                warn!(container.logger, "killed processes are not gone yet");
                let _ = container.kill_all().await;
            }
            Ok(Ok(true) | Err(_)) | Err(_) => return,
        }
    }
}

async fn start(environment: &Environment, container: &Container) -> Result<(), SandboxError> {
    let (records, name) = (environment.records.clone(), started_name(container.id().as_str()));
    blocking(move || Ok(records.write(&name, &())?)).await?;
    let state_root = &container.description.state_root;
    let state = state_root.join(container.id().as_str());
    let words = StartWords::listen(state_root, container.id())?;
    if let Err(error) = release_init(&state).await {
        // Else the next server would finish what the host is told has failed.
        let (records, name) = (environment.records.clone(), started_name(container.id().as_str()));
        blocking(move || Ok(records.remove(&name)?)).await?;
        return Err(if waits_no_more(&error) { container.refuse_ended() } else { error });
    }
    if let Some(words) = words {
        words.end(container.id()).await?;
    }
    run_hooks(environment, container, &container.description.poststart, true).await;
    Ok(())
}

/// Whether init was not released because it has ended, of which this server may not have heard yet.
fn waits_no_more(error: &SandboxError) -> bool {
    let cause = std::error::Error::source(error).and_then(|source| source.downcast_ref::<std::io::Error>());
    matches!(
        cause.and_then(std::io::Error::raw_os_error),
        Some(libc::ENXIO | libc::EPIPE | libc::ECONNREFUSED)
    )
}

/// Tells init to go on: one that waits at its gate, or libcontainer's, which listens in the state directory.
pub(super) async fn release_init(state: &Path) -> Result<(), SandboxError> {
    let gate = std::fs::OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(state);
    match gate.and_then(|mut gate| gate.write_all(b"s")) {
        Err(error) if error.kind() == std::io::ErrorKind::IsADirectory => {}
        result => return result.map_err(SandboxError::file("release the init that waits at", state)),
    }
    // A socket's path is limited to 107 bytes; through the directory's descriptor it is always short enough.
    let directory = std::fs::File::open(state).map_err(SandboxError::file("open", state))?;
    let fd = std::os::fd::AsRawFd::as_raw_fd(&directory);
    let connected = UnixStream::connect(format!("/proc/self/fd/{fd}/notify.sock")).await;
    let mut socket = connected.map_err(SandboxError::file("connect to the init that waits in", state))?;
    socket
        .write_all(b"start container")
        .await
        .map_err(SandboxError::file("release the init that waits in", state))
}

/// Runs poststart or poststop hooks. Their failure is logged and changes nothing else (runtime-spec, "Lifecycle").
async fn run_hooks(environment: &Environment, container: &Container, hooks: &[Hook], running: bool) {
    if hooks.is_empty() {
        return;
    }
    let job = Job::RunHooks(RunHooksJob {
        hooks: hooks.to_vec(),
        id: container.id().to_string(),
        running,
        pid: running.then(|| container.init.pid().as_raw()),
        annotations: container.description.annotations.clone(),
        bundle: container.description.bundle.clone(),
    });
    // Each has a limit of its own, which ends itself alone and begins when it has taken the state. Who gives the launch
    // up ends the worker with all of its group.
    let seconds = hooks
        .iter()
        .filter_map(Hook::timeout)
        .fold(0_u64, |sum, limit| sum.saturating_add(u64::try_from(limit).unwrap_or_default()));
    let limit = Duration::from_secs(seconds).saturating_add(HOOKS_SLACK);
    match tokio::time::timeout(limit, environment.launcher.launch(&job, Vec::new())).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => warn!(container.logger, "hook failed"; "running" => running, "error" => %error),
        Err(_) => warn!(container.logger, "hooks given up"; "running" => running, "after" => ?limit),
    }
}

async fn exec(
    environment: &Environment,
    container: &Container,
    request: ExecRequest,
) -> Result<Arc<Process>, SandboxError> {
    let connections = ports::take(environment.ports.as_deref(), request.ports).await?;
    let prepared = spec::prepare_exec(request.process, &container.description.exec)?;
    for warning in &prepared.warnings {
        warn!(container.logger, "exec"; "exec_id" => request.exec_id.as_str(), "warning" => warning);
    }
    // Before it has descriptors. The container's own first, so that one that hangs keeps no other waiting.
    let turns = (container.turn_to_exec().await, environment.launcher.turn_to_exec().await);
    let what = || format!("exec {} in container {}", request.exec_id, container.id());
    let late = &prepared.late;
    let wiring = Wiring::prepare(prepared.terminal, prepared.console_size, late, environment, what).await?;
    let init = container.init.handle().map_err(|source| SandboxError::Duplicate { source })?;
    let cgroups = exec_cgroups(container);
    let place = if prepared.terminal { None } else { birthplace(&cgroups, &prepared.late) };
    let job = Job::Exec(Box::new(ExecJob {
        process: prepared.process,
        cgroups,
        io: wiring.io.clone(),
        late: prepared.late,
        filter_flags: wiring.filter_flags,
    }));
    let wiring = wiring.behind(init);
    let process = launch::start_process(environment, place, &job, wiring, Box::new(turns), what).await?;
    let links = Links::hold(connections, &environment.launcher, &process);
    let process = Arc::new(process.recorded(container.id(), &request.exec_id, &environment.records).await?);
    pumps::start(&process, links, environment.config.stream_quiet_time);
    Ok(process)
}

/// Where an exec'd process goes.
fn exec_cgroups(container: &Container) -> ExecCgroups {
    let cgroup = container.cgroup();
    let (mut roots, path) = (cgroup.roots(), cgroup.path().to_owned());
    roots.extend(cgroup.tree_beside());
    match roots.pop_if(|_| cgroup.hierarchy().is_v2()) {
        Some(root) => ExecCgroups::V2 { root, path, init: container.init.pid().as_raw() },
        None => ExecCgroups::V1(roots.into_iter().map(|root| root.join(&path)).collect()),
    }
}

/// Where the supervisor can fork an exec'd process that has no terminal: one that has waits for who takes that.
fn birthplace(cgroups: &ExecCgroups, late: &LateProcess) -> Option<Place> {
    let cgroup = match cgroups {
        ExecCgroups::V1(_) => None,
        ExecCgroups::V2 { root, path, .. } => Some(File::open(root.join(path)).ok()?.into()),
    };
    let own_pids = late.namespaces.iter().any(|namespace| namespace.own && namespace.kind == "pid");
    Some(Place { own_pids, cgroup, held: true })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_init_that_has_ended_is_told_from_one_that_cannot_be_reached() {
        let directory = tempfile::tempdir().unwrap();
        let (gate, missing) = (directory.path().join("gate"), directory.path().join("missing"));
        nix::unistd::mkfifo(&gate, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(waits_no_more(&release_init(&gate).await.unwrap_err()));
        assert!(!waits_no_more(&release_init(&missing).await.unwrap_err()));
        // One that ends between our open(2) and our write(2).
        let broken = std::io::Error::from_raw_os_error(libc::EPIPE);
        assert!(waits_no_more(&SandboxError::file("release", &gate)(broken)));
        let socket = directory.path().join("notify.sock");
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        assert!(waits_no_more(&release_init(directory.path()).await.unwrap_err()));
    }
}
