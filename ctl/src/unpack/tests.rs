//! Archives as they are made, and as somebody would make them who wants out.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};

use tar::{Builder, EntryType, Header};

use super::*;

/// The bytes of an archive of (path, type, link target or contents).
pub(crate) fn tar(entries: &[(&str, EntryType, &str)]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for &(name, kind, text) in entries {
        let mut header = Header::new_ustar();
        // The builder refuses bad paths itself: write the field.
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(kind);
        header.set_uid(nix::unistd::geteuid().as_raw().into());
        header.set_gid(nix::unistd::getegid().as_raw().into());
        header.set_mode(if kind.is_dir() { 0o555 } else { 0o640 });
        header.set_mtime(1_000_000_000);
        let link = matches!(kind, EntryType::Symlink | EntryType::Link);
        if link {
            header.as_mut_bytes()[157..157 + text.len()].copy_from_slice(text.as_bytes());
        }
        let data = if link { "" } else { text };
        header.set_size(data.len() as u64);
        header.set_cksum();
        builder.append(&header, data.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}

struct Unpacked {
    result: Result<(), UnpackError>,
    dir: tempfile::TempDir,
}

impl Unpacked {
    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    fn error(&self) -> String {
        self.result.as_ref().unwrap_err().to_string()
    }
}

fn unpacked(bytes: &[u8], layer: bool, limits: Limits) -> Unpacked {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("root");
    fs::create_dir(&target).unwrap();
    let compressed = Cell::new(u64::MAX);
    let result = unpack_stream(bytes, Path::new("a.tar"), &target, layer, limits, &compressed);
    Unpacked { result, dir }
}

fn plain(entries: &[(&str, EntryType, &str)]) -> Unpacked {
    unpacked(&tar(entries), false, Limits::default())
}

#[test]
fn files_links_and_readonly_directories_arrive() {
    use EntryType::{Char, Directory, Fifo, Link, Regular, Symlink};
    let unpacked = plain(&[
        ("./", Directory, ""),
        ("usr/", Directory, ""),
        ("usr/bin/", Directory, ""),
        ("usr/bin/tool", Regular, "contents"),
        ("bin", Symlink, "usr/bin"),
        ("bin/other", Regular, "through a link inside"),
        ("lib", Symlink, "/usr"),
        ("lib/file", Regular, "the root is the archive's"),
        ("hard", Link, "usr/bin/tool"),
        ("hard", Link, "usr/bin/tool"),
        ("etc/mtab", Symlink, "/proc/mounts"),
        ("dev/null", Char, ""),
        ("dev/initctl", Fifo, ""),
        (".wh.usr", Regular, "a name like any other"),
    ]);
    unpacked.result.as_ref().unwrap();
    let root = unpacked.root();
    let text = |path: &str| fs::read_to_string(root.join(path)).unwrap();
    assert_eq!(text("hard"), "contents");
    assert_eq!(fs::metadata(root.join("hard")).unwrap().nlink(), 2);
    assert_eq!(text("usr/bin/other"), "through a link inside");
    assert_eq!(text("usr/file"), "the root is the archive's");
    assert_eq!(text(".wh.usr"), "a name like any other");
    assert_eq!(fs::read_link(root.join("etc/mtab")).unwrap(), Path::new("/proc/mounts"));
    assert!(!root.join("dev/null").exists() && !root.join("dev/initctl").exists());
    let tool = fs::metadata(root.join("usr/bin/tool")).unwrap();
    assert_eq!((tool.mode() & 0o7777, tool.mtime()), (0o640, 1_000_000_000));
    let directory = fs::metadata(root.join("usr")).unwrap();
    assert_eq!((directory.mode() & 0o7777, directory.mtime()), (0o555, 1_000_000_000));
    // For the guard, which is not root everywhere.
    for path in ["", "usr", "usr/bin"] {
        fs::set_permissions(root.join(path), fs::Permissions::from_mode(0o755)).unwrap();
    }
}

#[test]
fn a_later_entry_replaces_an_earlier_one() {
    use EntryType::{Directory, Regular, Symlink};
    let unpacked = plain(&[
        ("a", Symlink, "b"),
        ("b", Regular, "old"),
        ("a", Regular, "new"),
        ("c/d", Regular, "x"),
        ("c", Regular, "a file now"),
        ("e", Symlink, "f"),
        ("e/", Directory, ""),
    ]);
    unpacked.result.as_ref().unwrap();
    let text = |path: &str| fs::read_to_string(unpacked.root().join(path)).unwrap();
    assert_eq!((text("a"), text("b"), text("c")), ("new".into(), "old".into(), "a file now".into()));
    assert!(fs::symlink_metadata(unpacked.root().join("e")).unwrap().is_dir());
}

#[test]
fn whatever_leads_out_is_refused() {
    use EntryType::{Directory, Link, Regular, Symlink};
    let outside = tempfile::tempdir().unwrap();
    let out = outside.path().to_str().unwrap();
    let file = format!("{out}/file");
    fs::write(&file, "secret").unwrap();
    let table: [&[(&str, EntryType, &str)]; 12] = [
        &[("../x", Regular, "")],
        &[("a/../../x", Regular, "")],
        &[("/tmp/x", Regular, "")],
        &[("..", Directory, "")],
        &[("a", Link, &file)],
        &[("a", Link, "../a.tar")],
        &[("a", Link, ".")],
        // The root of a link's path is the target, where this is not.
        &[("a", Symlink, out), ("a/x", Regular, "")],
        &[("a", Symlink, "/proc/self/root"), ("a/x", Regular, "")],
        &[("a", Symlink, &file), ("b", Link, "a/b")],
        &[("a", Regular, ""), ("a/b", Regular, "")],
        &[("a", Symlink, "a"), ("a/b", Regular, "")],
    ];
    for entries in table {
        let unpacked = plain(entries);
        let error = unpacked.result.as_ref().expect_err(&format!("{entries:?}")).to_string();
        assert!(error.contains("a.tar: entry "), "{error}");
        assert!(!unpacked.dir.path().join("x").exists() && !outside.path().join("x").exists());
    }
    // These stay inside: `..` of the root is the root, and a link is linked, not what it leads to.
    let unpacked =
        plain(&[("a", Symlink, ".."), ("a/x", Regular, "inside"), ("s", Symlink, &file), ("t", Link, "s")]);
    unpacked.result.as_ref().unwrap();
    assert_eq!(fs::read_to_string(unpacked.root().join("x")).unwrap(), "inside");
    assert_eq!(fs::read_link(unpacked.root().join("t")).unwrap(), Path::new(&file));
    assert_eq!(fs::read_to_string(&file).unwrap(), "secret");
    assert_eq!(fs::metadata(&file).unwrap().nlink(), 1);
}

#[test]
fn a_layers_whiteouts_become_overlayfs_ones() {
    use EntryType::{Directory, Regular};
    let layer = tar(&[
        ("etc/.wh.gone", Regular, ""),
        ("opt/.wh..wh..opq", Regular, ""),
        ("opt/kept", Regular, "x"),
        (".wh..wh.plnk/1", Directory, ""),
        (".wh..wh.aufs", Regular, ""),
        // Hidden below and there again, in either order.
        (".wh.one", Regular, ""),
        ("one/", Directory, ""),
        ("two/", Directory, ""),
        (".wh.two", Regular, ""),
        ("three", Regular, "new"),
        (".wh.three", Regular, ""),
    ]);
    let unpacked = unpacked(&layer, true, Limits::default());
    unpacked.result.as_ref().unwrap();
    let root = unpacked.root();
    let gone = fs::metadata(root.join("etc/gone")).unwrap();
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    let opaque = |path: &str| OPAQUE.iter().any(|name| xattr::get(root.join(path), name).unwrap().is_some());
    assert!(opaque("opt") && opaque("one") && opaque("two") && !opaque("etc"));
    assert_eq!(fs::read_to_string(root.join("three")).unwrap(), "new");
    assert!(!root.join(".wh..wh.aufs").exists());
    for bad in [".wh.", ".wh...", "a/.wh.."] {
        let bytes = tar(&[(bad, Regular, "")]);
        let error = super::tests::unpacked(&bytes, true, Limits::default()).error();
        assert!(error.ends_with("leads out of the root"), "{bad}: {error}");
    }
}

#[test]
fn extended_attributes_are_kept_but_for_overlayfs_own() {
    let mut builder = Builder::new(Vec::new());
    let attributes: [(&str, &[u8]); 3] = [
        ("SCHILY.xattr.user.color", b"red"),
        ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
        ("SCHILY.xattr.user.overlay.redirect", b"/etc"),
    ];
    builder.append_pax_extensions(attributes).unwrap();
    let file = tar(&[("file", EntryType::Regular, "x")]);
    builder.get_mut().write_all(&file).unwrap();
    let unpacked = unpacked(&builder.into_inner().unwrap(), false, Limits::default());
    unpacked.result.as_ref().unwrap();
    let names: Vec<_> = xattr::list(unpacked.root().join("file")).unwrap().collect();
    // A filesystem without such attributes has none.
    assert!(names.is_empty() || names == ["user.color"], "{names:?}");
}

#[test]
fn bombs_are_refused() {
    let few = Limits { entries: 2, bytes: 4096, ratio: 400, kept: 1 << 20 };
    let regular = |name: &'static str| (name, EntryType::Regular, "");
    let error = unpacked(&tar(&[regular("a"), regular("b"), regular("c")]), false, few).error();
    assert_eq!(error, "archive a.tar: more than 2 entries");

    let text = "x".repeat(4096);
    let error = unpacked(&tar(&[("a", EntryType::Regular, &text)]), false, few).error();
    assert_eq!(error, "archive a.tar: more than 4096 bytes");

    // Attributes that would: a directory's are kept until the end.
    let mut builder = Builder::new(Vec::new());
    for directory in ["a", "b", "c"] {
        let value = vec![0; 30_000];
        builder.append_pax_extensions([("SCHILY.xattr.user.x", &*value)]).unwrap();
        builder.get_mut().extend(&tar(&[(directory, EntryType::Directory, "")])[..512]);
    }
    let archive = builder.into_inner().unwrap();
    let limits = Limits { kept: 80_000, ..Limits::default() };
    let error = unpacked(&archive, false, limits).error();
    assert_eq!(error, "archive a.tar: more than 80000 bytes of names and attributes to be kept");
    let names =
        archive_entries(&*tar(&[regular("abc")]), Path::new("a.tar"), Limits { kept: 66, ..few }, |_| ());
    assert!(
        names.unwrap_err().to_string().ends_with("more than 66 bytes of names and attributes to be kept")
    );
    let count = archive_entries(&*tar(&[regular("a"); 3]), Path::new("a.tar"), few, |_| ());
    assert_eq!(count.unwrap_err().to_string(), "archive a.tar: more than 2 entries");

    // A name that would fill the memory.
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::GNULongName);
    header.set_size(1 << 40);
    header.set_cksum();
    let endless = header.as_bytes().chain(io::repeat(b'x'));
    let dir = tempfile::tempdir().unwrap();
    let compressed = Cell::new(u64::MAX);
    let result =
        unpack_stream(endless, Path::new("a.tar"), dir.path(), false, Limits::default(), &compressed);
    let error = result.unwrap_err().to_string();
    assert_eq!(error, "archive a.tar: more than 1048576 bytes of names and extended headers");

    // Zeros without an end from a few bytes.
    let compressed = Cell::new(1000);
    let mut header = Header::new_gnu();
    header.as_mut_bytes()[0] = b'a';
    header.set_uid(0);
    header.set_gid(0);
    header.set_mode(0o600);
    header.set_size(1 << 32);
    header.set_cksum();
    let zeros = header.as_bytes().chain(io::repeat(0));
    let result = unpack_stream(zeros, Path::new("a.tar"), dir.path(), false, Limits::default(), &compressed);
    assert_eq!(result.unwrap_err().to_string(), "archive a.tar: more than 400 bytes for each compressed one");
}

#[test]
fn compressed_archives_are_read_or_named() {
    let dir = tempfile::tempdir().unwrap();
    let plain = tar(&[("file", EntryType::Regular, "contents")]);
    let gzip = |part: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(part).unwrap();
        encoder.finish().unwrap()
    };
    let zstd =
        |part: &[u8]| ruzstd::encoding::compress_to_vec(part, ruzstd::encoding::CompressionLevel::Fastest);
    let (one, two) = plain.split_at(700);
    let skipped = [0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3];
    let table = [
        ("gz", gzip(&plain)),
        ("members.gz", [gzip(one), gzip(two)].concat()),
        ("zst", zstd(&plain)),
        ("frames.zst", [&skipped[..], &zstd(one), &skipped, &zstd(two), &skipped].concat()),
    ];
    for (name, bytes) in table {
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        let target = tempfile::tempdir().unwrap();
        unpack(&path, target.path()).unwrap();
        assert_eq!(fs::read_to_string(target.path().join("file")).unwrap(), "contents", "{name}");
        // Cut off, it is an error, not a shorter tree.
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        assert!(unpack(&path, tempfile::tempdir().unwrap().path()).is_err(), "{name}");
    }
    let path = dir.path().join("a.tar.xz");
    fs::write(&path, b"\xfd7zXZ\0").unwrap();
    let error = unpack(&path, dir.path()).unwrap_err().to_string();
    assert!(error.ends_with("it is compressed (xz); unpack it to a plain tar first"), "{error}");
}
