//! The root file system and the mounts, in order.

use oci_spec::runtime;

use super::SpecError;
use super::value::{blank, flag, items, not_carried, path, path_or_empty, path_to_wire, plain, text};
use crate::oci;

pub(super) fn root_from_wire(wire: &oci::Root) -> Result<runtime::Root, SpecError> {
    let mut root: runtime::Root = blank("root", "{}")?;
    root.set_path(wire.Path.as_str().into()).set_readonly(flag(wire.Readonly));
    Ok(root)
}

pub(super) fn root_to_wire(root: &runtime::Root) -> Result<oci::Root, SpecError> {
    Ok(oci::Root {
        Path: path_to_wire("root.path", root.path())?,
        Readonly: root.readonly().unwrap_or_default(),
        ..Default::default()
    })
}

pub(super) fn from_wire(wire: &oci::Mount) -> Result<runtime::Mount, SpecError> {
    let mut mount = runtime::Mount::default();
    mount
        .set_destination(wire.destination.as_str().into())
        .set_typ(text(&wire.type_))
        .set_source(path(&wire.source))
        .set_options(plain(&wire.options));
    Ok(mount)
}

pub(super) fn to_wire(mount: &runtime::Mount) -> Result<oci::Mount, SpecError> {
    not_carried("mounts.uidMappings", !items(mount.uid_mappings()).is_empty())?;
    not_carried("mounts.gidMappings", !items(mount.gid_mappings()).is_empty())?;
    Ok(oci::Mount {
        destination: path_to_wire("mounts.destination", mount.destination())?,
        type_: mount.typ().clone().unwrap_or_default(),
        source: path_or_empty("mounts.source", mount.source())?,
        options: items(mount.options()).to_vec(),
        ..Default::default()
    })
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn empty_type_source_and_options_are_absent() {
        let wire = oci::Mount { destination: "/data".into(), ..Default::default() };
        let json = serde_json::to_value(from_wire(&wire).unwrap()).unwrap();
        assert_eq!(json, serde_json::json!({"destination": "/data"}));
    }

    #[test]
    fn options_keep_their_order() {
        let options: Vec<String> = ["rbind", "ro", "rprivate", "ro"].map(Into::into).to_vec();
        let wire = oci::Mount {
            destination: "/data".into(),
            type_: "bind".into(),
            source: "/run/x".into(),
            options: options.clone(),
            ..Default::default()
        };
        let mount = from_wire(&wire).unwrap();
        assert_eq!(mount.options(), &Some(options));
        assert_eq!(to_wire(&mount).unwrap(), wire);
    }

    #[test]
    fn root_is_writable_unless_said() {
        let root = root_from_wire(&oci::Root { Path: "/r".into(), ..Default::default() }).unwrap();
        assert_eq!(root.readonly(), None);
        let wire = oci::Root { Path: "/r".into(), Readonly: true, ..Default::default() };
        assert_eq!(root_from_wire(&wire).unwrap().readonly(), Some(true));
    }

    #[test]
    fn a_path_that_is_not_utf8_is_refused_by_name() {
        let mut mount = runtime::Mount::default();
        mount.set_destination(OsStr::from_bytes(b"/\xff").into());
        let message = to_wire(&mount).unwrap_err().to_string();
        assert_eq!(message, "mounts.destination: \"/\\xFF\" is not UTF-8");
    }

    #[test]
    fn id_mapped_mounts_are_refused_by_name() {
        let mut mount = runtime::Mount::default();
        mount.set_gid_mappings(Some(vec![runtime::LinuxIdMapping::default()]));
        assert!(to_wire(&mount).unwrap_err().to_string().starts_with("mounts.gidMappings: "));
    }
}
