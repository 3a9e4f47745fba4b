//! Containers' lives: made, started, stopped and removed through the agent, with what the host adds to them.
//!
//! Each step takes back what it has done when a later one fails. [`super::supervise`] stays with a running container.

use std::path::{Path, PathBuf};
use std::time::Duration;

use nakai_protocols::agent::{CreateContainerRequest, CreateSandboxRequest};
use nakai_protocols::oci;
use ttrpc::Code;

use super::config::{NamespaceMode, PodSandboxConfig};
use super::image::signal;
use super::mounts::Places;
use super::spec::{Request, file_name, plan, resolv_conf, sandbox_id};
use super::store::{Health, Order, Record, State, Store};
use super::users::Accounts;
use super::volumes::{Lent, wait_for};
use super::{CriError, ImageConfig};
use crate::image::{self, Image};
use crate::rootfs::{self, SharedRootfs};
use crate::{CallError, Client, sandbox, time};

/// An agent, and where this client keeps what it needs to know.
#[derive(Clone, Debug)]
pub struct Engine {
    client: Client,
    places: Places,
    store: Store,
}

/// A root filesystem that the agent can see, until it is kept or dropped.
struct Root {
    guest: String,
    host: PathBuf,
    shared: Option<SharedRootfs>,
}

impl Engine {
    /// The agent behind `client`; `share` is this host's side of the directory shared with the guest, if there is
    /// one, and `directory` is for notes.
    pub fn new(client: Client, share: Option<PathBuf>, directory: PathBuf) -> Self {
        let places = share.map_or_else(|| Places::Local(directory.join("lent")), Places::Shared);
        Self { client, places, store: Store::new(directory) }
    }

    /// The connection.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// This host's side of the directory that is shared with the guest.
    pub fn share(&self) -> Option<&Path> {
        match &self.places {
            Places::Shared(share) => Some(share),
            Places::Local(_) => None,
        }
    }

    /// The notes.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Creates the pod's sandbox, unless the agent has one; whether it has been created now.
    ///
    /// # Errors
    ///
    /// The agent refuses it.
    pub async fn need_sandbox(&self, pod: &PodSandboxConfig) -> Result<bool, CriError> {
        let shared = matches!(self.places, Places::Shared(_));
        let request = CreateSandboxRequest {
            dns: resolv_conf(pod),
            sandbox_pidns: pod.linux.security_context.namespace_options.pid == NamespaceMode::Pod,
            ..sandbox::request(&sandbox_id(pod), &pod.hostname, shared)
        };
        match self.client.create_sandbox(&request).await {
            // It is there already: another container's.
            Err(error) if matches!(error.code, Code::ALREADY_EXISTS | Code::FAILED_PRECONDITION) => Ok(false),
            other => Ok(other.map(|()| true)?),
        }
    }

    /// Makes a container; the second value is warnings for the user.
    ///
    /// # Errors
    ///
    /// A field can't be carried out, a volume does not come, the agent refuses. Nothing is left then.
    pub async fn create(&self, order: &Order) -> Result<(Record, Vec<String>), CriError> {
        let Order { pod, config, extras, image, .. } = order;
        let name = if config.metadata.name.is_empty() { "container" } else { &config.metadata.name };
        let pod_id = sandbox_id(pod);
        wait_for(&extras.volumes).await?;
        self.check_target(order)?;
        let attempt = self.store.next_attempt(&pod_id, name, config.metadata.attempt)?;
        let id = match &order.id {
            Some(id) => id.clone(),
            None => file_name(&format!("{}-{name}-{attempt}", pod.metadata.name)),
        };
        let mut lent = Lent::new(&self.places, &id);
        let (root, said) = self.root(order, &id, &mut lent)?;
        // What the caller says of the image stands above what is in it.
        let image = if *image == ImageConfig::default() { &said } else { image };
        let accounts = Accounts::read(&root.host)?;
        let plan = plan(&Request {
            id: &id,
            pod,
            config,
            extras,
            image,
            accounts: &accounts,
            root: &root.guest,
            places: &self.places,
        })?;
        lent.write(&plan.files)?;
        lent.bind(&plan.binds)?;
        let log = self.log(order, name, attempt)?;
        let spec = nakai_protocols::spec::from_wire(&plan.spec)
            .map_err(|error| CriError::field("specification", error.to_string()))?;
        let record = Record {
            id: id.clone(),
            order: Order { image: image.clone(), ..order.clone() },
            spec,
            shared_pid: plan.shared_pid,
            attempt,
            state: State::Created,
            restarts: 0,
            stopped: false,
            health: if extras.health.is_some() { Health::Starting } else { Health::None },
            log,
            shared: root.shared.is_some(),
            created: time::now(),
        };
        self.create_at_agent(&record).await?;
        if let Err(error) = self.store.put(&record) {
            let _ = self.client.remove_container(&id).await;
            return Err(error);
        }
        lent.keep();
        if let Some(shared) = root.shared {
            shared.keep();
        }
        Ok((record, plan.warnings))
    }

