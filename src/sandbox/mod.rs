//! The sandbox: what one VM holds.
//!
//! ```text
//! none -> starting -> running -> stopping -> none
//! ```
//!
//! - *none*: only CreateSandbox is allowed; DestroySandbox has nothing to do.
//! - *starting*: CreateSandbox is at work. DestroySandbox is refused.
//! - *running*: containers may be made. [`Running`] holds what they share.
//! - *stopping*: DestroySandbox removes the containers and gives back what is shared.
//!
//! CreateContainer and DestroySandbox in another state than theirs get FAILED_PRECONDITION with the state's
//! name, CreateSandbox gets ALREADY_EXISTS. Calls that name a container look it up in any state: NOT_FOUND
//! where there is none.
//!
//! The sandbox owns the directory of containers and the things that containers share. The life of a
//! container is its actor's ([`container`]). Work that changes something runs in a task of its own, so a
//! caller that goes away never stops it half-way: it is given up in good order, or taken back when it is done.

mod abandoned;
mod actor;
mod bundle;
mod cdi;
mod cgroup_paths;
pub mod container;
mod create;
mod diagnostics;
pub mod dns;
mod error;
mod facts;
mod filters;
mod guest_devices;
pub mod hooks;
mod hotplug;
mod launch;
mod lifecycle;
mod oom;
mod oom_slices;
mod pause;
mod pause_image;
mod pidfd;
mod pins;
mod process;
mod pumps;
mod records;
mod recover;
mod removal;
mod running;
mod shared_mounts;
mod shares;
mod start_words;
mod sysctl;
mod system_devices;
mod tmpfs_modes;
mod undo;
mod update;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use oci_spec::runtime;
use slog::{Logger, warn};
use tokio::sync::{Notify, oneshot, watch};

pub use crate::cgroup::KeptFiles;
pub use container::{Container, Output, Status};
pub use error::SandboxError;
pub use filters::Filters;
pub use hotplug::{Grow, Swap};
pub use oom::OomEvents;
pub use recover::Holds;
pub use running::Running;

use self::undo::Undo;
use crate::cgroup::Hierarchy;
use crate::config::Config;
use crate::device::{DeviceRequest, Devices};
use crate::guest::bulkhead::Bulkhead;
use crate::guest::copy_file::Copies;
use crate::guest::modules::Modules;
use crate::ids::{ContainerId, ExecId, GuestPath};
use crate::mem_agent::MemAgent;
use crate::network::Networking;
use crate::records::Records;
use crate::stdio::ports::{Ports, StreamPorts};
use crate::storage::{StorageRequest, Storages};
use crate::supervisor::client::Launcher;

/// What the sandbox works with; made once at boot.
#[derive(Debug)]
pub struct Environment {
    /// The operator's settings.
    pub config: Arc<Config>,
    /// Where to log.
    pub logger: Logger,
    /// Launches workers.
    pub launcher: Launcher,
    /// The mounted cgroup hierarchies.
    pub hierarchy: Arc<Hierarchy>,
    /// The guest's kernel modules.
    pub modules: Arc<Modules>,
    /// The storages in use.
    pub storages: Storages,
    /// Finds devices.
    pub devices: Devices,
    /// The interfaces and routes.
    pub network: Networking,
    /// Where streams come as connections of their own; none unless the operator wants it.
    pub ports: Option<Arc<Ports>>,
    /// Reclaims memory before it is short, if it is on.
    pub mem_agent: MemAgent,
    /// The files that the host is sending.
    pub copies: Arc<Copies>,
    /// The OOM kills that the host has not asked for yet.
    pub oom_events: Arc<OomEvents>,
    /// Compiled seccomp filters.
    pub filters: Filters,
    /// What the next server has to know.
    pub records: Arc<Records>,
    /// For work on file systems that may hang.
    pub bulkhead: Bulkhead,
}

/// CreateSandbox, checked.
#[derive(Debug)]
pub struct CreateSandbox {
    /// Names the sandbox in every log line; may be empty.
    pub id: String,
    /// The host name of the shared UTS namespace; may be empty.
    pub hostname: String,
    /// Lines of resolv.conf.
    pub dns: Vec<String>,
    /// Mounted for all containers.
    pub storages: Vec<StorageRequest>,
    /// Whether containers that want it share a PID namespace that a pause process holds.
    pub shared_pid_namespace: bool,
    /// Where guest hooks are looked for.
    pub hook_directory: Option<GuestPath>,
    /// Modules to load, with parameters.
    pub kernel_modules: Vec<(String, Vec<String>)>,
}

