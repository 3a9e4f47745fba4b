//! Copies into a temporary directory, owned by whoever runs the test.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::PathBuf;

use nakai_protocols::agent::CopyFileRequest;
use nix::unistd::{getgid, getuid};

use super::*;

struct Shared {
    _directory: tempfile::TempDir,
    outside: PathBuf,
    copies: Copies,
}

impl Shared {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let outside = directory.path().join("outside");
        fs::create_dir(&outside).unwrap();
        let copies = Copies::new(["first", "second"].map(|name| directory.path().join(name)).to_vec());
        Self { _directory: directory, outside, copies }
    }

    fn base(&self) -> &Path {
        &self.copies.bases()[0]
    }

    fn path(&self, name: &str) -> PathBuf {
        self.base().join(name)
    }

    fn request(&self, name: &str, mode: u32) -> CopyFileRequest {
        CopyFileRequest {
            path: self.path(name).to_str().unwrap().to_owned(),
            file_mode: mode,
            dir_mode: 0o750,
            uid: getuid().as_raw().cast_signed(),
            gid: getgid().as_raw().cast_signed(),
            ..Default::default()
        }
    }

    fn copy(&self, request: CopyFileRequest) -> Result<(), CopyError> {
        self.copies.copy(&CopyRequest::new(request, self.copies.bases())?)
    }

    fn chunk(&self, name: &str, size: i64, offset: i64, data: &[u8]) -> Result<(), CopyError> {
        let data = data.to_vec();
        self.copy(CopyFileRequest { file_size: size, offset, data, ..self.request(name, 0o100_640) })
    }

    /// Names in the shared directory, temporary ones included.
    fn names(&self, directory: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(directory)).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

#[test]
fn a_file_appears_when_it_is_whole() {
    let shared = Shared::new();
    shared.chunk("a/b/file", 9, 0, b"one").unwrap();
    assert!(!shared.path("a/b/file").exists());
    shared.chunk("a/b/file", 9, 3, b"two").unwrap();
    shared.chunk("a/b/file", 9, 6, b"six").unwrap();
    assert_eq!(fs::read(shared.path("a/b/file")).unwrap(), b"onetwosix");
    assert_eq!(fs::metadata(shared.path("a/b/file")).unwrap().mode() & 0o7777, 0o640);
    for directory in ["a", "a/b"] {
        assert_eq!(fs::metadata(shared.path(directory)).unwrap().permissions().mode() & 0o777, 0o750);
    }
    assert_eq!(shared.names("a/b"), ["file"]);
    shared.chunk("empty", 0, 0, b"").unwrap();
    assert_eq!(fs::read(shared.path("empty")).unwrap(), b"");
}

#[test]
fn chunks_come_in_any_order_and_twice() {
    let shared = Shared::new();
    for (offset, data) in [(6, b"six"), (0, b"one"), (6, b"SIX")] {
        shared.chunk("file", 9, offset, data).unwrap();
        assert!(!shared.path("file").exists());
    }
    shared.chunk("file", 9, 3, b"two").unwrap();
    assert_eq!(fs::read(shared.path("file")).unwrap(), b"onetwoSIX");
    // The first chunk once more, or another size: the file is sent anew, and the old one stays until then.
    shared.chunk("file", 6, 0, b"old").unwrap();
    shared.chunk("file", 6, 0, b"NEW").unwrap();
    shared.chunk("file", 4, 0, b"12").unwrap();
    assert_eq!(fs::read(shared.path("file")).unwrap(), b"onetwoSIX");
    shared.chunk("file", 4, 2, b"34").unwrap();
    assert_eq!(fs::read(shared.path("file")).unwrap(), b"1234");
    assert_eq!(shared.names(""), ["file"]);
}

#[test]
fn files_beside_each_other_do_not_mix() {
    let shared = Shared::new();
    for (name, data) in [("a.txt", b"1"), ("a.json", b"2"), ("a.tmp", b"3")] {
        shared.chunk(name, 2, 0, data).unwrap();
    }
    for (name, data) in [("a.txt", b"4"), ("a.json", b"5"), ("a.tmp", b"6")] {
        shared.chunk(name, 2, 1, data).unwrap();
    }
    assert_eq!(fs::read(shared.path("a.txt")).unwrap(), b"14");
    assert_eq!(fs::read(shared.path("a.json")).unwrap(), b"25");
    assert_eq!(fs::read(shared.path("a.tmp")).unwrap(), b"36");
}

