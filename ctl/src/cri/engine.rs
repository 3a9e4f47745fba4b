//! Containers' lives: started, stopped, paused and removed through the agent, and noted for all clients.
//!
//! `create.rs` makes them, [`super::supervise`] stays with a running one. Whoever changes a container holds its
//! lock, so its steps come one after the other while other containers go on; each step is in the journal with its begin
//! and its end. Signals and questions don't wait.

use std::path::Path;
use std::time::Duration;

use nakai_protocols::agent::CreateSandboxRequest;
use nakai_protocols::oci;
use ttrpc::Code;

use super::CriError;
use super::config::{LinuxContainerSecurityContext, PodSandboxConfig};
use super::image::signal;
use super::mounts::Places;
use super::root;
use super::spec::{resolv_conf, sandbox_id};
use super::users::{Accounts, Otherwise, User, resolve};
use crate::plug::Machine;
use crate::state::{Action, ContainerRecord, ContainerState, Event, Health, Lock, State};
use crate::{CallError, Client, SpecBuilder, removal, sandbox};

/// An agent, and where this client keeps what it needs to know.
#[derive(Clone, Debug)]
pub struct Engine {
    client: Client,
    places: Places,
    state: State,
    machine: Option<Machine>,
}

impl Engine {
    /// The agent behind `client`, with the notebook that its containers are noted in.
    pub fn new(client: Client, places: Places, state: State, machine: Option<Machine>) -> Self {
        Self { client, places, state, machine }
    }

    /// The same by another connection.
    #[must_use]
    pub fn by(&self, client: Client) -> Self {
        Self { client, ..self.clone() }
    }

    /// The connection.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// How the agent sees this host's files.
    pub fn places(&self) -> &Places {
        &self.places
    }

    /// The notebook.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The machine, to plug in what `field` asks for.
    pub(super) fn machine(&self, field: &str) -> Result<&Machine, CriError> {
        self.machine.as_ref().ok_or_else(|| {
            CriError::field(field, "it needs a machine to plug it into, and the agent's is not known")
        })
    }

    /// A container that is on record.
    ///
    /// # Errors
    ///
    /// It is not.
    pub fn record(&self, id: &str) -> Result<ContainerRecord, CriError> {
        self.state.container(id).ok_or_else(|| CriError::Unknown(id.to_owned()))
    }

    pub(super) fn put(&self, record: &ContainerRecord) -> Result<(), CriError> {
        let noted = self.state.note_container(record);
        noted.map_err(CriError::io(format!("note of container {}", record.id)))
    }

    /// Waits for the turn to change a container; [`State::unlock`] gives it back.
    pub(super) async fn lock(&self, id: &str) -> Result<Lock, CriError> {
        self.state.lock_container(id).await.map_err(CriError::io(format!("lock of container {id}")))
    }

    /// Changes the note of a container; none where it is not on record (any more).
    ///
    /// # Errors
    ///
    /// The note can't be written.
    pub async fn change(
        &self,
        id: &str,
        change: impl FnOnce(&mut ContainerRecord),
    ) -> Result<Option<ContainerRecord>, CriError> {
        let lock = self.lock(id).await?;
        let record = self.state.container(id).map(|mut record| {
            change(&mut record);
            record
        });
        let noted = record.as_ref().map_or(Ok(()), |record| self.put(record));
        self.state.unlock(id, lock);
        noted.map(|()| record)
    }

    /// Creates the pod's sandbox, unless the agent has one; whether it has been created now.
    ///
    /// # Errors
    ///
    /// The agent refuses it.
    pub async fn need_sandbox(&self, pod: &PodSandboxConfig) -> Result<bool, CriError> {
        let _turn = self.state.lock_sandbox().await.map_err(CriError::io("lock of the sandbox"))?;
        if self.state.has_sandbox() {
            return Ok(false);
        }
        let shared = matches!(self.places, Places::Shared(_));
        let request = CreateSandboxRequest {
            dns: resolv_conf(pod),
            // Whoever comes first may want none, and a later container that does would get that one's.
            sandbox_pidns: true,
            ..sandbox::request(&sandbox_id(pod), &pod.hostname, shared)
        };
        let hostname = match self.client.create_sandbox(&request).await {
            Ok(()) => Some(&*pod.hostname),
            // It is there already: another client's.
            Err(error) if matches!(error.code, Code::ALREADY_EXISTS | Code::FAILED_PRECONDITION) => None,
            Err(error) => return Err(error.into()),
        };
        self.state.note_sandbox(hostname).map_err(CriError::io("note of the sandbox"))?;
        Ok(hostname.is_some())
    }