/// CreateContainer, checked.
#[derive(Debug)]
pub struct CreateContainer {
    /// Its id.
    pub id: ContainerId,
    /// As the host sent it. In a box, like all that is large and goes through futures: each that it is moved into would
    /// have room for it as long as it runs.
    pub spec: Box<runtime::Spec>,
    /// Devices to find first.
    pub devices: Vec<DeviceRequest>,
    /// Storages to attach first.
    pub storages: Vec<StorageRequest>,
    /// Whether it joins the sandbox's PID namespace.
    pub sandbox_pidns: bool,
    /// Connections that carry init's streams.
    pub ports: StreamPorts,
    /// What it sees of other containers.
    pub shared_mounts: Vec<SharedMount>,
}

/// A mount of another container.
#[derive(Debug)]
pub struct SharedMount {
    /// That container's name, as its annotations have it.
    pub container: String,
    /// Where it has the mount.
    pub source: GuestPath,
    /// Where the new container gets it.
    pub target: GuestPath,
}

/// ExecProcess, checked.
#[derive(Debug)]
pub struct ExecRequest {
    /// The new process's id.
    pub exec_id: ExecId,
    /// As the host sent it.
    pub process: runtime::Process,
    /// Connections that carry its streams.
    pub ports: StreamPorts,
}

/// A place in the directory of containers.
#[derive(Debug)]
enum Place {
    Creating,
    Container(Arc<Container>),
}

#[derive(Debug)]
enum State {
    None,
    Starting,
    Running(Arc<Running>),
    Stopping,
}

impl State {
    fn name(&self) -> &'static str {
        match self {
            Self::None => "not created",
            Self::Starting => "starting",
            Self::Running(_) => "running",
            Self::Stopping => "stopping",
        }
    }
}

/// The sandbox; cheap to clone.
#[derive(Debug, Clone)]
pub struct Sandbox {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    environment: Arc<Environment>,
    /// Both are held for single operations only, never across an await.
    state: Mutex<State>,
    containers: Mutex<HashMap<ContainerId, Place>>,
    /// The agent ends: there will be no other sandbox. Changes with `state` locked.
    ending: AtomicBool,
    /// Whether the sandbox is to go: creations under way are given up then.
    closing: watch::Sender<bool>,
    /// A creation has come to its end.
    created: Notify,
    looking: shares::Looking,
    untold: removal::Untold,
    /// How often CPUs or memory may have come online.
    grown: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The data is whole after every single operation, also if a thread should ever die in between.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Sandbox {
    /// A guest without a sandbox.
    pub fn new(environment: Environment) -> Self {
        Self {
            inner: Arc::new(Inner {
                environment: Arc::new(environment),
                state: Mutex::new(State::None),
                containers: Mutex::default(),
                ending: AtomicBool::new(false),
                closing: watch::Sender::new(false),
                created: Notify::new(),
                looking: shares::Looking::default(),
                untold: removal::Untold::default(),
                grown: AtomicU64::new(0),
            }),
        }
    }

    /// What it works with.
    pub fn environment(&self) -> &Environment {
        &self.inner.environment
    }

    /// Finds a container.
    ///
    /// # Errors
    /// [`SandboxError::NoContainer`], also while it is being created.
    pub fn container(&self, id: &str) -> Result<Arc<Container>, SandboxError> {
        match lock(&self.inner.containers).get(id) {
            Some(Place::Container(container)) => Ok(container.clone()),
            Some(Place::Creating) | None => Err(SandboxError::NoContainer(id.to_owned())),
        }
    }

    /// Makes a container whose init waits for [`Container::start`].
    ///
    /// # Errors
    /// Whatever step failed; everything before it has been taken back then.
    pub async fn create_container(&self, mut request: CreateContainer) -> Result<(), SandboxError> {
        let running = self.running()?;
        let mounts = std::mem::take(&mut request.shared_mounts);
        let mounts = shared_mounts::find_sources(&request.id, mounts, &self.containers())?;
        self.reserve(&request.id)?;
        let sandbox = self.clone();
        owned(
            |gone| async move {
                let gone = gone.or(sandbox.inner.closing.subscribe());
                let id = request.id.clone();
                let mut undo = Undo::default();
                sandbox.push_free_id(&id, &mut undo);
                let grown = sandbox.inner.grown.load(Ordering::SeqCst);
                let container =
                    create::create(&sandbox.inner.environment, &running, request, mounts, undo, &gone).await?;
                lock(&sandbox.inner.containers).insert(id, Place::Container(container.clone()));
                sandbox.inner.created.notify_waiters();
                // CPUs may have come online meanwhile, when it was in no list yet.
                if sandbox.inner.grown.load(Ordering::SeqCst) != grown
                    && let Err(error) = container.follow().await
                {
                    warn!(container.logger, "the container does not have what came online"; "error" => %error);
                }
                // The sandbox may have been destroyed meanwhile, without this container.
                if let Err(error) = sandbox.running() {
                    let _ = container.remove(None).await;
                    return Err(error);
                }
                Ok(container)
            },
            |container| async move { container.remove(None).await.map(drop) },
        )
        .await
        .map(drop)
    }

    /// The id can be taken again when all else of the container is gone.
    fn push_free_id(&self, id: &ContainerId, undo: &mut Undo) {
        let (directory, id) = (Arc::downgrade(&self.inner), id.clone());
        undo.push("free the id", |_| async move {
            if let Some(inner) = directory.upgrade() {
                lock(&inner.containers).remove(&id);
                inner.created.notify_waiters();
            }
            Ok(())
        });
    }

    /// Gives up the creations that are under way and waits until each has been taken back, or has come to its end.
    async fn end_creations(&self) {
        self.inner.closing.send_replace(true);
        loop {
            // Asked for before the look, so that no end is missed.
            let mut created = std::pin::pin!(self.inner.created.notified());
            created.as_mut().enable();
            if !lock(&self.inner.containers).values().any(|place| matches!(place, Place::Creating)) {
                return;
            }
            created.await;
        }
    }

    /// All containers that have been created.
    pub fn containers(&self) -> Vec<Arc<Container>> {
        let places = lock(&self.inner.containers);
        let found = places.values().filter_map(|place| match place {
            Place::Container(container) => Some(container.clone()),
            Place::Creating => None,
        });
        found.collect()
    }

    fn reserve(&self, id: &ContainerId) -> Result<(), SandboxError> {
        match lock(&self.inner.containers).entry(id.clone()) {
            std::collections::hash_map::Entry::Occupied(_) => Err(SandboxError::ContainerExists(id.clone())),
            std::collections::hash_map::Entry::Vacant(place) => {
                place.insert(Place::Creating);
                self.inner.untold.forget(id.as_str());
                Ok(())
            }
        }
    }

    /// Whether there is one.
    pub fn is_running(&self) -> bool {
        self.running().is_ok()
    }

    fn running(&self) -> Result<Arc<Running>, SandboxError> {
        match &*lock(&self.inner.state) {
            State::Running(running) => Ok(running.clone()),
            other => Err(SandboxError::SandboxState { state: other.name(), needed: "running" }),
        }
    }
}

/// Tells a call's task that nobody waits for it any more.
#[derive(Debug, Clone)]
struct Gone {
    caller: watch::Receiver<bool>,
    /// Whether the sandbox is to go, for what can't be without it.
    sandbox: Option<watch::Receiver<bool>>,
}

impl Gone {
    /// The same, and when the sandbox is to go.
    fn or(self, sandbox: watch::Receiver<bool>) -> Self {
        Self { sandbox: Some(sandbox), ..self }
    }