#[test]
fn a_file_too_many_is_refused_and_the_others_go_on() {
    let shared = Shared::new();
    let name = |number: usize| format!("file-{number}");
    for number in 0..COPIES_LIMIT {
        shared.chunk(&name(number), 6, 0, b"one").unwrap();
    }
    let error = shared.chunk("another", 6, 0, b"one").unwrap_err().to_string();
    assert_eq!(error, "copy another: 64 other files are under way");
    for number in 0..COPIES_LIMIT {
        shared.chunk(&name(number), 6, 3, b"two").unwrap();
        assert_eq!(fs::read(shared.path(&name(number))).unwrap(), b"onetwo");
    }
    shared.chunk("another", 6, 0, b"one").unwrap();
}

#[test]
fn what_is_abandoned_goes() {
    let shared = Shared::new();
    for number in 0..COPIES_LIMIT {
        shared.chunk(&format!("file-{number}"), 9, 0, b"one").unwrap();
    }
    lock(&shared.copies.under_way).get_mut(&shared.path("file-7")).unwrap().last -= SHORT_IDLE_LIMIT;
    shared.chunk("another", 9, 0, b"one").unwrap();
    assert_eq!(shared.names("").len(), COPIES_LIMIT);
    shared.copies.give_up();
    assert_eq!(shared.names(""), Vec::<String>::new());
}

/// Kata's Rust shim names no permissions where they belong.
#[test]
fn a_directory_has_its_permissions_wherever_they_are_named() {
    let shared = Shared::new();
    for (file_mode, dir_mode, expected) in
        [(0o40_000, 0o41_755, 0o1755), (0o40_700, 0o40_755, 0o700), (0o40_000, 0o755, 0)]
    {
        let request = CopyFileRequest { dir_mode, ..shared.request("directory", file_mode) };
        shared.copy(request).unwrap();
        let mode = fs::metadata(shared.path("directory")).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode, expected, "{file_mode:o} {dir_mode:o}");
    }
}

/// Shims put their files in one directory or another, and no link leads from one to the other.
#[test]
fn each_directory_is_apart() {
    let shared = Shared::new();
    shared.chunk("file", 3, 0, b"one").unwrap();
    let second = shared.copies.bases()[1].clone();
    let path = |name: &str| second.join(name).to_str().unwrap().to_owned();
    let file = |name: &str| {
        let data = b"two".to_vec();
        shared.copy(CopyFileRequest { path: path(name), file_size: 3, data, ..shared.request("", 0o100_640) })
    };
    file("file").unwrap();
    assert_eq!(fs::read(shared.path("file")).unwrap(), b"one");
    assert_eq!(fs::read(second.join("file")).unwrap(), b"two");
    symlink(shared.base(), second.join("across")).unwrap();
    file("across/file").unwrap_err();
    assert_eq!(fs::read(shared.path("file")).unwrap(), b"one");
}

#[test]
fn directories_keep_what_is_in_them() {
    let shared = Shared::new();
    shared.copy(shared.request("dir", 0o40_700)).unwrap();
    shared.chunk("dir/file", 1, 0, b"x").unwrap();
    shared.copy(shared.request("dir", 0o41_775)).unwrap();
    assert_eq!(fs::metadata(shared.path("dir")).unwrap().mode() & 0o7777, 0o1775);
    assert_eq!(shared.names("dir"), ["file"]);
}

#[test]
fn a_link_is_made_as_it_is_and_replaced() {
    let shared = Shared::new();
    let link = |target: &str| CopyFileRequest {
        data: target.as_bytes().to_vec(),
        file_size: 7,
        ..shared.request("..data", 0o120_777)
    };
    for target in ["..2024", "..2025"] {
        shared.copy(link(target)).unwrap();
        assert_eq!(fs::read_link(shared.path("..data")).unwrap().to_str(), Some(target));
    }
    for bad in ["", "a\0b", &"x".repeat(5000)] {
        assert!(matches!(shared.copy(link(bad)), Err(CopyError::Target { .. })), "{bad:?}");
    }
}