    /// Another container whose PID namespace is to be shared must be in the pod's own.
    fn check_target(&self, order: &Order) -> Result<(), CriError> {
        let options = &order.config.linux.security_context.namespace_options;
        if options.pid != NamespaceMode::Target {
            return Ok(());
        }
        if self.store.get(&options.target_id)?.shared_pid {
            return Ok(());
        }
        let reason = format!(
            "TARGET: container {} has a PID namespace of its own, which the agent lets nobody join",
            options.target_id
        );
        Err(CriError::field("namespace_options.pid", reason))
    }

    /// Makes the image's files the container's root, and tells what the image says of its containers.
    fn root(&self, order: &Order, id: &str, lent: &mut Lent) -> Result<(Root, ImageConfig), CriError> {
        let reference = &order.config.image.image;
        let image = Image::open(reference, &image::Store::of_user())?;
        let config = ImageConfig::of(&image.config);
        let shared = match (&self.places, order.extras.disk) {
            (Places::Shared(_), Some(bytes)) => {
                let host = lent.limited_root(&image.layers, self.store.place("disks", id), bytes)?;
                return Ok((Root { guest: sandbox::guest_rootfs(id), host, shared: None }, config));
            }
            (Places::Shared(share), None) => SharedRootfs::share_image(&image, share, id)?,
            (Places::Local(_), Some(_)) => {
                return Err(CriError::field("disk", "an agent on this host gets a copy, without a limit"));
            }
            (Places::Local(directory), None) => {
                let at = CriError::io(directory.display().to_string());
                std::fs::create_dir_all(directory).map_err(at)?;
                let shared = SharedRootfs::copy_image(&image, directory, id)?;
                let host = shared.host_path();
                return Ok((Root { guest: host.display().to_string(), host, shared: Some(shared) }, config));
            }
        };
        let host = shared.host_path();
        Ok((Root { guest: shared.guest_path().to_owned(), host, shared: Some(shared) }, config))
    }

    /// Where the output goes: as the configuration says, else by the kubelet's layout below the pod's directory.
    fn log(&self, order: &Order, name: &str, attempt: u32) -> Result<Option<PathBuf>, CriError> {
        let directory = Path::new(&order.pod.log_directory);
        let path = match (&*order.pod.log_directory, &*order.config.log_path) {
            ("", "") => return Ok(None),
            ("", _) => return Err(CriError::field("log_path", "the pod has no log_directory")),
            (_, "") => directory.join(file_name(name)).join(format!("{attempt}.log")),
            (_, path) => directory.join(path),
        };
        let parent = path.parent().unwrap_or(directory);
        std::fs::create_dir_all(parent)
            .map_err(CriError::io(format!("log directory {}", parent.display())))?;
        Ok(Some(path))
    }

