//! The process of a sandbox's own container whose root is the guest image's pause bundle: the bundle says what runs in
//! it, not the host, who has no image. What is the host's to say stays: the streams, and how the process is confined.

use oci_spec::runtime::Spec;

use super::create::blocking;
use super::error::SandboxError;
use crate::storage::{PauseBundle, StorageRequest};

/// Puts the bundle's process into the specification, if one of the storages is the bundle's root.
pub(super) async fn apply(
    mut spec: Box<Spec>,
    storages: &[StorageRequest],
) -> Result<Box<Spec>, SandboxError> {
    let mut is_wanted = false;
    for storage in storages {
        is_wanted |= PauseBundle::is_wanted(storage)?;
    }
    if !is_wanted {
        return Ok(spec);
    }
    let mut process = blocking(|| Ok(PauseBundle::of_guest().process()?)).await?;
    if let Some(host) = spec.process() {
        process.set_terminal(host.terminal()).set_console_size(host.console_size());
        process.set_oom_score_adj(host.oom_score_adj());
        process.set_apparmor_profile(host.apparmor_profile().clone());
        process.set_selinux_label(host.selinux_label().clone());
    }
    spec.set_process(Some(process));
    Ok(spec)
}
