//! CreateContainer, step by step, each with its way back.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use oci_spec::runtime::Spec;
use slog::{Logger, info, o, warn};
use tokio::sync::mpsc;

use super::actor;
use super::container::{Container, Description};
use super::error::SandboxError;
use super::launch::{self, Wiring};
use super::oom::{self, OomWatch};
use super::undo::{Undo, Why};
use super::{CreateContainer, Environment, Gone, Running, diagnostics, facts, sysctl};
use crate::cgroup::Cgroup;
use crate::device::FoundDevice;
use crate::ids::ContainerId;
use crate::spec::{self, PidNamespace, Prepared};
use crate::worker::job::{CreateJob, Job};

/// Makes the container of `request`. On failure everything is taken back before this returns.
pub(super) async fn create(
    environment: &Arc<Environment>,
    running: &Running,
    request: CreateContainer,
    mut undo: Undo,
    gone: &Gone,
) -> Result<Arc<Container>, SandboxError> {
    let logger =
        environment.logger.new(o!("container" => request.id.to_string(), "sandbox" => running.id.clone()));
    match steps(environment, running, request, &mut undo, gone, &logger).await {
        Ok(made) => {
            let (commands, mailbox) = mpsc::unbounded_channel();
            let init = Arc::new(made.init);
            let container =
                Arc::new(Container::new(made.description, init, made.oom, commands, logger.clone()));
            actor::spawn(environment.clone(), container.clone(), mailbox, undo);
            info!(logger, "container created"; "init" => container.init.pid().as_raw());
            Ok(container)
        }
        Err(error) => {
            warn!(logger, "container not created"; "error" => %error);
            undo.run(Why::Failed, &logger).await;
            Err(error)
        }
    }
}

struct Made {
    description: Description,
    init: super::process::Process,
    oom: Option<Arc<OomWatch>>,
}

async fn steps(
    environment: &Arc<Environment>,
    running: &Running,
    request: CreateContainer,
    undo: &mut Undo,
    gone: &Gone,
    logger: &Logger,
) -> Result<Made, SandboxError> {
    let id = request.id;
    let bundle = environment.config.kata_dir.join(id.as_str());
    let state_root = environment.config.state_dir.join("containers");
    make_bundle(&bundle, &state_root, undo).await?;
    let devices = gone.unless(async { Ok(environment.devices.find_all(&request.devices).await?) }).await?;
    gone.unless(attach_storages(environment, &id, request.storages, undo)).await?;
    let rootfs = blocking({
        let spec = request.spec.clone();
        move || find_rootfs(&spec)
    })
    .await?;
    let annotations = request.spec.annotations().clone().unwrap_or_default();
    let termination_log = diagnostics::termination_log(&request.spec);
    let prepared =
        prepare(environment, running, &id, request.spec, rootfs.clone(), devices, request.sandbox_pidns)
            .await?;
    for warning in &prepared.warnings {
        warn!(logger, "specification"; "warning" => warning);
    }
    sysctl::write(&prepared.sandbox_sysctls).await?;
    write_config(&bundle, &prepared.spec, undo).await?;
    let cgroup = Cgroup::new(environment.hierarchy.clone(), prepared.cgroup_path.clone())
        .map_err(|source| SandboxError::Cgroup { id: id.clone(), source })?;
    refuse_used_cgroup(&id, &cgroup).await?;
    super::lock(&running.cgroup_parents).extend(cgroup.missing_ancestors());
    let killed_before = oom::killed_before(&cgroup).await;
    push_launch_undo(&id, &state_root, &cgroup, undo);
    let launch = launch_init(environment, &id, &bundle, &state_root, rootfs, &prepared);
    let init = gone.unless(launch).await?;
    enforce_devices(&id, &cgroup, &prepared.spec).await?;
    running.publish_pid_namespace(&init);
    let oom = OomWatch::new(&id, &cgroup, killed_before, &environment.oom_events, logger).await;
    let description = Description {
        id,
        bundle,
        state_root,
        cgroup,
        exec: prepared.exec,
        poststart: prepared.poststart,
        poststop: prepared.poststop,
        annotations,
        termination_log,
        own_network: diagnostics::has_own_network(&prepared.spec),
    };
    Ok(Made { description, init, oom })
}

/// A container's cgroup is killed with it: one with others' processes in it can't be a container's.
async fn refuse_used_cgroup(id: &ContainerId, cgroup: &Cgroup) -> Result<(), SandboxError> {
    let (id, cgroup) = (id.clone(), cgroup.clone());
    blocking(move || match cgroup.is_populated() {
        Ok(true) => Err(SandboxError::CgroupInUse { id, path: cgroup.path().display().to_string() }),
        Ok(false) | Err(_) => Ok(()),
    })
    .await
}

/// Runs `work` where it may block.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SandboxError> + Send + 'static,
) -> Result<T, SandboxError> {
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(SandboxError::TaskEnded("a blocking step")))
}

async fn make_bundle(bundle: &Path, state_root: &Path, undo: &mut Undo) -> Result<(), SandboxError> {
    let (dir, state) = (bundle.to_owned(), state_root.to_owned());
    // A storage may live in the bundle, so the directory goes last and only if it is empty then.
    undo.push_blocking("remove the bundle", {
        let dir = dir.clone();
        move || match std::fs::remove_dir(&dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.to_string()),
            _ => Ok(()),
        }
    });
    blocking(move || {
        std::fs::create_dir_all(&state).map_err(SandboxError::file("make directory", &state))?;
        std::fs::create_dir_all(&dir).map_err(SandboxError::file("make directory", &dir))
    })
    .await
}