    /// Waits for `work`, unless the caller goes away, or the sandbox: then `work` is dropped where it is.
    async fn unless<T>(
        &self,
        work: impl Future<Output = Result<T, SandboxError>>,
    ) -> Result<T, SandboxError> {
        let Self { mut caller, sandbox } = self.clone();
        let closing = async {
            match sandbox {
                Some(mut closing) => closing.wait_for(|closing| *closing).await.is_ok(),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            result = work => result,
            Ok(_) = caller.wait_for(|gone| *gone) => Err(SandboxError::CallerGone),
            true = closing => Err(SandboxError::SandboxState { state: State::Stopping.name(), needed: "running" }),
        }
    }
}

/// Runs a call's work in a task of its own, which learns when the caller goes away. If it has succeeded by then,
/// `take_back` follows: a call has its full effect, or none.
async fn owned<T, W, B>(
    work: impl FnOnce(Gone) -> W,
    take_back: impl FnOnce(T) -> B + Send + 'static,
) -> Result<(), SandboxError>
where
    T: Send + 'static,
    W: Future<Output = Result<T, SandboxError>> + Send + 'static,
    B: Future<Output = Result<(), SandboxError>> + Send,
{
    let (mut answer, answered) = oneshot::channel();
    let (left, gone) = watch::channel(false);
    let mut work = Box::pin(work(Gone { caller: gone, sandbox: None }));
    tokio::spawn(async move {
        let result = tokio::select! {
            result = &mut work => result,
            () = answer.closed() => {
                left.send_replace(true);
                work.await
            }
        };
        match result {
            Ok(made) => {
                if answer.send(Ok(())).is_err() {
                    let _ = take_back(made).await;
                }
            }
            Err(error) => drop(answer.send(Err(error))),
        }
    });
    answered.await.unwrap_or(Err(SandboxError::TaskEnded("the task of the call")))
}