    /// Lets a container's program run: for the first time, or again when it has ended, with the root filesystem that it
    /// has left. One that can't be started for the first time is taken down; both stay on record with the reason.
    ///
    /// # Errors
    ///
    /// There is no such container, it runs or has failed, or the agent refuses.
    pub async fn start(&self, id: &str) -> Result<ContainerRecord, CriError> {
        let lock = self.lock(id).await?;
        let started = self.start_locked(id).await;
        self.state.unlock(id, lock);
        started
    }

    async fn start_locked(&self, id: &str) -> Result<ContainerRecord, CriError> {
        let mut record = self.record(id)?;
        if matches!(record.state, ContainerState::Stopped { .. }) {
            record.stopped = false;
            self.run_again(&mut record, Action::Start).await?;
            return Ok(record);
        }
        self.expect(&record, &[ContainerState::Created])?;
        if let Err(error) =
            self.state.journal().step(id, Action::Start, self.client.start_container(id)).await
        {
            self.take_down(&mut record).await;
            record.fail(&error);
            self.put(&record)?;
            return Err(error.into());
        }
        record.run();
        self.put(&record)?;
        Ok(record)
    }

    /// Makes a container that has ended anew under its name, and starts it.
    pub(super) async fn run_again(
        &self,
        record: &mut ContainerRecord,
        action: Action,
    ) -> Result<(), CriError> {
        let id = record.id.clone();
        record.health = record.order.extras.health.as_ref().map(|_| Health::Starting);
        let again = async {
            gone(self.client.remove_container(&id).await)?;
            self.create_at_agent(record).await?;
            let started = self.client.start_container(&id).await;
            if started.is_err() {
                let _ = self.client.remove_container(&id).await;
            }
            Ok::<_, CriError>(started?)
        };
        let again = self.state.journal().step(&id, action, again).await;
        match &again {
            Ok(()) => record.run(),
            Err(error) => record.fail(error),
        }
        self.put(record)?;
        again
    }

    fn expect(&self, record: &ContainerRecord, states: &[ContainerState]) -> Result<(), CriError> {
        if states.contains(&record.state) {
            return Ok(());
        }
        Err(CriError::State { id: record.id.clone(), state: record.state.to_string() })
    }

    /// Undoes all that was done for a container that has failed; what can't be undone is left.
    async fn take_down(&self, record: &mut ContainerRecord) {
        let _ = self.client.remove_container(&record.id).await;
        self.take_back(record);
        // What can't be pulled stays on record, for `rm` to try again.
        let _ = record.holdings.unplug(&record.id).await;
        record.holdings.forget_files();
    }

    /// Takes back what a container has of this host's filesystems; what stays is told, and in the journal.
    pub(super) fn take_back(&self, record: &ContainerRecord) {
        let taken = record.holdings.take_back(&record.id);
        if let Err(left) = &taken {
            self.state.journal().note(&Event::new(&record.id, Action::Remove).detail(left.to_string()));
        }
        removal::tell(taken);
    }

    /// A further process of the container: its own with other arguments.
    pub fn process(&self, id: &str, args: &[String], terminal: bool) -> oci::Process {
        let record = self.state.container(id).and_then(|record| record.spec);
        let spec = record.and_then(|spec| nakai_protocols::spec::to_wire(&spec).ok());
        // One that another client has made gets what an ordinary one has.
        let spec = spec.unwrap_or_else(|| SpecBuilder::new(id, "").build());
        let mut process = SpecBuilder::of(spec).args(args).process();
        process.Terminal = terminal;
        if terminal && !process.Env.iter().any(|entry| entry.starts_with("TERM=")) {
            process.Env.push("TERM=xterm".to_owned());
        }
        process
    }

    /// Whose a further process is to be, by the container's own files: the user and group of `text`.
    ///
    /// # Errors
    ///
    /// There is no such user or group, or the files can't be read.
    pub fn user(&self, id: &str, text: &str) -> Result<User, CriError> {
        let accounts = match self.state.container(id) {
            Some(record) => root::accounts(&record)?,
            // Of another client's nothing is known.
            None => Accounts::default(),
        };
        let otherwise = Otherwise { who: "--user", user: text };
        resolve(&LinuxContainerSecurityContext::default(), otherwise, &accounts)
    }

