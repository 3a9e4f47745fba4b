//! Unpacking an archive without leaving the target directory.
//!
//! An archive is tar, also compressed with gzip or zstd. It may be a whole root filesystem or a layer of an image,
//! whose whiteouts become overlayfs's: a character device 0:0 for what is not there, an attribute for a directory that
//! hides what is below ([`OPAQUE`]).
//!
//! An entry with an absolute path or a `..` in it is refused by name, nothing is silently renamed. Symbolic links may
//! point anywhere, as those of a root filesystem do, and lead nowhere but into the target (`tree.rs`). Hard links are
//! held to the same. Device nodes, fifos and sockets are left out: a container's `/dev` is its own, and a node in a
//! directory of the host is a hole in the host. Of extended attributes those of users, capabilities and access lists
//! are kept; the others are the host's affair. Size, number and growth of what comes out are bounded ([`Limits`]).

mod decode;
mod entry;
mod meter;
#[cfg(test)]
pub(crate) mod tests;

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use tar::Archive;

pub(crate) use decode::{Decoded, decode};
pub(crate) use entry::is_kept;
pub(crate) use meter::Counter;
pub use meter::Limits;

use crate::tree::Tree;
use entry::{Fault, Unpacker};
use meter::{HEADERS_MAX, Kept, Meter};

/// The attributes by which overlayfs knows a directory that hides what is below: for root, and for others.
pub const OPAQUE: [&str; 2] = ["trusted.overlay.opaque", "user.overlay.opaque"];

