//! `zun`: containers by the create request of OpenStack's Zun.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use nakai_ctl::Address;
use nakai_ctl::nets::HostNetworks;
use nakai_ctl::zun::{Host, Request, VOLUME_SECONDS};

use super::attend;
use super::error::CliError;
use super::run::{self, made_up};
use super::say::say;
use super::signals::Signals;
use super::target::Target;

#[derive(Debug, Subcommand)]
pub(crate) enum ZunCommand {
    /// Create a container by the JSON body of a create request; started too, if it says `run`
    Create(CreateOptions),
}

#[derive(Args, Debug)]
pub(crate) struct CreateOptions {
    /// The request
    request: PathBuf,
    /// The directory that images are looked for in
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
    /// The directory in which volumes appear, by their id
    #[arg(long, value_name = "DIR")]
    volumes: Option<PathBuf>,
    /// What networks, ports and PCI functions this host has, as JSON: docs/ctl.md says how
    #[arg(long, value_name = "FILE")]
    networks: Option<PathBuf>,
    /// How long a volume is waited for, in seconds
    #[arg(long, default_value_t = VOLUME_SECONDS)]
    volume_timeout: u64,
    /// The host's side of the directory shared with the guest [default: what `vm start` noted]
    #[arg(long)]
    share: Option<PathBuf>,
}

/// Does one of them.
pub(crate) async fn dispatch(address: Option<&Address>, command: ZunCommand) -> Result<u8, CliError> {
    let ZunCommand::Create(options) = command;
    let address = address.ok_or(CliError::NoAddress)?;
    let what = options.request.display().to_string();
    let text = std::fs::read_to_string(&options.request).map_err(CliError::io(what.clone()))?;
    let request = Request::read(&what, &text)?;
    let host = Host {
        images: options.images,
        volumes: options.volumes,
        volume_seconds: options.volume_timeout,
        networks: HostNetworks::of(options.networks.as_deref())?,
    };
    let mut order = request.order(&made_up("zun"), &host)?;
    let target = Target::at(address, options.share).await?;
    let engine = &target.engine;
    run::keep_log(engine, &mut order);
    target.need_share(&order)?;
    let record = run::create(engine, &order, true, &mut Signals::ending()?).await?;
    if request.runs() {
        let turn = engine.state().try_attend(&record.id);
        engine.start(&record.id).await?;
        attend::leave(address, &record.id, turn)?;
    }
    say!("{}", record.id);
    Ok(0)
}
