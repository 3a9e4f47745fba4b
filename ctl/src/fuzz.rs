//! What a fuzzer throws bytes at on the host: archives and requests of others. Each takes any bytes, must not panic,
//! and checks what has to hold. `fuzz/` runs them under cargo-fuzz, the tests here run them briefly.

use std::cell::Cell;
use std::fs;
use std::io;
use std::path::Path;

use tar::{Builder, EntryType, Header};

use crate::cri::{ContainerConfig, PodSandboxConfig, json};
use crate::image::{Image, Store};
use crate::unpack::{Limits, unpack_stream};
use crate::zun::{Host, Request, VOLUME_SECONDS};

const LIMITS: Limits = Limits { entries: 1000, bytes: 1 << 20, ratio: 400, kept: 1 << 20 };

/// An archive as it is; and one of the entries that the bytes describe, as a root filesystem and as a layer. Nothing
/// comes to lie outside the target.
pub fn archive(bytes: &[u8]) {
    let _ = in_a_directory(|directory| {
        let image = directory.join("image.tar");
        fs::write(&image, bytes)?;
        let store = Store::at(directory.join("store")).limits(LIMITS);
        let _ = Image::open(&image.to_string_lossy(), &store);
        Ok(())
    });
    for layer in [false, true] {
        let _ = in_a_directory(|directory| {
            let target = directory.join("root");
            fs::create_dir(&target)?;
            let made = made(bytes)?;
            let _ = unpack_stream(&*made, Path::new("a.tar"), &target, layer, LIMITS, &Cell::new(u64::MAX));
            let beside: Vec<_> = fs::read_dir(directory)?.flatten().map(|entry| entry.file_name()).collect();
            assert_eq!(beside, ["root"], "something lies outside");
            Ok(())
        });
    }
}

fn in_a_directory(work: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
    let directory = tempfile::tempdir()?;
    work(directory.path())
}

/// An archive whose entries are lines: a letter for the kind, a name, and behind a NUL where it leads or what it holds.
fn made(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut builder = Builder::new(Vec::new());
    for line in bytes.split(|byte| *byte == b'\n') {
        let Some((kind, rest)) = line.split_first() else { continue };
        let kind = match kind {
            b'd' => EntryType::Directory,
            b's' => EntryType::Symlink,
            b'h' => EntryType::Link,
            b'c' => EntryType::Char,
            b'p' => EntryType::Fifo,
            b'L' => EntryType::GNULongName,
            b'K' => EntryType::GNULongLink,
            b'x' => EntryType::XHeader,
            _ => EntryType::Regular,
        };
        let (name, text) = rest.split_at(rest.iter().position(|byte| *byte == 0).unwrap_or(rest.len()));
        let text = text.get(1..).unwrap_or_default();
        let mut header = Header::new_ustar();
        let fields = header.as_mut_bytes();
        // Name and link, as the archive's format places them; the builder would refuse bad ones.
        fields.iter_mut().take(100).zip(name).for_each(|(field, byte)| *field = *byte);
        let is_link = matches!(kind, EntryType::Symlink | EntryType::Link);
        if is_link {
            fields.iter_mut().skip(157).take(100).zip(text).for_each(|(field, byte)| *field = *byte);
        }
        let data = if is_link { &[][..] } else { text };
        header.set_entry_type(kind);
        header.set_mode(0o755);
        header.set_uid(nix::unistd::geteuid().as_raw().into());
        header.set_gid(nix::unistd::getegid().as_raw().into());
        header.set_size(data.len() as u64);
        header.set_cksum();
        builder.append(&header, data)?;
    }
    builder.into_inner()
}

/// The body of a request to OpenStack's Zun.
pub fn zun_request(bytes: &[u8]) {
    let Ok(request) = Request::read("request", &String::from_utf8_lossy(bytes)) else { return };
    let host = Host {
        images: None,
        volumes: Some("/volumes".into()),
        volume_seconds: VOLUME_SECONDS,
        ..Host::default()
    };
    let _ = request.order("made-up", &host);
}

/// A configuration of CRI, of a container or a pod.
pub fn cri_config(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let _ = json::read::<ContainerConfig>("container", &text);
    let _ = json::read::<PodSandboxConfig>("pod", &text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archives_that_want_out_stay_in() {
        for text in [
            "froot\nda\nfa/b\0x",
            "sa\0..\nfa/x\0y",
            "sa\0/tmp\nfa/x\0y\nhb\0a/x",
            "f../x\0y",
            "sa\0b\nsb\0..\nda/c\nfa/.wh.x",
            "Lx\0../../x\nfy\0z",
            "da\nf.wh.a\0\nfa/.wh..wh..opq\0",
        ] {
            archive(text.as_bytes());
        }
        assert!(made(b"da\nfa/b\0x").unwrap().len() > 1024);
    }

    #[test]
    fn requests_of_all_kinds() {
        for text in ["", "{}", "[]", r#"{"command": "a 'b", "mounts": [{"source": "x"}], "cpu": 1e400}"#] {
            zun_request(text.as_bytes());
            cri_config(text.as_bytes());
        }
    }
}
