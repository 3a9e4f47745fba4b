//! Unpacking a root filesystem's tar archive without leaving the target directory.
//!
//! An entry with an absolute path or a `..` in it is refused by name, nothing is silently skipped or
//! renamed. Symbolic links may point anywhere, as those of a root filesystem do, but no entry is
//! written through one that leads out: the tar crate resolves each entry's parent and refuses that.
//! Hard links are held to the same. Device nodes and fifos are left out: a container's `/dev` is its
//! own, and a node in a directory of the host is a hole in the host.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use tar::{Archive, Entry, EntryType};

/// Why an archive is not unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The archive can't be opened or read.
    #[error("archive {archive}: {source}", archive = .archive.display())]
    Read {
        /// The archive.
        archive: PathBuf,
        /// The system's or the parser's reason.
        source: io::Error,
    },
    /// A compressed archive.
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

/// Unpacks the tar file `archive` into the existing directory `target`. Blocks.
///
/// # Errors
///
/// See [`UnpackError`]; entries before the refused one have been written.
pub fn unpack(archive: &Path, target: &Path) -> Result<(), UnpackError> {
    let read = |source| UnpackError::Read { archive: archive.to_owned(), source };
    let mut file = File::open(archive).map_err(read)?;
    let mut magic = Vec::new();
    file.by_ref().take(4).read_to_end(&mut magic).map_err(read)?;
    if let Some(format) = compression(&magic) {
        return Err(UnpackError::Compressed { archive: archive.to_owned(), format });
    }
    let mut tar = Archive::new(io::Cursor::new(magic).chain(file));
    let root = nix::unistd::geteuid().is_root();
    tar.set_preserve_permissions(true);
    tar.set_preserve_ownerships(root);
    tar.set_unpack_xattrs(root);
    // Written last: a directory that its owner can't write to would refuse its own contents.
    let mut directories = Vec::new();
    for entry in tar.entries().map_err(read)? {
        let entry = entry.map_err(read)?;
        let path = entry.path().map_err(read)?.into_owned();
        check(&entry, &path).map_err(|entry| UnpackError::Escape { archive: archive.to_owned(), entry })?;
        match entry.header().entry_type() {
            EntryType::Char | EntryType::Block | EntryType::Fifo => {}
            EntryType::Directory => directories.push((path, entry)),
            _ => write(entry, &path, archive, target)?,
        }
    }
    directories.sort_by(|(a, _), (b, _)| b.cmp(a));
    directories.into_iter().try_for_each(|(path, entry)| write(entry, &path, archive, target))
}

fn write(
    mut entry: Entry<'_, impl Read>,
    path: &Path,
    archive: &Path,
    target: &Path,
) -> Result<(), UnpackError> {
    let unpacked = entry.unpack_in(target);
    unpacked.map(drop).map_err(|source| UnpackError::Write {
        archive: archive.to_owned(),
        entry: path.to_owned(),
        source,
    })
}

