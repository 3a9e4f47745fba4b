//! `cri`: containers by the kubelet's configuration, from the files that crictl reads.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use clap::{Args, Subcommand};
use nakai_ctl::Address;
use nakai_ctl::cri::store::State as Progress;
use nakai_ctl::cri::supervise::{Console, supervise};
use nakai_ctl::cri::{
    ContainerConfig, CriError, Engine, ImageConfig, Order, PodSandboxConfig, Record, json, log,
};
use nakai_ctl::state::State;
use nakai_ctl::stdio::Output;
use nakai_ctl::vm::VmConfig;
use tokio::io::AsyncWriteExt as _;

use super::error::CliError;
use super::process::{self, exit_code};
use super::run::made_up;
use super::target::Target;

/// How often a log that is followed is looked at: files tell nobody when they grow.
const FOLLOW_POLL: Duration = Duration::from_millis(100);

#[derive(Debug, Subcommand)]
pub(crate) enum CriCommand {
    /// Create a container, start it, and exit with its status
    Run(RunOptions),
    /// Create a container and print its name
    Create(CreateOptions),
    /// Start a created container and leave it running
    Start {
        /// The container
        id: String,
    },
    /// Run a further process in a container and exit with its status
    Exec {
        /// Give it standard input
        #[arg(short, long)]
        interactive: bool,
        /// Give it a terminal
        #[arg(short, long)]
        tty: bool,
        /// The container
        id: String,
        /// The program and its arguments
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Print a container's log
    Logs {
        /// Go on until the container has ended
        #[arg(short, long)]
        follow: bool,
        /// The container
        id: String,
    },
    /// Ask a container to end, and kill it when it does not
    Stop {
        /// How long it may take, in seconds
        #[arg(short, long, default_value_t = 10)]
        timeout: u64,
        /// The container
        id: String,
    },
    /// Remove a container, killing what still runs in it
    Rm {
        /// The container
        id: String,
    },
    /// List the containers
    Ps,
    /// Print all that is known of a container, as JSON
    Inspect {
        /// The container
        id: String,
    },
    /// Stay with a running container: what `start` leaves behind
    #[command(hide = true)]
    Attend {
        /// The container
        id: String,
    },
}

/// What a container is made of.
#[derive(Args, Debug)]
pub(crate) struct CreateOptions {
    /// The pod: a PodSandboxConfig as JSON
    pod: PathBuf,
    /// The container: a ContainerConfig as JSON, whose image is a directory or a tar file of this host
    container: PathBuf,
    /// What the image says of its containers: an OCI image configuration as JSON
    #[arg(long, value_name = "FILE")]
    image_config: Option<PathBuf>,
    /// The container's name [default: made of the pod's, its own and the attempt]
    #[arg(long)]
    id: Option<String>,
    /// The host's side of the directory shared with the guest [default: what `vm start` noted]
    #[arg(long)]
    share: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub(crate) struct RunOptions {
    #[command(flatten)]
    create: CreateOptions,
    /// Print its name and leave it running
    #[arg(short, long)]
    detach: bool,
    /// Don't remove it when it has ended
    #[arg(long)]
    keep: bool,
    #[command(flatten)]
    vm: OwnVm,
}

/// A VM that ends with the command.
#[derive(Args, Clone, Debug)]
pub(crate) struct OwnVm {
    /// The kernel of a VM of its own
    #[arg(long, env = "NAKAI_KERNEL", requires = "initrd")]
    pub(crate) kernel: Option<PathBuf>,
    /// The initramfs of a VM of its own
    #[arg(long, env = "NAKAI_INITRD", requires = "kernel")]
    pub(crate) initrd: Option<PathBuf>,
}

/// Does one of them.
pub(crate) async fn dispatch(address: Option<&Address>, command: CriCommand) -> Result<u8, CliError> {
    match command {
        CriCommand::Run(options) => run(address, &options).await,
        CriCommand::Create(options) => {
            let order = order(&options)?;
            let (target, engine) = at(address, options.share.clone()).await?;
            target.need_share(&order.config.image.image)?;
            let record = create(&engine, &order).await?;
            println!("{}", record.id);
            Ok(0)
        }
        CriCommand::Start { id } => {
            let (_, engine) = at(address, None).await?;
            engine.start(&id).await?;
            leave(address.ok_or(CliError::NoAddress)?, &id)?;
            println!("{id}");
            Ok(0)
        }
        CriCommand::Exec { interactive, tty, id, args } => {
            let (_, engine) = at(address, None).await?;
            let exec = made_up("exec");
            engine.client().exec_process(&id, &exec, engine.process(&id, &args, tty)?).await?;
            process::attend(engine.client(), &id, &exec, interactive, tty).await
        }
        CriCommand::Logs { follow, id } => logs(&at(address, None).await?.1, &id, follow).await,
        CriCommand::Stop { timeout, id } => {
            at(address, None).await?.1.stop(&id, Duration::from_secs(timeout)).await?;
            Ok(0)
        }
        CriCommand::Rm { id } => {
            at(address, None).await?.1.remove(&id).await?;
            Ok(0)
        }
        CriCommand::Ps => {
            ps(&at(address, None).await?.1);
            Ok(0)
        }
        CriCommand::Inspect { id } => {
            let record = at(address, None).await?.1.store().get(&id)?;
            let text = serde_json::to_string_pretty(&record);
            println!("{}", text.map_err(|error| CliError::io("container")(error.into()))?);
            Ok(0)
        }
        CriCommand::Attend { id } => {
            let (_, engine) = at(address, None).await?;
            stay(&engine, &id, Console::default()).await
        }
    }
}

/// The agent at `address`.
pub(crate) async fn at(
    address: Option<&Address>,
    share: Option<PathBuf>,
) -> Result<(Target, Engine), CliError> {
    let address = address.ok_or(CliError::NoAddress)?;
    let target = Target::at(address, share).await?;
    // Notes about another agent that was at this address before are not looked at.
    let agent = target.client.peer().unwrap_or("agent").replace(|c: char| !c.is_ascii_alphanumeric(), "-");
    let engine = engine(&target, State::of(address).front_ends().join(agent));
    Ok((target, engine))
}

fn engine(target: &Target, directory: PathBuf) -> Engine {
    Engine::new(target.client.clone(), target.share.clone(), directory)
}

fn order(options: &CreateOptions) -> Result<Order, CliError> {
    let (pod, unknown) = read::<PodSandboxConfig>(&options.pod)?;
    warn(&options.pod, &unknown);
    let (config, unknown) = read::<ContainerConfig>(&options.container)?;
    warn(&options.container, &unknown);
    let image = match &options.image_config {
        Some(path) => ImageConfig::read(&path.display().to_string(), &text(path)?)?,
        None => ImageConfig::default(),
    };
    Ok(Order { pod, config, image, id: options.id.clone(), ..Order::default() })
}

fn read<T>(path: &Path) -> Result<(T, Vec<String>), CliError>
where
    T: serde::de::DeserializeOwned + serde::Serialize,
{
    Ok(json::read(&path.display().to_string(), &text(path)?)?)
}

fn text(path: &Path) -> Result<String, CliError> {
    std::fs::read_to_string(path).map_err(CliError::io(path.display().to_string()))
}

fn warn(path: &Path, unknown: &[String]) {
    for field in unknown {
        eprintln!("nakai-ctl: {}: {field} is not known here and is ignored", path.display());
    }
}

pub(crate) async fn create(engine: &Engine, order: &Order) -> Result<Record, CliError> {
    engine.need_sandbox(&order.pod).await?;
    let (record, warnings) = engine.create(order).await?;
    for warning in warnings {
        eprintln!("nakai-ctl: {warning}");
    }
    Ok(record)
}

async fn run(address: Option<&Address>, options: &RunOptions) -> Result<u8, CliError> {
    let order = order(&options.create)?;
    let how = How { detach: options.detach, keep: options.keep, interactive: order.config.stdin };
    run_order(address, options.create.share.clone(), &options.vm, &order, how).await
}

/// What becomes of a container that is run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct How {
    pub(crate) detach: bool,
    pub(crate) keep: bool,
    pub(crate) interactive: bool,
}

/// Creates a container, starts it and stays with it, or leaves it running.
pub(crate) async fn run_order(
    address: Option<&Address>,
    share: Option<PathBuf>,
    vm: &OwnVm,
    order: &Order,
    how: How,
) -> Result<u8, CliError> {
    if let Some(address) = address {
        let (target, engine) = at(Some(address), share).await?;
        target.need_share(&order.config.image.image)?;
        return run_at(Some(address), &engine, order, how).await;
    }
    let (Some(kernel), Some(initrd)) = (&vm.kernel, &vm.initrd) else { return Err(CliError::NoTarget) };
    if how.detach || how.keep {
        return Err(CliError::NeedsAddress { what: if how.detach { "--detach" } else { "--keep" } });
    }
    let config = VmConfig { share, ..VmConfig::new(kernel, initrd) };
    let target = process::unless_interrupted(Target::boot(&config)).await?;
    let notes = tempfile::tempdir().map_err(CliError::io("directory for notes"))?;
    let engine = engine(&target, notes.path().to_owned());
    let result = run_at(None, &engine, order, how).await;
    if let (Err(CliError::Cri(CriError::Call(error))), Some(tail)) = (&result, target.console_tail())
        && error.connection_lost
    {
        eprintln!("nakai-ctl: last lines of the VM's console:\n{tail}");
    }
    result
}

async fn run_at(address: Option<&Address>, engine: &Engine, order: &Order, how: How) -> Result<u8, CliError> {
    let record = process::unless_interrupted(create(engine, order)).await?;
    let id = record.id.as_str();
    let result = live(address, engine, &record, how).await;
    if result.is_ok() && (how.detach || how.keep) {
        return result;
    }
    // An auto-removed one is gone already.
    let removed = match engine.store().get(id) {
        Ok(_) => engine.remove(id).await,
        Err(_) => Ok(()),
    };
    // Why it did not run tells more than why it can't be removed.
    let status = result?;
    removed?;
    Ok(status)
}

async fn live(address: Option<&Address>, engine: &Engine, record: &Record, how: How) -> Result<u8, CliError> {
    let id = record.id.as_str();
    engine.start(id).await?;
    if let (true, Some(address)) = (how.detach, address) {
        leave(address, id)?;
        println!("{id}");
        return Ok(0);
    }
    let tty = record.order.config.tty;
    let stdin = how.interactive.then(|| Box::new(tokio::io::stdin()) as _);
    let work = stay(engine, id, Console { stdin, echo: true });
    process::beside(engine.client(), id, id, how.interactive, tty, work).await
}

/// Starts a process of this program that stays with a container.
pub(crate) fn leave(address: &Address, id: &str) -> Result<(), CliError> {
    let program = std::env::current_exe().map_err(CliError::io("this program's own path"))?;
    let mut command = std::process::Command::new(program);
    command.args(["--address", &address.to_string(), "cri", "attend", id]).process_group(0);
    let spawned = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    spawned.map(drop).map_err(CliError::io("process that stays with the container"))
}

/// Stays with a container, and notes why that did not work.
async fn stay(engine: &Engine, id: &str, console: Console) -> Result<u8, CliError> {
    match supervise(engine, id, console).await {
        Ok(status) => Ok(exit_code(status)),
        Err(error) => {
            if let Ok(mut record) = engine.store().get(id) {
                record.state = Progress::Error(error.to_string());
                engine.store().put(&record)?;
            }
            Err(error.into())
        }
    }
}

fn ps(engine: &Engine) {
    println!("{:<32} {:<20} {:<8} {:<9} {:<10} IMAGE", "CONTAINER", "STATE", "ATTEMPT", "RESTARTS", "HEALTH");
    for record in engine.store().all() {
        let health = format!("{:?}", record.health).to_lowercase();
        println!(
            "{:<32} {:<20} {:<8} {:<9} {health:<10} {}",
            record.id,
            record.state.to_string(),
            record.attempt,
            record.restarts,
            record.order.config.image.image
        );
    }
}

async fn logs(engine: &Engine, id: &str, follow: bool) -> Result<u8, CliError> {
    let record = engine.store().get(id)?;
    let path = record.log.ok_or_else(|| CriError::field("log_path", "the container has no log"))?;
    let mut offset = 0;
    loop {
        // Looked at first: what is written before the end is then printed.
        let ended = !matches!(engine.store().get(id).map(|record| record.state), Ok(Progress::Running));
        let bytes = std::fs::read(&path).map_err(CliError::io(path.display().to_string()))?;
        let fresh = bytes.get(offset..).unwrap_or_default();
        let whole = fresh.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end.saturating_add(1));
        print_log(fresh.get(..whole).unwrap_or_default()).await?;
        offset = offset.saturating_add(whole);
        if !follow || ended {
            return Ok(0);
        }
        tokio::time::sleep(FOLLOW_POLL).await;
    }
}

async fn print_log(text: &[u8]) -> Result<(), CliError> {
    let (mut stdout, mut stderr) = (tokio::io::stdout(), tokio::io::stderr());
    for line in text.split_inclusive(|&byte| byte == b'\n') {
        let Some(entry) = log::parse(line.strip_suffix(b"\n").unwrap_or(line)) else { continue };
        let text = [entry.text, if entry.partial { b"" } else { b"\n" }].concat();
        let written = match entry.output {
            Output::Stdout => stdout.write_all(&text).await,
            Output::Stderr => stderr.write_all(&text).await,
        };
        written.map_err(CliError::io("output"))?;
    }
    let flushed = async { stdout.flush().await.and(stderr.flush().await) };
    flushed.await.map_err(CliError::io("output"))
}
