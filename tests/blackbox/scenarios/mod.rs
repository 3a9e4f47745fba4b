//! The scenarios, a file per subject.

mod cards;
mod cgroups;
mod client;
mod confinement;
mod console;
mod devices;
mod diagnostics;
mod disks;
mod errors;
mod failures;
mod files;
mod fire;
mod guest;
mod hooks;
mod hotplug;
mod lifecycle;
mod metrics;
mod mounts;
mod namespaces;
mod network;
mod oom;
mod orchestrators;
mod passthrough;
mod pause;
mod ports;
mod process;
mod recovery;
mod sandbox;
mod seccomp;
mod shims;
mod signals;
mod stdio;
mod storages;
mod tty;
mod update;
mod watching;

pub(crate) use orchestrators::page_is_up_to_date;

use crate::harness::Scenario;

/// All of them.
pub(crate) fn all() -> Vec<Scenario> {
    [
        cards::scenarios(),
        cgroups::scenarios(),
        client::scenarios(),
        confinement::scenarios(),
        console::scenarios(),
        devices::scenarios(),
        diagnostics::scenarios(),
        disks::scenarios(),
        errors::scenarios(),
        failures::scenarios(),
        files::scenarios(),
        guest::scenarios(),
        fire::scenarios(),
        hooks::scenarios(),
        hotplug::scenarios(),
        lifecycle::scenarios(),
        metrics::scenarios(),
        mounts::scenarios(),
        namespaces::scenarios(),
        network::scenarios(),
        oom::scenarios(),
        orchestrators::scenarios(),
        passthrough::scenarios(),
        pause::scenarios(),
        ports::scenarios(),
        process::scenarios(),
        recovery::scenarios(),
        sandbox::scenarios(),
        seccomp::scenarios(),
        shims::scenarios(),
        signals::scenarios(),
        stdio::scenarios(),
        storages::scenarios(),
        tty::scenarios(),
        update::scenarios(),
        watching::scenarios(),
    ]
    .into_iter()
    .flatten()
    .collect()
}
