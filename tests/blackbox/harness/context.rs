//! What a scenario has in hand: the client, containers with ids and roots of their own, and a look at the agent.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nakai_ctl::connect::{Stream, connect, connect_stream};
use nakai_ctl::qmp::Qmp;
use nakai_ctl::stdio::{Finished, finish};
use nakai_ctl::{Address, CallError, Client, SpecBuilder};
use nakai_protocols::agent::CreateContainerRequest;
use nakai_protocols::oci;
use tokio::time::Instant;

use super::expect::succeeded;
use super::guest_view::GuestView;
use super::inventory::{Inventory, SCRIPT};
use super::{Fallible, Images, Outcome, STREAM_PORT};

/// For an exec in an idle container: its init is its program by then, and an inventory calls it so.
pub(crate) const WARM: &str = "until ps | grep -q '[s]leep 1000000'; do :; done; echo warm";

/// How long a program may take that is only asked for something.
pub(crate) const SHELL_LIMIT: Duration = Duration::from_secs(180);

/// How long what was given back may take to be gone: more than an exec'd process is remembered.
const SETTLE_LIMIT: Duration = Duration::from_secs(120);

/// What the agent says of a connection for a stream.
const STREAM_WORDS: &str = "a connection for a stream\"";

/// In a container's root as in the guest's.
const BUSYBOX: &str = "/bin/busybox";

/// The context of one scenario, and a connection; cheap to clone.
#[derive(Clone)]
pub(crate) struct Ctx(Arc<Inner>, Client);

struct Inner {
    address: Address,
    /// What ids begin with, so that scenarios never meet.
    prefix: String,
    images: Images,
    roots: Roots,
    view: Arc<GuestView>,
    hooks: Hooks,
    machine: Option<MachineSide>,
    count: AtomicU32,
    /// Ids of containers that may be there.
    made: Mutex<Vec<String>>,
}

/// Where containers' root filesystems are, as the host and as the agent sees it.
#[derive(Clone)]
pub(crate) struct Roots {
    pub(crate) host: PathBuf,
    pub(crate) guest: String,
}

/// Where the agent finds guest hooks.
#[derive(Clone)]
pub(crate) struct Hooks(pub(crate) String);

/// The host's side of a virtual machine.
#[derive(Clone)]
pub(crate) struct MachineSide {
    /// QEMU's control socket.
    pub(crate) qmp: PathBuf,
    /// A directory for the images of disks, which goes with the machine.
    pub(crate) files: PathBuf,
    /// What the guest has said, to the end of the last line.
    pub(crate) console: PathBuf,
}

/// What a context is made of.
pub(crate) struct Parts {
    pub(crate) client: Client,
    pub(crate) address: Address,
    pub(crate) prefix: String,
    pub(crate) images: Images,
    pub(crate) roots: Roots,
    pub(crate) view: Arc<GuestView>,
    pub(crate) hooks: Hooks,
    pub(crate) machine: Option<MachineSide>,
}

/// A container, or the right to make one: its id and its root filesystem are there.
pub(crate) struct Container {
    ctx: Ctx,
    pub(crate) id: String,
    /// Its root filesystem as this host sees it.
    pub(crate) root: PathBuf,
    spec: SpecBuilder,
}

