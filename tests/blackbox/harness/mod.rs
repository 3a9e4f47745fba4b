//! What scenarios run in: an agent, a context to talk to it and to look behind it, and expectations.
//!
//! - [`host`]: an agent on this host for each scenario, in namespaces of its own.
//! - [`shared_vm`]: one VM for all scenarios that share a sandbox, one after the other.
//! - [`own_vm`]: a VM for a scenario that makes or ends its sandbox itself.
//! - [`context`]: the client, containers with ids and roots of their own, programs run in them.
//! - [`elf`]: programs of a few instructions.
//! - [`inventory`]: what the agent holds (mounts, descriptors, cgroups, files), to compare before and after.
//! - [`reasons`]: why trials failed, told again at the end.
//!
//! Every scenario in a shared sandbox is checked for leaving nothing behind, whatever else it is about.

pub(crate) mod context;
pub(crate) mod elf;
pub(crate) mod expect;
pub(crate) mod guest_view;
pub(crate) mod host;
pub(crate) mod images;
pub(crate) mod inventory;
pub(crate) mod own_vm;
pub(crate) mod reasons;
pub(crate) mod shared_vm;
pub(crate) mod wire;

use std::cell::RefCell;
use std::error::Error;
use std::path::Path;
use std::pin::Pin;
use std::time::Duration;

use nakai_ctl::sandbox;
use nakai_ctl::vm::VmConfig;

pub(crate) use context::{Container, Ctx};
pub(crate) use images::Images;
use reasons::failed;

/// How a scenario ends. A failed call names itself, so `?` is enough.
pub(crate) type Outcome = Result<(), Box<dyn Error + Send + Sync>>;

/// A value, or why there is none.
pub(crate) type Fallible<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// Changes what a VM is made of. The directory is for the images of its disks, and goes with it.
pub(crate) type Machine = fn(&mut VmConfig, &Path) -> Outcome;

type Body = fn(Ctx) -> Pin<Box<dyn Future<Output = Outcome> + Send>>;

/// The longest that a scenario may take. An emulated guest on a busy machine is slow; a hanging call is forever. No
/// limit of these tests is near what anything takes, so that none of them tells how busy the machine is.
const LIMIT: Duration = Duration::from_secs(600);

/// The same when thousands of calls are asked for.
const SOAK_LIMIT: Duration = Duration::from_secs(3600);

/// Something that a user does, and what has to come of it.
pub(crate) struct Scenario {
    /// `room::what_happens`.
    pub(crate) name: String,
    pub(crate) on_host: bool,
    pub(crate) in_vm: bool,
    /// It makes its sandbox itself, and may end it.
    pub(crate) own_agent: bool,
    /// In a VM of its own: one more word for the kernel's command line.
    pub(crate) kernel_parameter: Option<&'static str>,
    /// On the host: the policy that the agent is configured with.
    pub(crate) policy: Option<&'static str>,
    /// In a VM of its own: what it has besides.
    pub(crate) machine: Option<Machine>,
    /// It ends with the agent's own end: exit code 0 on the host, power off in a VM.
    pub(crate) ends_its_agent: bool,
    pub(crate) body: Body,
}

impl Scenario {
    pub(crate) fn new(module: &str, name: &str, body: Body) -> Self {
        let room = module.rsplit("::").next().unwrap_or(module);
        Self {
            name: format!("{room}::{name}"),
            on_host: true,
            in_vm: true,
            own_agent: false,
            kernel_parameter: None,
            policy: None,
            machine: None,
            ends_its_agent: false,
            body,
        }
    }

    /// It needs what only a guest has.
    pub(crate) fn vm_only(self) -> Self {
        Self { on_host: false, ..self }
    }

    /// It needs what only this host has.
    pub(crate) fn host_only(self) -> Self {
        Self { in_vm: false, ..self }
    }

    /// It gets an agent without a sandbox, for itself.
    pub(crate) fn own_agent(self) -> Self {
        Self { own_agent: true, ..self }
    }

    /// As [`Scenario::own_agent`], and the agent is expected to end by itself.
    pub(crate) fn ends_its_agent(self) -> Self {
        Self { own_agent: true, ends_its_agent: true, ..self }
    }

    /// It wants its VM to boot with this.
    pub(crate) fn kernel_parameter(self, word: &'static str) -> Self {
        Self { kernel_parameter: Some(word), ..self }
    }

    /// It gets an agent of its own on the host that has this policy.
    #[cfg(feature = "policy")]
    pub(crate) fn policy(self, text: &'static str) -> Self {
        Self { policy: Some(text), ..self.host_only().own_agent() }
    }

    /// It gets a VM for itself, with disks, controllers, CPUs... as it likes.
    pub(crate) fn machine(self, machine: Machine) -> Self {
        Self { machine: Some(machine), ..self.vm_only().own_agent() }
    }
}

/// A scenario from the async function of that name.
macro_rules! scenario {
    ($name:ident) => {
        $crate::harness::Scenario::new(module_path!(), stringify!($name), |ctx| Box::pin($name(ctx)))
    };
}
pub(crate) use scenario;

/// Runs a scenario in the sandbox that there is, and sees to it that it leaves nothing behind.
async fn drive_in_sandbox(scenario: &Scenario, ctx: &Ctx) -> Outcome {
    let before = ctx.inventory().await?;
    let outcome = drive(scenario, ctx).await;
    ctx.clean_up().await;
    outcome?;
    ctx.returns_to(&before).await
}

/// Runs a scenario; a panic and too long a time are outcomes, too.
async fn drive(scenario: &Scenario, ctx: &Ctx) -> Outcome {
    let task = tokio::spawn((scenario.body)(ctx.clone()));
    let abort = task.abort_handle();
    let limit = if std::env::var_os("NAKAI_SOAK").is_some() { SOAK_LIMIT } else { LIMIT };
    match tokio::time::timeout(limit, task).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(error)) if error.is_panic() => Err(panic_text(error.into_panic().as_ref()).into()),
        Ok(Err(error)) => Err(error.into()),
        Err(_) => {
            abort.abort();
            Err(format!("not done within {} s", limit.as_secs()).into())
        }
    }
}

thread_local! {
    static PANIC_PLACE: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Keeps where a panic happened for the scenario's outcome, instead of a stack of the runtime's own functions.
pub(crate) fn note_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        PANIC_PLACE.set(place);
    }));
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked");
    format!("{}: {text}", PANIC_PLACE.take())
}

/// The sandbox of scenarios that share one or need none in particular.
async fn create_sandbox(ctx: &Ctx, shared_directory: bool) -> Outcome {
    ctx.client().create_sandbox(&sandbox::request("blackbox", SANDBOX_HOSTNAME, shared_directory)).await?;
    // The first container makes what the sandbox keeps: a PID namespace to share, a directory.
    ctx.run(|spec| spec.args(["true"])).await?;
    Ok(())
}

/// Where every agent takes streams as connections of their own.
pub(crate) const STREAM_PORT: u32 = 1027;

/// How long streams that outlive their process are listened to: on a busy machine a writer may stand still for longer
/// than usual.
pub(crate) const QUIET_MILLISECONDS: u32 = 5000;

/// What containers of [`create_sandbox`]'s sandbox see as their host name.
pub(crate) const SANDBOX_HOSTNAME: &str = "blackbox-pod";

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}
