//! How full a volume is.

use std::path::Path;

use nix::fcntl::OFlag;
use nix::sys::statvfs::{Statvfs, fstatvfs};

use super::VolumeError;

/// A volume's use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// In bytes.
    pub bytes: Amount,
    /// In files and directories.
    pub inodes: Amount,
}

/// Space in one unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Amount {
    /// All there is.
    pub total: u64,
    /// What is taken.
    pub used: u64,
    /// What a user without privileges may still take.
    pub available: u64,
}

/// Asks how full the volume is whose mount point, or anything on it, is at `path` beneath `base`. Blocks as long
/// as the file system does.
///
/// # Errors
///
/// [`VolumeError`].
pub fn usage(base: &Path, path: &Path) -> Result<Usage, VolumeError> {
    // To look at, not to read: no device or pipe is opened.
    let volume = super::open(base, path, OFlag::O_PATH)?;
    let system = fstatvfs(&volume).map_err(|errno| VolumeError::Step {
        path: path.to_owned(),
        step: "ask its file system",
        source: errno.into(),
    })?;
    Ok(of(&system))
}

fn of(system: &Statvfs) -> Usage {
    let unit: u64 = system.fragment_size();
    let bytes = |blocks: u64| blocks.saturating_mul(unit);
    let amount =
        |total: u64, free: u64, available: u64| Amount { total, used: total.saturating_sub(free), available };
    Usage {
        bytes: amount(bytes(system.blocks()), bytes(system.blocks_free()), bytes(system.blocks_available())),
        inodes: amount(system.files(), system.files_free(), system.files_available()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn numbers_add_up_and_only_volumes_are_looked_at() {
        let base = tempfile::tempdir().unwrap();
        fs::create_dir(base.path().join("volume")).unwrap();
        symlink("/proc", base.path().join("link")).unwrap();
        let seen = usage(base.path(), &base.path().join("volume")).unwrap();
        assert!(seen.bytes.total >= seen.bytes.used && seen.bytes.total > 0, "{seen:?}");
        assert!(seen.bytes.available <= seen.bytes.total - seen.bytes.used, "{seen:?}");
        for bad in ["/proc", "/", "relative"] {
            let error = usage(base.path(), Path::new(bad)).unwrap_err();
            assert!(matches!(error, VolumeError::Outside { .. }), "{bad}: {error}");
        }
        let error = usage(base.path(), &base.path().join("../x")).unwrap_err();
        assert!(matches!(error, VolumeError::Outside { .. }), "{error}");
        for gone in ["none", "link"] {
            let error = usage(base.path(), &base.path().join(gone)).unwrap_err();
            assert_eq!(error.errno(), Some(nix::errno::Errno::ENOENT), "{gone}: {error}");
        }
    }
}
