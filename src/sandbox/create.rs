//! CreateContainer, step by step, each with its way back.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::unistd::Pid;
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxResources, Spec};
use slog::{Logger, info, o, warn};
use tokio::sync::{mpsc, oneshot};

use super::actor;
use super::container::{Container, Description};
use super::error::SandboxError;
use super::hotplug::Asked;
use super::launch::{self, Wiring};
use super::oom::OomWatch;
use super::records::{ContainerRecord, MadeRecord, forget_container, read_oom};
use super::undo::{Undo, Why};
use super::{
    CreateContainer, Environment, Gone, Running, SharedMount, bundle, cdi, diagnostics, facts, guest_devices,
    pause_image, pins, pumps, pumps::Links, shared_mounts, sysctl, tmpfs_modes,
};
use crate::cgroup::{Cgroup, CgroupError, Hierarchy};
use crate::device::FoundDevices;
use crate::ids::ContainerId;
use crate::spec::{self, Facts, NamespaceId, OwnInit, PidNamespace, Prepared};
use crate::stdio::ports;
use crate::storage::{LentNode, StorageHandle, StorageRequest};
use crate::worker::console;
use crate::worker::job::{CgroupTrees, CreateJob, Failure, Job, UnifiedCgroup, start_words};
use crate::worker::stand_in;

/// Where libcontainer keeps its state, in the agent's directory.
pub(super) const CONTAINERS: &str = "containers";

