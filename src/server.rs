//! The server: everything the host can say arrives in this process, and all state and policy live here.
//!
//! It is forked by the supervisor before any thread exists. Boot order: configuration, log, the transport's
//! kernel modules, the socket (Health answers from here on), then the rest of the guest and the sandbox. A
//! failure of a step without which no container can run ends the process with a line on the console; the
//! supervisor then powers off, or exits. A server that takes over from one that died finds the guest set up, gets the
//! socket from the supervisor, and takes the sandbox over before any call that needs it is served.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::{Shutdown, shutdown};
use slog::{Logger, info, o, warn};
use tokio::sync::{Notify, watch};

use crate::cgroup::Hierarchy;
use crate::config::{Config, Overrides, Sources};
use crate::device::Devices;
use crate::guest::boot::{self, Mode};
use crate::guest::bulkhead::Bulkhead;
use crate::guest::copy_file::Copies;
use crate::guest::modules::Modules;
use crate::journal::{self, Journal, Left, LeftLine};
use crate::mem_agent::MemAgent;
use crate::network::Networking;
use crate::observe::{console, log};
use crate::records::{Records, StateLock};
use crate::rpc::{Agent, Continuity, ServeError, Server};
use crate::sandbox::{Environment, Filters, Holds, OomEvents, Sandbox};
use crate::stdio::ports::Ports;
use crate::storage::{Hub, HubLimits, KernelMounts, Lookup, Storages};
use crate::supervisor::ServerEnds;
use crate::supervisor::client::{Hold, Launcher, Listed, Port};

