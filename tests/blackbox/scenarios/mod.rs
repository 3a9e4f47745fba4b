//! The scenarios, a file per subject.

mod cgroups;
mod confinement;
mod devices;
mod diagnostics;
mod errors;
mod failures;
mod hooks;
mod lifecycle;
mod mounts;
mod namespaces;
mod oom;
mod pause;
mod process;
mod sandbox;
mod seccomp;
mod signals;
mod stdio;
mod storages;
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
        failures::scenarios(),
        hooks::scenarios(),
        lifecycle::scenarios(),
        mounts::scenarios(),
        namespaces::scenarios(),
        oom::scenarios(),
        pause::scenarios(),
        process::scenarios(),
        sandbox::scenarios(),
        seccomp::scenarios(),
        signals::scenarios(),
        stdio::scenarios(),
        storages::scenarios(),
        tty::scenarios(),
        update::scenarios(),
    ]
    .into_iter()
    .flatten()
    .collect()
}
