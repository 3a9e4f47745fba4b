//! The scenarios, a file per subject.

mod cgroups;
mod confinement;
mod errors;
mod failures;
mod hooks;
mod lifecycle;
mod namespaces;
mod process;
mod sandbox;
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
        failures::scenarios(),
        hooks::scenarios(),
        lifecycle::scenarios(),
        namespaces::scenarios(),
        process::scenarios(),
        sandbox::scenarios(),
        seccomp::scenarios(),
        signals::scenarios(),
        stdio::scenarios(),
        tty::scenarios(),
    ]
    .into_iter()
    .flatten()
    .collect()
}
