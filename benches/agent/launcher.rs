//! What starts an agent on the host: the first process of the namespaces that it gets, so that it is not that itself.
//!
//! It is there, and waits, before time is taken. A shell in its place would have to be copied for the agent to be started,
//! which takes as long as half of the agent's own start.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::process::{Command, ExitCode, Stdio};

/// By this, as the first argument, the program knows that it is to be the launcher. Behind it are the agent and its log.
pub(crate) const ARGUMENT: &str = "launch-agent";

/// Says that it is there, starts the agent when a byte comes, and ends with it.
pub(crate) fn run(mut args: impl Iterator<Item = OsString>) -> ExitCode {
    let (Some(agent), Some(log)) = (args.next(), args.next()) else { return ExitCode::FAILURE };
    let started = File::create(log).and_then(|log| {
        let mut command = Command::new(agent);
        command.stdin(Stdio::null()).stdout(log);
        std::io::stdout().write_all(b".")?;
        std::io::stdout().flush()?;
        std::io::stdin().read_exact(&mut [0])?;
        command.spawn()
    });
    let ended = started.and_then(|mut agent| agent.wait());
    if ended.is_ok_and(|status| status.success()) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
