//! Taking over from a server that died: the sandbox, its containers and their processes, as the records and the
//! supervisor know them.
//!
//! - What has a record that it was made, and is held by the supervisor, is taken over as it is.
//! - What was being made is undone: nobody waits for it any more.
//! - A process that no record knows was being launched, and is killed.
//! - A start that had begun is finished; a removal that had begun can be asked for again.
//!
//! Whatever goes wrong with one thing is logged and keeps nothing else from being taken over.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use slog::{Logger, error, info, o, warn};
use tokio::sync::mpsc;

use super::actor::{self, release_init};
use super::cgroup_paths::CgroupPaths;
use super::container::{Container, Slot, Status};
use super::create::{
    blocking, push_config_undo, push_forget, push_launch_undo, push_release, push_stand_in_undo,
};
use super::error::SandboxError;
use super::lifecycle::{STORAGES_LIMIT, push_dns_undo, push_unpin, take_pause};
use super::oom::OomWatch;
use super::process::Process;
use super::pumps::{self, Links};
use super::records::{
    ContainerRecord, MadeRecord, OOM, OomRecord, ProcessRecord, SandboxRecord, asked_name, execs_name,
    note_oom, read_oom, started_name,
};
use super::running::Running;
use super::undo::{Undo, Why};
use super::{Place, Sandbox, State, bundle, dns, lock};
use crate::cgroup::Cgroup;
use crate::ids::{ContainerId, ExecId, GuestPath};
use crate::supervisor::client::{Held, HeldStreams};

/// How long the processes of a half-made container may take to be gone.
const KILL_LIMIT: Duration = Duration::from_secs(5);

/// What the supervisor holds.
#[derive(Debug, Default)]
pub struct Holds {
    /// Processes, by the number of their launch.
    pub processes: HashMap<u64, Held>,
    /// Connections that carry their streams.
    pub streams: HeldStreams,
}

/// A container of which there is a record, as a user of what it had.
struct Found {
    record: ContainerRecord,
    id: ContainerId,
    cgroup: Option<Cgroup>,
    /// What takes it back.
    undo: Undo,
}

impl Sandbox {
    /// Takes over what an earlier server has left in the records, and `held` by the supervisor.
    pub async fn recover(&self, mut held: Holds) {
        let log = self.environment().logger.clone();
        if let Err(error) = self.take_over(&mut held).await {
            error!(log, "the sandbox is not taken over"; "error" => %error);
        }
        for (_, unknown) in held.processes {
            // Of a launch that nobody waits for any more.
            if unknown.process.exit.borrow().is_none() {
                warn!(log, "killing a process that no record knows"; "process" => unknown.process.pid.as_raw());
                let _ = kill(unknown.process.pid, Signal::SIGKILL);
            }
        }
    }

    async fn take_over(&self, held: &mut Holds) -> Result<(), SandboxError> {
        let environment = self.environment();
        let records = environment.records.clone();
        let (sandbox, containers, kills) = blocking(move || {
            records.drop_unfinished();
            let sandbox: Option<SandboxRecord> = records.read("sandbox".as_ref())?;
            let containers = records.read_all::<ContainerRecord>("containers".as_ref())?;
            Ok((sandbox, containers, records.read_all::<OomRecord>(OOM.as_ref())?))
        })
        .await?;
        environment.storages.recover().await?;
        let Some(record) = sandbox else { return Ok(()) };
        let logger = environment.logger.new(o!("sandbox" => record.id.clone()));
        let is_made = record.is_made;
        let mut undo = Undo::default();
        let running = self.take_shared(record, held, &mut undo).await?;
        if !is_made {
            undo.run(Why::Failed, &logger).await;
            environment.storages.release_all(STORAGES_LIMIT).await?;
            let records = environment.records.clone();
            return blocking(move || Ok(records.clear()?)).await;
        }
        *lock(&running.undo) = Some(undo);
        let running = Arc::new(running);
        *lock(&self.inner.state) = State::Running(running.clone());
        for (name, kills) in kills {
            if let (Ok(id), Ok(kills)) = (ContainerId::try_from(name.as_str()), kills) {
                environment.oom_events.add(&id, kills.untold);
            }
        }
        let mut found = Vec::new();
        for (name, record) in containers {
            match record {
                Ok(record) => found.push(record),
                Err(error) => warn!(logger, "container lost"; "container" => name, "error" => %error),
            }
        }
        // In the order in which they were made: the first one's PID namespace may be the others' too.
        found.sort_by_key(|record| record.made.as_ref().map(|made| made.init.key));
        // What one of them is taken back with may be the others', too: before that all are its users.
        let found = found.into_iter().map(|record| (record.id.clone(), self.find(record)));
        for (id, found) in found.collect::<Vec<_>>() {
            let taken = match found {
                Ok(found) => self.take_container(found, &running, held).await,
                Err(error) => Err(error),
            };
            if let Err(error) = taken {
                error!(logger, "container lost"; "container" => id, "error" => %error);
            }
        }
        environment.storages.release_unused().await;
        info!(logger, "sandbox taken over"; "containers" => self.containers().len());
        Ok(())
    }

