//! `docker run`: containers by Docker's flags.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use nakai_ctl::Address;
use nakai_ctl::docker::CommandLine;
use nakai_ctl::state::State;

use super::cri::{self, How, OwnVm};
use super::error::CliError;
use super::run::{check_terminal, made_up};

#[derive(Debug, Subcommand)]
pub(crate) enum DockerCommand {
    /// Create a container, start it, and exit with its status; its image is a directory or a tar file
    Run(Box<RunOptions>),
}

#[derive(Args, Debug)]
pub(crate) struct RunOptions {
    /// Print its name and leave it running
    #[arg(short, long, conflicts_with_all = ["interactive", "tty"])]
    detach: bool,
    /// Remove it when it has ended
    #[arg(long)]
    rm: bool,
    /// The host's side of the directory shared with the guest [default: what `vm start` noted]
    #[arg(long)]
    share: Option<PathBuf>,
    #[command(flatten)]
    vm: OwnVm,
    #[command(flatten)]
    line: CommandLine,
}

/// Does one of them.
pub(crate) async fn dispatch(address: Option<&Address>, command: DockerCommand) -> Result<u8, CliError> {
    let DockerCommand::Run(options) = command;
    let RunOptions { detach, rm, share, vm, mut line } = *options;
    check_terminal(line.flags.interactive, line.flags.tty)?;
    line.flags.auto_remove = rm;
    let mut order = line.order(&made_up("c"))?;
    if let (true, Some(address), Some(id)) = (detach, address, &order.id) {
        let logs = State::of(address).front_ends().join("logs").join(id);
        order.pod.log_directory = logs.display().to_string();
    }
    // A VM of its own takes the container with it.
    let keep = !rm && address.is_some();
    let how = How { detach, keep, interactive: line.flags.interactive };
    cri::run_order(address, share, &vm, &order, how).await
}
