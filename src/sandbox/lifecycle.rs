//! CreateSandbox and DestroySandbox.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::mount::{MntFlags, umount2};
use slog::{info, o, warn};

use super::cgroup_paths::CgroupPaths;
use super::container::Container;
use super::create::{attach_storage, blocking};
use super::error::SandboxError;
use super::records::{KINDS, SandboxRecord};
use super::running::{PidNamespace, Running};
use super::undo::{Undo, Why};
use super::{CreateSandbox, Environment, Sandbox, State, dns, hooks, lock, owned};
use crate::supervisor::client::StartedProcess;
use crate::worker::job::{Job, ShareNamespacesJob};
use crate::worker::stand_in;

/// How long each part of a sandbox's end may take. What hangs in the kernel keeps neither the rest from going nor the
/// agent from ending: creations under way, which are taken back;
const CREATIONS_LIMIT: Duration = Duration::from_secs(30);
/// the removals of all containers, which may be hundreds;
const REMOVALS_LIMIT: Duration = Duration::from_secs(60);
/// all storages together;
pub(super) const STORAGES_LIMIT: Duration = Duration::from_secs(30);
/// and what else there is.
const REST_LIMIT: Duration = Duration::from_secs(30);
/// The names of the pinned namespaces.
const NAMESPACES: [&str; 3] = ["uts", "ipc", "pid"];

impl Sandbox {
    /// Makes what the containers will share.
    ///
    /// # Errors
    /// [`SandboxError::SandboxState`] when there is a sandbox; else whatever step failed, with all before it
    /// taken back.
    pub async fn create(&self, request: CreateSandbox) -> Result<(), SandboxError> {
        {
            let mut state = lock(&self.inner.state);
            if self.inner.ending.load(Ordering::Relaxed) {
                return Err(SandboxError::SandboxExists { state: State::Stopping.name() });
            }
            if !matches!(*state, State::None) {
                return Err(SandboxError::SandboxExists { state: state.name() });
            }
            *state = State::Starting;
        }
        let sandbox = self.clone();
        owned(
            |gone| async move {
                let logger = sandbox.environment().logger.new(o!("sandbox" => request.id.clone()));
                let mut undo = Undo::default();
                match gone.unless(steps(sandbox.environment(), request, &mut undo)).await {
                    Ok(mut running) => {
                        info!(logger, "sandbox created");
                        running.undo = Mutex::new(Some(undo));
                        *lock(&sandbox.inner.state) = State::Running(Arc::new(running));
                        Ok(sandbox)
                    }
                    Err(error) => {
                        warn!(logger, "sandbox not created"; "error" => %error);
                        undo.run(Why::Failed, &logger).await;
                        *lock(&sandbox.inner.state) = State::None;
                        Err(error)
                    }
                }
            },
            |sandbox| async move { sandbox.destroy().await },
        )
        .await
    }

    /// Removes all containers and gives everything back. Without a sandbox there is nothing to do.
    ///
    /// # Errors
    /// When something stays behind. The sandbox is gone all the same.
    pub async fn destroy(&self) -> Result<(), SandboxError> {
        self.take_down(false).await
    }

    /// As [`Sandbox::destroy`], and the agent ends with it: whoever asks for another one meanwhile would lose it.
    ///
    /// # Errors
    /// As there. [`SandboxError::SandboxState`]: another call is at work on it, and the agent goes on.
    pub async fn end(&self) -> Result<(), SandboxError> {
        self.take_down(true).await
    }

    async fn take_down(&self, ends: bool) -> Result<(), SandboxError> {
        let running = {
            let mut state = lock(&self.inner.state);
            let ending = || self.inner.ending.fetch_or(ends, Ordering::Relaxed);
            match std::mem::replace(&mut *state, State::Stopping) {
                State::Running(running) => {
                    ending();
                    running
                }
                State::None => {
                    ending();
                    *state = State::None;
                    return Ok(());
                }
                other => {
                    let name = other.name();
                    *state = other;
                    return Err(SandboxError::SandboxState { state: name, needed: "running" });
                }
            }
        };
        let sandbox = self.clone();
        owned(|_| async move { sandbox.give_back(&running).await }, |()| async { Ok(()) }).await
    }