    /// What the containers share, with its way back.
    async fn take_shared(
        &self,
        record: SandboxRecord,
        held: &mut Holds,
        undo: &mut Undo,
    ) -> Result<Running, SandboxError> {
        let environment = self.environment();
        let directory = environment.config.state_dir.join("namespaces");
        push_unpin(&directory, undo);
        let pause = record.pause.and_then(|key| held.processes.remove(&key)).map(|held| held.process);
        let path = pause.is_some().then(|| directory.join("pid"));
        let pid = take_pause(pause, path, undo).await.unwrap_or_else(|error| {
            warn!(environment.logger, "the shared PID namespace is lost"; "error" => %error);
            None
        });
        self.take_storages(&record.storages, undo);
        let kata_dir = environment.config.kata_dir.clone();
        let set = blocking(move || Ok(dns::recover(&kata_dir, dns::RESOLV_CONF.as_ref())?)).await;
        push_dns_undo(set.ok().flatten(), undo);
        Ok(Running {
            id: record.id,
            uts: record.uts,
            ipc: record.ipc,
            hooks: record.hooks,
            pause: record.pause,
            storages: record.storages,
            pid: Mutex::new(pid),
            cgroups: CgroupPaths::with_those_above(record.cgroup_parents),
            undo: Mutex::new(None),
        })
    }

    fn take_storages(&self, mount_points: &[String], undo: &mut Undo) {
        for mount_point in mount_points {
            let path = GuestPath::try_from(mount_point.as_str()).ok();
            if let Some(handle) = path.and_then(|path| self.environment().storages.take_over(&path)) {
                push_release(handle, undo);
            }
        }
    }

    fn find(&self, record: ContainerRecord) -> Result<Found, SandboxError> {
        let id = ContainerId::try_from(record.id.as_str())
            .map_err(|_| SandboxError::NoContainer(record.id.clone()))?;
        let cgroup = record.cgroup.as_ref().map(|path| {
            Cgroup::new(self.environment().hierarchy.clone(), path.clone())
                .map(|cgroup| cgroup.in_unit(record.unit.clone()))
                .map_err(|source| SandboxError::Cgroup { id: id.clone(), source })
        });
        let cgroup = cgroup.transpose()?;
        let undo = self.way_back(&id, &record, cgroup.as_ref());
        Ok(Found { record, id, cgroup, undo })
    }

    async fn take_container(
        &self,
        found: Found,
        running: &Running,
        held: &mut Holds,
    ) -> Result<(), SandboxError> {
        let environment = &self.inner.environment;
        let Found { mut record, id, cgroup, undo } = found;
        let logger =
            environment.logger.new(o!("container" => record.id.clone(), "sandbox" => running.id.clone()));
        let made = record.made.take();
        let init = made.as_ref().and_then(|made| take_process(&made.init, held, &logger));
        let (Some(made), Some(init), Some(cgroup)) = (made, init, cgroup.clone()) else {
            undo_half(cgroup, undo, &logger).await;
            return Ok(());
        };
        let mut undo = undo;
        if let Err(error) = running.cgroups.take(&id, cgroup.path(), &mut undo) {
            warn!(logger, "two containers have one cgroup"; "error" => %error);
        }
        let links = Links::held(&mut held.streams, init.key());
        let container = self.take_made(record, made, id.clone(), init, cgroup, undo, &logger).await?;
        pumps::start(&container.init, links, environment.config.stream_quiet_time);
        running.publish_pid_namespace(&container.init);
        lock(&self.inner.containers).insert(id, Place::Container(container.clone()));
        if let Err(error) = self.take_execs(&container, held).await {
            warn!(logger, "exec'd processes lost"; "error" => %error);
        }
        Ok(())
    }