/// How long an idle thread of the blocking pool is kept: memory counts more than the start of a thread. All are gone
/// before the server takes itself to be at rest ([`crate::guest::allocator`]).
const IDLE_THREAD: Duration = Duration::from_millis(100);
/// The stack of such a thread, of which only what is used takes memory. glibc keeps 40 MiB of ended threads' stacks, with
/// the pages that they had: two of these and not twenty.
const STACK: usize = 16 << 20;
/// The most blocking work at a time: far above what containers make in parallel. How much of it may be work on file
/// systems that can hang is the bulkhead's to say.
const MAX_BLOCKING_THREADS: usize = 512;
/// Where beneath `kata_dir` the host shares files, or copies them to; and where Kata's Rust shim copies them to before
/// its release 4.
const SHARED_FILES: [&str; 2] = ["shared/containers", "sandbox/passthrough"];
/// How long the sandbox may take to be destroyed when the agent is asked to stop: less than the supervisor waits.
const STOP_LIMIT: Duration = Duration::from_secs(15);
/// How long the rest of a service's boot waits for the first caller: long enough for one that looks for the socket
/// all the time, and for nobody a delay.
const FIRST_CALL: Duration = Duration::from_millis(2);
/// How long the log may take to reach its reader at the end.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Why the server could not start.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error(transparent)]
    Config(#[from] crate::config::ConfigError),
    #[error(transparent)]
    Boot(#[from] boot::BootError),
    #[error(transparent)]
    Serve(#[from] ServeError),
    #[error("{step}: {source}")]
    Io {
        step: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("look at the cgroup hierarchies: {0}")]
    Cgroups(#[from] crate::cgroup::CgroupError),
    #[cfg(not(feature = "policy"))]
    #[error("policy_file is {0}, but this agent has no policy engine: it would allow everything")]
    Policy(String),
    #[cfg(feature = "policy")]
    #[error(transparent)]
    Policy(#[from] crate::policy::PolicyError),
    #[error(transparent)]
    Records(#[from] crate::records::RecordError),
    #[error(transparent)]
    StateDir(#[from] crate::records::LockError),
    #[error("a step of the boot ended unexpectedly")]
    Task,
}

fn io_error(step: &'static str) -> impl FnOnce(io::Error) -> StartError {
    move |source| StartError::Io { step, source }
}

/// Runs the server with its ends of what joins it to the supervisor until the sandbox has been destroyed; returns the
/// exit code of the process.
pub fn run(ends: ServerEnds, overrides: &Overrides, mode: Mode, generation: u32) -> i32 {
    match start(ends, overrides, mode, generation) {
        Ok(()) => 0,
        Err(error) => {
            console::say(format_args!("boot failed: {error}"));
            1
        }
    }
}

/// What `--version` prints.
pub fn version() -> String {
    format!("nakai {} (protocol 0.0.1)", env!("CARGO_PKG_VERSION"))
}

fn start(ends: ServerEnds, overrides: &Overrides, mode: Mode, generation: u32) -> Result<(), StartError> {
    crate::guest::allocator::keep_small();
    // Told from the supervisor and its workers in a list of processes.
    let _ = nix::sys::prctl::set_name(c"nakai-server");
    // A service with a file of its own has been told all.
    let reads_kernel = mode == Mode::Init || overrides.config_file.is_none();
    let kernel = reads_kernel.then(|| std::fs::read_to_string("/proc/cmdline").unwrap_or_default());
    let env: Vec<(String, String)> = std::env::vars_os()
        .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let read_file = |path: &std::path::Path| std::fs::read_to_string(path);
    let sources = Sources { kernel: kernel.as_deref(), env: &env, overrides, read_file: &read_file };
    let (config, warnings) = Config::load(&sources)?;
    let config = Arc::new(config);
    let output = log::Output::stdout().map_err(io_error("open the log"))?;
    let (logger, log) = log::queued(output, config.log_level);
    // What a guest's boot has to say may be needed while it hangs; a service has none to speak of.
    if mode == Mode::Init {
        log.write().map_err(io_error("start the log"))?;
    }
    for warning in warnings {
        warn!(logger, "configuration"; "warning" => %warning);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_keep_alive(IDLE_THREAD)
        .thread_stack_size(STACK)
        .max_blocking_threads(MAX_BLOCKING_THREADS)
        .build()
        .map_err(io_error("start the runtime"))?;
    let mut ours = None;
    let result = runtime.block_on(serve(ends, config, mode, generation, logger, &log, &mut ours));
    runtime.shutdown_background();
    // Only now are the sockets closed, on which another agent may listen next.
    drop(ours);
    log.flush(LAST_WORDS);
    result
}

/// Puts the policy in front of the agent, before the first call can come.
#[cfg(feature = "policy")]
fn behind_policy(
    agent: Agent,
    config: &Config,
    settings: &Arc<Records>,
) -> Result<crate::rpc::Gated, StartError> {
    let policy = crate::policy::Policy::load(config.policy_file.as_deref(), settings.clone())?;
    Ok(crate::rpc::Gated::new(agent, policy))
}

/// An operator who wants a policy gets no agent without one.
#[cfg(not(feature = "policy"))]
fn behind_policy(agent: Agent, config: &Config, _: &Arc<Records>) -> Result<Agent, StartError> {
    match &config.policy_file {
        Some(policy) => Err(StartError::Policy(policy.display().to_string())),
        None => Ok(agent),
    }
}

async fn serve(
    ends: ServerEnds,
    config: Arc<Config>,
    mode: Mode,
    generation: u32,
    logger: Logger,
    log: &log::Log,
    ours: &mut Option<StateLock>,
) -> Result<(), StartError> {
    let boot_logger = logger.new(o!("subsystem" => "boot"));
    let (booted, sandbox) = watch::channel(None);
    let destroyed = Arc::new(Notify::new());
    // A service may not be the only one.
    if mode == Mode::Service && generation == 0 {
        *ours = Some(StateLock::take(&config.state_dir).await?);
    }
    let settings = settings(&config, generation)?;
    let launcher = Launcher::start(ends.channel, generation, logger.new(o!("subsystem" => "supervisor")))
        .map_err(io_error("watch the supervisor's channel"))?;
    // The first server has no predecessor, and answers the sooner.
    let mut held = if generation == 0 { Listed::default() } else { launcher.held().await };
    if ours.is_none() {
        *ours = held.state_lock.take().and_then(StateLock::held);
    }
    let continuity = continuity(&mut held, &launcher, &logger).map_err(io_error("make the journal"))?;
    let journal = continuity.journal.clone();
    let log_of_calls = logger.new(o!("subsystem" => "rpc"));
    let agent = Agent::new(sandbox, destroyed.clone(), log_of_calls, journal.clone());
    let effects = agent.clone();
    let agent = behind_policy(agent, &config, &settings)?;
    boot::before_listen(mode, &config, &boot_logger)?;
    if let Some(port) = config.log_vport {
        let listener = launcher.listener(Port::Log, &mut held, || log::Output::listen(port));
        log.redirect(log::Output::at_port(listener.map_err(io_error("serve the log on its vsock port"))?));
    }
    let (server, listener) = Server::start(&config.server_addr, continuity, agent, effects)?;
    let ports = listen_for_streams(&config, &launcher, &mut held, &logger)?;
    crate::console::start(&config, launcher.clone(), &mut held, logger.new(o!("subsystem" => "console")));
    boot::announce(&config.server_addr);
    info!(logger, "serving"; "address" => %config.server_addr, "generation" => generation);
    // Who has waited for the socket is answered before what the answer does not need. A guest's host is not that quick.
    if generation == 0 && mode == Mode::Service {
        server.first_call(FIRST_CALL).await;
    }
    log.write().map_err(io_error("start the log"))?;
    if let Err(error) = ends.lifeline.start().await {
        warn!(logger, "if a thread hangs when this server dies, no other will start"; "error" => %error);
    }

    let boot_mode = if generation == 0 { mode } else { Mode::Service };
    let environment =
        finish_boot(config, boot_mode, settings, launcher.clone(), ports, logger.clone(), boot_logger)
            .await?;
    if let Some(Ok(lock)) = ours.as_ref().map(StateLock::duplicate) {
        launcher.hold_state_lock(lock);
    }
    // A guest that gets so far is worth another server.
    launcher.serving(listener);
    journal.is_taken_over();
    let oom_events = environment.oom_events.clone();
    let sandbox = Sandbox::new(environment);
    if generation > 0 {
        sandbox.recover(Holds { processes: held.processes, streams: held.streams }).await;
    } else if mode == Mode::Service {
        sandbox.clear_abandoned().await;
    }
    booted.send_replace(Some(sandbox.clone()));
    tokio::select! {
        () = destroyed.notified() => {}
        () = launcher.stop_asked() => stop(&sandbox, &logger).await,
    }
    // The server waits for every call under way, and this one would never end.
    oom_events.close();
    server.stop().await;
    launcher.shut_down().await;
    Ok(())
}

/// The journal and the connections of the server before this one. Connections that can't be gone on with are closed.
fn continuity(held: &mut Listed, launcher: &Launcher, logger: &Logger) -> io::Result<Continuity> {
    let left = held.journal.take().map(Journal::open);
    let Left { journal, lines, panic } = match left {
        Some(Ok(left)) => left,
        other => {
            if let Some(Err(error)) = other {
                warn!(logger, "connections are lost: their journal can't be read"; "error" => %error);
            }
            let journal = Journal::create()?;
            launcher.hold_journal(journal.duplicates()?);
            Left { journal, lines: Vec::new(), panic: None }
        }
    };
    if let Some(panic) = &panic {
        warn!(logger, "the server before this one panicked"; "said" => panic);
    }
    journal::note_panics(journal.clone());
    let connections = connections(std::mem::take(&mut held.connections), lines);
    if !connections.is_empty() {
        let calls: usize = connections.iter().map(|(_, _, left)| left.calls.len()).sum();
        info!(logger, "connections go on"; "connections" => connections.len(), "calls" => calls);
    }
    let listener = held.listener.take();
    Ok(Continuity { journal, launcher: launcher.clone(), listener, connections, panic })
}

fn connections(held: Vec<(u16, OwnedFd, Hold)>, mut lines: Vec<LeftLine>) -> Vec<(OwnedFd, Hold, LeftLine)> {
    let mut found = Vec::new();
    for (number, connection, hold) in held {
        match lines.iter().position(|left| left.line.number() == number) {
            Some(place) => found.push((connection, hold, lines.swap_remove(place))),
            // The peer learns of it although the supervisor still has a duplicate.
            None => drop(shutdown(connection.as_raw_fd(), Shutdown::Both)),
        }
    }
    found
}

/// What the host has set for as long as the agent lives, whatever becomes of the sandbox; nothing for the first server.
fn settings(config: &Config, generation: u32) -> Result<Arc<Records>, StartError> {
    let settings = Records::new(config.state_dir.join("settings"));
    if generation == 0 {
        settings.clear()?;
        if cfg!(feature = "policy") || config.mem_agent.enable {
            settings.prepare(&[])?;
        }
    }
    Ok(Arc::new(settings))
}

/// Streams as connections of their own, if they are wanted.
fn listen_for_streams(
    config: &Config,
    launcher: &Launcher,
    held: &mut Listed,
    logger: &Logger,
) -> Result<Option<Arc<Ports>>, StartError> {
    let Some(port) = config.passfd_listener_port else { return Ok(None) };
    let logger = logger.new(o!("subsystem" => "stdio"));
    let bind = || crate::stdio::ports::bind(&config.server_addr, port);
    let ports = launcher
        .listener(Port::Streams, held, bind)
        .and_then(|listener| Ports::accept(&config.server_addr, listener, logger));
    ports.map(Some).map_err(io_error("listen on passfd_listener_port"))
}

/// Whoever stops the agent wants nothing of it left.
async fn stop(sandbox: &Sandbox, logger: &Logger) {
    info!(logger, "asked to stop");
    match tokio::time::timeout(STOP_LIMIT, sandbox.end()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => warn!(logger, "the sandbox is not all gone"; "error" => %error),
        Err(_) => warn!(logger, "the sandbox is not gone in time"; "after" => ?STOP_LIMIT),
    }
}

/// Into a buffer that is large enough for most: the kernel makes the list anew for each read.
fn read_mounts() -> io::Result<String> {
    let mut mounts = String::with_capacity(16 << 10);
    // Without a limit the length would be asked for first, which the kernel does not know.
    File::open("/proc/self/mountinfo")?.take(u64::MAX).read_to_string(&mut mounts)?;
    Ok(mounts)
}

/// The rest of the boot, beside the first calls.
async fn finish_boot(
    config: Arc<Config>,
    mode: Mode,
    settings: Arc<Records>,
    launcher: Launcher,
    ports: Option<Arc<Ports>>,
    logger: Logger,
    boot_logger: Logger,
) -> Result<Environment, StartError> {
    // A service has nothing to set up, so that it needs no thread for it.
    if mode == Mode::Init {
        let guest_config = config.clone();
        tokio::task::spawn_blocking(move || boot::after_listen(mode, &guest_config, &boot_logger))
            .await
            .map_err(|_| StartError::Task)??;
    }
    let mountinfo = read_mounts().map_err(io_error("read the mounts"))?;
    let hierarchy = Arc::new(Hierarchy::detect(&mountinfo)?);
    let modules = Arc::new(Modules::of_this_kernel());
    let devices =
        Devices::start(config.hotplug_timeout, modules.clone(), logger.new(o!("subsystem" => "device")));
    let mounts = Arc::new(KernelMounts::new(modules.clone()));
    let log = logger.new(o!("subsystem" => "storage"));
    let records = Arc::new(Records::new(config.state_dir.join("records")));
    let bulkhead = Bulkhead::of_pool(MAX_BLOCKING_THREADS);
    let limits = HubLimits { pull: config.image_pull_timeout, call: config.cdh_api_timeout };
    let lookup = Arc::new(Lookup {
        devices: devices.clone(),
        hub: Hub::new(limits, config.secure_storage_integrity),
        launcher: launcher.clone(),
        bulkhead: bulkhead.clone(),
    });
    let storages =
        Storages::new(&config.kata_dir, mounts, lookup, bulkhead.clone(), log, Some(records.clone()));
    let network = Networking::new(devices.clone(), logger.new(o!("subsystem" => "network")));
    let shared = SHARED_FILES.map(|directory| config.kata_dir.join(directory));
    let copies = Arc::new(Copies::new(shared.to_vec()));
    let log = logger.new(o!("subsystem" => "mem-agent"));
    let mem_agent = MemAgent::start(&config.mem_agent, settings, launcher.clone(), log);
    let oom_events = Arc::new(OomEvents::default());
    let filters = Filters::default();
    Ok(Environment {
        config,
        logger,
        launcher,
        hierarchy,
        modules,
        storages,
        devices,
        network,
        ports,
        mem_agent,
        copies,
        oom_events,
        filters,
        records,
        bulkhead,
    })
}
