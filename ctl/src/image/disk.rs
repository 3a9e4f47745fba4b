//! A root filesystem as a disk: an ext4 image that mkfs.ext4 fills from a directory, without mounting anything.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{ImageError, merge};
use crate::vm::tools::MKFS_EXT4;

/// What a filesystem has beside its files.
const SPARE: u64 = 32 << 20;

/// Writes what `layers` show (the lowest first) to the new file `disk`, of `size` bytes or as large as needed and some
/// room. Blocks.
///
/// # Errors
///
/// mkfs.ext4 is missing or fails: what the layers show is larger than `size`. No file is left then.
pub fn make_disk(layers: &[PathBuf], size: Option<u64>, disk: &Path) -> Result<(), ImageError> {
    let program = MKFS_EXT4.find()?;
    let failed = |source| ImageError::Store { path: disk.to_owned(), source };
    // The copies lie beside the disk: they are as large.
    let near = disk.parent().unwrap_or(Path::new("."));
    let merged = tempfile::Builder::new().prefix("merged-").tempdir_in(near).map_err(failed)?;
    let root = merged.path().join("root");
    fs::create_dir(&root).map_err(failed)?;
    merge(layers, &root).map_err(|(path, source)| ImageError::Copy { path, source })?;
    let size = match size {
        Some(size) => size,
        None => {
            let used = used(&root).map_err(failed)?;
            used.saturating_add(used / 4).saturating_add(SPARE)
        }
    };
    let file = File::options().write(true).create_new(true).open(disk).map_err(failed)?;
    let made = file.set_len(size).map_err(failed).and_then(|()| {
        let mut command = Command::new(program);
        command.args(["-q", "-F", "-m", "0", "-O", "^has_journal", "-E", "root_owner=0:0", "-d"]);
        let output = command.arg(&root).arg(disk).stdin(Stdio::null()).output().map_err(failed)?;
        if output.status.success() {
            return Ok(());
        }
        let words = String::from_utf8_lossy(&output.stderr);
        let problem = format!("{}: {}", disk.display(), words.trim().lines().last().unwrap_or_default());
        Err(ImageError::Program { program: MKFS_EXT4.name, problem })
    });
    if made.is_err() {
        let _ = fs::remove_file(disk);
    }
    made
}

/// The bytes that a tree takes in blocks of 4 KiB, and 256 for each inode.
fn used(directory: &Path) -> std::io::Result<u64> {
    let mut total = 4096_u64;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        let own = if metadata.is_dir() {
            used(&entry.path())?
        } else {
            metadata.size().div_ceil(4096).saturating_mul(4096).saturating_add(256)
        };
        total = total.saturating_add(own);
    }
    Ok(total)
}
