//! The commands: what they take, and which function does each.

mod args;
mod attend;
mod containers;
mod cri;
mod demo;
mod error;
mod events;
mod images;
mod input;
mod logs;
mod process;
mod query;
mod run;
mod say;
mod signals;
mod target;
mod vm;
mod zun;

use std::process::ExitCode;

use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory as _, FromArgMatches as _};
use nakai_ctl::vms::Registry;

use args::{Cli, Command, DockerCommand, VmCommand};
use error::CliError;

/// The exit status of a failure that is not the container's.
const OWN_FAILURE: u8 = 125;

/// Parses the arguments, runs the command and gives the exit status.
pub(crate) fn main() -> ExitCode {
    let (cli, typed) = match read() {
        Ok(read) => read,
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
    let result = runtime.block_on(signals::unless_ended(dispatch(cli, typed)));
    // A read of the terminal may be under way; nothing waits for it.
    runtime.shutdown_background();
    match result.and_then(|status| say::finish().map(|()| status)) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            if error.is_news() {
                own_failure(&error);
            }
            ExitCode::from(error.status())
        }
    }
}

/// Which VM the words of the command line name; the environment may name another.
#[derive(Clone, Copy, Debug)]
struct Typed {
    /// One that is there.
    agent: bool,
    /// One that is to be booted.
    kernel: bool,
}

fn read() -> Result<(Cli, Typed), clap::Error> {
    let mut command = Cli::command();
    let matches = command.try_get_matches_from_mut(std::env::args_os())?;
    let cli = Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut command))?;
    let agent = is_typed(&matches, "address") || is_typed(&matches, "sandbox");
    let mut innermost = &matches;
    while let Some((_, inner)) = innermost.subcommand() {
        innermost = inner;
    }
    Ok((cli, Typed { agent, kernel: is_typed(innermost, "kernel") }))
}

fn is_typed(matches: &ArgMatches, argument: &str) -> bool {
    let is_there = matches.try_contains_id(argument).unwrap_or(false);
    is_there && matches.value_source(argument) == Some(ValueSource::CommandLine)
}

fn own_failure(error: &dyn std::error::Error) -> ExitCode {
    say::tell!("{error}");
    ExitCode::from(OWN_FAILURE)
}

/// The VM whose agent is meant, if one is named. An address is nearer than the environment's name.
fn named(cli: &Cli) -> Option<String> {
    // These are not about what is in a VM.
    if matches!(cli.command, Command::Vm { .. } | Command::Images { .. } | Command::Demo(_)) {
        return None;
    }
    let environment = || std::env::var("NAKAI_SANDBOX").ok().filter(|name| !name.is_empty());
    cli.sandbox.clone().or_else(|| if cli.address.is_none() { environment() } else { None })
}

async fn dispatch(mut cli: Cli, typed: Typed) -> Result<u8, CliError> {
    let boots = typed.kernel && !matches!(cli.command, Command::Vm { .. } | Command::Demo(_));
    if boots && typed.agent {
        return Err(CliError::TwoTargets);
    }
    // What is typed counts more than what the environment says.
    let name = if boots { None } else { named(&cli) };
    if boots {
        cli.address = None;
    }
    let address = match name {
        Some(name) => Some(Registry::of_user().address(&name)?),
        None => cli.address,
    };
    let address = address.as_ref();
    match cli.command {
        Command::Vm { command: VmCommand::Start(options) } => vm::start(&options).await,
        Command::Vm { command: VmCommand::Ls } => vm::ls(),
        Command::Vm { command: VmCommand::Stop { names, all } } => vm::stop(&names, all).await,
        Command::Run(options) => run::run(address, &options).await,
        Command::Docker { command: DockerCommand::Run(mut options) } => {
            // Docker's containers stay, unless they are to go.
            options.keep = !options.flags.auto_remove && address.is_some();
            run::run(address, &options).await
        }
        Command::Exec(options) => run::exec(address, &options).await,
        Command::Cri { command } => cri::dispatch(address, command).await,
        Command::Zun { command } => zun::dispatch(address, command).await,
        Command::Demo(options) => demo::demo(&options).await,
        Command::Images { command } => images::dispatch(&command),
        Command::Ps { quiet, all: _ } => query::ps(address, quiet).await,
        Command::Events { all } => events::follow(address, all).await,
        Command::Attend { id } => attend::run(address, &id).await,
        Command::Stats { id } => query::stats(address, &id).await,
        Command::Start { ids } => containers::start(address, &ids).await,
        Command::Stop { timeout, ids } => containers::stop(address, &ids, timeout).await,
        Command::Pause { ids } => containers::pause(address, &ids).await,
        Command::Resume { ids } => containers::resume(address, &ids).await,
        Command::Kill { id, signal, by_flag, all } => {
            containers::kill(address, &id, by_flag.unwrap_or(signal), all).await
        }
        Command::Rm { force: _, ids } => containers::rm(address, &ids).await,
        Command::Logs(options) => logs::logs(address, &options).await,
        Command::Inspect { id } => containers::inspect(address, &id).await,
        Command::Check => query::check(address).await,
        Command::Version => query::version(address).await,
        Command::Details => query::details(address).await,
    }
}