/// Makes the container of `request`. On failure everything is taken back before this returns.
pub(super) async fn create(
    environment: &Arc<Environment>,
    running: &Running,
    request: CreateContainer,
    shared: Vec<(SharedMount, Arc<Container>)>,
    mut undo: Undo,
    gone: &Gone,
) -> Result<Arc<Container>, SandboxError> {
    let logger =
        environment.logger.new(o!("container" => request.id.to_string(), "sandbox" => running.id.clone()));
    match steps(environment, running, request, shared, &mut undo, gone, &logger).await {
        Ok(made) => {
            let (commands, mailbox) = mpsc::unbounded_channel();
            let init = Arc::new(made.init);
            pumps::start(&init, made.links, environment.config.stream_quiet_time);
            let container =
                Container::new(made.description, init, made.oom, made.asked, commands, logger.clone());
            let container = Arc::new(container);
            actor::spawn(environment.clone(), container.clone(), mailbox, undo, None);
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
    links: Links,
    oom: Option<Arc<OomWatch>>,
    asked: Asked,
}

async fn steps(
    environment: &Arc<Environment>,
    running: &Running,
    request: CreateContainer,
    shared: Vec<(SharedMount, Arc<Container>)>,
    undo: &mut Undo,
    gone: &Gone,
    logger: &Logger,
) -> Result<Made, SandboxError> {
    let id = request.id;
    let bundle = environment.config.kata_dir.join(id.as_str());
    let state_root = environment.config.state_dir.join(CONTAINERS);
    let connections = ports::take(environment.ports.as_deref(), request.ports);
    let connections = gone.unless(async { Ok(connections.await?) }).await?;
    let storages = crate::storage::unfold(&environment.config.kata_dir, &id, request.storages)?;
    let record = ContainerRecord {
        id: id.to_string(),
        bundle: bundle.clone(),
        owns_bundle: false,
        state_root: state_root.clone(),
        storages: storages.iter().map(|storage| storage.mount_point.to_string()).collect(),
        cgroup: None,
        unit: None,
        killed_before: 0,
        made: None,
    };
    push_forget(environment, &id, undo);
    let record = bundle::make(environment, record, undo).await?;
    let devices = gone.unless(async { Ok(environment.devices.find_all(&request.devices).await?) }).await?;
    let spec = gone.unless(cdi::inject(environment, request.spec)).await?;
    let spec = gone.unless(pause_image::apply(spec, &storages)).await?;
    let lent = storages.iter().filter_map(StorageRequest::lent_node).collect();
    gone.unless(attach_storages(environment, &id, storages, undo)).await?;
    let annotations = spec.annotations().clone().unwrap_or_default();
    push_config_undo(&bundle, undo);
    let spec = diagnostics::with_termination_log(spec, &environment.config.kata_dir, &bundle).await?;
    let termination_log = diagnostics::termination_log(&spec);
    let asked = Asked::of(spec.linux().as_ref().and_then(|linux| linux.resources().as_ref()));
    let prepare = prepare(environment, running, &id, spec, devices, lent, request.sandbox_pidns);
    let (mut prepared, rootfs) = gone.unless(prepare).await?;
    for warning in &prepared.warnings {
        warn!(logger, "specification"; "warning" => warning);
    }
    sysctl::write(&prepared.sandbox_sysctls, logger).await?;
    let own_network = diagnostics::has_own_network(&prepared.spec);
    let cgroup = Cgroup::new(environment.hierarchy.clone(), prepared.cgroup_path.clone())
        .map_err(|source| SandboxError::Cgroup { id: id.clone(), source })?
        .in_unit(prepared.unit.take());
    running.cgroups.take(&id, cgroup.path(), undo)?;
    let for_libcontainer = for_libcontainer(&id, &bundle, &state_root, &mut prepared, undo)?;
    let (record, killed_before, parents) =
        take_cgroup(environment, &id, &cgroup, record, for_libcontainer).await?;
    push_launch_undo(&id, &state_root, &cgroup, undo);
    running.note_parents(parents, &environment.records).await?;
    let end = push_wait_for_worker(undo);
    let launch = launch_init(environment, &id, &bundle, rootfs, &mut prepared, &cgroup, end);
    let init = gone.unless(launch).await?;
    let links = Links::hold(connections, &environment.launcher, &init);
    let is_own = prepared.own_init || prepared.own_cgroups.is_some();
    gone.unless(shared_mounts::share(environment, &id, &init, shared)).await?;
    let rules = (environment.hierarchy.is_v2() || is_own).then_some(prepared.device_rules);
    let confinement = Confinement { rules, limits: prepared.limits, is_own, init: init.pid() };
    let made = Box::new(MadeRecord {
        init: init.record(""),
        exec: prepared.exec,
        poststart: prepared.poststart,
        poststop: prepared.poststop,
        annotations,
        termination_log,
        own_network,
        asked,
    });
    let (description, asked) =
        confine_and_note(environment, record, id.clone(), cgroup.clone(), made, confinement).await?;
    running.publish_pid_namespace(&init);
    let oom = OomWatch::new(&id, &cgroup, killed_before, environment, logger).await;
    Ok(Made { description, init, links, oom, asked })
}

/// A container's cgroup is killed with it: one with others' processes in it can't be a container's. From here on the
/// record says that it is ours. `prepare` is done before. Comes back with the count of OOM kills until now, too, and
/// with the cgroups above.
async fn take_cgroup(
    environment: &Environment,
    id: &ContainerId,
    cgroup: &Cgroup,
    mut record: ContainerRecord,
    prepare: impl FnOnce() -> Result<(), SandboxError> + Send + 'static,
) -> Result<(ContainerRecord, Result<u64, CgroupError>, Vec<PathBuf>), SandboxError> {
    let (id, cgroup, records) = (id.clone(), cgroup.clone(), environment.records.clone());
    blocking(move || {
        prepare()?;
        if !cgroup.clear().map_err(|source| SandboxError::Cgroup { id: id.clone(), source })? {
            return Err(SandboxError::CgroupInUse { id, path: cgroup.path().display().to_string() });
        }
        // The kills before the container's time, in a cgroup that an earlier one left behind for good.
        let killed_before = cgroup.oom_kills();
        // Less those of an earlier one of the same id that the host is still to be told.
        record.killed_before =
            killed_before.as_ref().unwrap_or(&0).wrapping_sub(read_oom(&records, id.as_str()).known());
        record.cgroup = Some(cgroup.path().to_owned());
        record.unit = cgroup.unit().cloned();
        record.write(&records)?;
        let parents = cgroup.make_ancestors();
        Ok((record, killed_before, parents))
    })
    .await
}

/// Puts limits and rules in force. Then the container is there: from here on the next server takes it over and does not
/// undo it.
async fn confine_and_note(
    environment: &Environment,
    mut record: ContainerRecord,
    id: ContainerId,
    cgroup: Cgroup,
    mut made: Box<MadeRecord>,
    confinement: Confinement,
) -> Result<(Description, Asked), SandboxError> {
    let records = environment.records.clone();
    blocking(move || {
        made.exec = made.exec.within(confinement.apply(&id, &cgroup)?);
        record.made = Some(made);
        record.write(&records)?;
        let made = record.made.take().ok_or(SandboxError::TaskEnded("the record of a container"))?;
        Ok(record.describe(id, cgroup, *made))
    })
    .await
}

/// Runs `work` where it may block.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SandboxError> + Send + 'static,
) -> Result<T, SandboxError> {
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(SandboxError::TaskEnded("a blocking step")))
}

