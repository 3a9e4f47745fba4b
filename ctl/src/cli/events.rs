//! `events`

use std::io::Write as _;

use nakai_ctl::Address;
use nakai_ctl::state::State;

use super::error::CliError;
use super::signals::unless_interrupted;

/// Prints events until ^C, or until the sandbox is forgotten.
pub(crate) async fn follow(address: Option<&Address>, all: bool) -> Result<u8, CliError> {
    let journal = State::of(address.ok_or(CliError::NoAddress)?).journal();
    let mut lines = journal.follow(all).map_err(CliError::io("events"))?;
    let print = async {
        while let Some(line) = lines.recv().await {
            // Behind a pipe each line has to be there when it happens.
            let mut stdout = std::io::stdout().lock();
            writeln!(stdout, "{line}").and_then(|()| stdout.flush()).map_err(CliError::Output)?;
        }
        Ok(0)
    };
    match unless_interrupted(print).await {
        Err(CliError::Interrupted) => Ok(0),
        ended => ended,
    }
}
