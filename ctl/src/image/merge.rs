//! Layers, one above the other, as one directory of copies: for where overlayfs is not to be had.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};

use nix::unistd::{Gid, Uid};
use xattr::FileExt as _;

use crate::tree::{Place, Tree};
use crate::unpack::{OPAQUE, is_kept};

/// Whose a container's files are that has users of its own.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Owners {
    /// Its users.
    pub uids: Ids,
    /// Its groups.
    pub gids: Ids,
}

/// A range of ids.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Ids {
    /// The first one in the container.
    pub inside: u32,
    /// The same one outside of it.
    pub outside: u32,
    /// How many there are.
    pub size: u32,
}

impl Ids {
    /// What an id is outside; one that the container has not stays as it is, and is nobody's there.
    fn shift(self, id: u32) -> u32 {
        let offset = id.checked_sub(self.inside).filter(|offset| *offset < self.size);
        offset.and_then(|offset| self.outside.checked_add(offset)).unwrap_or(id)
    }
}

/// Copies what the layers show, the lowest first, into the existing directory `target`. Modes, links, hard links within
/// a layer and extended attributes are kept, for root owners too, or what these are outside of a container. Nodes,
/// sockets and fifos are left out. Blocks.
///
/// A guest may see `target` and change what is there meanwhile: no link is followed in it, and it is not left.
///
/// # Errors
///
/// The first file that can't be copied, with its path.
pub fn merge<P: AsRef<Path>>(
    layers: &[P],
    target: &Path,
    owners: Option<Owners>,
) -> Result<(), (PathBuf, io::Error)> {
    let own = nix::unistd::geteuid().is_root();
    let tree = Tree::strict(target).map_err(|error| (target.to_owned(), error))?;
    for layer in layers {
        Copy { layer: layer.as_ref(), tree: &tree, own, owners, links: HashMap::new() }.run()?;
    }
    Ok(())
}

/// What is still to be done, by a path in the layer.
enum Step {
    Directory(PathBuf),
    /// What a directory has itself, behind its contents: it may forbid to write.
    Adorn(PathBuf),
}

struct Copy<'a> {
    layer: &'a Path,
    tree: &'a Tree,
    own: bool,
    owners: Option<Owners>,
    /// The copies of files with several names, by device and inode.
    links: HashMap<(u64, u64), PathBuf>,
}

