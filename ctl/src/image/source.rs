//! Where an image's parts come from: the files of a directory, or the entries of a tar archive that are read where they
//! lie. Names come from the image itself: in an archive they are looked up in its index and never in a filesystem, and
//! those of a directory are made of digests.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Component, Path, PathBuf};

use tar::EntryType;

use super::{ImageError, MANIFEST_MAX};
use crate::unpack::{Found, Limits, archive_entries, expand};

/// The parts of an image.
#[derive(Debug)]
pub(super) enum Source {
    Directory(PathBuf),
    Archive { path: PathBuf, file: File, index: Index },
}

/// The files of an archive: where their bytes are, and links between them.
#[derive(Debug, Default)]
pub(super) struct Index {
    files: HashMap<PathBuf, (u64, u64)>,
    links: HashMap<PathBuf, PathBuf>,
}

impl Source {
    /// Opens a directory or an archive; a compressed one is decompressed into a nameless file.
    pub(super) fn open(path: &Path, limits: Limits) -> Result<Self, ImageError> {
        let failed = |source| ImageError::Read { path: path.to_owned(), source };
        let mut file = File::open(path).map_err(failed)?;
        if file.metadata().map_err(failed)?.is_dir() {
            return Ok(Self::Directory(path.to_owned()));
        }
        let mut magic = [0; 2];
        let compressed =
            file.read_at(&mut magic, 0).map_err(failed)? == 2 && matches!(magic, [0x1f, 0x8b] | [0x28, 0xb5]);
        if compressed {
            let mut plain = tempfile::tempfile().map_err(failed)?;
            expand(file, limits, &mut plain).map_err(failed)?;
            file = plain;
            file.rewind().map_err(failed)?;
        }
        let mut index = Index::default();
        archive_entries(&file, path, limits, |found| index.note(&found))?;
        Ok(Self::Archive { path: path.to_owned(), file, index })
    }

    pub(super) fn path(&self) -> &Path {
        match self {
            Self::Directory(path) | Self::Archive { path, .. } => path,
        }
    }

    /// The bytes of a part, if it is there.
    pub(super) fn part(&self, name: &str) -> Result<Option<Box<dyn Read + '_>>, ImageError> {
        match self {
            Self::Directory(path) => match File::open(path.join(name)) {
                Ok(file) => Ok(Some(Box::new(file))),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(source) => Err(ImageError::Read { path: path.join(name), source }),
            },
            Self::Archive { file, index, .. } => Ok(index.find(Path::new(name)).map(|(at, left)| {
                let slice: Box<dyn Read + '_> = Box::new(Slice { file, at, left });
                slice
            })),
        }
    }

    /// A part that has to be there.
    pub(super) fn need(&self, name: &str) -> Result<Box<dyn Read + '_>, ImageError> {
        self.part(name)?.ok_or_else(|| self.bad(format!("it has no {name}")))
    }

    /// A small part, whole.
    pub(super) fn text(&self, name: &str) -> Result<Option<Vec<u8>>, ImageError> {
        let Some(part) = self.part(name)? else { return Ok(None) };
        let mut bytes = Vec::new();
        let count = part.take(MANIFEST_MAX).read_to_end(&mut bytes);
        let count = count.map_err(|source| ImageError::Read { path: self.path().join(name), source })?;
        if count as u64 == MANIFEST_MAX {
            return Err(self.bad(format!("{name} has more than {MANIFEST_MAX} bytes")));
        }
        Ok(Some(bytes))
    }

    /// An error of this image.
    pub(super) fn bad(&self, problem: impl Into<String>) -> ImageError {
        ImageError::Image { path: self.path().to_owned(), problem: problem.into() }
    }
}

impl Index {
    fn note(&mut self, found: &Found<'_>) {
        let name = normal(Path::new(""), found.path);
        // The last entry of a name counts.
        self.files.remove(&name);
        self.links.remove(&name);
        match (found.kind, found.link) {
            (EntryType::Regular | EntryType::Continuous, _) => {
                self.files.insert(name, (found.at, found.size));
            }
            (EntryType::Symlink, Some(to)) => {
                let to = normal(name.parent().unwrap_or(Path::new("")), to);
                self.links.insert(name, to);
            }
            (EntryType::Link, Some(to)) => {
                self.links.insert(name, normal(Path::new(""), to));
            }
            _ => {}
        }
    }

    fn find(&self, name: &Path) -> Option<(u64, u64)> {
        let mut name = normal(Path::new(""), name);
        // Longer chains are loops.
        for _ in 0..8 {
            match self.links.get(&name) {
                Some(to) => name.clone_from(to),
                None => return self.files.get(&name).copied(),
            }
        }
        None
    }
}

/// A name in an archive without `.` and `..`; its beginning is the archive's.
fn normal(base: &Path, name: &Path) -> PathBuf {
    let mut result = base.to_owned();
    for component in name.components() {
        match component {
            Component::Normal(part) => result.push(part),
            Component::ParentDir => drop(result.pop()),
            Component::RootDir => result.clear(),
            Component::CurDir | Component::Prefix(_) => {}
        }
    }
    result
}

/// A part of a file.
struct Slice<'a> {
    file: &'a File,
    at: u64,
    left: u64,
}

impl Read for Slice<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.file.read_at(buffer.get_mut(..most).unwrap_or_default(), self.at)?;
        (self.at, self.left) = (self.at.saturating_add(count as u64), self.left.saturating_sub(count as u64));
        Ok(count)
    }
}