    /// Runs a further process.
    ///
    /// # Errors
    ///
    /// The agent refuses it.
    pub async fn exec(&self, id: &str, exec: &str, process: oci::Process) -> Result<(), CriError> {
        let lock = self.lock(id).await?;
        let start = self.client.exec_process(id, exec, process);
        let started = self.state.journal().step(id, Action::Exec, start).await;
        self.state.unlock(id, lock);
        Ok(started?)
    }

    /// Sends a signal to a container's program, or SIGKILL to all of its processes.
    ///
    /// # Errors
    ///
    /// The agent refuses.
    pub async fn kill(&self, id: &str, number: u32, all: bool) -> Result<(), CriError> {
        // Who kills it does not want it started again.
        let ends = self.state.container(id).is_some_and(|record| {
            all || number == libc::SIGKILL.unsigned_abs()
                || stop_signal(&record).is_ok_and(|stop| stop == number)
        });
        if ends {
            self.change(id, |record| record.stopped = true).await?;
        }
        self.client.signal_process(id, if all { "" } else { id }, number).await?;
        self.state.journal().note(&Event::new(id, Action::Kill).detail(format!("signal {number}")));
        Ok(())
    }

    /// Freezes all processes of a container.
    ///
    /// # Errors
    ///
    /// It does not run, or the agent refuses.
    pub async fn pause(&self, id: &str) -> Result<(), CriError> {
        let step = (Action::Pause, ContainerState::Running, ContainerState::Paused);
        self.switch(id, step, self.client.pause_container(id)).await
    }

    /// Thaws them.
    ///
    /// # Errors
    ///
    /// It is not frozen, or the agent refuses.
    pub async fn resume(&self, id: &str) -> Result<(), CriError> {
        let step = (Action::Resume, ContainerState::Paused, ContainerState::Running);
        self.switch(id, step, self.client.resume_container(id)).await
    }

    async fn switch(
        &self,
        id: &str,
        (action, from, to): (Action, ContainerState, ContainerState),
        call: impl Future<Output = Result<(), CallError>>,
    ) -> Result<(), CriError> {
        let lock = self.lock(id).await?;
        let switched = async {
            let mut record = self.record(id)?;
            self.expect(&record, &[from])?;
            self.state.journal().step(id, action, call).await?;
            record.state = to;
            self.put(&record)
        };
        let switched = switched.await;
        self.state.unlock(id, lock);
        switched
    }

    /// Finds out whether a container that nobody stays with runs still, and notes it when it does not.
    ///
    /// # Errors
    ///
    /// There is no such container, or the note can't be written.
    pub async fn find_out(&self, id: &str) -> Result<ContainerRecord, CriError> {
        /// How long the answer may take that it has ended.
        const GLANCE: Duration = Duration::from_millis(200);
        let record = self.record(id)?;
        if !record.lives() {
            return Ok(record);
        }
        // The end is told once, and who stays with it is to have it.
        let Some(turn) = self.state.try_attend(id) else { return Ok(record) };
        let ended = self.client.within(GLANCE).wait_process(id, id).await;
        drop(turn);
        match ended {
            Ok(code) => self.note_end(id, code).await?,
            // It has been told to somebody who did not come to note it.
            Err(error) if gone(Err(error.clone())).is_ok() => self.note_end(id, UNKNOWN_STATUS).await?,
            Err(_) => {}
        }
        self.record(id)
    }

    /// Notes the end of a container that nobody stays with.
    async fn note_end(&self, id: &str, code: i32) -> Result<(), CriError> {
        let lives = self.state.container(id).is_some_and(|record| record.lives());
        if !lives || self.state.try_attend(id).is_none() {
            return Ok(());
        }
        self.state.journal().note(&Event::new(id, Action::Die).exit_code(code));
        self.change(id, |record| record.stop(code)).await.map(drop)
    }

