//! Sysctls of the sandbox's network namespace, which is the guest's own.

use std::path::PathBuf;

use super::create::blocking;
use super::error::SandboxError;
use crate::spec::Sysctl;

/// Writes each value beneath /proc/sys (proc(5)). The names have been checked by the specification's edits.
pub(super) async fn write(sysctls: &[Sysctl]) -> Result<(), SandboxError> {
    if sysctls.is_empty() {
        return Ok(());
    }
    let sysctls = sysctls.to_vec();
    blocking(move || {
        for sysctl in &sysctls {
            let path = PathBuf::from("/proc/sys").join(&sysctl.path);
            std::fs::write(&path, &sysctl.value).map_err(SandboxError::file("write the sysctl", &path))?;
        }
        Ok(())
    })
    .await
}
