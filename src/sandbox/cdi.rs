//! CDI devices of a container that is being created: found in the guest, and put into its specification.

use oci_spec::runtime::Spec;

use super::Environment;
use super::create::blocking;
use super::error::SandboxError;
use crate::device::cdi::CdiRequest;
use crate::device::{DeviceKind, DeviceNodes, Nodes};
use crate::spec::CdiEdits;

/// What marks the container that only holds the sandbox, which gets no devices.
const TYPE: &str = "io.katacontainers.pkg.oci.container_type";

/// Edits `spec` as the devices that it names want it; waits for what describes them.
pub(super) async fn inject(
    environment: &Environment,
    mut spec: Box<Spec>,
) -> Result<Box<Spec>, SandboxError> {
    let config = &environment.config;
    let annotations = spec.annotations().clone().unwrap_or_default();
    if annotations.get(TYPE).is_some_and(|kind| kind == "pod_sandbox") {
        return Ok(spec);
    }
    let variables = spec.process().as_ref().and_then(|process| process.env().clone()).unwrap_or_default();
    let request = CdiRequest::gather(&annotations, &variables, config.visible_cdi_devices)?;
    if request.is_empty() {
        return Ok(spec);
    }
    let edits = request.resolve(config.cdi_timeout, &environment.logger).await?;
    blocking(move || {
        for edit in edits {
            let mut edit: CdiEdits =
                serde_json::from_value(edit).map_err(|error| SandboxError::CdiEdits(error.to_string()))?;
            for node in edit.nodes_without_number() {
                let path = node.guest_path();
                let failed = SandboxError::file("look at the CDI device", &path);
                match DeviceNodes.look(&path) {
                    Ok(found) => match found.kind {
                        Some(kind) => node.set_number(kind == DeviceKind::Block, found.major, found.minor),
                        None => return Err(failed(std::io::Error::other("it is no device"))),
                    },
                    Err(errno) => return Err(failed(errno.into())),
                }
            }
            edit.apply(&mut spec)?;
        }
        Ok(spec)
    })
    .await
}
