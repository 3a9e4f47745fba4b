//! What a fuzzer throws bytes at: everything that reads what comes from outside, a function each.
//!
//! Each takes any bytes, must not panic, and checks what has to hold of whatever was accepted. `fuzz/` runs them
//! under cargo-fuzz for as long as one likes; the tests here run them briefly with broken pieces of good input, and
//! with the same numbers each time.

use std::path::{Component, Path};

use nakai_protocols::agent::{CopyFileRequest, Device, Storage};
use nakai_protocols::{oci, spec};
use protobuf::Message as _;

use crate::device::pci::{PciAddress, PciPath};
use crate::device::uevent::Uevent;
use crate::device::{Address, DeviceRequest};
use crate::guest::copy_file::CopyRequest;
use crate::guest::mount::MountOptions;
use crate::guest::mountinfo;
use crate::ids::GuestPath;
use crate::storage::StorageRequest;
use crate::supervisor::channel::Header;

/// The bytes of a container's specification. What is accepted survives the way back to the wire.
pub fn wire_spec(bytes: &[u8]) {
    let Ok(wire) = oci::Spec::parse_from_bytes(bytes) else { return };
    let Ok(read) = spec::from_wire(&wire) else { return };
    let Ok(back) = spec::to_wire(&read) else { return };
    assert_eq!(spec::from_wire(&back).ok(), Some(read), "the specification changed on its way");
}

/// A message of the kernel's about a device.
pub fn uevent(bytes: &[u8]) {
    let _ = Uevent::parse(bytes);
}

/// The kernel's list of mounts.
pub fn mount_list(bytes: &[u8]) {
    let lines = bytes.split(|byte| *byte == b'\n').count();
    assert!(mountinfo::parse(bytes).len() <= lines, "more mounts than lines");
}

/// Mount options, as a storage has them.
pub fn mount_options(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let words: Vec<&str> = text.split(',').collect();
    let _ = MountOptions::parse(&words);
}

/// The header of a message between the agent's processes.
pub fn channel_message(bytes: &[u8]) {
    let _ = Header::decode(bytes);
}

/// A PCI path or address. What is accepted says itself again.
pub fn pci_path(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(path) = text.parse::<PciPath>() {
        assert_eq!(path.to_string().parse().ok(), Some(path), "{text:?}");
    }
    if let Ok(address) = text.parse::<PciAddress>() {
        assert_eq!(address.to_string().parse().ok(), Some(address), "{text:?}");
    }
    for kind in ["blk", "scsi", "mmioblk", "nvdimm"] {
        let _ = Address::parse(kind, &text);
    }
}

