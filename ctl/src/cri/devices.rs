//! Device nodes that a container asks for, and the cgroup rules for them.
//!
//! Character devices of the kernel's fixed numbers (null, fuse, tun, …) are the same in every guest. A block device
//! of the host is plugged into the machine first; the agent is told where it is, and puts the guest's numbers into the
//! node and the rule.

use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::PathBuf;

use nakai_protocols::oci;

use super::CriError;
use super::config::{CdiDevice, Device};

/// The majors whose numbers are the same on every machine (Documentation/admin-guide/devices.txt): memory devices,
/// terminals, and below 240 of the miscellaneous ones.
const FIXED_MAJORS: [u64; 3] = [1, 4, 5];
const MISC: u64 = 10;
const MISC_FIXED: u64 = 240;

/// A block device of this host that is to be plugged into the machine.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct BlockDevice {
    /// The field that asks for it, for messages.
    pub field: String,
    /// On this host.
    pub path: PathBuf,
    /// In the container.
    pub container_path: String,
    /// The container may not write to it.
    pub readonly: bool,
}

/// The first field that asks for a block device.
pub(super) fn block_field(devices: &[Device]) -> Option<String> {
    let is_block = |device: &Device| {
        std::fs::metadata(&device.host_path).is_ok_and(|metadata| metadata.file_type().is_block_device())
    };
    devices.iter().position(is_block).map(field)
}

fn field(number: usize) -> String {
    format!("devices[{number}].host_path")
}

/// The names of CDI devices in a list; none where there are none.
///
/// # Errors
///
/// One is not such a name, by its index.
pub(super) fn cdi_names(devices: &[CdiDevice]) -> Result<Option<String>, CriError> {
    for (number, CdiDevice { name }) in devices.iter().enumerate() {
        let parts = name.split_once('=').and_then(|(kind, device)| Some((kind.split_once('/')?, device)));
        let is_name = parts.is_some_and(|((vendor, class), device)| {
            ![vendor, class, device].iter().any(|part| part.is_empty() || part.contains(['/', ',', '=']))
        });
        if !is_name {
            let reason = format!("{name:?} is not VENDOR/CLASS=DEVICE");
            return Err(CriError::field(format!("CDI_devices[{number}].name"), reason));
        }
    }
    let names: Vec<&str> = devices.iter().map(|device| &*device.name).collect();
    Ok((!names.is_empty()).then(|| names.join(",")))
}

/// Adds nodes and rules; returns the block devices.
///
/// # Errors
///
/// A device that is not there, or that the guest can't have, by its index.
pub(super) fn apply(
    spec: &mut oci::Spec,
    devices: &[Device],
    privileged: bool,
) -> Result<Vec<BlockDevice>, CriError> {
    let mut blocks = Vec::new();
    let linux = spec.Linux.mut_or_insert_default();
    let mut rules = Vec::new();
    if privileged {
        rules.push(rule("a", -1, -1, "rwm"));
    }
    for (number, device) in devices.iter().enumerate() {
        let refuse = |reason: String| CriError::field(format!("devices[{number}]"), reason);
        let path = if device.container_path.is_empty() { &device.host_path } else { &device.container_path };
        let access = if device.permissions.is_empty() { "rwm" } else { &device.permissions };
        if access.chars().any(|c| !"rwm".contains(c)) {
            return Err(refuse(format!("permissions {access:?} has more than r, w and m")));
        }
        let metadata = std::fs::metadata(&device.host_path)
            .map_err(CriError::io(format!("devices[{number}].host_path {}", device.host_path)))?;
        let kind = metadata.file_type();
        let (major, minor) = (nix::sys::stat::major(metadata.rdev()), nix::sys::stat::minor(metadata.rdev()));
        if !kind.is_char_device() && !kind.is_block_device() {
            return Err(refuse(format!("host_path {} is no device", device.host_path)));
        }
        if kind.is_char_device() && !(FIXED_MAJORS.contains(&major) || major == MISC && minor < MISC_FIXED) {
            let reason = "the guest has no such device, or under another number";
            return Err(refuse(format!("host_path {} ({major}:{minor}): {reason}", device.host_path)));
        }
        if kind.is_block_device() {
            blocks.push(BlockDevice {
                field: field(number),
                path: PathBuf::from(&device.host_path),
                container_path: path.clone(),
                readonly: !access.contains('w'),
            });
        }
        let word = if kind.is_block_device() { "b" } else { "c" };
        let signed = |n: u64| i64::try_from(n).unwrap_or(-1);
        linux.Devices.push(oci::LinuxDevice {
            Path: path.clone(),
            Type: word.to_owned(),
            Major: signed(major),
            Minor: signed(minor),
            FileMode: metadata.mode() & 0o777,
            UID: metadata.uid(),
            GID: metadata.gid(),
            ..Default::default()
        });
        rules.push(rule(word, signed(major), signed(minor), access));
    }
    linux.Resources.mut_or_insert_default().Devices.extend(rules);
    Ok(blocks)
}

fn rule(kind: &str, major: i64, minor: i64, access: &str) -> oci::LinuxDeviceCgroup {
    oci::LinuxDeviceCgroup {
        Allow: true,
        Type: kind.to_owned(),
        Major: major,
        Minor: minor,
        Access: access.to_owned(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_cdi_are_told_or_refused() {
        let names = |names: &[&str]| {
            let devices: Vec<_> = names.iter().map(|&name| CdiDevice { name: name.to_owned() }).collect();
            cdi_names(&devices)
        };
        assert_eq!(names(&[]).unwrap(), None);
        assert_eq!(names(&["v.com/gpu=0", "v.com/nic=a"]).unwrap().unwrap(), "v.com/gpu=0,v.com/nic=a");
        for bad in ["gpu", "v/gpu", "v/gpu=", "/gpu=0", "v/gpu=0,1", "v/w/gpu=0"] {
            let error = names(&["v/gpu=0", bad]).unwrap_err().to_string();
            assert!(error.starts_with("CDI_devices[1].name: "), "{error}");
        }
    }

    fn device(host: &str, permissions: &str) -> Device {
        Device { host_path: host.into(), container_path: "/dev/mine".into(), permissions: permissions.into() }
    }

    #[test]
    fn a_node_has_its_numbers_and_a_rule_with_its_permissions_only() {
        let mut spec = crate::SpecBuilder::new("web", "/root").build();
        apply(&mut spec, &[device("/dev/full", "r")], false).unwrap();
        let node = &spec.Linux.Devices[0];
        assert_eq!((&*node.Path, node.Major, node.Minor), ("/dev/mine", 1, 7));
        let rules = &spec.Linux.Resources.Devices;
        assert_eq!((rules.len(), rules[0].Allow, &*rules[1].Access), (2, false, "r"));
        for (bad, words) in [
            (device("/dev/full", "rx"), "permissions"),
            (device("/dev/not-there", ""), "not-there"),
            (device("/etc", ""), "is no device"),
        ] {
            let error = apply(&mut spec, &[bad], false).unwrap_err().to_string();
            assert!(error.starts_with("devices[0]") && error.contains(words), "{error}");
        }
    }
}
