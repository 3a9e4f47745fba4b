//! A root filesystem as a disk: an ext4 image that mkfs.ext4 fills from a directory, or an EROFS image of one layer,
//! without mounting anything.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{ImageError, merge};
use crate::removal;
use crate::vm::tools::{MKFS_EROFS, MKFS_EXT4, Tool};

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
    // The copies lie beside the disk: they are as large. Their name says whose they are, should this be killed.
    let place = disk.with_extension("merged");
    removal::remove(&place).map_err(|error| failed(error.into()))?;
    let near = disk.parent().unwrap_or(Path::new("."));
    let mut named = tempfile::Builder::new();
    named.prefix(place.file_name().unwrap_or_default()).rand_bytes(0);
    let merged = named.tempdir_in(near).map_err(failed)?;
    let root = merged.path().join("root");
    fs::create_dir(&root).map_err(failed)?;
    merge(layers, &root, None).map_err(|(path, source)| ImageError::Copy { path, source })?;
    let size = match size {
        Some(size) => size,
        None => {
            let used = used(&root).map_err(failed)?;
            used.saturating_add(used / 4).saturating_add(SPARE)
        }
    };
    let mut command = Command::new(program);
    command.args(EXT4).arg("-d").arg(&root).arg(disk);
    make_ext4(command, size, disk)
}

/// Writes an empty filesystem to the new file `disk`, of `size` bytes. Blocks.
///
/// # Errors
///
/// mkfs.ext4 is missing or fails. No file is left then.
pub fn make_empty_disk(size: u64, disk: &Path) -> Result<(), ImageError> {
    let mut command = Command::new(MKFS_EXT4.find()?);
    command.args(EXT4).arg(disk);
    make_ext4(command, size, disk)
}

/// Of a filesystem that ends with its container.
const EXT4: [&str; 8] = ["-q", "-F", "-m", "0", "-O", "^has_journal", "-E", "root_owner=0:0"];

fn make_ext4(command: Command, size: u64, disk: &Path) -> Result<(), ImageError> {
    let failed = |source| ImageError::Store { path: disk.to_owned(), source };
    let file = File::options().write(true).create_new(true).open(disk).map_err(failed)?;
    let made = file.set_len(size).map_err(failed).and_then(|()| succeed(command, MKFS_EXT4, disk));
    if made.is_err() {
        let _ = fs::remove_file(disk);
    }
    made
}

/// Writes an EROFS image of `layer`, as overlayfs reads it, to the new file `image`, whole or not at all. Blocks.
///
/// # Errors
///
/// mkfs.erofs is missing or fails.
pub fn make_erofs(layer: &Path, image: &Path) -> Result<(), ImageError> {
    let part = image.with_extension("erofs-part");
    let mut command = Command::new(MKFS_EROFS.find()?);
    command.arg(&part).arg(layer);
    let made = succeed(command, MKFS_EROFS, image).and_then(|()| {
        fs::rename(&part, image).map_err(|source| ImageError::Store { path: image.to_owned(), source })
    });
    if made.is_err() {
        let _ = fs::remove_file(part);
    }
    made
}

fn succeed(mut command: Command, tool: Tool, disk: &Path) -> Result<(), ImageError> {
    let failed = |source| ImageError::Store { path: disk.to_owned(), source };
    let output = command.stdin(Stdio::null()).output().map_err(failed)?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    let problem = format!("{}: {}", disk.display(), words.trim().lines().last().unwrap_or_default());
    Err(ImageError::Program { program: tool.name, problem })
}

/// The bytes that a tree takes in blocks of 4 KiB, and 256 for each inode.
fn used(directory: &Path) -> std::io::Result<u64> {
    let (mut total, mut directories) = (0_u64, vec![directory.to_owned()]);
    while let Some(directory) = directories.pop() {
        total = total.saturating_add(4096);
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            if metadata.is_dir() {
                directories.push(entry.path());
            } else {
                let own = metadata.size().div_ceil(4096).saturating_mul(4096).saturating_add(256);
                total = total.saturating_add(own);
            }
        }
    }
    Ok(total)
}