async fn attach_storages(
    environment: &Environment,
    id: &ContainerId,
    storages: Vec<crate::storage::StorageRequest>,
    undo: &mut Undo,
) -> Result<(), SandboxError> {
    for storage in storages {
        attach_storage(environment, Some(id), storage, undo).await?;
    }
    Ok(())
}

/// Attaches one storage, for a container or for the sandbox.
pub(super) async fn attach_storage(
    environment: &Environment,
    container: Option<&ContainerId>,
    storage: crate::storage::StorageRequest,
    undo: &mut Undo,
) -> Result<(), SandboxError> {
    let name = format!("release the storage {}", storage.mount_point);
    let handle = environment.storages.attach(storage, container).await?;
    undo.push(name, |why| async move {
        let released = match why {
            Why::Failed => handle.undo().await,
            Why::Removed => handle.release().await,
        };
        released.map_err(|error| error.to_string())
    });
    Ok(())
}

/// The container's root, absolute and without links. The guest's own root is never one.
fn find_rootfs(spec: &Spec) -> Result<PathBuf, SandboxError> {
    let path = spec.root().as_ref().map(|root| root.path().clone()).unwrap_or_default();
    if path.as_os_str().is_empty() {
        return Err(spec::SpecError::Missing { field: "root" }.into());
    }
    let root = std::fs::canonicalize(&path).map_err(SandboxError::file("find the root filesystem", &path))?;
    let metadata = std::fs::metadata(&root).map_err(SandboxError::file("look at", &root))?;
    let refuse = |why: &'static str| SandboxError::Root { path: root.display().to_string(), why };
    if !metadata.is_dir() {
        return Err(refuse("it is no directory"));
    }
    let guest = std::fs::metadata("/").map_err(SandboxError::file("look at", Path::new("/")))?;
    let same = |a: &std::fs::Metadata, b: &std::fs::Metadata| {
        use std::os::unix::fs::MetadataExt;
        (a.dev(), a.ino()) == (b.dev(), b.ino())
    };
    if same(&metadata, &guest) {
        return Err(refuse("it is the guest's own root"));
    }
    Ok(root)
}

async fn prepare(
    environment: &Arc<Environment>,
    running: &Running,
    id: &ContainerId,
    spec: Spec,
    rootfs: PathBuf,
    devices: Vec<FoundDevice>,
    sandbox_pidns: bool,
) -> Result<Prepared, SandboxError> {
    let pid = if sandbox_pidns { running.pid_namespace() } else { None };
    let mut shared = running.shared_namespaces();
    shared.pid = pid.map_or(PidNamespace::Own, PidNamespace::Join);
    let (environment, id, hooks) = (environment.clone(), id.clone(), running.hooks.clone());
    blocking(move || {
        let facts = facts::gather(&environment, id, rootfs, shared, devices, hooks)?;
        Ok(spec::prepare(spec, &facts)?)
    })
    .await
}

async fn write_config(bundle: &Path, spec: &Spec, undo: &mut Undo) -> Result<(), SandboxError> {
    let path = bundle.join("config.json");
    let json = serde_json::to_vec(spec)
        .map_err(|error| SandboxError::file("encode", &path)(std::io::Error::from(error)))?;
    undo.push_blocking("remove the bundle's configuration", {
        let path = path.clone();
        move || std::fs::remove_file(&path).map_err(|error| format!("{}: {error}", path.display()))
    });
    blocking(move || std::fs::write(&path, json).map_err(SandboxError::file("write", &path))).await
}

/// What libcontainer leaves behind when it fails, or is killed, half-way; and what it leaves in any case.
fn push_launch_undo(id: &ContainerId, state_root: &Path, cgroup: &Cgroup, undo: &mut Undo) {
    let state = state_root.join(id.as_str());
    undo.push_blocking("remove the runtime's state", move || match std::fs::remove_dir_all(&state) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(format!("{}: {error}", state.display()))
        }
        _ => Ok(()),
    });
    let cgroup = cgroup.clone();
    undo.push_blocking("remove the cgroup", move || {
        cgroup.kill_all().and_then(|()| cgroup.remove()).map_err(|error| error.to_string())
    });
}

async fn launch_init(
    environment: &Environment,
    id: &ContainerId,
    bundle: &Path,
    state_root: &Path,
    rootfs: PathBuf,
    prepared: &Prepared,
) -> Result<super::process::Process, SandboxError> {
    let wiring = Wiring::prepare(prepared.terminal, prepared.console_size, &prepared.late, environment)?;
    let job = Job::Create(Box::new(CreateJob {
        id: id.to_string(),
        state_root: state_root.to_owned(),
        bundle: bundle.to_owned(),
        rootfs,
        cwd: prepared.create_cwd.clone(),
        io: wiring.io.clone(),
        late: prepared.late.clone(),
        propagation: prepared.propagation.clone(),
    }));
    launch::start_process(environment, &job, wiring, || format!("create container {id}")).await
}

/// On v2 only now: libcontainer makes the device nodes from inside the cgroup. The init waits, so that nothing of
/// the image has run yet.
async fn enforce_devices(id: &ContainerId, cgroup: &Cgroup, spec: &Spec) -> Result<(), SandboxError> {
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    let rules = resources.and_then(|resources| resources.devices().clone()).unwrap_or_default();
    let (id, cgroup) = (id.clone(), cgroup.clone());
    blocking(move || cgroup.enforce_devices(&rules).map_err(|source| SandboxError::Cgroup { id, source }))
        .await
}
