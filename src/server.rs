//! The server: everything the host can say arrives in this process, and all state and policy live here.
//!
//! It is forked by the supervisor before any thread exists. Boot order: configuration, log, the transport's
//! kernel modules, the socket (Health answers from here on), then the rest of the guest and the sandbox. A
//! failure of a step without which no container can run ends the process with a line on the console; the
//! supervisor then powers off, or exits.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use slog::{Logger, info, o, warn};
use tokio::sync::{Notify, watch};

use crate::cgroup::Hierarchy;
use crate::config::{Config, Overrides, Sources};
use crate::device::Devices;
use crate::guest::boot::{self, Mode};
use crate::guest::modules::Modules;
use crate::observe::{console, log};
use crate::rpc::{Agent, ServeError, Server};
use crate::sandbox::{Environment, OomEvents, Sandbox};
use crate::storage::{KernelMounts, Storages};
use crate::supervisor::channel::Channel;
use crate::supervisor::client::Launcher;

/// How long an idle thread of the blocking pool is kept: memory counts more than the start of a thread.
const IDLE_THREAD: Duration = Duration::from_millis(500);
/// The most blocking work at a time. Far above what containers make in parallel, so that a mount that hangs
/// takes a thread and nobody's turn.
const MAX_BLOCKING_THREADS: usize = 256;
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
    #[error("policy_file is {0}, but this agent has no policy engine: it would allow everything")]
    Policy(String),
    #[error("a step of the boot ended unexpectedly")]
    Task,
}

fn io_error(step: &'static str) -> impl FnOnce(io::Error) -> StartError {
    move |source| StartError::Io { step, source }
}

/// Runs the server with its end of the supervisor's channel until the sandbox has been destroyed; returns the
/// exit code of the process.
pub fn run(channel: Channel, overrides: &Overrides, mode: Mode) -> i32 {
    match start(channel, overrides, mode) {
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

fn start(channel: Channel, overrides: &Overrides, mode: Mode) -> Result<(), StartError> {
    crate::guest::allocator::keep_small();
    let kernel = (mode == Mode::Init).then(|| std::fs::read_to_string("/proc/cmdline").unwrap_or_default());
    let env: Vec<(String, String)> = std::env::vars_os()
        .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let read_file = |path: &std::path::Path| std::fs::read_to_string(path);
    let sources = Sources { kernel: kernel.as_deref(), env: &env, overrides, read_file: &read_file };
    let (config, warnings) = Config::load(&sources)?;
    let config = Arc::new(config);
    let output = log::Output::stdout().map_err(io_error("open the log"))?;
    let (logger, log) = log::start(output, config.log_level).map_err(io_error("start the log"))?;
    for warning in warnings {
        warn!(logger, "configuration"; "warning" => %warning);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_keep_alive(IDLE_THREAD)
        .max_blocking_threads(MAX_BLOCKING_THREADS)
        .build()
        .map_err(io_error("start the runtime"))?;
    warn_of_idle_options(&config, &logger);
    let result = match &config.policy_file {
        Some(policy) => Err(StartError::Policy(policy.display().to_string())),
        None => runtime.block_on(serve(channel, config, mode, logger, &log)),
    };
    runtime.shutdown_background();
    log.flush(LAST_WORDS);
    result
}

/// Services that can be configured and are not there yet: whoever asks for one shall know.
fn warn_of_idle_options(config: &Config, logger: &Logger) {
    let idle = [
        ("debug_console", config.debug_console || config.debug_console_vport.is_some()),
        ("passfd_listener_port", config.passfd_listener_port.is_some()),
    ];
    for (option, _) in idle.into_iter().filter(|(_, is_set)| *is_set) {
        warn!(logger, "the option has no effect in this version"; "option" => option);
    }
}

async fn serve(
    channel: Channel,
    config: Arc<Config>,
    mode: Mode,
    logger: Logger,
    log: &log::Log,
) -> Result<(), StartError> {
    let boot_logger = logger.new(o!("subsystem" => "boot"));
    let launcher = Launcher::start(channel, logger.new(o!("subsystem" => "supervisor")))
        .map_err(io_error("watch the supervisor's channel"))?;
    boot::before_listen(mode, &config, &boot_logger)?;
    if let Some(port) = config.log_vport {
        log.redirect(log::Output::vsock(port).map_err(io_error("serve the log on its vsock port"))?);
    }
    let (booted, sandbox) = watch::channel(None);
    let destroyed = Arc::new(Notify::new());
    let agent = Agent::new(sandbox, destroyed.clone(), logger.new(o!("subsystem" => "rpc")));
    let server = Server::start(&config.server_addr, agent).await?;
    boot::announce(&config.server_addr);
    info!(logger, "serving"; "address" => %config.server_addr);

    let environment = finish_boot(config, mode, launcher.clone(), logger.clone(), boot_logger).await?;
    let oom_events = environment.oom_events.clone();
    booted.send_replace(Some(Sandbox::new(environment)));
    destroyed.notified().await;
    // The server waits for every call under way, and this one would never end.
    oom_events.close();
    server.stop().await;
    launcher.shut_down().await;
    Ok(())
}

/// The rest of the boot, beside the first calls.
async fn finish_boot(
    config: Arc<Config>,
    mode: Mode,
    launcher: Launcher,
    logger: Logger,
    boot_logger: Logger,
) -> Result<Environment, StartError> {
    let guest_config = config.clone();
    tokio::task::spawn_blocking(move || boot::after_listen(mode, &guest_config, &boot_logger))
        .await
        .map_err(|_| StartError::Task)??;
    let mountinfo = std::fs::read_to_string("/proc/self/mountinfo").map_err(io_error("read the mounts"))?;
    let hierarchy = Arc::new(Hierarchy::detect(&mountinfo)?);
    let modules = Arc::new(Modules::of_this_kernel());
    let devices =
        Devices::start(config.hotplug_timeout, modules.clone(), logger.new(o!("subsystem" => "device")));
    let mounts = Arc::new(KernelMounts::new(modules.clone()));
    let log = logger.new(o!("subsystem" => "storage"));
    let storages = Storages::new(&config.kata_dir, mounts, Arc::new(devices.clone()), log);
    let oom_events = Arc::new(OomEvents::default());
    Ok(Environment { config, logger, launcher, hierarchy, modules, storages, devices, oom_events })
}