/// Pushed first, so undone last but one: until then the record lets the next server finish the clean-up.
pub(super) fn push_forget(environment: &Environment, id: &ContainerId, undo: &mut Undo) {
    let (records, id) = (environment.records.clone(), id.clone());
    undo.push_blocking("forget the container", move || {
        forget_container(&records, id.as_str()).map_err(|error| error.to_string())
    });
}

async fn attach_storages(
    environment: &Environment,
    id: &ContainerId,
    storages: Vec<StorageRequest>,
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
    storage: StorageRequest,
    undo: &mut Undo,
) -> Result<(), SandboxError> {
    let handle = environment.storages.attach(storage, container).await?;
    push_release(handle, undo);
    Ok(())
}

pub(super) fn push_release(handle: StorageHandle, undo: &mut Undo) {
    undo.push(format!("release the storage {}", handle.mount_point()), |why| async move {
        let released = match why {
            Why::Failed => handle.undo().await,
            Why::Removed => handle.release().await,
        };
        released.map_err(|error| error.to_string())
    });
}

/// The container's root, absolute and without links. The guest's own root is never one.
fn check_rootfs(path: &Path) -> Result<PathBuf, SandboxError> {
    let root = std::fs::canonicalize(path).map_err(SandboxError::file("find the root filesystem", path))?;
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

/// Looks at the root filesystem, which may be on a share that hangs, and edits the specification.
async fn prepare(
    environment: &Arc<Environment>,
    running: &Running,
    id: &ContainerId,
    mut spec: Box<Spec>,
    devices: FoundDevices,
    lent: Vec<LentNode>,
    sandbox_pidns: bool,
) -> Result<(Box<Prepared>, PathBuf), SandboxError> {
    let root = spec.root().as_ref().map(|root| root.path().clone()).unwrap_or_default();
    if root.as_os_str().is_empty() {
        return Err(spec::SpecError::Missing { field: "root" }.into());
    }
    let pid = if sandbox_pidns { running.pid_namespace() } else { None };
    if sandbox_pidns && pid.is_none() {
        info!(environment.logger, "no PID namespace to share lives: the container gets one for others to join";
            "container" => id.as_str());
    }
    let mut shared = running.shared_namespaces();
    shared.pid = pid.map_or(PidNamespace::Own, PidNamespace::Join);
    let (bulkhead, environment) = (environment.bulkhead.clone(), environment.clone());
    let (id, hooks, path) = (id.clone(), running.hooks.clone(), root.clone());
    let prepared = bulkhead.run(&path, move || {
        let rootfs = check_rootfs(&root)?;
        guest_devices::add(&mut spec);
        let bound = guest_devices::bound(&spec);
        let facts = facts::gather(&environment, id, rootfs.clone(), shared, devices, bound, hooks)?;
        let facts = Facts { lent_devices: guest_devices::lent(&lent), ..facts };
        let facts = facts::with_online(facts, &spec)?;
        let mut prepared = Box::new(spec::prepare(*spec, &facts)?);
        tmpfs_modes::complete(&mut prepared.spec, prepared.own_mounts.as_ref(), &rootfs);
        Ok((prepared, rootfs))
    });
    prepared.await.unwrap_or(Err(SandboxError::TaskEnded("preparing the specification")))
}

/// Returns a blocking closure that writes what libcontainer needs, where libcontainer makes init. The specification
/// is of no use after that.
fn for_libcontainer(
    id: &ContainerId,
    bundle: &Path,
    state_root: &Path,
    prepared: &mut Prepared,
    undo: &mut Undo,
) -> Result<impl FnOnce() -> Result<(), SandboxError> + use<>, SandboxError> {
    let (mut config, mut stand_in) = (None, None);
    if !prepared.own_init {
        config = Some(write_config(bundle, &prepared.spec)?);
        clear(&mut prepared.spec);
        stand_in = prepared.own_cgroups.is_some().then(|| stand_in::path(state_root, id));
        push_stand_in_undo(id, state_root, undo);
    }
    Ok(move || {
        config.map_or(Ok(()), |write| write())?;
        stand_in.map_or(Ok(()), |path| stand_in::make(&path).map_err(SandboxError::file("make", &path)))
    })
}

/// Encodes the bundle's configuration, and returns a blocking closure that writes it.
fn write_config(
    bundle: &Path,
    spec: &Spec,
) -> Result<impl FnOnce() -> Result<(), SandboxError> + use<>, SandboxError> {
    let path = bundle.join("config.json");
    let json = serde_json::to_vec(spec)
        .map_err(|error| SandboxError::file("encode", &path)(std::io::Error::from(error)))?;
    Ok(move || std::fs::write(&path, json).map_err(SandboxError::file("write", &path)))
}

/// The configuration, the termination log if it is the guest's, and the socket of a worker that was killed while it made
/// a terminal.
pub(super) fn push_config_undo(bundle: &Path, undo: &mut Undo) {
    let files = ["config.json", console::SOCKET, diagnostics::LOG_FILE].map(|name| bundle.join(name));
    undo.push_blocking("remove the bundle's files", move || {
        for path in &files {
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(format!("{}: {error}", path.display()));
                }
                _ => {}
            }
        }
        Ok(())
    });
}

