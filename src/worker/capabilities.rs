//! What a process may do: its capability sets, set for good.
//!
//! The caller's effective set holds all that it is permitted; whoever has become another user has raised it again.

use nix::errno::Errno;

use super::job::{Failure, FailureKind};
use super::sys;
use crate::spec::CapabilitySets;

/// Sets all five. An ambient capability that the kernel does not take is left out, as runc does.
pub(super) fn set(wanted: &CapabilitySets) -> Result<(), Failure> {
    let failed = |errno: Errno| Failure {
        kind: FailureKind::InvalidSpec,
        message: format!("set the capabilities: {}", errno.desc()),
    };
    for capability in (0..u64::BITS).filter(|number| wanted.bounding & (1 << number) == 0) {
        match sys::drop_from_bounding_set(capability) {
            // The kernel has no more.
            Err(Errno::EINVAL) => break,
            other => other.map_err(failed)?,
        }
    }
    sys::set_capabilities(wanted.effective, wanted.permitted, wanted.inheritable).map_err(failed)?;
    // Kernels before 4.3 have no such set.
    let _ = sys::clear_ambient_set();
    for capability in (0..u64::BITS).filter(|number| wanted.ambient & (1 << number) != 0) {
        let _ = sys::raise_ambient(capability);
    }
    Ok(())
}
