//! A file that arrives in chunks.

use std::ffi::CString;
use std::fs::File;
use std::os::unix::fs::FileExt as _;

use nix::errno::Errno;
use nix::sys::statvfs::fstatvfs;

use super::CopyError;
use super::place::Place;
use super::ranges::Ranges;
use super::request::{Chunk, Owner};

/// The most separate parts of one file. A sender in a row, or several of them, make a handful.
const PARTS_LIMIT: usize = 4096;

/// What has arrived of a file, under a temporary name. Dropped before its end, it takes that away.
#[derive(Debug)]
pub(super) struct Upload {
    place: Place,
    file: File,
    name: CString,
    size: u64,
    arrived: Ranges,
}

impl Upload {
    /// Begins a file of `size` bytes.
    pub(super) fn begin(place: Place, size: u64) -> Result<Self, CopyError> {
        let (file, name) = place.temporary_file()?;
        let upload = Self { place, file, name, size, arrived: Ranges::default() };
        upload.check_room()?;
        Ok(upload)
    }

    /// A size that can't be is refused before anything is written.
    fn check_room(&self) -> Result<(), CopyError> {
        let system = fstatvfs(&self.file).map_err(self.place.step("ask for free space"))?;
        let available = system.blocks_available().saturating_mul(system.fragment_size());
        // A file system in memory without a limit counts no blocks.
        if system.blocks() > 0 && self.size > available {
            let path = self.place.path().to_owned();
            return Err(CopyError::NoRoom { path, size: self.size, available });
        }
        Ok(())
    }

    /// Whether a chunk belongs to it, and not to the next file of that name. A first chunk that comes again
    /// starts the file anew.
    pub(super) fn goes_on_with(&self, chunk: &Chunk) -> bool {
        self.size == chunk.size && !(chunk.offset == 0 && self.arrived.begin())
    }

    /// Writes a chunk. Says whether the file is whole.
    pub(super) fn write(&mut self, chunk: &Chunk) -> Result<bool, CopyError> {
        self.file.write_all_at(&chunk.data, chunk.offset).map_err(|error| {
            self.place.step("write")(Errno::try_from(error).unwrap_or(Errno::UnknownErrno))
        })?;
        let end = u64::try_from(chunk.data.len()).unwrap_or(u64::MAX).saturating_add(chunk.offset);
        self.arrived.add(chunk.offset, end);
        if self.arrived.count() > PARTS_LIMIT {
            let path = self.place.path().to_owned();
            return Err(CopyError::Scattered { path, limit: PARTS_LIMIT });
        }
        Ok(self.arrived.cover(self.size))
    }

    /// Puts the whole file in its place.
    pub(super) fn finish(&self, owner: Owner, mode: u32) -> Result<(), CopyError> {
        self.place.finish(&self.file, &self.name, owner, mode)
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        // After its end there is nothing of that name.
        self.place.remove_temporary(&self.name);
    }
}
