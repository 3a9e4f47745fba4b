//! The scenarios, a file per subject.

mod lifecycle;
mod process;
mod signals;
mod stdio;
mod tty;

use crate::harness::Scenario;

/// All of them.
pub(crate) fn all() -> Vec<Scenario> {
    [lifecycle::scenarios(), process::scenarios(), signals::scenarios(), stdio::scenarios(), tty::scenarios()]
        .into_iter()
        .flatten()
        .collect()
}
