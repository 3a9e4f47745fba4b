//! `cri`: containers by the kubelet's configuration, from the files that crictl reads.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use nakai_ctl::Address;
use nakai_ctl::cri::{ContainerConfig, CriError, ImageConfig, Order, PodSandboxConfig, json};
use nakai_ctl::nets::HostNetworks;
use nakai_ctl::nets::file::Asked;

use super::args::{ExecOptions, LogsOptions, OwnVm};
use super::containers;
use super::error::CliError;
use super::logs;
use super::query;
use super::run::{self, How};
use super::say::{say, tell};
use super::signals::Signals;
use super::target::Target;

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
    Exec(ExecOptions),
    /// Print a container's log
    Logs(LogsOptions),
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
}

/// What a container is made of.
#[derive(Args, Debug)]
pub(crate) struct CreateOptions {
    /// The pod: a PodSandboxConfig as JSON
    pod: PathBuf,
    /// The container: a ContainerConfig as JSON, whose image is a path of this host, as for `run --image`
    container: PathBuf,
    /// What the image says of its containers: an OCI image configuration as JSON
    #[arg(long, value_name = "FILE")]
    image_config: Option<PathBuf>,
    /// A network that the pod gets a card in, with its first container; `user` leads out through this host
    #[arg(long, value_name = "NAME")]
    network: Vec<String>,
    /// What networks this host has, as JSON: docs/ctl.md says how
    #[arg(long, value_name = "FILE")]
    networks: Option<PathBuf>,
    /// How large a file of its log may get [default: 10Mi]
    #[arg(long, value_name = "BYTES")]
    container_log_max_size: Option<String>,
    /// How many files its log may have
    #[arg(long, value_name = "COUNT")]
    container_log_max_files: Option<u32>,
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

/// Does one of them. All but the first two are the same for every front end.
pub(crate) async fn dispatch(address: Option<&Address>, command: CriCommand) -> Result<u8, CliError> {
    match command {
        CriCommand::Run(options) => {
            let order = order(&options.create)?;
            let how = How { detach: options.detach, keep: options.keep, interactive: order.config.stdin };
            run::run_order(address, options.create.share, &options.vm, order, how).await
        }
        CriCommand::Create(options) => {
            let order = order(&options)?;
            let target = Target::at(address.ok_or(CliError::NoAddress)?, options.share).await?;
            target.need_share(&order)?;
            let mut signals = Signals::ending()?;
            say!("{}", run::create(&target.engine, &order, false, &mut signals).await?.id);
            Ok(0)
        }
        CriCommand::Start { id } => containers::start(address, &[id]).await,
        CriCommand::Exec(options) => run::exec(address, &options).await,
        CriCommand::Logs(options) => logs::logs(address, &options).await,
        CriCommand::Stop { timeout, id } => containers::stop(address, &[id], timeout).await,
        CriCommand::Rm { id } => containers::rm(address, &[id]).await,
        CriCommand::Ps => query::ps(address, false).await,
        CriCommand::Inspect { id } => containers::inspect(address, &id).await,
    }
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
    let mut order = Order { pod, config, image, id: options.id.clone(), ..Order::default() };
    for (flag, option) in [
        (
            "--container-log-max-size",
            options.container_log_max_size.as_ref().map(|size| format!("max-size={size}")),
        ),
        (
            "--container-log-max-files",
            options.container_log_max_files.map(|count| format!("max-file={count}")),
        ),
    ] {
        let set = option.map_or(Ok(()), |option| order.extras.log_limits.set(&option));
        set.map_err(|reason| CriError::field(flag, reason))?;
    }
    order.extras.needs_hostname = !order.pod.hostname.is_empty();
    let host = HostNetworks::of(options.networks.as_deref())?;
    for name in &options.network {
        let asked = Asked { field: "--network", network: Some(name), ..Asked::default() };
        order.extras.pod_cards.push(host.card(&asked)?);
    }
    Ok(order)
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
        tell!("{}: {field} is not known here and is ignored", path.display());
    }
}
