//! The commands: what they take, and which function does each.

mod args;
mod demo;
mod error;
mod process;
mod query;
mod run;
mod state;
mod target;
mod vm;

use std::process::ExitCode;

use clap::Parser as _;

use args::{Cli, Command, VmCommand};
use error::CliError;

/// The exit status of a failure that is not the container's.
const OWN_FAILURE: u8 = 125;

/// Parses the arguments, runs the command and gives the exit status.
pub(crate) fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Its only failure is a closed stderr.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(OWN_FAILURE) } else { ExitCode::SUCCESS };
        }
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return own_failure(&error),
    };
    let result = runtime.block_on(dispatch(cli));
    // A read of the terminal may be under way; nothing waits for it.
    runtime.shutdown_background();
    match result {
        Ok(status) => ExitCode::from(status),
        Err(error) => own_failure(&error),
    }
}

fn own_failure(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("nakai-ctl: {error}");
    ExitCode::from(OWN_FAILURE)
}

async fn dispatch(cli: Cli) -> Result<u8, CliError> {
    let address = cli.address.as_ref();
    match cli.command {
        Command::Vm { command: VmCommand::Start(options) } => vm::start(&options).await,
        Command::Run(options) => run::run(address, &options).await,
        Command::Exec(options) => run::exec(address, &options).await,
        Command::Demo(options) => demo::demo(&options).await,
        Command::Ps => query::ps(address).await,
        Command::Stats { id } => query::stats(address, &id).await,
        Command::Kill { id, signal, all } => query::kill(address, &id, signal, all).await,
        Command::Rm { id } => query::rm(address, &id).await,
        Command::Check => query::check(address).await,
        Command::Version => query::version(address).await,
        Command::Details => query::details(address).await,
    }
}
