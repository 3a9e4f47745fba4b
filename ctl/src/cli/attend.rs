//! `attend`: a process of its own for each detached container, which takes its output, runs its health checks, starts
//! it again, and notes how it ends.
//!
//! The agent tells an exit to those that wait for it and to nobody later, so somebody has to wait. One attendant of all
//! those of an agent also takes its OOM events, which are given to one asker only; the others stand in line for that
//! with a lock.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nakai_ctl::Address;
use nakai_ctl::cri::Engine;
use nakai_ctl::cri::supervise::{Console, supervise};
use nakai_ctl::state::Lock;

use super::error::CliError;
use super::input::Input;
use super::say::tell;
use super::{run, target};

/// How long the agent may be away: its supervisor starts another server at once, but a machine may be busy.
const AWAY: Duration = Duration::from_secs(30);

/// How often it is looked for.
const AGAIN_POLL: Duration = Duration::from_millis(100);

/// Starts the attendant of container `id`, and gives it the turn for that: nobody else is to be told how it ends.
pub(crate) fn leave(address: &Address, id: &str, turn: Option<Lock>) -> Result<(), CliError> {
    let failed = || CliError::io(format!("attendant of container {id}"));
    let program = std::env::current_exe().map_err(failed())?;
    let mut command = Command::new(program);
    command.args(["attend", "--address"]).arg(address.to_string()).arg("--").arg(id);
    // A lock is held as long as somebody has it open.
    let turn = turn.map(Lock::hand_over).transpose().map_err(failed())?;
    command.stdin(turn.map_or_else(Stdio::null, Stdio::from));
    command.current_dir("/").stdout(Stdio::null()).stderr(Stdio::null());
    // It is nobody's to wait for: this program ends first.
    command.spawn().map(drop).map_err(failed())
}

/// Stays with a container to its end, also when the agent's server dies and another takes its containers over.
pub(crate) async fn run(address: Option<&Address>, id: &str) -> Result<u8, CliError> {
    // No terminal's signals. It fails only for a leader of a process group, which has none either.
    let _ = nix::unistd::setsid();
    let mut engine = target::engine(address).await?;
    loop {
        let ended = tokio::select! {
            ended = supervise(&engine, id, Console::default()) => ended.map_err(CliError::from),
            never = engine.note_oom_kills() => never.map(|()| 0).map_err(CliError::from),
        };
        engine = match again_after(&ended, address, &engine, id, None).await {
            Some(again) => again,
            None => return run::noted(&engine, id, ended).await,
        }
    }
}

/// The agent with another connection, if that was all that went wrong and it has the container still. Not with `input`
/// under way: nobody knows whether the process has got it.
pub(crate) async fn again_after<T>(
    ended: &Result<T, CliError>,
    address: Option<&Address>,
    engine: &Engine,
    id: &str,
    input: Option<&Input>,
) -> Option<Engine> {
    let lives = |engine: &Engine| engine.record(id).is_ok_and(|record| record.lives());
    let error = ended.as_ref().err().filter(|error| error.connection_lost() && lives(engine))?;
    address.filter(|_| !input.is_some_and(Input::is_under_way))?;
    tell!("{error}; output under way may be missing; looking for the agent again");
    let deadline = Instant::now() + AWAY;
    while lives(engine) && Instant::now() < deadline {
        tokio::time::sleep(AGAIN_POLL).await;
        // Looking for it also forgets containers of an agent that is another one.
        if let Ok(again) = target::engine(address).await {
            return lives(&again).then(|| engine.by(again.client().clone()));
        }
    }
    None
}