pub(super) fn push_stand_in_undo(id: &ContainerId, state_root: &Path, undo: &mut Undo) {
    let stand_in = stand_in::path(state_root, id);
    undo.push_blocking("remove the cgroup's stand-in", move || {
        stand_in::remove(&stand_in).map_err(|error| format!("{}: {error}", stand_in.display()))
    });
}

/// Init's gate, or what libcontainer leaves behind when it fails, or is killed, half-way; and what it leaves in any case.
pub(super) fn push_launch_undo(id: &ContainerId, state_root: &Path, cgroup: &Cgroup, undo: &mut Undo) {
    let state = state_root.join(id.as_str());
    let words = start_words(state_root, id.as_str());
    undo.push_blocking("remove the runtime's state", move || {
        let _ = std::fs::remove_file(words);
        let removed = match std::fs::remove_file(&state) {
            Err(error) if error.kind() == std::io::ErrorKind::IsADirectory => std::fs::remove_dir_all(&state),
            removed => removed,
        };
        match removed {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(format!("{}: {error}", state.display()))
            }
            _ => Ok(()),
        }
    });
    let cgroup = cgroup.clone();
    undo.push_blocking("remove the cgroup", move || {
        let removed = cgroup.kill_all().and_then(|()| cgroup.remove());
        // The unit goes in any case.
        let stopped = cgroup.stop_unit();
        removed.and(stopped).map_err(|error| error.to_string())
    });
}

/// A worker that is killed may be about to make what is undone, so its end comes first; but not if it hangs in the
/// kernel.
fn push_wait_for_worker(undo: &mut Undo) -> oneshot::Sender<()> {
    const LIMIT: Duration = Duration::from_secs(10);
    let (end, ended) = oneshot::channel::<()>();
    undo.push("wait for the worker's end", |_| async {
        let _ = tokio::time::timeout(LIMIT, ended).await;
        Ok(())
    });
    end
}

