//! A container's making, from the order to a program that waits for its start.
//!
//! ```text
//! name taken -> PCI functions claimed -> sandbox -> volumes waited for -> image unpacked -> root and mounts lent
//!            -> functions and network cards plugged in -> created by the agent -> noted
//! ```
//!
//! Each step takes back what the earlier ones have done when it fails: files by guards, disks by hand. So does who is
//! told to give up, when what can't be given up in the middle has ended ([`pending`]): a copy, a call to the agent.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nakai_protocols::agent::CreateContainerRequest;
use ttrpc::Code;

use super::config::NamespaceMode;
use super::engine::{Engine, gone};
use super::extras::{HealthCheck, RootKind};
use super::root::{self, Opened};
use super::spec::{Request, file_name, plan, sandbox_id};
use super::volumes::{Lent, wait_for};
use super::{CriError, ImageConfig, Order, devices};
use crate::disk::{Access, RootDisk};
use crate::image::Image;
use crate::nets::Function;
use crate::pending;
use crate::state::{Action, ContainerRecord, ContainerState, Event, Health, Lock, Phase, State};

/// How long a guest may take a name in the share for what it was: virtiofsd tells it to for a second.
const FORGETS: Duration = Duration::from_millis(1500);

/// A name that is taken while its container is made; dropped, it is free again, unless something may be left.
struct Reserved<'a> {
    state: &'a State,
    record: ContainerRecord,
    lock: Option<Lock>,
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        let Some(lock) = self.lock.take() else { return };
        if self.record.holdings.share.is_none() && !self.record.holdings.is_plugged() {
            self.state.forget_container(&self.record.id);
        } else {
            // Given up half-way: whoever removes it, or takes its name, takes back what there is.
            let reason = "its making was interrupted";
            self.record.fail(reason);
            let _ = self.state.note_container(&self.record);
            self.state.journal().note(&not_made(&self.record.id, reason));
        }
        self.state.unlock(&self.record.id, lock);
    }
}

fn not_made(id: &str, reason: &str) -> Event {
    Event::new(id, Action::Create).phase(Phase::Failed).detail(reason)
}

impl Engine {
    /// Makes a container; the second value is warnings for the user.
    ///
    /// # Errors
    ///
    /// A field can't be carried out, a volume does not come, the agent refuses. Nothing is left then.
    pub async fn create(&self, order: &Order) -> Result<(ContainerRecord, Vec<String>), CriError> {
        self.create_unless(order, false, std::future::pending()).await
    }

    /// The same, but gives up when `told`; a failure of another kind stays on record with its reason where the caller
    /// `keeps` it, for a person to see. Dropped, it leaves what it has done, and a record that says so.
    ///
    /// # Errors
    ///
    /// As [`Engine::create`], and [`CriError::Interrupted`].
    pub async fn create_unless(
        &self,
        order: &Order,
        keeps: bool,
        told: impl Future<Output = ()>,
    ) -> Result<(ContainerRecord, Vec<String>), CriError> {
        tokio::pin!(told);
        self.check_target(order)?;
        self.check_network(order)?;
        self.check_hostname(order)?;
        let reserved = tokio::select! {
            biased;
            () = &mut told => Err(CriError::Interrupted),
            reserved = self.reserve(order) => reserved,
        };
        let mut reserved = reserved?;
        let record = &mut reserved.record;
        let made = tokio::select! {
            biased;
            () = &mut told => Err(CriError::Interrupted),
            made = self.steps(record) => made,
        };
        match made {
            Ok(warnings) => {
                let (record, lock) = (record.clone(), reserved.lock.take());
                drop(lock);
                Ok((record, warnings))
            }
            Err(error) => {
                let id = record.id.clone();
                let interrupted = matches!(error, CriError::Interrupted);
                if interrupted {
                    pending::settled().await;
                    self.unmake(record).await?;
                    self.state().journal().note(&not_made(&id, "interrupted"));
                }
                // Why it is not made tells more than why something stays.
                let unplugged = record.holdings.unplug(&id).await.is_ok();
                record.holdings.forget_files();
                let another = matches!(&error, CriError::Call(call) if call.code == Code::ALREADY_EXISTS);
                if keeps && !another && !interrupted || !unplugged {
                    record.fail(&error);
                    self.put(record)?;
                    drop(reserved.lock.take());
                }
                Err(error)
            }
        }
    }

