//! Device nodes, and the rules of the device cgroup.
//!
//! A **node** has the numbers that `mknod(2)` will take: 12 bits of major and 20 of minor. More is
//! refused, since the kernel would cut it and make another device.
//!
//! A **rule** may leave numbers out, meaning any; the wire has no absent value for that. It is read
//! so:
//!
//! - a negative number is any;
//! - a major of 0 is any: the kernel gives no device node that major;
//! - a minor of 0 is any where the major is 0 or the rule is for all types. Beside a major it is the
//!   minor 0 that `8:0` has: read as any, a rule for one disk would open all of them.
//!
//! It is written so that it is read the same: a minor that is any, beside a major, and a major that
//! is any, beside a minor of 0, go as -1.

use oci_spec::runtime;
use oci_spec::runtime::LinuxDeviceType;

use super::SpecError;
use super::value::{name, nonzero_or_absent, number, path_to_wire, text};
use crate::oci;

/// The largest numbers of a device node, `MAJOR` and `MINOR` of `linux/kdev_t.h`.
const MAX_MAJOR: i64 = 0xfff;
const MAX_MINOR: i64 = 0xf_ffff;

/// The wire's word for any number, where 0 would be read as a number.
const ANY: i64 = -1;

pub(super) fn node_from_wire(wire: &oci::LinuxDevice) -> Result<runtime::LinuxDevice, SpecError> {
    let mut device = runtime::LinuxDevice::default();
    device
        .set_path(wire.Path.as_str().into())
        .set_typ(node_type(&wire.Type)?)
        .set_major(node_number("linux.devices.major", wire.Major, MAX_MAJOR)?)
        .set_minor(node_number("linux.devices.minor", wire.Minor, MAX_MINOR)?)
        .set_file_mode(number(wire.FileMode))
        .set_uid(number(wire.UID))
        .set_gid(number(wire.GID));
    Ok(device)
}

pub(super) fn node_to_wire(device: &runtime::LinuxDevice) -> Result<oci::LinuxDevice, SpecError> {
    Ok(oci::LinuxDevice {
        Path: path_to_wire("linux.devices.path", device.path())?,
        Type: node_type(device.typ().as_str())?.as_str().to_owned(),
        Major: node_number("linux.devices.major", device.major(), MAX_MAJOR)?,
        Minor: node_number("linux.devices.minor", device.minor(), MAX_MINOR)?,
        FileMode: nonzero_or_absent("linux.devices.fileMode", device.file_mode())?,
        UID: device.uid().unwrap_or_default(),
        GID: device.gid().unwrap_or_default(),
        ..Default::default()
    })
}

/// A node is of one type: "all" is a rule's.
fn node_type(value: &str) -> Result<LinuxDeviceType, SpecError> {
    const FIELD: &str = "linux.devices.type";
    match name(FIELD, value)? {
        LinuxDeviceType::A => Err(SpecError::unknown(FIELD, value)),
        typ => Ok(typ),
    }
}

fn node_number(field: &'static str, value: i64, max: i64) -> Result<i64, SpecError> {
    if (0..=max).contains(&value) { Ok(value) } else { Err(SpecError::out_of_range(field, value)) }
}

pub(super) fn rule_from_wire(wire: &oci::LinuxDeviceCgroup) -> Result<runtime::LinuxDeviceCgroup, SpecError> {
    let typ = match wire.Type.as_str() {
        "" => None,
        typ => Some(name("linux.resources.devices.type", typ)?),
    };
    let zero_is_any = wire.Major == 0 || of_all_types(typ);
    let minor = match wire.Minor {
        0 if zero_is_any => None,
        minor => (minor >= 0).then_some(minor),
    };
    let mut rule = runtime::LinuxDeviceCgroup::default();
    rule.set_allow(wire.Allow)
        .set_typ(typ)
        .set_major((wire.Major > 0).then_some(wire.Major))
        .set_minor(minor)
        .set_access(text(&wire.Access));
    Ok(rule)
}

pub(super) fn rule_to_wire(rule: &runtime::LinuxDeviceCgroup) -> oci::LinuxDeviceCgroup {
    let given = |number: Option<i64>| number.filter(|number| *number >= 0);
    let major = given(rule.major()).filter(|major| *major != 0);
    let (major, minor) = match (major, given(rule.minor())) {
        (None, None) => (0, 0),
        (None, Some(0)) if !of_all_types(rule.typ()) => (ANY, 0),
        (None, Some(minor)) => (0, minor),
        (Some(major), None) if of_all_types(rule.typ()) => (major, 0),
        (Some(major), None) => (major, ANY),
        (Some(major), Some(minor)) => (major, minor),
    };
    oci::LinuxDeviceCgroup {
        Allow: rule.allow(),
        Type: rule.typ().map(|typ| typ.as_str().to_owned()).unwrap_or_default(),
        Major: major,
        Minor: minor,
        Access: rule.access().clone().unwrap_or_default(),
        ..Default::default()
    }
}

