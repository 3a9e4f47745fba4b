//! A file system on a disk that has none, by the guest's own mkfs.ext4.
//!
//! Only a disk that is blank gets one: nothing but zeros where file systems, partition tables and arrays have their
//! marks. One that has the file system already keeps it, with what is in it: the host may ask again for a volume that
//! a container before had. Whatever else is there is nobody's to remove.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::guest::bulkhead::Bulkhead;
use crate::supervisor::client::Launcher;
use crate::supervisor::tool::{self, ToolError};

/// The program.
const MKFS: &[&str] = &["mkfs.ext4"];
/// What agents of this protocol make: no journal, as the volume ends with its sandbox; no blocks for root; an inode for
/// each 160 KiB.
pub(super) const OPTIONS: [&str; 8] = ["-O", "^has_journal", "-m", "0", "-i", "163840", "-I", "128"];
/// How long a large disk may take.
const TIME_LIMIT: Duration = Duration::from_secs(600);
/// How much is looked at, at the beginning and at the end. The marks are within it.
const EDGE: u64 = 1 << 20;
/// Where ext2, ext3 and ext4 have their mark, and what it is (the kernel's documentation, "ext4 Data Structures and
/// Algorithms").
const EXT4_MARK: (usize, [u8; 2]) = (0x438, [0x53, 0xef]);

/// Why a disk has no file system.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// It can't be read.
    #[error("look at {disk}: {source}", disk = disk.display())]
    Read {
        /// Its node.
        disk: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is something on it.
    #[error("{disk} is not blank, and what is on it is no ext4: it is not formatted", disk = disk.display())]
    Occupied {
        /// Its node.
        disk: PathBuf,
    },
    /// mkfs.ext4.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// The look was not taken to its end.
    #[error("looking at a disk ended unexpectedly")]
    Task,
}

/// What is on a disk.
#[derive(Debug, PartialEq, Eq)]
enum Content {
    Nothing,
    Ext4,
    Else,
}

/// Sees to it that there is an ext4 on `disk`.
///
/// # Errors
///
/// [`FormatError`].
pub(super) async fn ext4(launcher: &Launcher, bulkhead: &Bulkhead, disk: &Path) -> Result<(), FormatError> {
    let failed = |source| FormatError::Read { disk: disk.to_owned(), source };
    let opened = disk.to_owned();
    let look = bulkhead.run(disk, move || {
        let flags = nix::fcntl::OFlag::O_NONBLOCK | nix::fcntl::OFlag::O_NOCTTY;
        let disk = File::options().read(true).custom_flags(flags.bits()).open(opened)?;
        content(&disk)
    });
    match look.await.map_err(|_| FormatError::Task)?.map_err(failed)? {
        Content::Ext4 => return Ok(()),
        Content::Else => return Err(FormatError::Occupied { disk: disk.to_owned() }),
        Content::Nothing => {}
    }
    let program = tool::find(MKFS).await?;
    let node = disk.to_string_lossy();
    let args = [&["-q", "-F"], OPTIONS.as_slice(), &[&*node]].concat();
    tool::run(launcher, &program, &args, b"", TIME_LIMIT).await?;
    Ok(())
}

fn content(disk: &File) -> io::Result<Content> {
    use std::io::Seek as _;
    // The size of a block device is where its end is.
    let size = (&*disk).seek(io::SeekFrom::End(0))?;
    let edge = usize::try_from(size.min(EDGE)).unwrap_or_default();
    let mut bytes = vec![0; edge];
    disk.read_exact_at(&mut bytes, 0)?;
    let (place, mark) = EXT4_MARK;
    if bytes.get(place..).is_some_and(|rest| rest.starts_with(&mark)) {
        return Ok(Content::Ext4);
    }
    let is_blank = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
    let begins_blank = is_blank(&bytes);
    disk.read_exact_at(&mut bytes, size.saturating_sub(size.min(EDGE)))?;
    Ok(if begins_blank && is_blank(&bytes) { Content::Nothing } else { Content::Else })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(size: u64, marks: &[(u64, &[u8])]) -> Content {
        let file = tempfile::tempfile().unwrap();
        file.set_len(size).unwrap();
        for (place, mark) in marks {
            file.write_all_at(mark, *place).unwrap();
        }
        content(&file).unwrap()
    }

    #[test]
    fn a_disk_is_blank_or_has_what_it_has() {
        for size in [0, 512, EDGE, 8 << 20] {
            assert_eq!(disk(size, &[]), Content::Nothing);
        }
        assert_eq!(disk(8 << 20, &[(0x438, &[0x53, 0xef])]), Content::Ext4);
        let last = (8 << 20) - 512;
        for (place, mark) in
            [(0, b"XFSB".as_slice()), (0x10040, b"_BHRfS_M"), (512, b"EFI PART"), (last, b"EFI PART")]
        {
            assert_eq!(disk(8 << 20, &[(place, mark)]), Content::Else, "{place}");
        }
        assert_eq!(disk(1024, &[(1023, b"x")]), Content::Else);
    }
}
