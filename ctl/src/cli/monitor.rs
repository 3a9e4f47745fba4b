//! `monitor`: a process of its own for each detached container, which notes how it ends.
//!
//! The agent tells an exit to those that wait for it and to nobody later, so somebody has to wait. One monitor of all
//! those of an agent also takes its OOM events, which are given to one asker only; the others stand in line for that
//! with a lock.

use std::process::{Command, Stdio};

use nakai_ctl::state::{Action, Event, State};
use nakai_ctl::{Address, Client};

use super::error::CliError;
use super::target;

/// Starts the monitor of container `id`.
pub(crate) fn start(address: &Address, id: &str) -> Result<(), CliError> {
    let failed = || CliError::io(format!("monitor of container {id}"));
    let program = std::env::current_exe().map_err(failed())?;
    let mut command = Command::new(program);
    command.args(["monitor", "--address"]).arg(address.to_string()).arg("--").arg(id);
    command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // It is nobody's to wait for: this program ends first.
    command.spawn().map(drop).map_err(failed())
}

/// Waits for the end of a container and notes it.
pub(crate) async fn run(address: Option<&Address>, id: &str) -> Result<u8, CliError> {
    // No terminal's signals. It fails only for a leader of a process group, which has none either.
    let _ = nix::unistd::setsid();
    let client = target::client(address).await?;
    let state = State::of(address.ok_or(CliError::NoAddress)?);
    tokio::select! {
        code = client.wait_process(id, id) => died(&state, id, code?).await?,
        never = note_oom_kills(&state, &client) => never?,
    }
    Ok(0)
}

/// Notes that a container's program has ended.
pub(crate) async fn died(state: &State, id: &str, code: i32) -> Result<(), CliError> {
    state.journal().note(&Event::new(id, Action::Die).exit_code(code));
    let failed = || CliError::io(format!("note of container {id}"));
    let lock = state.lock_container(id).await.map_err(failed())?;
    let noted = state.change_container(id, |record| record.stop(code));
    state.unlock(id, lock);
    noted.map_err(failed())
}

/// Takes the agent's OOM events for as long as it is let.
async fn note_oom_kills(state: &State, client: &Client) -> Result<(), CliError> {
    let _turn = state.lock_oom_events().await.map_err(CliError::io("lock of the OOM events"))?;
    loop {
        let Ok(id) = client.oom_event().await else {
            // An agent that has none, or that is gone: then the wait ends too.
            return std::future::pending().await;
        };
        state.journal().note(&Event::new(&id, Action::Oom));
        let lock = target::lock(state, &id).await?;
        let noted = state.change_container(&id, |record| record.oom_killed = true);
        state.unlock(&id, lock);
        noted.map_err(CliError::io("note of an OOM kill"))?;
    }
}