    /// What takes a container back, as its creation pushed it.
    fn way_back(&self, id: &ContainerId, record: &ContainerRecord, cgroup: Option<&Cgroup>) -> Undo {
        let mut undo = Undo::default();
        self.push_free_id(id, &mut undo);
        push_forget(self.environment(), id, &mut undo);
        bundle::push_undo(record, &self.environment().storages, &mut undo);
        self.take_storages(&record.storages, &mut undo);
        push_config_undo(&record.bundle, &mut undo);
        push_stand_in_undo(id, &record.state_root, &mut undo);
        if let Some(cgroup) = cgroup {
            push_launch_undo(id, &record.state_root, cgroup, &mut undo);
        }
        undo
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of a container")]
    async fn take_made(
        &self,
        record: ContainerRecord,
        mut made: Box<MadeRecord>,
        id: ContainerId,
        init: Process,
        cgroup: Cgroup,
        undo: Undo,
        logger: &Logger,
    ) -> Result<Arc<Container>, SandboxError> {
        let environment = &self.inner.environment;
        let (records, watched, name) = (environment.records.clone(), cgroup.clone(), record.id.clone());
        let (started, known, frozen, asked) = blocking(move || {
            // Notes that can't be read keep no container from being taken over.
            let started = records.has(&started_name(&name));
            let known = read_oom(&records, &name).known();
            let asked = records.read(&asked_name(&name)).ok().flatten();
            Ok((started, known, watched.is_frozen().unwrap_or(false), asked))
        })
        .await?;
        if let Some(asked) = asked {
            made.asked = asked;
        }
        let reported = Ok(record.killed_before.wrapping_add(known));
        let oom = OomWatch::new(&id, &cgroup, reported, environment, logger).await;
        let state = record.state_root.join(id.as_str());
        let (description, asked) = record.describe(id, cgroup, *made);
        let (commands, mailbox) = mpsc::unbounded_channel();
        let container =
            Arc::new(Container::new(description, Arc::new(init), oom, asked, commands, logger.clone()));
        let status = if started { Status::Running } else { Status::Created };
        container.set_status(if frozen { Status::Paused } else { status });
        if started && release_init(&state).await.is_ok() {
            info!(logger, "a start is finished that had begun");
        }
        container.look_for_oom_kills().await;
        actor::spawn(environment.clone(), container.clone(), mailbox, undo, frozen.then_some(status));
        Ok(container)
    }

    async fn take_execs(&self, container: &Container, held: &mut Holds) -> Result<(), SandboxError> {
        let records = self.environment().records.clone();
        let name = execs_name(container.id().as_str());
        let execs = blocking(move || Ok(records.read_all::<ProcessRecord>(&name)?)).await?;
        for (_, record) in execs {
            let Ok(record) = record else { continue };
            let Ok(exec_id) = ExecId::try_from(record.exec_id.as_str()) else { continue };
            if let Some(process) = take_process(&record, held, &container.logger) {
                let links = Links::held(&mut held.streams, process.key());
                let process = process.with_record(container.id().as_str(), &self.environment().records);
                let process = Arc::new(process);
                pumps::start(&process, links, self.environment().config.stream_quiet_time);
                container.execs().insert(exec_id, Slot::Process(process));
            }
        }
        Ok(())
    }

    /// Notes that the host is told of an OOM kill in a container.
    pub fn note_told(&self, id: &ContainerId) {
        let records = self.environment().records.clone();
        let id = id.clone();
        tokio::task::spawn_blocking(move || note_oom(&records, id.as_str(), 0, 1));
    }
}

fn take_process(record: &ProcessRecord, held: &mut Holds, logger: &Logger) -> Option<Process> {
    let Some(held) = held.processes.remove(&record.key) else {
        warn!(logger, "the supervisor does not hold a process"; "exec_id" => &record.exec_id);
        return None;
    };
    match Process::recovered(held, record.terminal) {
        Ok(process) => process,
        Err(error) => {
            warn!(logger, "process lost"; "exec_id" => &record.exec_id, "error" => %error);
            None
        }
    }
}

/// Undoes a creation that had not come to its end.
async fn undo_half(cgroup: Option<Cgroup>, undo: Undo, logger: &Logger) {
    info!(logger, "a creation is undone that had begun");
    if let Some(cgroup) = cgroup {
        let emptied =
            blocking(move || Ok(cgroup.kill_all().and_then(|()| cgroup.wait_empty(KILL_LIMIT)))).await;
        if !matches!(emptied, Ok(Ok(true))) {
            warn!(logger, "processes of a half-made container are not gone");
        }
    }
    undo.run(Why::Failed, logger).await;
}