    /// Asks a container to end, and kills it after `grace`. It is not started again.
    ///
    /// # Errors
    ///
    /// There is no such container, or the agent refuses.
    pub async fn stop(&self, id: &str, grace: Duration) -> Result<(), CriError> {
        let record = self.change(id, |record| record.stopped = true).await?;
        let record = record.ok_or_else(|| CriError::Unknown(id.to_owned()))?;
        // Of one whose attendant has failed nobody but the agent knows what it does.
        let is_known = !matches!(record.state, ContainerState::Error { .. });
        if !record.lives() && is_known {
            return Ok(());
        }
        if record.state == ContainerState::Paused {
            self.resume(id).await?;
        }
        let signal = stop_signal(&record)?;
        self.state
            .journal()
            .note(&Event::new(id, Action::Kill).detail(format!("signal {signal}, to stop it")));
        let code = self.end(id, signal, grace).await?;
        self.note_end(id, code.unwrap_or(UNKNOWN_STATUS)).await
    }

    /// Has a program end; none where somebody else has been told how.
    async fn end(&self, id: &str, signal: u32, grace: Duration) -> Result<Option<i32>, CriError> {
        if gone(self.client.signal_process(id, id, signal).await)? {
            return Ok(None);
        }
        // To the wire, no time at all is no limit.
        let grace = grace.max(Duration::from_millis(1));
        let mut ended = self.client.within(grace).wait_process(id, id).await;
        if ended.as_ref().is_err_and(|error| error.code == Code::DEADLINE_EXCEEDED) {
            if gone(self.client.signal_process(id, "", libc::SIGKILL.unsigned_abs()).await)? {
                return Ok(None);
            }
            ended = self.client.wait_process(id, id).await;
        }
        let code = ended.as_ref().ok().copied();
        gone(ended.map(drop)).map(|_| code)
    }

    /// Removes a container, killing what still runs in it, with everything that it has of this host.
    ///
    /// # Errors
    ///
    /// The agent refuses, a disk can't be pulled, or nobody knows of such a container.
    pub async fn remove(&self, id: &str) -> Result<(), CriError> {
        let lock = self.lock(id).await?;
        let removed = self.state.journal().step(id, Action::Remove, self.remove_locked(id)).await;
        self.state.unlock(id, lock);
        removed
    }

    async fn remove_locked(&self, id: &str) -> Result<(), CriError> {
        let Some(mut record) = self.state.container(id) else {
            // Another client's.
            return Ok(self.client.remove_container(id).await?);
        };
        // What could not be made is only on record.
        gone(self.client.remove_container(id).await)?;
        self.take_back(&record);
        if let Err(error) = record.holdings.unplug(id).await {
            // The next try is not to pull what another has got meanwhile.
            self.put(&record)?;
            return Err(error);
        }
        if matches!(self.places, Places::Shared(_)) {
            // An agent that does not know the call keeps an empty mount point for a while.
            let _ = self.client.look_at_shares().await;
        }
        self.state.forget_container(id);
        Ok(())
    }

    /// Takes the agent's OOM events for as long as it is let: they are told once, to one client.
    ///
    /// # Errors
    ///
    /// A note can't be written.
    pub async fn note_oom_kills(&self) -> Result<(), CriError> {
        let _turn = self.state.lock_oom_events().await.map_err(CriError::io("lock of the OOM events"))?;
        loop {
            let Ok(id) = self.client.oom_event().await else {
                // An agent that has none, or that is gone.
                return std::future::pending().await;
            };
            self.state.journal().note(&Event::new(&id, Action::Oom));
            self.change(&id, |record| record.oom_killed = true).await?;
        }
    }

    /// This host's side of the directory that is shared with the guest.
    pub fn share(&self) -> Option<&Path> {
        match &self.places {
            Places::Shared(share) => Some(share),
            Places::Local(_) => None,
        }
    }
}

/// The status of a program of which nobody knows how it ended: containerd's.
const UNKNOWN_STATUS: i32 = 255;

/// The signal that asks a container's program to end.
fn stop_signal(record: &ContainerRecord) -> Result<u32, CriError> {
    let asked = record.order.config.stop_signal.as_deref().unwrap_or(&record.order.image.stop_signal);
    signal(asked).ok_or_else(|| CriError::field("stop_signal", format!("{asked:?} is no signal")))
}

/// Whether the agent knows of no such process (any more).
pub(super) fn gone(result: Result<(), CallError>) -> Result<bool, CriError> {
    match result {
        Ok(()) => Ok(false),
        Err(error) if matches!(error.code, Code::NOT_FOUND | Code::INVALID_ARGUMENT) => Ok(true),
        Err(error) => Err(error.into()),
    }
}