impl Ctx {
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts { client, address, prefix, images, roots, view, hooks, machine } = parts;
        let (count, made) = (AtomicU32::new(0), Mutex::default());
        Self(Arc::new(Inner { address, prefix, images, roots, view, hooks, machine, count, made }), client)
    }

    pub(crate) fn client(&self) -> &Client {
        &self.1
    }

    /// Where the agent is.
    pub(crate) fn address(&self) -> &Address {
        &self.0.address
    }

    /// The same, with another connection if this one has not outlived the server that it was made to.
    pub(crate) async fn reconnected(&self) -> Fallible<Self> {
        if self.client().check().await.is_ok() {
            return Ok(self.clone());
        }
        Ok(Self(self.0.clone(), self.another_client().await?))
    }

    /// Another connection to the same agent.
    pub(crate) async fn another_client(&self) -> Fallible<Client> {
        Ok(Client::connect(&self.0.address).await?)
    }

    /// A connection for a stream of a process, and the port that names it.
    pub(crate) async fn stream(&self) -> Fallible<(Box<dyn Stream>, u32)> {
        if self.is_host() {
            return Ok(connect_stream(&self.0.address, STREAM_PORT, SHELL_LIMIT).await?);
        }
        // The VMM does not say which port it has connected from. The agent does, in its log.
        let known = self.ports_on_the_console()?.len();
        let stream = self.connect(STREAM_PORT).await?;
        let deadline = Instant::now() + SHELL_LIMIT;
        loop {
            if let Some(port) = self.ports_on_the_console()?.get(known) {
                return Ok((stream, *port));
            }
            if Instant::now() > deadline {
                return Err("the agent does not tell of a connection for a stream".into());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The hosts' ports of all connections for streams that the agent has told of.
    fn ports_on_the_console(&self) -> Fallible<Vec<u32>> {
        let text = std::fs::read(&self.machine_side()?.console)?;
        let text = String::from_utf8_lossy(&text);
        let lines =
            text.split_inclusive('\n').filter(|line| line.ends_with('\n') && line.contains(STREAM_WORDS));
        let port = |line: &str| {
            let (_, value) = line.split_once("\"port\":")?;
            let value = value.trim_start_matches('"');
            value.get(..value.find(|c: char| !c.is_ascii_digit())?)?.parse().ok()
        };
        Ok(lines.filter_map(port).collect())
    }

    /// A connection to another vsock port of the agent's guest.
    pub(crate) async fn connect(&self, port: u32) -> Fallible<Box<dyn Stream>> {
        let address = match &self.0.address {
            Address::Vsock { cid, .. } => Address::Vsock { cid: *cid, port },
            Address::Hybrid { path, .. } => Address::Hybrid { path: path.clone(), port },
            other => return Err(format!("{other} is no guest").into()),
        };
        Ok(connect(&address, SHELL_LIMIT).await?)
    }

    /// Whether the agent is on this host, with this host's kernel.
    pub(crate) fn is_host(&self) -> bool {
        matches!(*self.0.view, GuestView::Host { .. })
    }

    /// Where the agent finds the guest hooks of [`super::own_vm`] and [`super::host`].
    pub(crate) fn hook_directory(&self) -> &str {
        &self.0.hooks.0
    }

    /// The control socket of the machine that the agent is in; one client at a time.
    pub(crate) async fn qmp(&self) -> Fallible<Qmp> {
        Ok(Qmp::connect(&self.machine_side()?.qmp).await?)
    }

    /// The machine, as the client knows it: its control socket, and where images of its disks are.
    pub(crate) fn machine(&self) -> Fallible<nakai_ctl::plug::Machine> {
        let side = self.machine_side()?;
        Ok(nakai_ctl::plug::Machine { qmp: side.qmp.clone(), run: side.files.clone() })
    }

    /// The host's side of the directory in which roots are.
    pub(crate) fn share(&self) -> &Path {
        &self.0.roots.host
    }

    /// Where the images of the machine's disks are.
    pub(crate) fn files(&self) -> Fallible<&Path> {
        Ok(&self.machine_side()?.files)
    }

    fn machine_side(&self) -> Fallible<&MachineSide> {
        Ok(self.0.machine.as_ref().ok_or("this agent is in no virtual machine")?)
    }

    /// What ids begin with.
    pub(crate) fn prefix(&self) -> &str {
        &self.0.prefix
    }

    fn number(&self) -> u32 {
        self.0.count.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn fresh_exec_id(&self) -> String {
        format!("{}-x{}", self.0.prefix, self.number())
    }

    /// The cgroup of a container. The one above is the agent's own, so that it has to be gone with its sandbox.
    pub(crate) fn cgroup(&self, id: &str) -> String {
        format!("/nakai-{}/{id}", self.0.prefix)
    }

    /// A container that is still to be created, as an ordinary one or as `edit` wants it.
    pub(crate) fn container(&self, edit: impl FnOnce(SpecBuilder) -> SpecBuilder) -> Fallible<Container> {
        let id = format!("{}-c{}", self.0.prefix, self.number());
        let root = self.make_root(&id)?;
        let spec = SpecBuilder::new(&id, &self.guest_root(&id)).cgroups_path(&self.cgroup(&id));
        let spec = edit(self.with_programs_in_memory(spec));
        self.0.made.lock().unwrap().push(id.clone());
        Ok(Container { ctx: self.clone(), id, root, spec })
    }

    /// A guest reads programs over virtio-fs anew for each execve(2), which takes ten times the time of all else
    /// when it is emulated. So containers get the same program from the guest's own root.
    fn with_programs_in_memory(&self, spec: SpecBuilder) -> SpecBuilder {
        match &*self.0.view {
            GuestView::Host { .. } => spec,
            GuestView::Vm { .. } => spec.mount(BUSYBOX, BUSYBOX, "bind", &["bind", "ro"]),
        }
    }

    /// A container that waits for its start.
    pub(crate) async fn created(&self, edit: impl FnOnce(SpecBuilder) -> SpecBuilder) -> Fallible<Container> {
        let container = self.container(edit)?;
        container.create().await?;
        Ok(container)
    }

    /// A container that runs.
    pub(crate) async fn started(&self, edit: impl FnOnce(SpecBuilder) -> SpecBuilder) -> Fallible<Container> {
        let container = self.created(edit).await?;
        container.start().await?;
        Ok(container)
    }

    /// A container that runs and does nothing, to exec in.
    pub(crate) async fn idle(&self, edit: impl FnOnce(SpecBuilder) -> SpecBuilder) -> Fallible<Container> {
        self.started(|spec| edit(spec).args(["sleep", "1000000"])).await
    }

    /// Runs a container from its creation to its removal.
    pub(crate) async fn run(&self, edit: impl FnOnce(SpecBuilder) -> SpecBuilder) -> Fallible<Finished> {
        let container = self.started(edit).await?;
        let finished = container.finish(b"").await?;
        container.remove().await?;
        Ok(finished)
    }

    /// What a shell script prints as a container's init. It has to succeed.
    pub(crate) async fn output(
        &self,
        script: &str,
        edit: impl FnOnce(SpecBuilder) -> SpecBuilder,
    ) -> Fallible<String> {
        Ok(succeeded(self.run(|spec| edit(spec).args(["sh", "-c", script])).await?))
    }

    /// Makes the root filesystem of container `id`.
    pub(crate) fn make_root(&self, id: &str) -> Fallible<PathBuf> {
        let directory = self.0.roots.host.join(id);
        std::fs::create_dir(&directory)?;
        let root = directory.join("rootfs");
        self.0.images.copy_root(&root)?;
        Ok(root)
    }

    /// Makes another one, anywhere.
    pub(crate) fn copy_root(&self, target: &Path) -> Fallible<()> {
        self.0.images.copy_root(target)
    }

    /// Where the agent sees it.
    pub(crate) fn guest_root(&self, id: &str) -> String {
        format!("{}/{id}/rootfs", self.0.roots.guest)
    }

    /// A directory in the container's directory, as this host and as the agent sees it.
    pub(crate) fn directory(&self, container: &Container, name: &str) -> Fallible<(PathBuf, String)> {
        self.directory_of(&container.id, name)
    }

    /// A directory in the directory of the container `id`, whose root has been made.
    pub(crate) fn directory_of(&self, id: &str, name: &str) -> Fallible<(PathBuf, String)> {
        let host = self.0.roots.host.join(id).join(name);
        std::fs::create_dir(&host)?;
        Ok((host, format!("{}/{id}/{name}", self.0.roots.guest)))
    }

    /// A container that sees the guest's processes, mounts, `/run` and cgroups, and may do everything there.
    pub(crate) fn observer_spec(&self, id: &str) -> SpecBuilder {
        let read = ["rbind", "ro"];
        SpecBuilder::new(id, &self.guest_root(id))
            .capabilities(["CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH", "CAP_DAC_OVERRIDE", "CAP_KILL"])
            .mount("/guest/proc", "/proc", "bind", &read)
            .mount("/guest/run", "/run", "bind", &["bind", "ro"])
            .mount("/guest/cgroup", "/sys/fs/cgroup", "bind", &read)
    }

    /// The agent's program.
    pub(crate) fn agent(&self) -> &Path {
        self.0.images.agent()
    }

    /// Runs a script on the agent's side: see [`super::guest_view`].
    pub(crate) async fn guest_sh(&self, script: &str) -> Fallible<String> {
        self.0.view.sh(self, script).await
    }

    /// What the agent holds now.
    pub(crate) async fn inventory(&self) -> Fallible<Inventory> {
        Ok(Inventory::parse(&self.guest_sh(SCRIPT).await?))
    }

    /// Waits until the agent holds what it held at `before`.
    pub(crate) async fn returns_to(&self, before: &Inventory) -> Outcome {
        let deadline = Instant::now() + SETTLE_LIMIT;
        loop {
            let now = self.inventory().await?;
            let difference = before.difference(&now);
            if difference.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(format!("this is left behind (+) or lost (-):\n{difference}").into());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Removes whatever the scenario has not, so that the next one starts as it did.
    pub(super) async fn clean_up(&self) {
        let made = std::mem::take(&mut *self.0.made.lock().unwrap());
        for id in made {
            // Most are gone already.
            let _ = self.client().within(SHELL_LIMIT).remove_container(&id).await;
            let _ = std::fs::remove_dir_all(self.0.roots.host.join(&id));
        }
    }
}

impl Container {
    /// The same over another connection.
    pub(crate) fn over(self, ctx: &Ctx) -> Self {
        Self { ctx: ctx.clone(), ..self }
    }

    pub(crate) fn spec(&self) -> &SpecBuilder {
        &self.spec
    }

    /// Changes what it will be created with.
    pub(crate) fn edit(self, edit: impl FnOnce(SpecBuilder) -> SpecBuilder) -> Self {
        Self { spec: edit(self.spec), ..self }
    }

    pub(crate) async fn create(&self) -> Result<(), CallError> {
        self.ctx.client().create_container(&self.id, self.spec.build()).await
    }

    /// The request of [`Container::create`], to be changed.
    pub(crate) fn request(&self) -> CreateContainerRequest {
        CreateContainerRequest {
            container_id: self.id.clone(),
            OCI: Some(self.spec.build()).into(),
            ..Default::default()
        }
    }

    pub(crate) async fn start(&self) -> Result<(), CallError> {
        self.ctx.client().start_container(&self.id).await
    }

    /// Gives `stdin` to init, collects its output and waits for it.
    pub(crate) async fn finish(&self, stdin: &[u8]) -> Fallible<Finished> {
        Ok(tokio::time::timeout(SHELL_LIMIT, finish(self.ctx.client(), &self.id, "", stdin)).await??)
    }

    pub(crate) async fn wait(&self) -> Result<i32, CallError> {
        self.ctx.client().within(SHELL_LIMIT).wait_process(&self.id, "").await
    }

    /// Sends a signal to init alone.
    pub(crate) async fn signal(&self, signal: i32) -> Result<(), CallError> {
        self.ctx.client().signal_process(&self.id, &self.id, signal.unsigned_abs()).await
    }

    /// The process of the specification with other arguments.
    pub(crate) fn process<S: Into<String>>(&self, args: impl IntoIterator<Item = S>) -> oci::Process {
        self.spec.clone().args(args).process()
    }

    /// Runs a program beside init, to its end.
    pub(crate) async fn exec<S: Into<String>>(
        &self,
        args: impl IntoIterator<Item = S>,
    ) -> Fallible<Finished> {
        self.exec_process(self.process(args)).await
    }

    /// Runs a process beside init, to its end.
    pub(crate) async fn exec_process(&self, process: oci::Process) -> Fallible<Finished> {
        let exec = self.ctx.fresh_exec_id();
        self.ctx.client().exec_process(&self.id, &exec, process).await?;
        Ok(tokio::time::timeout(SHELL_LIMIT, finish(self.ctx.client(), &self.id, &exec, b"")).await??)
    }

    /// What a shell script prints beside init. It has to succeed.
    pub(crate) async fn sh(&self, script: &str) -> Fallible<String> {
        Ok(succeeded(self.exec(["sh", "-c", script]).await?))
    }

    /// Waits until a shell script beside init prints this: for what comes when somebody gets round to it, such as init
    /// becoming its program, or the end of a process that has been told of and is still to be reaped.
    pub(crate) async fn sh_until(&self, script: &str, expected: &str) -> Outcome {
        let deadline = Instant::now() + SHELL_LIMIT;
        loop {
            let seen = self.sh(script).await?;
            if seen == expected {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(format!("{script}: {seen:?}, expected {expected:?}").into());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) async fn remove(&self) -> Result<(), CallError> {
        self.ctx.client().remove_container(&self.id).await
    }

    /// A file of its root filesystem, as this host sees it.
    pub(crate) fn file(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }
}
