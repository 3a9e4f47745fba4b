//! The scenarios, a file per subject.

mod diagnostics;
mod lifecycle;
mod mounts;
mod pause;
mod process;
mod signals;
mod stdio;
mod tty;
mod update;

use crate::harness::Scenario;

/// All of them.
pub(crate) fn all() -> Vec<Scenario> {
    [
        diagnostics::scenarios(),
        lifecycle::scenarios(),
        mounts::scenarios(),
        pause::scenarios(),
        process::scenarios(),
        signals::scenarios(),
        stdio::scenarios(),
        tty::scenarios(),
        update::scenarios(),
    ]
    .into_iter()
    .flatten()
    .collect()
}
