//! Layers, one above the other, as one directory of copies: for where overlayfs is not to be had.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, lchown, symlink};
use std::path::{Path, PathBuf};

use crate::unpack::{OPAQUE, is_kept};

/// Copies what the layers show, the lowest first, into the existing directory `target`. Modes, links, hard links within
/// a layer and extended attributes are kept, for root owners too. Nodes, sockets and fifos are left out. Blocks.
///
/// # Errors
///
/// The first file that can't be copied, with its path.
pub fn merge<P: AsRef<Path>>(layers: &[P], target: &Path) -> Result<(), (PathBuf, io::Error)> {
    let own = nix::unistd::geteuid().is_root();
    for layer in layers {
        let mut copy = Copy { own, links: HashMap::new() };
        copy.directory(layer.as_ref(), target)?;
    }
    Ok(())
}

struct Copy {
    own: bool,
    /// The copies of files with several names, by device and inode.
    links: HashMap<(u64, u64), PathBuf>,
}

impl Copy {
    /// Copies the contents of `from`, and then what it has itself: it may forbid to write.
    fn directory(&mut self, from: &Path, to: &Path) -> Result<(), (PathBuf, io::Error)> {
        let failed = |error| (from.to_owned(), error);
        if !self.own {
            // A layer below may have forbidden it.
            fs::set_permissions(to, Permissions::from_mode(0o700)).map_err(failed)?;
        }
        for entry in fs::read_dir(from).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            self.entry(&entry.path(), &to.join(entry.file_name()))?;
        }
        let metadata = fs::symlink_metadata(from).map_err(failed)?;
        self.adorn(from, to, &metadata).map_err(failed)
    }

    fn entry(&mut self, from: &Path, to: &Path) -> Result<(), (PathBuf, io::Error)> {
        let failed = |error| (from.to_owned(), error);
        let metadata = fs::symlink_metadata(from).map_err(failed)?;
        let kind = metadata.file_type();
        if kind.is_dir() {
            let merges = fs::symlink_metadata(to).is_ok_and(|below| below.is_dir()) && !is_opaque(from);
            if !merges {
                clear(to).and_then(|()| fs::create_dir(to)).map_err(failed)?;
            }
            return self.directory(from, to);
        }
        let whiteout = kind.is_char_device() && metadata.rdev() == 0;
        if !(whiteout || kind.is_file() || kind.is_symlink()) {
            return Ok(());
        }
        clear(to).map_err(failed)?;
        if whiteout {
            return Ok(());
        }
        let name = (metadata.dev(), metadata.ino());
        if let Some(copy) = self.links.get(&name) {
            return fs::hard_link(copy, to).map_err(failed);
        }
        if metadata.nlink() > 1 {
            self.links.insert(name, to.to_owned());
        }
        let copied = if kind.is_symlink() {
            fs::read_link(from).and_then(|link| symlink(link, to))
        } else {
            fs::copy(from, to).map(drop)
        };
        copied.and_then(|()| self.adorn(from, to, &metadata)).map_err(failed)
    }

    fn adorn(&self, from: &Path, to: &Path, metadata: &Metadata) -> io::Result<()> {
        if self.own {
            lchown(to, Some(metadata.uid()), Some(metadata.gid()))?;
        }
        if metadata.is_symlink() {
            return Ok(());
        }
        fs::set_permissions(to, Permissions::from_mode(metadata.mode() & 0o7777))?;
        for name in xattr::list(from).into_iter().flatten().filter(|name: &std::ffi::OsString| keeps(name)) {
            let Some(value) = xattr::get(from, &name)? else { continue };
            match xattr::set(to, &name, &value) {
                Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) || !self.own => {}
                result => result?,
            }
        }
        if let (Ok(time), Ok(file)) = (metadata.modified(), File::open(to)) {
            // A time that can't be set is no loss.
            let _ = file.set_modified(time);
        }
        Ok(())
    }
}

fn keeps(name: &OsStr) -> bool {
    is_kept(name.as_bytes())
}

fn is_opaque(directory: &Path) -> bool {
    OPAQUE.iter().any(|name| matches!(xattr::get(directory, name), Ok(Some(_))))
}

/// Removes what is there; links are not followed.
fn clear(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}
