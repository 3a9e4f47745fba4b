//! A file tree in memory, on its way into an initrd or a folder.
//!
//! Invariants: paths are relative, without empty, `.` and `..` components; each path is there once; the parent of
//! every entry is a directory of the tree. Entries come sorted by path, so that a directory precedes what is in it
//! and the same tree always gives the same bytes. Nothing of the builder's machine is in it: no times, no owners
//! but those asked for.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use crate::files::{self, FilesError};

/// The mode of directories that are made because something is put into them.
const PARENT_MODE: u32 = 0o755;

/// An entry that can't be where it was asked for.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TreeError {
    /// The path has an empty, `.` or `..` component, or a NUL.
    #[error("{0:?} is no path of an image: empty, . and .. components and NUL have no meaning there")]
    Path(String),
    /// The path is taken.
    #[error("{0} is in the image already")]
    Taken(String),
    /// The parent is not a directory.
    #[error("{path} can't be in the image: {parent} is not a directory there")]
    Parent {
        /// The entry.
        path: String,
        /// The file or symbolic link above it.
        parent: String,
    },
}

/// One entry: what it is, its permission bits and its owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What it is.
    pub kind: Kind,
    /// Permission bits, set-id and sticky bits included.
    pub mode: u32,
    /// Owner: user and group.
    pub owner: (u32, u32),
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A regular file with its content.
    File(Vec<u8>),
    /// A symbolic link with its target.
    Symlink(String),
    /// A character device.
    CharDevice {
        /// Its major number.
        major: u32,
        /// Its minor number.
        minor: u32,
    },
}

/// The tree. The root directory itself is not an entry.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tree {
    entries: BTreeMap<String, Entry>,
}

impl Tree {
    /// A tree with nothing in it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a directory.
    pub fn directory(&mut self, path: &str, mode: u32) -> Result<(), TreeError> {
        self.insert(path, Entry { kind: Kind::Directory, mode, owner: (0, 0) })
    }

    /// Adds a regular file.
    pub fn file(&mut self, path: &str, mode: u32, content: impl Into<Vec<u8>>) -> Result<(), TreeError> {
        self.insert(path, Entry { kind: Kind::File(content.into()), mode, owner: (0, 0) })
    }

    /// Adds a symbolic link.
    pub fn symlink(&mut self, path: &str, target: &str) -> Result<(), TreeError> {
        self.insert(path, Entry { kind: Kind::Symlink(target.into()), mode: 0o777, owner: (0, 0) })
    }

    /// Adds a character device.
    pub fn char_device(&mut self, path: &str, mode: u32, major: u32, minor: u32) -> Result<(), TreeError> {
        self.insert(path, Entry { kind: Kind::CharDevice { major, minor }, mode, owner: (0, 0) })
    }

    /// Adds an entry, with the directories above it where they are missing. A leading `/` means nothing.
    pub fn insert(&mut self, path: &str, entry: Entry) -> Result<(), TreeError> {
        let path = path.strip_prefix('/').unwrap_or(path);
        let valid = |component: &str| !matches!(component, "" | "." | "..") && !component.contains('\0');
        if !path.split('/').all(valid) {
            return Err(TreeError::Path(path.into()));
        }
        for (end, _) in path.match_indices('/') {
            self.parent_of(path, &path[..end])?;
        }
        if self.entries.contains_key(path) {
            return Err(TreeError::Taken(path.into()));
        }
        self.entries.insert(path.into(), entry);
        Ok(())
    }

    fn parent_of(&mut self, path: &str, parent: &str) -> Result<(), TreeError> {
        match self.entries.get(parent) {
            None => self.directory(parent, PARENT_MODE),
            Some(Entry { kind: Kind::Directory, .. }) => Ok(()),
            Some(_) => Err(TreeError::Parent { path: path.into(), parent: parent.into() }),
        }
    }

    /// The entry at a path.
    pub fn get(&self, path: &str) -> Option<&Entry> {
        self.entries.get(path)
    }