    async fn give_back(&self, running: &Running) -> Result<(), SandboxError> {
        let logger = self.environment().logger.clone();
        let mut leftovers = Leftovers::default();
        leftovers.part("creations under way", CREATIONS_LIMIT, self.end_creations()).await;
        leftovers.extend(remove_all(self.containers(), REMOVALS_LIMIT).await);
        lock(&running.pid).take();
        let parents = running.cgroups.take_above();
        let (copies, records) = (self.environment().copies.clone(), self.environment().records.clone());
        let undo = lock(&running.undo).take();
        let rest = async {
            let _ = tokio::task::spawn_blocking(move || crate::cgroup::remove_empty(&parents)).await;
            let _ = tokio::task::spawn_blocking(move || copies.give_up()).await;
            match undo {
                Some(undo) => undo.run(Why::Removed, &logger).await,
                None => Vec::new(),
            }
        };
        let rest = leftovers.part("what containers shared", REST_LIMIT, rest).await;
        leftovers.extend(rest.unwrap_or_default());
        let released = self.environment().storages.release_all(STORAGES_LIMIT).await;
        leftovers.extend(released.err().map(|error| error.to_string()));
        let cleared = blocking(move || Ok(records.clear()?));
        let cleared = leftovers.part("the records", REST_LIMIT, cleared).await;
        leftovers.extend(cleared.and_then(Result::err).map(|error| error.to_string()));
        *lock(&self.inner.state) = State::None;
        self.inner.closing.send_replace(false);
        let Leftovers(leftovers) = leftovers;
        info!(logger, "sandbox destroyed"; "leftovers" => leftovers.len());
        if leftovers.is_empty() { Ok(()) } else { Err(SandboxError::SandboxLeftovers(leftovers.join("; "))) }
    }
}

/// What could not be given back, in words.
#[derive(Default)]
struct Leftovers(Vec<String>);

impl Leftovers {
    fn extend(&mut self, more: impl IntoIterator<Item = String>) {
        self.0.extend(more);
    }

    /// Waits for a part of the sandbox's end, but not for ever: one that hangs is left over.
    async fn part<T>(&mut self, what: &str, limit: Duration, work: impl Future<Output = T>) -> Option<T> {
        let done = tokio::time::timeout(limit, work).await.ok();
        if done.is_none() {
            self.0.push(format!("{what}: not gone after {limit:?}"));
        }
        done
    }
}

/// Removes containers beside each other; returns what is left of them.
async fn remove_all(containers: Vec<Arc<Container>>, limit: Duration) -> Vec<String> {
    let mut removals = tokio::task::JoinSet::new();
    for container in containers {
        removals.spawn(async move {
            let removed = container.remove(Some(limit)).await;
            removed.unwrap_or_else(|error| vec![error.to_string()])
        });
    }
    removals.join_all().await.concat()
}

async fn steps(
    environment: &Environment,
    request: CreateSandbox,
    undo: &mut Undo,
) -> Result<Running, SandboxError> {
    let config = environment.config.clone();
    blocking(move || {
        let stand_ins = config.state_dir.join(stand_in::DIRECTORY);
        [&config.kata_dir, &config.state_dir, &stand_ins].into_iter().try_for_each(|directory| {
            std::fs::create_dir_all(directory).map_err(SandboxError::file("make directory", directory))
        })
    })
    .await?;
    let records = environment.records.clone();
    blocking(move || {
        // An agent that ended without a DestroySandbox has left its own.
        records.clear()?;
        Ok(records.prepare(&KINDS)?)
    })
    .await?;
    push_clear_if_failed(environment, undo);
    // What was plugged in while nobody listened is there before a container asks for it.
    environment.devices.scan_beside();
    let modules = environment.modules.clone();
    let wanted = request.kernel_modules;
    blocking(move || wanted.iter().try_for_each(|(name, parameters)| Ok(modules.load(name, parameters)?)))
        .await?;
    let logger = environment.logger.clone();
    let hooks = match request.hook_directory {
        Some(directory) => blocking(move || Ok(hooks::scan(directory.as_path(), &logger))).await?,
        None => None,
    };
    let storages = request.storages.iter().map(|storage| storage.mount_point.to_string()).collect();
    let hostname = request.hostname.clone();
    let running =
        share_namespaces(environment, request.id, request.hostname, request.shared_pid_namespace, undo)
            .await?;
    let running = Running { hooks, storages, ..running };
    // Until it is written again, it is to be undone.
    let record = SandboxRecord { is_made: false, ..SandboxRecord::of(&running) };
    record.write(&environment.records).await?;
    for storage in request.storages {
        attach_storage(environment, None, storage, undo).await?;
    }
    set_dns(environment, hostname, request.dns, undo).await?;
    SandboxRecord::of(&running).write(&environment.records).await?;
    Ok(running)
}