/// Refuses what leads out; gives back the path that does.
fn check(entry: &Entry<'_, impl Read>, path: &Path) -> Result<(), PathBuf> {
    let leads_out =
        |path: &Path| !path.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
    if leads_out(path) {
        return Err(path.to_owned());
    }
    if entry.header().entry_type() != EntryType::Link {
        return Ok(());
    }
    match entry.link_name() {
        Ok(Some(link)) if !leads_out(&link) => Ok(()),
        Ok(Some(link)) => Err(link.into_owned()),
        Ok(None) | Err(_) => Err(path.to_owned()),
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

fn compression(magic: &[u8]) -> Option<&'static str> {
    match magic {
        [0x1f, 0x8b, ..] => Some("gzip"),
        [0x28, 0xb5, 0x2f, 0xfd] => Some("zstd"),
        [0xfd, b'7', b'z', b'X'] => Some("xz"),
        [b'B', b'Z', b'h', _] => Some("bzip2"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use tar::{Builder, Header};

    /// An archive of (path, type, link target or contents).
    fn archive(dir: &Path, entries: &[(&str, EntryType, &str)]) -> PathBuf {
        let path = dir.join("a.tar");
        let mut builder = Builder::new(File::create(&path).unwrap());
        for &(name, kind, text) in entries {
            let mut header = Header::new_ustar();
            // The builder refuses bad paths itself: write the field.
            header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
            header.set_entry_type(kind);
            header.set_uid(nix::unistd::geteuid().as_raw().into());
            header.set_gid(nix::unistd::getegid().as_raw().into());
            header.set_mode(if kind.is_dir() { 0o555 } else { 0o640 });
            let link = matches!(kind, EntryType::Symlink | EntryType::Link);
            if link {
                header.as_mut_bytes()[157..157 + text.len()].copy_from_slice(text.as_bytes());
            }
            let data = if link { "" } else { text };
            header.set_size(data.len() as u64);
            header.set_cksum();
            builder.append(&header, data.as_bytes()).unwrap();
        }
        builder.finish().unwrap();
        path
    }

    fn try_unpack(entries: &[(&str, EntryType, &str)]) -> (Result<(), UnpackError>, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("root");
        fs::create_dir(&target).unwrap();
        (unpack(&archive(dir.path(), entries), &target), dir)
    }

    #[test]
    fn files_links_and_readonly_directories_arrive() {
        use EntryType::{Char, Directory, Link, Regular, Symlink};
        let (result, dir) = try_unpack(&[
            ("./", Directory, ""),
            ("usr/", Directory, ""),
            ("usr/bin/", Directory, ""),
            ("usr/bin/tool", Regular, "contents"),
            ("bin", Symlink, "usr/bin"),
            ("bin/other", Regular, "through a link inside"),
            ("hard", Link, "usr/bin/tool"),
            ("etc/mtab", Symlink, "/proc/mounts"),
            ("dev/null", Char, ""),
        ]);
        result.unwrap();
        let root = dir.path().join("root");
        assert_eq!(fs::read_to_string(root.join("hard")).unwrap(), "contents");
        assert_eq!(fs::read_to_string(root.join("usr/bin/other")).unwrap(), "through a link inside");
        assert_eq!(fs::read_link(root.join("etc/mtab")).unwrap(), Path::new("/proc/mounts"));
        assert!(!root.join("dev/null").exists());
    }

    #[test]
    fn whatever_leads_out_is_refused() {
        use EntryType::{Directory, Link, Regular, Symlink};
        let outside = tempfile::tempdir().unwrap();
        let out = outside.path().to_str().unwrap();
        let file = format!("{out}/file");
        fs::write(&file, "secret").unwrap();
        let table: [&[(&str, EntryType, &str)]; 8] = [
            &[("../x", Regular, "")],
            &[("a/../../x", Regular, "")],
            &[("/tmp/x", Regular, "")],
            &[("..", Directory, "")],
            &[("a", Link, &file)],
            &[("a", Link, "../a.tar")],
            &[("a", Symlink, out), ("a/x", Regular, "")],
            &[("a", Symlink, ".."), ("a/x", Regular, "")],
        ];
        for entries in table {
            let (result, dir) = try_unpack(entries);
            let error = result.expect_err(&format!("{entries:?}")).to_string();
            assert!(error.contains("a.tar: entry "), "{error}");
            assert!(!dir.path().join("x").exists() && !outside.path().join("x").exists());
        }
        assert_eq!(fs::read_to_string(&file).unwrap(), "secret");
    }

    #[test]
    fn compressed_archives_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.tar.gz");
        fs::write(&path, b"\x1f\x8b\x08\x00").unwrap();
        let error = unpack(&path, dir.path()).unwrap_err().to_string();
        assert!(error.ends_with("it is compressed (gzip); unpack it to a plain tar first"), "{error}");
    }
}
