//! The scenarios, a file per subject.

mod cgroups;
mod confinement;
mod errors;
mod lifecycle;
mod namespaces;
mod process;
mod seccomp;
mod signals;
mod stdio;
mod tty;

use crate::harness::Scenario;

/// All of them.
pub(crate) fn all() -> Vec<Scenario> {
    [
        cgroups::scenarios(),
        confinement::scenarios(),
        errors::scenarios(),
        lifecycle::scenarios(),
        namespaces::scenarios(),
        process::scenarios(),
        seccomp::scenarios(),
        signals::scenarios(),
        stdio::scenarios(),
        tty::scenarios(),
    ]
    .into_iter()
    .flatten()
    .collect()
}