/// The bytes of requests with paths in them. A path that is accepted does not climb.
pub fn requests(bytes: &[u8]) {
    const BASE: &str = "/run/kata-containers/shared/containers";
    if let Ok(request) = CopyFileRequest::parse_from_bytes(bytes)
        && let Ok(checked) = CopyRequest::new(request, Path::new(BASE))
    {
        let harmless = checked.path().components().all(|part| matches!(part, Component::Normal(_)));
        assert!(harmless && !checked.path().as_os_str().is_empty(), "{checked:?}");
    }
    if let Ok(storage) = Storage::parse_from_bytes(bytes) {
        let _ = StorageRequest::try_from(&storage);
    }
    if let Ok(device) = Device::parse_from_bytes(bytes) {
        let _ = DeviceRequest::try_from(&device);
    }
    if let Ok(path) = GuestPath::try_from(&*String::from_utf8_lossy(bytes)) {
        assert!(path.as_path().is_absolute(), "{path}");
        assert!(path.as_path().components().all(|part| part != Component::ParentDir), "{path}");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

    use super::*;

    /// How many broken inputs each body gets.
    const CASES: u32 = 2000;

    /// Runs a body with pieces of good input, some bytes of which are others.
    fn throw(body: fn(&[u8]), good: &[&[u8]]) {
        let config = Config { cases: CASES, failure_persistence: None, ..Config::default() };
        let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
        let good: Vec<Vec<u8>> = good.iter().map(|bytes| bytes.to_vec()).collect();
        for bytes in &good {
            body(bytes);
        }
        let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6);
        let junk = prop::collection::vec(any::<u8>(), 0..64);
        let input = (prop::sample::select(good), changes, any::<prop::sample::Index>(), junk, any::<bool>());
        let thrown = runner.run(&input, |(mut bytes, changes, cut, junk, only_junk)| {
            for (place, byte) in changes {
                if !bytes.is_empty() {
                    let place = place.index(bytes.len());
                    bytes[place] = byte;
                }
            }
            bytes.truncate(cut.index(bytes.len() + 1).max(bytes.len() / 2));
            body(if only_junk { &junk } else { &bytes });
            Ok(())
        });
        thrown.unwrap();
    }

    fn spec_bytes() -> Vec<u8> {
        let process = oci::Process {
            Args: vec!["sh".into(), "-c".into()],
            Cwd: "/".into(),
            Env: vec!["PATH=/bin".into()],
            User: Some(oci::User { UID: 1000, ..Default::default() }).into(),
            ..Default::default()
        };
        let mount = oci::Mount {
            destination: "/proc".into(),
            type_: "proc".into(),
            source: "proc".into(),
            options: vec!["nosuid".into(), "ro".into()],
            ..Default::default()
        };
        let spec = oci::Spec {
            Version: "1.0.2".into(),
            Process: Some(process).into(),
            Root: Some(oci::Root { Path: "/root".into(), ..Default::default() }).into(),
            Mounts: vec![mount],
            Linux: Some(oci::Linux::default()).into(),
            ..Default::default()
        };
        spec.write_to_bytes().unwrap()
    }

    #[test]
    fn specifications() {
        throw(wire_spec, &[&spec_bytes()]);
    }

    #[test]
    fn events_of_devices() {
        let good = b"add@/devices/pci0000:00/0000:00:02.0\0ACTION=add\0DEVPATH=/devices/x\0SUBSYSTEM=block\0\
                     DEVNAME=vda\0SEQNUM=7\0";
        throw(uevent, &[good]);
    }

    #[test]
    fn lists_of_mounts() {
        let good = b"22 1 0:21 / /proc rw,nosuid shared:5 - proc proc rw\n23 1 8:1 /a\\040b /mnt ro - ext4 /dev/sda1 ro\n";
        throw(mount_list, &[good]);
    }

    #[test]
    fn options_of_mounts() {
        throw(mount_options, &[b"ro,nosuid,size=1m,lowerdir=/a:/b,rbind,rslave"]);
    }

    #[test]
    fn messages_between_processes() {
        let mut header = vec![0; 24];
        header[0] = 1;
        throw(channel_message, &[&header]);
    }

    #[test]
    fn addresses_of_devices() {
        throw(pci_path, &[b"02/1f.7", b"0000:00:1f.2", b"0:1", b"/dev/vda", b"10000:02/03"]);
    }

    #[test]
    fn requests_with_paths() {
        let base = "/run/kata-containers/shared/containers";
        let copy = CopyFileRequest {
            path: format!("{base}/a/../b"),
            file_mode: 0o100_644,
            file_size: 3,
            data: b"abc".to_vec(),
            ..Default::default()
        };
        let whole = CopyFileRequest { path: format!("{base}/a/b"), ..copy.clone() };
        let storage = Storage {
            driver: "blk".into(),
            source: "02/03".into(),
            fstype: "ext4".into(),
            mount_point: "/run/kata-containers/sandbox/storage/x".into(),
            ..Default::default()
        };
        let inputs = [copy.write_to_bytes(), whole.write_to_bytes(), storage.write_to_bytes()];
        let inputs: Vec<Vec<u8>> = inputs.into_iter().map(Result::unwrap).collect();
        let inputs: Vec<&[u8]> = inputs.iter().map(Vec::as_slice).chain([&b"/a/b"[..]]).collect();
        throw(requests, &inputs);
    }
}