async fn share_namespaces(
    environment: &Environment,
    id: String,
    hostname: String,
    with_pid: bool,
    undo: &mut Undo,
) -> Result<Running, SandboxError> {
    let directory = environment.config.state_dir.join("namespaces");
    let path = |name: &str| directory.join(name);
    let job = ShareNamespacesJob {
        hostname,
        uts: path("uts"),
        ipc: path("ipc"),
        pid: with_pid.then(|| path("pid")),
    };
    blocking({
        let directory = directory.clone();
        move || {
            std::fs::create_dir_all(&directory).map_err(SandboxError::file("make directory", &directory))?;
            // An agent that ended without a DestroySandbox has left its pins here.
            NAMESPACES.iter().try_for_each(|name| unpin(&directory.join(name))).map_err(SandboxError::Stale)
        }
    })
    .await?;
    push_unpin(&directory, undo);
    let (uts, ipc, pid) = (job.uts.clone(), job.ipc.clone(), job.pid.clone());
    let launched = environment.launcher.launch(&Job::ShareNamespaces(job), Vec::new()).await;
    let launched =
        launched.map_err(|source| SandboxError::Launch { what: "share namespaces".to_owned(), source })?;
    let pause = launched.process.as_ref().map(|pause| pause.hold.key());
    let pid = take_pause(launched.process, pid, undo).await?;
    Ok(Running {
        id,
        uts,
        ipc,
        hooks: None,
        pause,
        storages: Vec::new(),
        pid: Mutex::new(pid),
        cgroups: CgroupPaths::default(),
        undo: Mutex::new(None),
    })
}

/// A sandbox that has been made keeps its records until its storages are gone.
fn push_clear_if_failed(environment: &Environment, undo: &mut Undo) {
    let records = environment.records.clone();
    undo.push("remove the records", |why| async move {
        match why {
            Why::Removed => Ok(()),
            Why::Failed => blocking(move || Ok(records.clear()?)).await.map_err(|error| error.to_string()),
        }
    });
}

pub(super) fn push_unpin(directory: &Path, undo: &mut Undo) {
    for name in NAMESPACES {
        let path = directory.join(name);
        undo.push_blocking(format!("unpin the {name} namespace"), move || unpin(&path));
    }
}

/// The PID namespace of the pause process, if there is one, which ends with the sandbox.
pub(super) async fn take_pause(
    pause: Option<StartedProcess>,
    path: Option<PathBuf>,
    undo: &mut Undo,
) -> Result<Option<PidNamespace>, SandboxError> {
    let Some((pause, path)) = pause.zip(path) else { return Ok(None) };
    let init = pause.exit.clone();
    undo.push("end the pause process", move |_| async move {
        // All of it: until it has ended, the supervisor holds it.
        let StartedProcess { pid, mut exit, hold } = pause;
        if exit.borrow().is_none() {
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
        let ended = exit.wait_for(Option::is_some).await.map(drop).map_err(|error| error.to_string());
        drop(hold);
        ended
    });
    let file = blocking(move || File::open(&path).map_err(SandboxError::file("open", &path))).await?;
    Ok(Some(PidNamespace { namespace: file.into(), init }))
}

fn unpin(path: &Path) -> Result<(), String> {
    if !path.exists() {
        return Ok(());
    }
    let _ = umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
    std::fs::remove_file(path).map_err(|error| format!("{}: {error}", path.display()))
}

async fn set_dns(
    environment: &Environment,
    hostname: String,
    lines: Vec<String>,
    undo: &mut Undo,
) -> Result<(), SandboxError> {
    let kata_dir = environment.config.kata_dir.clone();
    let target = Path::new(dns::RESOLV_CONF);
    let write = move || {
        dns::write_hostname(&hostname, &kata_dir)?;
        Ok(dns::apply(&lines, &kata_dir, target)?)
    };
    let set = blocking(write).await?;
    push_dns_undo(set, undo);
    Ok(())
}

pub(super) fn push_dns_undo(set: Option<dns::ResolvConf>, undo: &mut Undo) {
    if let Some(set) = set {
        undo.push_blocking("take the name servers back", move || {
            set.close().map_err(|error| error.to_string())
        });
    }
}