impl Copy<'_> {
    /// With a list and not by recursion: trees are as deep as images make them.
    fn run(mut self) -> Result<(), (PathBuf, io::Error)> {
        let mut steps = vec![Step::Directory(PathBuf::new())];
        while let Some(step) = steps.pop() {
            match step {
                Step::Directory(path) => self.directory(path, &mut steps)?,
                Step::Adorn(path) => {
                    self.finish(&path).map_err(|error| (self.layer.join(&path), error))?;
                }
            }
        }
        Ok(())
    }

    fn directory(&mut self, path: PathBuf, steps: &mut Vec<Step>) -> Result<(), (PathBuf, io::Error)> {
        let from = self.layer.join(&path);
        let failed = |error| (from.clone(), error);
        if !self.own {
            // A layer below may have forbidden it.
            self.tree.allow(&path).map_err(failed)?;
        }
        steps.push(Step::Adorn(path.clone()));
        for entry in fs::read_dir(&from).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let (from, path) = (from.join(&name), path.join(name));
            let is_directory = self.entry(&from, &path).map_err(|error| (from, error))?;
            if is_directory {
                steps.push(Step::Directory(path));
            }
        }
        Ok(())
    }

    /// Copies what is no directory, and makes what is one; true for that.
    fn entry(&mut self, from: &Path, path: &Path) -> io::Result<bool> {
        let metadata = fs::symlink_metadata(from)?;
        let kind = metadata.file_type();
        let whiteout = kind.is_char_device() && metadata.rdev() == 0;
        if !(whiteout || kind.is_dir() || kind.is_file() || kind.is_symlink()) {
            return Ok(false);
        }
        let place = self.tree.existing(path)?;
        if kind.is_dir() {
            if !place.is_directory() || is_opaque(from) {
                place.clear()?;
                place.make_directory()?;
            }
            return Ok(true);
        }
        place.clear()?;
        if !whiteout {
            self.copy(from, path, &place, &metadata)?;
        }
        Ok(false)
    }

    fn copy(&mut self, from: &Path, path: &Path, place: &Place, metadata: &Metadata) -> io::Result<()> {
        let name = (metadata.dev(), metadata.ino());
        if let Some(copy) = self.links.get(&name) {
            return place.make_link(&self.tree.existing(copy)?);
        }
        if metadata.nlink() > 1 {
            self.links.insert(name, path.to_owned());
        }
        if metadata.is_symlink() {
            place.make_symlink(fs::read_link(from)?.as_os_str())?;
            return match self.own {
                true => {
                    let (uid, gid) = self.owner(metadata);
                    place.own(Uid::from_raw(uid), Gid::from_raw(gid))
                }
                false => Ok(()),
            };
        }
        let mut file = place.create_file()?;
        io::copy(&mut File::open(from)?, &mut file)?;
        self.adorn(from, &file, metadata)
    }

    fn owner(&self, metadata: &Metadata) -> (u32, u32) {
        let (uid, gid) = (metadata.uid(), metadata.gid());
        self.owners.map_or((uid, gid), |owners| (owners.uids.shift(uid), owners.gids.shift(gid)))
    }

    fn finish(&self, path: &Path) -> io::Result<()> {
        let from = self.layer.join(path);
        let metadata = fs::symlink_metadata(&from)?;
        self.adorn(&from, &self.tree.directory(path)?, &metadata)
    }

    /// Gives a copy its owner, mode, attributes and time. A new owner takes set-user-ID and capabilities away.
    fn adorn(&self, from: &Path, to: &File, metadata: &Metadata) -> io::Result<()> {
        if self.own {
            let (uid, gid) = self.owner(metadata);
            fchown(to, Some(uid), Some(gid))?;
        }
        to.set_permissions(Permissions::from_mode(metadata.mode() & 0o7777))?;
        for name in xattr::list(from).into_iter().flatten().filter(|name: &std::ffi::OsString| keeps(name)) {
            let Some(value) = xattr::get(from, &name)? else { continue };
            match to.set_xattr(&name, &value) {
                Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) || !self.own => {}
                result => result?,
            }
        }
        if let Ok(time) = metadata.modified() {
            // A time that can't be set is no loss.
            let _ = to.set_modified(time);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_a_container_are_others_outside_and_the_rest_stay() {
        let ids = Ids { inside: 10, outside: 4000, size: 5 };
        assert_eq!([9, 10, 14, 15].map(|id| ids.shift(id)), [9, 4000, 4004, 15]);
    }

    #[test]
    fn a_layer_as_deep_as_paths_can_be_is_copied_and_removed() {
        let (layer, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let deep: PathBuf = std::iter::repeat_n("d", 1900).collect();
        fs::create_dir_all(layer.path().join(&deep)).unwrap();
        fs::write(layer.path().join(&deep).join("file"), "x").unwrap();
        let (from, to) = (layer.path().to_owned(), target.path().join("root"));
        fs::create_dir(&to).unwrap();
        // No level may take its part of the stack.
        let copy = std::thread::Builder::new().stack_size(128 << 10).spawn(move || {
            merge(&[from], &to, None).unwrap();
            let copied = fs::read_to_string(to.join(&deep).join("file")).unwrap();
            let tree = Tree::strict(to.parent().unwrap()).unwrap();
            tree.existing(Path::new("root")).unwrap().clear().unwrap();
            (copied, to.exists())
        });
        assert_eq!(copy.unwrap().join().unwrap(), ("x".to_owned(), false));
        let tree = Tree::strict(layer.path()).unwrap();
        tree.existing(Path::new("d")).unwrap().clear().unwrap();
    }

    #[test]
    fn layers_that_forbid_to_write_are_covered_all_the_same() {
        let (below, above, target) =
            (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for layer in [&below, &above] {
            fs::create_dir(layer.path().join("d")).unwrap();
        }
        fs::write(above.path().join("d/file"), "x").unwrap();
        fs::write(above.path().join("file"), "y").unwrap();
        for path in [below.path().to_owned(), below.path().join("d")] {
            fs::set_permissions(path, Permissions::from_mode(0o555)).unwrap();
        }
        merge(&[below.path(), above.path()], target.path(), None).unwrap();
        assert_eq!(fs::read_to_string(target.path().join("d/file")).unwrap(), "x");
        assert_eq!(fs::read_to_string(target.path().join("file")).unwrap(), "y");
    }

    #[test]
    fn a_link_in_the_copy_is_no_way_out() {
        let (layer, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let outside = tempfile::tempdir().unwrap();
        fs::create_dir(layer.path().join("etc")).unwrap();
        fs::write(layer.path().join("etc/passwd"), "x").unwrap();
        // As a guest would do it between two steps of ours.
        std::os::unix::fs::symlink(outside.path(), target.path().join("etc")).unwrap();
        let tree = Tree::strict(target.path()).unwrap();
        let mut copy =
            Copy { layer: layer.path(), tree: &tree, own: true, owners: None, links: HashMap::new() };
        assert!(copy.directory("etc".into(), &mut Vec::new()).is_err());
        assert!(copy.finish(Path::new("etc")).is_err());
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    }
}