#[test]
fn one_thing_takes_the_place_of_another() {
    let shared = Shared::new();
    let make = |kind: &str| match kind {
        "directory" => {
            shared.copy(shared.request("it", 0o40_755)).unwrap();
            fs::write(shared.path("it/child"), "x").unwrap();
        }
        "file" => shared.chunk("it", 1, 0, b"x").unwrap(),
        _ => {
            let data = shared.outside.to_str().unwrap().as_bytes().to_vec();
            shared.copy(CopyFileRequest { data, ..shared.request("it", 0o120_777) }).unwrap();
        }
    };
    for (old, new) in [
        ("directory", "file"),
        ("directory", "link"),
        ("file", "directory"),
        ("file", "link"),
        ("link", "directory"),
        ("link", "file"),
    ] {
        make(old);
        make(new);
        let kind = fs::symlink_metadata(shared.path("it")).unwrap().file_type();
        let seen = if kind.is_dir() {
            "directory"
        } else if kind.is_file() {
            "file"
        } else {
            "link"
        };
        assert_eq!(seen, new, "instead of a {old}");
        assert_eq!(shared.names(""), ["it"]);
        let it = shared.path("it");
        if kind.is_dir() { fs::remove_dir_all(it).unwrap() } else { fs::remove_file(it).unwrap() }
    }
    assert_eq!(fs::read_dir(&shared.outside).unwrap().count(), 0);
}

#[test]
fn links_lead_nowhere_outside() {
    let shared = Shared::new();
    fs::create_dir_all(shared.base()).unwrap();
    fs::write(shared.outside.join("file"), "kept").unwrap();
    symlink(&shared.outside, shared.path("out")).unwrap();
    symlink("../../outside", shared.path("up")).unwrap();
    symlink(shared.outside.join("file"), shared.path("file")).unwrap();
    for name in ["out/x", "up/x"] {
        shared.chunk(name, 1, 0, b"x").unwrap_err();
        shared.copy(shared.request(name, 0o40_755)).unwrap_err();
    }
    // The link itself is replaced.
    shared.chunk("file", 3, 0, b"new").unwrap();
    assert!(fs::symlink_metadata(shared.path("file")).unwrap().is_file());
    assert_eq!(fs::read(shared.outside.join("file")).unwrap(), b"kept");
    assert_eq!(fs::read_dir(&shared.outside).unwrap().count(), 1);
}

#[test]
fn impossible_requests_are_refused_by_name() {
    let shared = Shared::new();
    let file = || CopyFileRequest { file_size: 3, data: b"abc".to_vec(), ..shared.request("f", 0o100_644) };
    let base = shared.base().to_str().unwrap().to_owned();
    let cases = [
        (CopyFileRequest { path: "/etc/passwd".into(), ..file() }, "is not beneath"),
        (CopyFileRequest { path: base.clone(), ..file() }, "is not beneath"),
        (CopyFileRequest { path: format!("{base}/../x"), ..file() }, "is not beneath"),
        (CopyFileRequest { path: format!("{base}x/f"), ..file() }, "is not beneath"),
        (CopyFileRequest { file_size: -1, ..file() }, "copy f: file_size is -1"),
        (CopyFileRequest { offset: -1, ..file() }, "copy f: offset is -1"),
        (CopyFileRequest { offset: 1, ..file() }, "3 bytes at 1 are more than file_size 3"),
        (CopyFileRequest { offset: i64::MAX, ..file() }, "are more than file_size 3"),
        (CopyFileRequest { uid: -1, ..file() }, "copy f: uid is -1"),
        (CopyFileRequest { file_mode: 0o60_644, ..file() }, "file_mode 0o60644 is no file"),
        (CopyFileRequest { file_mode: 0o140_644, ..file() }, "file_mode 0o140644 is no file"),
        (CopyFileRequest { file_size: i64::MAX, ..file() }, "bytes are free"),
    ];
    for (request, message) in cases {
        let error = shared.copy(request).unwrap_err().to_string();
        assert!(error.contains(message), "{error:?} is not {message:?}");
    }
    assert_eq!(shared.names(""), Vec::<String>::new());
}