    /// Every entry with its path, parents first.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.entries.iter().map(|(path, entry)| (path.as_str(), entry))
    }

    /// Writes the tree into a folder, over what is there: what the tree does not name stays.
    ///
    /// Devices are left out: whoever runs a container makes its own. Only root can give files away: what another
    /// user writes is all that user's.
    pub fn write_to(&self, dir: &Path) -> Result<(), FilesError> {
        files::create_dir(dir)?;
        for (path, entry) in self.entries() {
            let path = dir.join(path);
            entry.write_to(&path)?;
        }
        Ok(())
    }
}

impl Entry {
    fn write_to(&self, path: &Path) -> Result<(), FilesError> {
        let failed = |source| FilesError::Write { path: PathBuf::from(path), source };
        match &self.kind {
            Kind::Directory => files::create_dir(path)?,
            Kind::File(content) => files::write(path, content)?,
            Kind::Symlink(target) => return write_symlink(path, target).map_err(failed),
            Kind::CharDevice { .. } => return Ok(()),
        }
        std::fs::set_permissions(path, PermissionsExt::from_mode(self.mode)).map_err(failed)?;
        if self.owner == (0, 0) {
            return Ok(());
        }
        match chown(path, Some(self.owner.0), Some(self.owner.1)) {
            Err(error) if error.kind() != io::ErrorKind::PermissionDenied => Err(failed(error)),
            _ => Ok(()),
        }
    }
}

fn write_symlink(path: &Path, target: &str) -> io::Result<()> {
    if std::fs::read_link(path).is_ok_and(|old| old.as_path() == Path::new(target)) {
        return Ok(());
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => symlink(target, path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_are_made_and_come_first() {
        let mut tree = Tree::new();
        tree.file("/usr/lib/x", 0o644, "x").unwrap();
        tree.symlink("usr.link", "usr").unwrap();
        tree.directory("bin", 0o700).unwrap();
        let paths: Vec<_> = tree.entries().map(|(path, _)| path).collect();
        assert_eq!(paths, ["bin", "usr", "usr.link", "usr/lib", "usr/lib/x"]);
        assert_eq!(tree.get("usr/lib").unwrap().mode, PARENT_MODE);
    }

    #[test]
    fn an_entry_has_to_have_a_place() {
        let mut tree = Tree::new();
        tree.symlink("var/run", "/run").unwrap();
        for path in ["", "/", "a//b", "a/../b", "./a", "a/", "a\0b"] {
            assert!(matches!(tree.file(path, 0o644, ""), Err(TreeError::Path(_))), "{path:?}");
        }
        assert_eq!(tree.file("var/run", 0o644, ""), Err(TreeError::Taken("var/run".into())));
        let error = tree.file("var/run/x", 0o644, "").unwrap_err().to_string();
        assert_eq!(error, "var/run/x can't be in the image: var/run is not a directory there");
    }

    #[test]
    fn a_folder_gets_what_the_tree_has_and_keeps_what_it_has() {
        let mut tree = Tree::new();
        tree.file("bin/tool", 0o755, "tool").unwrap();
        tree.symlink("bin/alias", "/bin/tool").unwrap();
        tree.directory("tmp", 0o1777).unwrap();
        tree.char_device("dev/null", 0o666, 1, 3).unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("mine"), "mine").unwrap();
        for _ in 0..2 {
            tree.write_to(dir.path()).unwrap();
        }
        let mode =
            |path: &str| std::fs::metadata(dir.path().join(path)).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode("bin/tool"), mode("tmp")), (0o755, 0o1777));
        assert_eq!(std::fs::read_link(dir.path().join("bin/alias")).unwrap(), Path::new("/bin/tool"));
        assert_eq!(files::list(dir.path()).unwrap(), ["bin", "dev", "mine", "tmp"]);
        assert!(files::list(&dir.path().join("dev")).unwrap().is_empty());
    }
}