    /// Takes the container's name, and notes that it is on its way. A failed one may be tried again.
    async fn reserve(&self, order: &Order) -> Result<Reserved<'_>, CriError> {
        let (pod, name) = (sandbox_id(&order.pod), order.name());
        let attempt = order.config.metadata.attempt;
        let attempt = match &order.id {
            // A name of its own comes once, and is not to be remembered for ever.
            Some(id) if id == name => attempt,
            _ => {
                let next = self.state().next_attempt(&pod, name, attempt).await;
                next.map_err(CriError::io("note of the attempts"))?
            }
        };
        let id = match &order.id {
            Some(id) => id.clone(),
            None => file_name(&format!("{}-{name}-{attempt}", order.pod.metadata.name)),
        };
        if file_name(&id) != id {
            return Err(CriError::field("name", format!("{id:?}: letters, digits, '.', '_' and '-' only")));
        }
        let lock = self.lock(&id).await?;
        match self.state().container(&id) {
            Some(mut failed) if matches!(failed.state, ContainerState::Error { .. }) => {
                if failed.holdings.share.is_some() {
                    self.unmake(&failed).await?;
                    failed.holdings.forget_files();
                }
                let pulled = failed.holdings.unplug(&id).await;
                self.put(&failed)?;
                pulled?;
            }
            Some(taken) => return Err(CriError::Taken { id, state: taken.state.to_string() }),
            None => {}
        }
        let record = ContainerRecord {
            order: order.clone(),
            args: order.args(),
            attempt,
            ..ContainerRecord::new(&id)
        };
        let reserved = Reserved { state: self.state(), record, lock: Some(lock) };
        self.put(&reserved.record)?;
        Ok(reserved)
    }

    /// Takes back what is left of a container whose making was interrupted.
    async fn unmake(&self, record: &ContainerRecord) -> Result<(), CriError> {
        // Without a specification the agent was not asked; else it may have made it.
        if record.spec.is_some() {
            gone(self.client().remove_container(&record.id).await)?;
        }
        self.take_back(record);
        Ok(())
    }

    async fn steps(&self, record: &mut ContainerRecord) -> Result<Vec<String>, CriError> {
        let (id, journal) = (record.id.clone(), self.state().journal());
        self.claim(record).await?;
        self.take_name_servers(&mut record.order);
        self.need_named_sandbox(&record.order).await?;
        self.need_pod_network(&record.order).await?;
        let volumes = &record.order.extras.volumes;
        if !volumes.is_empty() {
            journal.step(&id, Action::Volume, wait_for(volumes)).await?;
        }
        let open = root::open(&record.order, self.places());
        let opened = match record.order.extras.root {
            RootKind::Itself => open.await?,
            _ => journal.step(&id, Action::Image, open).await?,
        };
        journal.step(&id, Action::Create, self.create_opened(record, opened)).await
    }

    async fn create_opened(
        &self,
        record: &mut ContainerRecord,
        opened: Opened,
    ) -> Result<Vec<String>, CriError> {
        let id = record.id.clone();
        let mut order = record.order.clone();
        if let Opened::Image(image, _) = &opened {
            take_defaults(&mut order, image)?;
        }
        let mut lent = Lent::new(self.places(), &id);
        // On record first: a client that is killed on the way leaves it to whoever removes the container.
        record.holdings.share = Some(self.places().host().to_owned());
        record.holdings.root = order.extras.root == RootKind::Image || order.extras.root == RootKind::Itself;
        record.holdings.limit = order.extras.disk.map(|_| self.state().place("disks", &id));
        let on_disks = matches!(order.extras.root, RootKind::Disk(_) | RootKind::Layers);
        let root = on_disks.then_some("root");
        let block = devices::block_field(&order.config.devices);
        let fields = root.into_iter().chain(order.extras.plugged_fields()).chain(block.as_deref());
        for field in fields {
            record.holdings.plugging = Some(self.machine(field)?.clone());
        }
        self.put(record)?;
        self.let_guest_forget(&id).await;
        let root = root::make(self, &order, &id, opened, &mut lent, &mut record.holdings).await?;
        self.plug(record, &mut order).await?;
        self.tell_name_servers(&mut order, &record.holdings.cards);
        let plan = plan(&Request {
            id: &id,
            pod: &order.pod,
            config: &order.config,
            extras: &order.extras,
            image: &order.image,
            accounts: &root.accounts,
            root: &root.guest,
            places: self.places(),
        })?;
        for block in &plan.blocks {
            let access = if block.readonly { Access::Shared } else { Access::Device };
            let disk = RootDisk::plug(self.machine(&block.field)?, &id, block.path.clone(), access).await?;
            record.holdings.disks.push(disk.at(&block.container_path));
        }
        make_sources(&order)?;
        lent.write(&plan.files)?;
        lent.bind(&plan.binds)?;
        record.log = log_file(&order, record.attempt)?;
        record.args.clone_from(&plan.spec.Process.Args);
        let spec = nakai_protocols::spec::from_wire(&plan.spec)
            .map_err(|error| CriError::field("specification", error.to_string()))?;
        record.spec = Some(spec);
        record.shared_pid = plan.shared_pid;
        record.health = order.extras.health.as_ref().map(|_| Health::Starting);
        record.order = order;
        self.create_at_agent(record).await?;
        record.state = ContainerState::Created;
        record.holdings.share = Some(self.places().host().to_owned());
        record.holdings.root = root.shared.is_some();
        record.holdings.limit = lent.disk().map(Path::to_owned);
        record.holdings.plugging = None;
        if let Err(error) = self.put(record) {
            let _ = self.client().remove_container(&id).await;
            return Err(error);
        }
        lent.keep();
        if let Some(shared) = root.shared {
            shared.keep();
        }
        Ok(plan.warnings)
    }

    /// In the share a guest takes a name for what it was until it looks again. So what had this name has to be gone for
    /// so long, or its directory would be found where the new one is.
    async fn let_guest_forget(&self, id: &str) {
        let lately = SystemTime::now().checked_sub(FORGETS).unwrap_or(UNIX_EPOCH);
        if self.share().is_some() && self.state().journal().was_taken_away_since(lately, id) {
            // There is no event in it: the guest forgets unseen.
            tokio::time::sleep(FORGETS).await;
        }
    }

    pub(super) async fn create_at_agent(&self, record: &ContainerRecord) -> Result<(), CriError> {
        let spec = record.spec.as_ref().ok_or_else(|| CriError::Unknown(record.id.clone()))?;
        let wire = nakai_protocols::spec::to_wire(spec)
            .map_err(|error| CriError::field("specification", error.to_string()))?;
        let disks = &record.holdings.disks;
        let functions = record.holdings.functions.iter().map(Function::wire);
        let request = CreateContainerRequest {
            container_id: record.id.clone(),
            exec_id: record.id.clone(),
            OCI: Some(wire).into(),
            sandbox_pidns: record.shared_pid,
            storages: disks.iter().filter_map(RootDisk::storage).collect(),
            devices: functions.chain(disks.iter().filter_map(RootDisk::wire_device)).collect(),
            ..Default::default()
        };
        let client = self.client().clone();
        // The agent makes it, whether or not anybody waits.
        let call = pending::to_its_end(async move { client.create_container_with(&request).await });
        Ok(call.await.map_err(CriError::io(format!("creation of container {}", record.id)))??)
    }

    /// Another container whose namespaces are to be shared must be there, with the pod's: the agent lets nobody join
    /// others.
    fn check_target(&self, order: &Order) -> Result<(), CriError> {
        let options = &order.config.linux.security_context.namespace_options;
        let wanted = [("pid", options.pid), ("network", options.network), ("ipc", options.ipc)];
        for (name, _) in wanted.into_iter().filter(|(_, mode)| *mode == NamespaceMode::Target) {
            let refuse = |reason: String| CriError::field(format!("namespace_options.{name}"), reason);
            if options.target_id.is_empty() {
                return Err(refuse("TARGET without target_id".to_owned()));
            }
            let target =
                self.record(&options.target_id).map_err(|error| refuse(format!("TARGET: {error}")))?;
            let its = &target.order.config.linux.security_context.namespace_options;
            let (is_own, what) = match name {
                "pid" => (!target.shared_pid, "a PID"),
                "network" => (its.network == NamespaceMode::Container, "a network"),
                // All containers have the sandbox's.
                _ => (false, "an IPC"),
            };
            if is_own {
                return Err(refuse(format!(
                    "TARGET: container {} has {what} namespace of its own, which the agent lets nobody join",
                    options.target_id
                )));
            }
        }
        Ok(())
    }
}