    pub(super) async fn create_at_agent(&self, record: &Record) -> Result<(), CriError> {
        let wire = nakai_protocols::spec::to_wire(&record.spec)
            .map_err(|error| CriError::field("specification", error.to_string()))?;
        let request = CreateContainerRequest {
            container_id: record.id.clone(),
            exec_id: record.id.clone(),
            OCI: Some(wire).into(),
            sandbox_pidns: record.shared_pid,
            ..Default::default()
        };
        Ok(self.client.create_container_with(&request).await?)
    }

    /// Lets a container's program run.
    ///
    /// # Errors
    ///
    /// There is no such container, it is not waiting for its start, or the agent refuses.
    pub async fn start(&self, id: &str) -> Result<Record, CriError> {
        let mut record = self.store.get(id)?;
        if record.state != State::Created {
            return Err(CriError::State { id: id.to_owned(), state: record.state.to_string() });
        }
        self.client.start_container(id).await?;
        record.state = State::Running;
        self.store.put(&record)?;
        Ok(record)
    }

    /// A further process of the container: its own with other arguments.
    ///
    /// # Errors
    ///
    /// There is no such container.
    pub fn process(&self, id: &str, args: &[String], terminal: bool) -> Result<oci::Process, CriError> {
        let record = self.store.get(id)?;
        let wire = nakai_protocols::spec::to_wire(&record.spec)
            .map_err(|error| CriError::field("specification", error.to_string()))?;
        let mut process = wire.Process.clone().unwrap_or_default();
        process.Args = args.to_vec();
        process.Terminal = terminal;
        Ok(process)
    }

    /// Asks a container to end, and kills it after `grace`. It is not started again.
    ///
    /// # Errors
    ///
    /// There is no such container, or the agent refuses.
    pub async fn stop(&self, id: &str, grace: Duration) -> Result<(), CriError> {
        let mut record = self.store.get(id)?;
        record.stopped = true;
        self.store.put(&record)?;
        if matches!(record.state, State::Created | State::Error(_)) {
            return Ok(());
        }
        let signal = stop_signal(&record)?;
        if gone(self.client.signal_process(id, id, signal).await)? {
            return Ok(());
        }
        match self.client.within(grace).wait_process(id, id).await {
            Err(error) if error.code == Code::DEADLINE_EXCEEDED => {}
            other => return gone(other.map(drop)).map(drop),
        }
        if !gone(self.client.signal_process(id, "", libc::SIGKILL.unsigned_abs()).await)? {
            gone(self.client.wait_process(id, id).await.map(drop))?;
        }
        Ok(())
    }

    /// Removes a container, killing what still runs in it, with everything that was lent to it.
    ///
    /// # Errors
    ///
    /// There is no such container, or the agent refuses.
    pub async fn remove(&self, id: &str) -> Result<(), CriError> {
        let mut record = self.store.get(id)?;
        record.stopped = true;
        self.store.put(&record)?;
        gone(self.client.remove_container(id).await)?;
        drop(Lent::of(&self.places, id, self.store.place("disks", id)));
        if record.shared {
            let (Places::Shared(directory) | Places::Local(directory)) = &self.places;
            rootfs::unshare(directory, id);
        }
        if matches!(self.places, Places::Shared(_)) {
            // An agent that does not know the call keeps an empty mount point for a while.
            let _ = self.client.look_at_shares().await;
        }
        self.store.forget(id);
        Ok(())
    }
}

/// The signal that asks a container's program to end.
fn stop_signal(record: &Record) -> Result<u32, CriError> {
    let asked = record.order.config.stop_signal.as_deref().unwrap_or(&record.order.image.stop_signal);
    signal(asked).ok_or_else(|| CriError::field("stop_signal", format!("{asked:?} is no signal")))
}

/// Whether the agent knows of no such process (any more).
fn gone(result: Result<(), CallError>) -> Result<bool, CriError> {
    match result {
        Ok(()) => Ok(false),
        Err(error) if matches!(error.code, Code::NOT_FOUND | Code::INVALID_ARGUMENT) => Ok(true),
        Err(error) => Err(error.into()),
    }
}
