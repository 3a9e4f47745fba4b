//! One entry after the other, as files of a [`Tree`].

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{Gid, Uid, fchown, geteuid};
use tar::{Entry, EntryType};
use xattr::FileExt as _;

use super::OPAQUE;
use super::meter::{Kept, Limits};
use crate::tree::{Place, Tree};

const WHITEOUT: &str = ".wh.";
/// Hides everything below its directory.
const OPAQUE_MARK: &str = ".wh..wh..opq";
/// Notes of aufs to itself.
const AUFS_MARK: &str = ".wh..wh.";

/// Why an entry ends the unpacking.
pub(super) enum Fault {
    Escape(PathBuf),
    Limit(String),
    Write(io::Error),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        // A limit is told by the source of the bytes.
        match error.kind() {
            io::ErrorKind::QuotaExceeded if error.raw_os_error().is_none() => Self::Limit(error.to_string()),
            _ => Self::Write(error),
        }
    }
}

/// What an entry's file is to have besides its contents.
struct Attributes {
    uid: u64,
    gid: u64,
    mode: u32,
    modified: u64,
    extended: Vec<(OsString, Vec<u8>)>,
}

pub(super) struct Unpacker {
    tree: Tree,
    layer: bool,
    limits: Limits,
    written: u64,
    /// Written last: a directory that its owner can't write to would refuse its own contents.
    directories: Vec<(PathBuf, Attributes)>,
    own: bool,
}

impl Unpacker {
    pub(super) fn new(tree: Tree, layer: bool, limits: Limits) -> Self {
        let own = geteuid().is_root();
        Self { tree, layer, limits, written: 0, directories: Vec::new(), own }
    }

    pub(super) fn entry(
        &mut self,
        entry: &mut Entry<'_, impl Read>,
        path: &Path,
        kept: &mut Kept,
    ) -> Result<(), Fault> {
        let inside = inside(path).ok_or_else(|| Fault::Escape(path.to_owned()))?;
        let kind = entry.header().entry_type();
        if inside.as_os_str().is_empty() {
            if kind.is_dir() {
                let attributes = attributes(entry)?;
                self.later(inside, attributes, kept)?;
            }
            return Ok(());
        }
        if self.layer
            && let Some(mark) = inside.file_name().filter(|name| is_mark(name))
        {
            return self.whiteout(&inside, mark).map_err(|fault| match fault {
                Fault::Escape(_) => Fault::Escape(path.to_owned()),
                other => other,
            });
        }
        match kind {
            EntryType::Directory => {
                let attributes = attributes(entry)?;
                self.directory(&self.tree.place(&inside)?, &inside)?;
                self.later(inside, attributes, kept)?;
            }
            EntryType::Symlink => {
                let target = entry.link_name()?.ok_or_else(no_target)?;
                let place = self.tree.place(&inside)?;
                place.clear()?;
                place.make_symlink(target.as_os_str())?;
                if self.own {
                    let attributes = attributes(entry)?;
                    place.own(uid(&attributes)?, gid(&attributes)?)?;
                }
            }
            EntryType::Link => {
                let target = entry.link_name()?.ok_or_else(no_target)?.into_owned();
                let original = inside_name(&target).ok_or(Fault::Escape(target))?;
                let original = self.tree.existing(&original)?;
                // The same file by another name may be there already.
                let place = self.tree.place(&inside)?;
                let same = original.stat().zip(place.stat());
                if same.is_some_and(|(a, b)| (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)) {
                    return Ok(());
                }
                place.clear()?;
                place.make_link(&original)?;
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => self.file(entry, &inside)?,
            EntryType::Char | EntryType::Block | EntryType::Fifo => {}
            EntryType::XGlobalHeader => {}
            other => {
                let text = format!("an entry of unknown type {:?}", char::from(other.as_byte()));
                return Err(Fault::Write(io::Error::other(text)));
            }
        }
        Ok(())
    }

    fn later(&mut self, path: PathBuf, attributes: Attributes, kept: &mut Kept) -> io::Result<()> {
        let extended = attributes.extended.iter().map(|(name, value)| name.len().saturating_add(value.len()));
        kept.keep(extended.fold(path.as_os_str().len(), usize::saturating_add))?;
        self.directories.push((path, attributes));
        Ok(())
    }

    fn directory(&self, place: &Place, path: &Path) -> Result<(), Fault> {
        if place.is_directory() {
            return Ok(());
        }
        let hides = self.layer && place.is_whiteout();
        place.clear()?;
        place.make_directory()?;
        if hides {
            self.make_opaque(path)?;
        }
        Ok(())
    }

    fn file(&mut self, entry: &mut Entry<'_, impl Read>, path: &Path) -> Result<(), Fault> {
        let attributes = attributes(entry)?;
        let place = self.tree.place(path)?;
        place.clear()?;
        let mut file = place.create_file()?;
        let left = self.limits.bytes.saturating_sub(self.written);
        let count = io::copy(&mut entry.take(left.saturating_add(1)), &mut file)?;
        if count > left {
            return Err(Fault::Limit(format!("more than {} bytes", self.limits.bytes)));
        }
        self.written = self.written.saturating_add(count);
        self.adorn(&file, &attributes)?;
        Ok(())
    }

    /// A whiteout of the archive as one of overlayfs. It is about what is below this layer.
    fn whiteout(&self, path: &Path, mark: &OsStr) -> Result<(), Fault> {
        let above = path.parent().unwrap_or(Path::new(""));
        if mark == OPAQUE_MARK {
            if !above.as_os_str().is_empty() {
                let place = self.tree.place(above)?;
                self.directory(&place, above)?;
            }
            return Ok(self.make_opaque(above)?);
        }
        if mark.as_bytes().starts_with(AUFS_MARK.as_bytes()) {
            return Ok(());
        }
        let hidden = OsStr::from_bytes(mark.as_bytes().get(WHITEOUT.len()..).unwrap_or_default());
        if matches!(hidden.as_bytes(), b"" | b"." | b"..") {
            return Err(Fault::Escape(path.to_owned()));
        }
        let place = self.tree.place(path)?.sibling(hidden);
        if place.is_directory() {
            return Ok(self.make_opaque(&above.join(place.name()))?);
        }
        if place.stat().is_none() {
            place.make_whiteout()?;
        }
        Ok(())
    }

    fn make_opaque(&self, path: &Path) -> io::Result<()> {
        let directory = self.tree.directory(path)?;
        let [trusted, user] = OPAQUE;
        directory.set_xattr(trusted, b"y").or_else(|_| directory.set_xattr(user, b"y"))
    }

    /// Gives a file its owner, mode and attributes. In this order: a new owner takes set-user-ID and capabilities away.
    fn adorn(&self, file: &File, attributes: &Attributes) -> io::Result<()> {
        if self.own {
            fchown(file.as_fd(), Some(uid(attributes)?), Some(gid(attributes)?))?;
        }
        fchmod(file.as_fd(), Mode::from_bits_truncate(attributes.mode & 0o7777))?;
        for (name, value) in &attributes.extended {
            match file.set_xattr(name, value) {
                // Not every filesystem has them, and not every user may set them.
                Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) || !self.own => {}
                result => result?,
            }
        }
        // A time that can't be is left as it is.
        if let Some(time) = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(attributes.modified)) {
            let _ = file.set_modified(time);
        }
        Ok(())
    }

    /// Gives directories what is theirs, the deepest first.
    pub(super) fn finish(mut self) -> Result<(), (PathBuf, io::Error)> {
        let mut directories = std::mem::take(&mut self.directories);
        // Of several entries for one directory the last counts: sorting keeps their order.
        directories.sort_by(|(a, _), (b, _)| b.cmp(a));
        for (path, attributes) in directories {
            let gone = |error: &io::Error| {
                matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP))
            };
            match self.tree.directory(&path) {
                Ok(directory) => self.adorn(&directory, &attributes).map_err(|error| (path, error))?,
                // A later entry has replaced it.
                Err(error) if gone(&error) => {}
                Err(error) => return Err((path, error)),
            }
        }
        Ok(())
    }
}

