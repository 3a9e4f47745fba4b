//! `zun`: containers by the create request of OpenStack's Zun.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use nakai_ctl::Address;
use nakai_ctl::cri::CriError;
use nakai_ctl::state::State;
use nakai_ctl::zun::{Host, Request, VOLUME_SECONDS};

use super::cri;
use super::error::CliError;
use super::run::made_up;

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
    let host =
        Host { images: options.images, volumes: options.volumes, volume_seconds: options.volume_timeout };
    let mut order = request.order(&made_up("zun"), &host)?;
    let logs = State::of(address).front_ends().join("logs").join(order.id.as_deref().unwrap_or_default());
    order.pod.log_directory = logs.display().to_string();
    let (target, engine) = cri::at(Some(address), options.share).await?;
    target.need_share(&order.config.image.image)?;
    let created = engine.need_sandbox(&order.pod).await?;
    if !created && request.has_hostname() {
        let reason = "the sandbox is there already, and all its containers have its host name";
        return Err(CriError::field("hostname", reason).into());
    }
    let record = cri::create(&engine, &order).await?;
    if request.runs() {
        engine.start(&record.id).await?;
        cri::leave(address, &record.id)?;
    }
    println!("{}", record.id);
    Ok(0)
}
