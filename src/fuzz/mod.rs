//! What a fuzzer throws bytes at: everything that reads what comes from outside, a function each.
//!
//! Each takes any bytes, must not panic, and checks what has to hold of whatever was accepted. `fuzz/` runs them
//! under cargo-fuzz for as long as one likes; the tests here run them briefly with broken pieces of good input, and
//! with the same numbers each time.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Component, Path};

use nakai_protocols::agent::{CopyFileRequest, CreateContainerRequest, Device, Storage};
use nakai_protocols::{oci, spec};
use oci_spec::runtime::Spec;
use protobuf::Message as _;

use crate::config::{Config, Overrides, Sources};
use crate::device::cdi;
use crate::device::pci::{PciAddress, PciPath};
use crate::device::uevent::Uevent;
use crate::device::{Address, DeviceRequest};
use crate::guest::copy_file::CopyRequest;
use crate::guest::mount::MountOptions;
use crate::guest::mountinfo;
use crate::ids::{ContainerId, GuestPath};
use crate::rpc::{read_frames, read_request};
use crate::spec::{CdiEdits, CgroupVersion, CpuSet, Facts, PidNamespace, Profiles, SharedNamespaces};
use crate::storage::{self, StorageRequest};
use crate::supervisor::channel::Header;

/// The bytes of a container's specification. What is accepted survives the way back to the wire.
pub fn wire_spec(bytes: &[u8]) {
    let Ok(wire) = oci::Spec::parse_from_bytes(bytes) else { return };
    let Ok(read) = spec::from_wire(&wire) else { return };
    let Ok(back) = spec::to_wire(&read) else { return };
    assert_eq!(spec::from_wire(&back).ok().as_ref(), Some(&read), "the specification changed on its way");
    prepare(read);
}

/// A specification on its way to libcontainer. What comes out names the root and the namespaces that it was told.
fn prepare(read: Spec) {
    let Ok(container_id) = ContainerId::try_from("c1") else { return };
    let rootfs = Path::new("/run/kata-containers/c1/rootfs");
    let facts = Facts {
        container_id,
        rootfs: rootfs.to_owned(),
        shared: SharedNamespaces { ipc: Some("/run/ipc".into()), uts: None, pid: PidNamespace::Own },
        cgroup_version: CgroupVersion::V2,
        stand_in: None,
        swap_accounting: false,
        online_cpus: "0-3".parse().unwrap_or_default(),
        online_mems: None,
        hooks: None,
        devices: Vec::new(),
        added_devices: Vec::new(),
        bound_devices: Vec::new(),
        lent_devices: Vec::new(),
        pci_map: BTreeMap::new(),
        root_devices: Vec::new(),
        system_chars: Vec::new(),
        systemd: false,
        selinux: false,
        apparmor: Profiles::default(),
    };
    let Ok(prepared) = crate::spec::prepare(read, &facts) else { return };
    let root = prepared.spec.root().as_ref().map(|root| root.path().as_path());
    assert_eq!(root, Some(rootfs), "another root");
    assert!(prepared.cgroup_path.is_absolute(), "{:?}", prepared.cgroup_path);
    assert!(prepared.cwd.is_absolute(), "{:?}", prepared.cwd);
}

/// What a host's connection brings: the frames are what went in, whatever the pieces in which it came.
pub fn frames(bytes: &[u8]) {
    read_request(bytes);
    let Some((piece, bytes)) = bytes.split_first() else { return };
    let Ok(frames) = read_frames(bytes, usize::from(*piece).saturating_add(1)) else { return };
    let mut rest = bytes;
    for (header, body) in frames {
        let split = rest.split_first_chunk::<10>();
        assert!(split.is_some(), "a frame of nothing");
        let Some((head, behind)) = split else { return };
        let [a, b, c, d, e, f, g, h, kind, flags] = *head;
        let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        assert_eq!(header.stream_id, u32::from_be_bytes([e, f, g, h]));
        assert_eq!((header.type_, header.flags), (kind, flags));
        let (here, behind) = behind.split_at_checked(length).unwrap_or_default();
        if let Some(body) = body {
            assert_eq!(body, here);
            read_request(&body);
        }
        rest = behind;
    }
}

/// A specification of CDI devices, in YAML or JSON, and what it makes of a container's.
pub fn cdi_file(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    for is_json in [false, true] {
        for edits in cdi::edits_in(&text, is_json).unwrap_or_default() {
            let Ok(mut edits) = serde_json::from_value::<CdiEdits>(edits) else { continue };
            edits.nodes_without_number().for_each(|node| node.set_number(false, 10, 200));
            let _ = edits.apply(&mut Spec::default());
        }
    }
}

/// The guest's options: the kernel's command line, and the file that it names.
pub fn options(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let named = format!("agent.config_file=/x {text}");
    for kernel in [&*text, &named] {
        let read_file = |_: &Path| Ok(text.clone().into_owned());
        let sources = Sources {
            kernel: Some(kernel),
            env: &[],
            overrides: &Overrides::default(),
            read_file: &read_file,
        };
        let _ = Config::load(&sources);
    }
}

/// A list of CPUs. What is accepted says itself again.
pub fn cpu_list(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(set) = text.parse::<CpuSet>() {
        assert_eq!(set.to_string().parse().ok(), Some(set), "{text:?}");
    }
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
    let shared =
        ["shared/containers", "sandbox/passthrough"].map(|one| Path::new("/run/kata-containers").join(one));
    if let Ok(request) = CopyFileRequest::parse_from_bytes(bytes)
        && let Ok(checked) = CopyRequest::new(request, &shared)
    {
        let harmless = checked.path().components().all(|part| matches!(part, Component::Normal(_)));
        assert!(harmless && !checked.path().as_os_str().is_empty(), "{checked:?}");
    }
    if let Ok(wanted) = Storage::parse_from_bytes(bytes) {
        let _ = StorageRequest::try_from(&wanted);
    }
    if let (Ok(request), Ok(id)) =
        (CreateContainerRequest::parse_from_bytes(bytes), ContainerId::try_from("c1"))
    {
        let storages = request.storages.iter().map(StorageRequest::try_from);
        let unfolded = storages
            .collect::<Result<_, _>>()
            .and_then(|all| storage::unfold(Path::new("/run/kata-containers"), &id, all));
        for storage in unfolded.into_iter().flatten() {
            assert!(storage.mount_point.as_path().is_absolute(), "{storage:?}");
        }
    }
    if let Ok(device) = Device::parse_from_bytes(bytes) {
        let _ = DeviceRequest::try_from(&device);
    }
    if let Ok(path) = GuestPath::try_from(&*String::from_utf8_lossy(bytes)) {
        assert!(path.as_path().is_absolute(), "{path}");
        assert!(path.as_path().components().all(|part| part != Component::ParentDir), "{path}");
    }
}