fn no_target() -> io::Error {
    io::Error::other("a link without a target")
}

fn is_mark(name: &OsStr) -> bool {
    name.as_bytes().starts_with(WHITEOUT.as_bytes())
}

/// A path of names only; none for one that leads out.
fn inside(path: &Path) -> Option<PathBuf> {
    let mut inside = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => inside.push(name),
            Component::CurDir => {}
            Component::RootDir | Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    Some(inside)
}

fn inside_name(path: &Path) -> Option<PathBuf> {
    inside(path).filter(|path| path.file_name().is_some())
}

fn attributes(entry: &mut Entry<'_, impl Read>) -> io::Result<Attributes> {
    let header = entry.header();
    let (uid, gid, mode) = (header.uid()?, header.gid()?, header.mode()?);
    let modified = header.mtime().unwrap_or_default();
    let mut extended = Vec::new();
    for extension in entry.pax_extensions()?.into_iter().flatten() {
        let extension = extension?;
        let name = extension.key_bytes().strip_prefix(b"SCHILY.xattr.");
        if let Some(name) = name.filter(|name| is_kept(name)) {
            extended.push((OsStr::from_bytes(name).to_owned(), extension.value_bytes().to_owned()));
        }
    }
    Ok(Attributes { uid, gid, mode, modified, extended })
}

/// overlayfs's own attributes would let an archive say where its files are.
pub(crate) fn is_kept(attribute: &[u8]) -> bool {
    let known: [&[u8]; 3] = [b"security.capability", b"system.posix_acl_access", b"system.posix_acl_default"];
    known.contains(&attribute)
        || (attribute.starts_with(b"user.") && !attribute.starts_with(b"user.overlay."))
}

fn uid(attributes: &Attributes) -> io::Result<Uid> {
    // The largest means "leave it" to the kernel.
    let id = u32::try_from(attributes.uid).ok().filter(|&id| id != u32::MAX);
    id.map(Uid::from_raw).ok_or_else(|| io::Error::other(format!("user {} can't be", attributes.uid)))
}

fn gid(attributes: &Attributes) -> io::Result<Gid> {
    let id = u32::try_from(attributes.gid).ok().filter(|&id| id != u32::MAX);
    id.map(Gid::from_raw).ok_or_else(|| io::Error::other(format!("group {} can't be", attributes.gid)))
}
