//! A container's bundle: the directory that is its own, and what may be found in it at its end.
//!
//! The agent puts `config.json` there, and hooks have it for their working directory: what they leave goes with the
//! container. What a storage still has there does not, and no mount is crossed. A directory that was there before the
//! container is removed only if it is empty.

use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

use super::Environment;
use super::create::blocking;
use super::error::SandboxError;
use super::records::ContainerRecord;
use super::undo::Undo;
use crate::guest::tree;
use crate::storage::Storages;

/// Makes the bundle's directory, and notes whether it was there.
pub(super) async fn make(
    environment: &Environment,
    mut record: ContainerRecord,
    undo: &mut Undo,
) -> Result<ContainerRecord, SandboxError> {
    let records = environment.records.clone();
    let record = blocking(move || {
        record.owns_bundle = !record.bundle.exists();
        record.write(&records)?;
        for directory in [&record.state_root, &record.bundle] {
            std::fs::create_dir_all(directory).map_err(SandboxError::file("make directory", directory))?;
        }
        Ok(record)
    })
    .await?;
    // The bundle came last: a step that failed has made none.
    push_undo(&record, &environment.storages, undo);
    Ok(record)
}

/// To be pushed before the storages are, so that it is run after they are gone.
pub(super) fn push_undo(record: &ContainerRecord, storages: &Storages, undo: &mut Undo) {
    let (bundle, is_ours, storages) = (record.bundle.clone(), record.owns_bundle, storages.clone());
    undo.push_blocking("remove the bundle", move || {
        let is_used = storages.mount_points().iter().any(|point| point.starts_with(&bundle));
        remove(&bundle, is_ours && !is_used).map_err(|errno| format!("{}: {errno}", bundle.display()))
    });
}

/// Removes the directory, with all that is in it or only if it is empty.
fn remove(bundle: &Path, with_contents: bool) -> Result<(), Errno> {
    let emptied = if with_contents { empty(bundle) } else { Ok(()) };
    match std::fs::remove_dir(bundle) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            emptied.and_then(|()| Err(error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)))
        }
        _ => Ok(()),
    }
}

/// Removes all in the directory, unless something is mounted there.
fn empty(bundle: &Path) -> Result<(), Errno> {
    let Some((parent, name)) = bundle.parent().zip(bundle.file_name()) else { return Ok(()) };
    let name = std::ffi::CString::new(name.as_encoded_bytes()).map_err(|_| Errno::EINVAL)?;
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let parent = open(parent, flags, Mode::empty())?;
    tree::remove_contents(tree::open_child(&parent, &name, flags)?).map_err(|error| error.cause)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_bundle_goes_with_what_is_in_it_if_it_is_ours() {
        let dir = tempfile::tempdir().unwrap();
        let bundle = dir.path().join("c1");
        fs::create_dir_all(bundle.join("d/e")).unwrap();
        fs::write(bundle.join("d/e/left"), "").unwrap();
        assert_eq!(remove(&bundle, false), Err(Errno::ENOTEMPTY));
        assert!(bundle.join("d/e/left").exists());
        remove(&bundle, true).unwrap();
        assert!(!bundle.exists());
        remove(&bundle, true).unwrap();
        remove(&bundle, false).unwrap();
    }

    #[test]
    fn a_link_in_its_place_leads_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let other = tempfile::tempdir().unwrap();
        fs::write(other.path().join("keep"), "").unwrap();
        let bundle = dir.path().join("c1");
        symlink(other.path(), &bundle).unwrap();
        assert!(remove(&bundle, true).is_err());
        assert!(other.path().join("keep").exists());
    }
}