/// Why an archive is not unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The archive can't be opened or read, or costs more than it may.
    #[error("archive {archive}: {}", cause(.source), archive = .archive.display())]
    Read {
        /// The archive.
        archive: PathBuf,
        /// The system's or the parser's reason.
        source: io::Error,
    },
    /// A compressed archive of a kind that is not read here.
    #[error("archive {archive}: it is compressed ({format}); unpack it to a plain tar first", archive = .archive.display())]
    Compressed {
        /// The archive.
        archive: PathBuf,
        /// What it is.
        format: &'static str,
    },
    /// An entry, or the target of a hard link, that leads out of the directory.
    #[error("archive {archive}: entry {entry} leads out of the root", archive = .archive.display(), entry = .entry.display())]
    Escape {
        /// The archive.
        archive: PathBuf,
        /// The entry's path, as it is written there.
        entry: PathBuf,
    },
    /// An entry that can't be written.
    #[error("archive {archive}: entry {entry}: {}", cause(.source), archive = .archive.display(), entry = .entry.display())]
    Write {
        /// The archive.
        archive: PathBuf,
        /// The entry's path.
        entry: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

/// Unpacks the archive `archive`, a root filesystem, into the existing directory `target`. Blocks.
///
/// # Errors
///
/// See [`UnpackError`]; entries before the refused one have been written.
pub fn unpack(archive: &Path, target: &Path) -> Result<(), UnpackError> {
    let read = |source| UnpackError::Read { archive: archive.to_owned(), source };
    let compressed = Cell::new(0);
    let file = Counter { inner: File::open(archive).map_err(read)?, count: &compressed };
    match decode(file).map_err(read)? {
        Decoded::Plain(stream) => {
            unpack_stream(stream, archive, target, false, Limits::default(), &compressed)
        }
        Decoded::Unknown(format) => Err(UnpackError::Compressed { archive: archive.to_owned(), format }),
    }
}

/// Unpacks a plain stream that is called `archive` in messages, and reads it to its end. With `layer`, names that
/// begin with `.wh.` are whiteouts. `compressed` counts what the stream is decompressed from.
pub(crate) fn unpack_stream(
    stream: impl Read,
    archive: &Path,
    target: &Path,
    layer: bool,
    limits: Limits,
    compressed: &Cell<u64>,
) -> Result<(), UnpackError> {
    let read = |source| UnpackError::Read { archive: archive.to_owned(), source };
    let meter = Meter::new(stream, limits, compressed);
    let mut unpacker = Unpacker::new(Tree::open(target).map_err(read)?, layer, limits);
    each_entry(&meter, archive, limits, |entry, path, kept| {
        unpacker.entry(entry, path, kept).map_err(|fault| match fault {
            Fault::Escape(entry) => UnpackError::Escape { archive: archive.to_owned(), entry },
            Fault::Limit(what) => read(io::Error::new(io::ErrorKind::QuotaExceeded, what)),
            Fault::Write(source) => {
                UnpackError::Write { archive: archive.to_owned(), entry: path.to_owned(), source }
            }
        })
    })?;
    unpacker.finish().map_err(|(entry, source)| UnpackError::Write {
        archive: archive.to_owned(),
        entry,
        source,
    })?;
    meter.allow(u64::MAX);
    io::copy(&mut &meter, &mut io::sink()).map_err(read)?;
    Ok(())
}

/// Decompresses a stream that is one archive into a file.
pub(crate) fn expand(packed: impl Read, limits: Limits, plain: &mut File) -> io::Result<()> {
    let compressed = Cell::new(0);
    let Decoded::Plain(stream) = decode(Counter { inner: packed, count: &compressed })? else {
        return Err(io::ErrorKind::Unsupported.into());
    };
    let meter = Meter::new(stream, limits, &compressed);
    meter.allow(u64::MAX);
    io::copy(&mut &meter, plain).map(drop)
}

/// Looks at each entry of a plain archive.
pub(crate) fn archive_entries(
    stream: impl Read,
    archive: &Path,
    limits: Limits,
    mut look: impl FnMut(Found<'_>),
) -> Result<(), UnpackError> {
    let compressed = Cell::new(u64::MAX);
    let meter = Meter::new(stream, limits, &compressed);
    each_entry(&meter, archive, limits, |entry, path, kept| {
        let read = |source| UnpackError::Read { archive: archive.to_owned(), source };
        let link = entry.link_name().map_err(read)?;
        let length = link.as_ref().map_or(0, |link| link.as_os_str().len());
        kept.keep(path.as_os_str().len().saturating_add(length)).map_err(read)?;
        let (kind, at, size) = (entry.header().entry_type(), entry.raw_file_position(), entry.size());
        look(Found { kind, path, at, size, link: link.as_deref() });
        Ok(())
    })
}

/// An entry, and where its bytes are in the archive.
pub(crate) struct Found<'a> {
    pub(crate) kind: tar::EntryType,
    pub(crate) path: &'a Path,
    pub(crate) at: u64,
    pub(crate) size: u64,
    pub(crate) link: Option<&'a Path>,
}

fn each_entry<R: Read>(
    meter: &Meter<'_, R>,
    archive: &Path,
    limits: Limits,
    mut each: impl FnMut(&mut tar::Entry<'_, &Meter<'_, R>>, &Path, &mut Kept) -> Result<(), UnpackError>,
) -> Result<(), UnpackError> {
    let mut kept = Kept::new(limits);
    let read = |source| UnpackError::Read { archive: archive.to_owned(), source };
    let mut tar = Archive::new(meter);
    let mut entries = tar.entries().map_err(read)?;
    loop {
        meter.allow(HEADERS_MAX);
        let Some(entry) = entries.next() else { return Ok(()) };
        let mut entry = entry.map_err(read)?;
        meter.allow(entry.size().saturating_add(HEADERS_MAX));
        kept.entry().map_err(read)?;
        let path = entry.path().map_err(read)?.into_owned();
        each(&mut entry, &path, &mut kept)?;
        // What was not read is read here, so that the next look at the archive only reads headers.
        io::copy(&mut entry, &mut io::sink()).map_err(read)?;
    }
}

/// The innermost reason: the tar crate wraps it in the paths that our messages have already.
fn cause(error: &io::Error) -> String {
    let mut inner: &dyn std::error::Error = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    inner.to_string()
}
