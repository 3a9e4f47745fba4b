//! The scenarios, a file per subject.

mod cgroups;
mod confinement;
mod devices;
mod diagnostics;
mod errors;
mod lifecycle;
mod mounts;
mod namespaces;
mod oom;
mod pause;
mod process;
mod seccomp;
mod signals;
mod stdio;
mod tty;
mod update;

use crate::harness::Scenario;

/// All of them.
pub(crate) fn all() -> Vec<Scenario> {
    [
        cgroups::scenarios(),
        confinement::scenarios(),
        devices::scenarios(),
        diagnostics::scenarios(),
        errors::scenarios(),
        lifecycle::scenarios(),
        mounts::scenarios(),
        namespaces::scenarios(),
        oom::scenarios(),
        pause::scenarios(),
        process::scenarios(),
        seccomp::scenarios(),
        signals::scenarios(),
        stdio::scenarios(),
        tty::scenarios(),
        update::scenarios(),
    ]
    .into_iter()
    .flatten()
    .collect()
}