/// Whether a rule is for all types, which is also what no type means.
fn of_all_types(typ: Option<LinuxDeviceType>) -> bool {
    matches!(typ, None | Some(LinuxDeviceType::A))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(typ: &str, major: i64, minor: i64) -> oci::LinuxDeviceCgroup {
        oci::LinuxDeviceCgroup {
            Allow: true,
            Type: typ.into(),
            Major: major,
            Minor: minor,
            Access: "rwm".into(),
            ..Default::default()
        }
    }

    #[test]
    fn numbers_of_a_rule() {
        for (typ, major, minor, expected) in [
            ("a", 0, 0, (None, None)),
            ("", 0, 0, (None, None)),
            ("a", -1, -1, (None, None)),
            ("c", 0, 0, (None, None)),
            ("b", -1, -1, (None, None)),
            ("c", 136, -1, (Some(136), None)),
            ("b", 8, 0, (Some(8), Some(0))),
            ("b", 8, 1, (Some(8), Some(1))),
            ("c", 0, 3, (None, Some(3))),
            ("c", -1, 0, (None, Some(0))),
            ("a", 8, 0, (Some(8), None)),
            ("c", i64::MIN, i64::MAX, (None, Some(i64::MAX))),
        ] {
            let read = rule_from_wire(&rule(typ, major, minor)).unwrap();
            assert_eq!((read.major(), read.minor()), expected, "{typ} {major}:{minor}");
            let again = rule_from_wire(&rule_to_wire(&read)).unwrap();
            assert_eq!(again, read, "{typ} {major}:{minor}, sent again");
        }
    }

    #[test]
    fn a_rule_without_type_or_access_says_neither() {
        let read = rule_from_wire(&oci::LinuxDeviceCgroup::default()).unwrap();
        assert_eq!((read.typ(), read.access()), (None, &None));
    }

    #[test]
    fn types_that_are_none_are_refused_by_name() {
        let message = rule_from_wire(&rule("x", 1, 3)).unwrap_err().to_string();
        assert_eq!(message, "linux.resources.devices.type: unknown name \"x\"");
        for typ in ["", "a", "x", "C"] {
            let wire = oci::LinuxDevice { Path: "/dev/x".into(), Type: typ.into(), ..Default::default() };
            let message = node_from_wire(&wire).unwrap_err().to_string();
            assert_eq!(message, format!("linux.devices.type: unknown name {typ:?}"));
        }
    }

    #[test]
    fn a_node_keeps_mode_and_owner() {
        let wire = oci::LinuxDevice {
            Path: "/dev/fuse".into(),
            Type: "c".into(),
            Major: 10,
            Minor: 229,
            FileMode: 0o660,
            UID: 1,
            GID: 2,
            ..Default::default()
        };
        let device = node_from_wire(&wire).unwrap();
        assert_eq!((device.file_mode(), device.uid(), device.gid()), (Some(0o660), Some(1), Some(2)));
        assert_eq!(node_to_wire(&device).unwrap(), wire);
    }

    #[test]
    fn numbers_that_mknod_would_cut_are_refused() {
        for (major, minor, field) in [
            (-1, 0, "linux.devices.major"),
            (0x1000, 0, "linux.devices.major"),
            (1, 0x10_0000, "linux.devices.minor"),
            (1, -1, "linux.devices.minor"),
        ] {
            let wire =
                oci::LinuxDevice { Type: "b".into(), Major: major, Minor: minor, ..Default::default() };
            assert!(node_from_wire(&wire).unwrap_err().to_string().starts_with(field), "{major}:{minor}");
        }
    }

    /// Mode 0 would arrive as no mode, and be made readable by all.
    #[test]
    fn a_node_without_any_permission_is_refused() {
        let mut device = runtime::LinuxDevice::default();
        device.set_typ(LinuxDeviceType::C).set_file_mode(Some(0));
        assert!(matches!(
            node_to_wire(&device),
            Err(SpecError::NotCarried { field: "linux.devices.fileMode" })
        ));
    }
}
