//! A CopyFile request, checked.

use std::ffi::CString;
use std::path::{Path, PathBuf};

use nakai_protocols::agent::CopyFileRequest;
use nix::libc;
use nix::unistd::{Gid, Uid};

use super::CopyError;

/// Permissions of directories that are made on the way, if the host names none: those of a Kata shim.
const DIR_MODE: u32 = 0o750;
/// The longest target of a symbolic link, without its NUL (path_resolution(7)).
const TARGET_LIMIT: usize = 4095;

/// What is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyRequest {
    /// The shared directory.
    pub(super) base: PathBuf,
    /// Beneath it; not empty, does not climb.
    pub(super) path: PathBuf,
    pub(super) kind: Kind,
    pub(super) owner: Owner,
    /// Permissions of what is copied.
    pub(super) mode: u32,
    /// Permissions of the directories made on the way.
    pub(super) dir_mode: u32,
}

/// What is copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    Directory,
    Link { target: CString },
    Chunk(Chunk),
}

/// A piece of a file, within its size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chunk {
    pub(super) offset: u64,
    pub(super) data: Vec<u8>,
    /// Of the whole file.
    pub(super) size: u64,
}

/// Who gets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) uid: Uid,
    pub(super) gid: Gid,
}

impl CopyRequest {
    /// The shared directory that it goes to.
    pub fn base(&self) -> &Path {
        &self.base
    }

    /// Where it goes, beneath that directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Checks a request; what it names must be beneath one of `bases`.
    ///
    /// # Errors
    ///
    /// Those variants of [`CopyError`] that are about the request.
    pub fn new(request: CopyFileRequest, bases: &[PathBuf]) -> Result<Self, CopyError> {
        let beneath = bases.iter().find_map(|base| Some((base.clone(), beneath(&request.path, base)?)));
        let (base, path) = beneath
            .ok_or_else(|| CopyError::Outside { path: request.path.clone(), bases: bases.to_vec() })?;
        let number = |field, value| CopyError::Number { path: path.clone(), field, value };
        // Ids go up to 2^32 - 2; shims send them as they are in memory. -1 would mean to leave the owner as it is.
        let id = |field, value: i32| match value {
            -1 => Err(number(field, -1)),
            id => Ok(id.cast_unsigned()),
        };
        let owner = Owner {
            uid: Uid::from_raw(id("uid", request.uid)?),
            gid: Gid::from_raw(id("gid", request.gid)?),
        };
        let mode = match request.file_mode & 0o7777 {
            0 if is_in_dir_mode(&request) => request.dir_mode & 0o7777,
            mode => mode,
        };
        let kind = match request.file_mode & libc::S_IFMT {
            libc::S_IFDIR => Kind::Directory,
            libc::S_IFLNK => Kind::Link { target: target(&path, request.data)? },
            libc::S_IFREG | 0 => {
                let unsigned = |field, value: i64| u64::try_from(value).map_err(|_| number(field, value));
                let size = unsigned("file_size", request.file_size)?;
                let offset = unsigned("offset", request.offset)?;
                let data = request.data;
                let end = u64::try_from(data.len()).ok().and_then(|len| offset.checked_add(len));
                if end.is_none_or(|end| end > size) {
                    return Err(CopyError::TooMuch { path, len: data.len(), offset, size });
                }
                Kind::Chunk(Chunk { offset, data, size })
            }
            _ => return Err(CopyError::Type { path, mode: request.file_mode }),
        };
        let dir_mode = match request.dir_mode & 0o777 {
            0 => DIR_MODE,
            mode => mode,
        };
        Ok(Self { base, path, kind, owner, mode, dir_mode })
    }
}

/// Kata's Rust shim sends a directory's type as `file_mode`, and the whole mode of it as `dir_mode`.
fn is_in_dir_mode(request: &CopyFileRequest) -> bool {
    [request.file_mode, request.dir_mode].iter().all(|mode| mode & libc::S_IFMT == libc::S_IFDIR)
}

/// The part of a path beneath `base`, if it is there and doesn't climb.
fn beneath(path: &str, base: &Path) -> Option<PathBuf> {
    let relative = Path::new(path).strip_prefix(base).ok()?;
    let harmless = relative.components().all(|part| matches!(part, std::path::Component::Normal(_)));
    let is_one = !relative.as_os_str().is_empty() && harmless && !path.contains('\0');
    is_one.then(|| relative.to_owned())
}

fn target(path: &Path, data: Vec<u8>) -> Result<CString, CopyError> {
    let refuse = |reason| CopyError::Target { path: path.to_owned(), reason };
    match data.len() {
        0 => Err(refuse("it is empty")),
        len if len > TARGET_LIMIT => Err(refuse("it is too long")),
        _ => CString::new(data).map_err(|_| refuse("it holds a NUL byte")),
    }
}