async fn launch_init(
    environment: &Environment,
    id: &ContainerId,
    bundle: &Path,
    rootfs: PathBuf,
    prepared: &mut Prepared,
    cgroup: &Cgroup,
    end: oneshot::Sender<()>,
) -> Result<super::process::Process, SandboxError> {
    let what = || format!("create container {id}");
    let late = &prepared.late;
    let state_root = environment.config.state_dir.join(CONTAINERS);
    // Before it has descriptors.
    let end = (environment.launcher.turn_to_create().await, end);
    let wiring = Wiring::prepare(prepared.terminal, prepared.console_size, late, environment, what).await?;
    let cgroups =
        prepared.own_cgroups.as_ref().map(|own| (trees(cgroup, &state_root, id), own.mount.clone()));
    let job = Job::Create(Box::new(CreateJob {
        id: id.to_string(),
        state_root,
        bundle: bundle.to_owned(),
        rootfs,
        cwd: prepared.cwd.clone(),
        working_directory: prepared.working_directory.clone(),
        device_directories: std::mem::take(&mut prepared.device_directories),
        outside_nodes: prepared.outside_nodes.clone(),
        io: wiring.io.clone(),
        late: prepared.late.clone(),
        filter_flags: wiring.filter_flags,
        cgroups,
        unified: unified(cgroup),
        mounts: prepared.own_mounts.take(),
        own_init: prepared.own_init.then(|| OwnInit::take(&mut prepared.spec).map(Box::new)).flatten(),
        copy_up: prepared.copy_up.clone(),
        propagation: prepared.propagation.clone(),
        read_only_dev: prepared.read_only_dev,
        start_hooks: std::mem::take(&mut prepared.start_hooks),
        annotations: prepared.spec.annotations().clone().unwrap_or_default(),
    }));
    launch::start_process(environment, None, &job, wiring, Box::new(end), what).await
}

/// Nothing is needed of a specification once it is written down. What takes memory goes: many containers may be
/// launched at once, and what stays of each would be left among the holes.
fn clear(spec: &mut Spec) {
    spec.set_process(None).set_mounts(None).set_hooks(None).set_linux(None);
}

/// What the worker makes and enters, if it makes the container's cgroups.
fn trees(cgroup: &Cgroup, state_root: &Path, id: &ContainerId) -> CgroupTrees {
    let (roots, path) = (cgroup.roots(), cgroup.path().to_owned());
    CgroupTrees { roots, path, stand_in: stand_in::path(state_root, id) }
}

/// The cgroup on v2, which the worker makes unless it is systemd's.
fn unified(cgroup: &Cgroup) -> Option<UnifiedCgroup> {
    let Hierarchy::V2 { mount_point } = &**cgroup.hierarchy() else { return None };
    let path = cgroup.path().to_owned();
    cgroup.unit().is_none().then(|| UnifiedCgroup { root: mount_point.clone(), path })
}

/// What is written between create and start.
struct Confinement {
    /// The device rules, if libcontainer has not written them.
    rules: Option<Vec<LinuxDeviceCgroup>>,
    /// All limits, or those that libcontainer gets wrong.
    limits: Option<LinuxResources>,
    /// Whether these are all.
    is_own: bool,
    init: Pid,
}

impl Confinement {
    /// Only now: the device nodes are made from inside the cgroup. systemd is told of it when all limits are in
    /// force. The init waits, so that nothing of the image has run yet. Blocks, and returns the namespaces of init.
    fn apply(self, id: &ContainerId, cgroup: &Cgroup) -> Result<Vec<NamespaceId>, SandboxError> {
        let enforced = self.rules.map_or(Ok(()), |rules| cgroup.enforce_devices(&rules));
        let limited =
            enforced.and_then(|()| self.limits.map_or(Ok(()), |limits| cgroup.write_limits(&limits)));
        let confined = limited.and_then(|()| cgroup.start_unit(&format!("Container {id}")));
        let pinned = confined
            .map_err(|source| SandboxError::Cgroup { id: id.clone(), source })
            .and_then(|()| pins::of(self.init));
        pinned.map_err(|error| if self.is_own { as_of_the_launch(id, error) } else { error })
    }
}

/// What the kernel refuses of the limits is told alike, whoever has written them.
fn as_of_the_launch(id: &ContainerId, error: SandboxError) -> SandboxError {
    if matches!(&error, SandboxError::Cgroup { source: CgroupError::BadLimit { .. }, .. }) {
        return error;
    }
    let failure = Failure::internal(crate::worker::chain(&error));
    SandboxError::Launch { what: format!("create container {id}"), source: failure.into() }
}
