//! Sysctls of the sandbox's network namespace, which is the guest's own.
//!
//! A name that the guest's kernel does not know is left out with a warning: hosts send what every pod of theirs is to
//! have, and what a kernel without that part of the network does not do needs no setting.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use slog::{Logger, warn};

use super::create::blocking;
use super::error::SandboxError;
use crate::spec::Sysctl;

/// Writes each value beneath /proc/sys (proc(5)). The names have been checked by the specification's edits.
pub(super) async fn write(sysctls: &[Sysctl], log: &Logger) -> Result<(), SandboxError> {
    if sysctls.is_empty() {
        return Ok(());
    }
    let (sysctls, log) = (sysctls.to_vec(), log.clone());
    blocking(move || sysctls.iter().try_for_each(|sysctl| write_one(Path::new("/proc/sys"), sysctl, &log)))
        .await
}

fn write_one(root: &Path, sysctl: &Sysctl, log: &Logger) -> Result<(), SandboxError> {
    let path: PathBuf = root.join(&sysctl.path);
    // Opened as it is: procfs lets nobody make a file.
    let written = std::fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .and_then(|mut file| std::io::Write::write_all(&mut file, sysctl.value.as_bytes()));
    match written {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            warn!(log, "sysctl left out: this kernel has none of that name"; "sysctl" => &sysctl.name);
            Ok(())
        }
        written => written.map_err(SandboxError::file("write the sysctl", &path)),
    }
}

#[cfg(test)]
mod tests {
    use slog::{Discard, o};

    use super::*;

    #[test]
    fn a_name_that_the_kernel_does_not_know_is_left_out() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("net")).unwrap();
        std::fs::write(root.path().join("net/known"), "").unwrap();
        let write = |name: &str| {
            let sysctl = Sysctl { name: name.to_owned(), path: name.into(), value: "7".to_owned() };
            write_one(root.path(), &sysctl, &Logger::root(Discard, o!()))
        };
        write("net/known").unwrap();
        assert_eq!(std::fs::read_to_string(root.path().join("net/known")).unwrap(), "7");
        write("net/unknown").unwrap();
        assert!(!root.path().join("net/unknown").exists());
        let error = write("net").unwrap_err().to_string();
        assert!(error.contains("write the sysctl"), "{error}");
    }
}