/// What the image says, where the caller says nothing.
fn take_defaults(order: &mut Order, image: &Image) -> Result<(), CriError> {
    if order.image == ImageConfig::default() {
        order.image = ImageConfig::of(&image.config);
    }
    if let (true, None, Some(check)) =
        (order.extras.image_health, &order.extras.health, &image.config.healthcheck)
    {
        let check = HealthCheck::of_image(check);
        order.extras.health = check.map_err(|reason| CriError::field("the image's Healthcheck", reason))?;
    }
    Ok(())
}

/// Makes the directories of this host that are to be mounted and are not there, as Docker and containerd do.
fn make_sources(order: &Order) -> Result<(), CriError> {
    for path in order.config.mounts.iter().map(|mount| Path::new(&*mount.host_path)) {
        if path.is_absolute() && !path.exists() {
            std::fs::create_dir_all(path).map_err(CriError::io(format!("mount of {}", path.display())))?;
        }
    }
    Ok(())
}

/// Where the output goes: as the configuration says, else by the kubelet's layout below the pod's directory.
fn log_file(order: &Order, attempt: u32) -> Result<Option<PathBuf>, CriError> {
    let directory = Path::new(&order.pod.log_directory);
    let path = match (&*order.pod.log_directory, &*order.config.log_path) {
        ("", "") => return Ok(None),
        ("", _) => return Err(CriError::field("log_path", "the pod has no log_directory")),
        (_, "") => directory.join(file_name(order.name())).join(format!("{attempt}.log")),
        (_, path) => directory.join(path),
    };
    let parent = path.parent().unwrap_or(directory);
    std::fs::create_dir_all(parent).map_err(CriError::io(format!("log directory {}", parent.display())))?;
    Ok(Some(path))
}
