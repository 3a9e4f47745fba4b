//! The Linux part: namespaces, mappings, paths; limits, devices and filters are next door.

use oci_spec::runtime;
use oci_spec::runtime::LinuxNamespaceType;

use super::value::{blank, each, items, list, map, not_carried, path, path_or_empty, plain, text};
use super::{SpecError, devices, resources, seccomp};
use crate::oci;

pub(super) fn from_wire(wire: &oci::Linux) -> Result<runtime::Linux, SpecError> {
    let mut linux: runtime::Linux = blank("linux", "{}")?;
    linux
        .set_uid_mappings(list(&wire.UIDMappings, mapping_from_wire)?)
        .set_gid_mappings(list(&wire.GIDMappings, mapping_from_wire)?)
        .set_sysctl(map(&wire.Sysctl))
        .set_resources(wire.Resources.as_ref().map(resources::from_wire).transpose()?)
        .set_cgroups_path(path(&wire.CgroupsPath))
        .set_namespaces(list(&wire.Namespaces, namespace_from_wire)?)
        .set_devices(list(&wire.Devices, devices::node_from_wire)?)
        .set_seccomp(wire.Seccomp.as_ref().map(seccomp::from_wire).transpose()?)
        .set_rootfs_propagation(text(&wire.RootfsPropagation))
        .set_masked_paths(plain(&wire.MaskedPaths))
        .set_readonly_paths(plain(&wire.ReadonlyPaths))
        .set_mount_label(text(&wire.MountLabel))
        .set_intel_rdt(wire.IntelRdt.as_ref().map(rdt_from_wire));
    Ok(linux)
}

pub(super) fn to_wire(linux: &runtime::Linux) -> Result<oci::Linux, SpecError> {
    not_carried("linux.netDevices", linux.net_devices().as_ref().is_some_and(|map| !map.is_empty()))?;
    not_carried("linux.memoryPolicy", linux.memory_policy().is_some())?;
    not_carried("linux.personality", linux.personality().is_some())?;
    not_carried("linux.timeOffsets", linux.time_offsets().as_ref().is_some_and(|map| !map.is_empty()))?;
    Ok(oci::Linux {
        UIDMappings: items(linux.uid_mappings()).iter().map(mapping_to_wire).collect(),
        GIDMappings: items(linux.gid_mappings()).iter().map(mapping_to_wire).collect(),
        Sysctl: linux.sysctl().clone().unwrap_or_default(),
        Resources: linux.resources().as_ref().map(resources::to_wire).transpose()?.into(),
        CgroupsPath: path_or_empty("linux.cgroupsPath", linux.cgroups_path())?,
        Namespaces: each(items(linux.namespaces()), namespace_to_wire)?,
        Devices: each(items(linux.devices()), devices::node_to_wire)?,
        Seccomp: linux.seccomp().as_ref().map(seccomp::to_wire).transpose()?.into(),
        RootfsPropagation: linux.rootfs_propagation().clone().unwrap_or_default(),
        MaskedPaths: items(linux.masked_paths()).to_vec(),
        ReadonlyPaths: items(linux.readonly_paths()).to_vec(),
        MountLabel: linux.mount_label().clone().unwrap_or_default(),
        IntelRdt: linux.intel_rdt().as_ref().map(rdt_to_wire).transpose()?.into(),
        ..Default::default()
    })
}

fn mapping_from_wire(wire: &oci::LinuxIDMapping) -> Result<runtime::LinuxIdMapping, SpecError> {
    runtime::LinuxIdMappingBuilder::default()
        .host_id(wire.HostID)
        .container_id(wire.ContainerID)
        .size(wire.Size)
        .build()
        .map_err(SpecError::model("linux.uidMappings, gidMappings"))
}

fn mapping_to_wire(mapping: &runtime::LinuxIdMapping) -> oci::LinuxIDMapping {
    oci::LinuxIDMapping {
        HostID: mapping.host_id(),
        ContainerID: mapping.container_id(),
        Size: mapping.size(),
        ..Default::default()
    }
}

fn namespace_from_wire(wire: &oci::LinuxNamespace) -> Result<runtime::LinuxNamespace, SpecError> {
    let typ = LinuxNamespaceType::try_from(wire.Type.as_str())
        .map_err(|_| SpecError::unknown("linux.namespaces.type", &wire.Type))?;
    let mut namespace = runtime::LinuxNamespace::default();
    namespace.set_typ(typ).set_path(path(&wire.Path));
    Ok(namespace)
}

fn namespace_to_wire(namespace: &runtime::LinuxNamespace) -> Result<oci::LinuxNamespace, SpecError> {
    Ok(oci::LinuxNamespace {
        Type: namespace_name(namespace.typ()).to_owned(),
        Path: path_or_empty("linux.namespaces.path", namespace.path())?,
        ..Default::default()
    })
}

/// The specification's names; the model prints the kernel's (`mnt`, `net`).
fn namespace_name(typ: LinuxNamespaceType) -> &'static str {
    match typ {
        LinuxNamespaceType::Mount => "mount",
        LinuxNamespaceType::Cgroup => "cgroup",
        LinuxNamespaceType::Uts => "uts",
        LinuxNamespaceType::Ipc => "ipc",
        LinuxNamespaceType::User => "user",
        LinuxNamespaceType::Pid => "pid",
        LinuxNamespaceType::Network => "network",
        LinuxNamespaceType::Time => "time",
    }
}

fn rdt_from_wire(wire: &oci::LinuxIntelRdt) -> runtime::LinuxIntelRdt {
    let mut rdt = runtime::LinuxIntelRdt::default();
    rdt.set_l3_cache_schema(text(&wire.L3CacheSchema));
    rdt
}

fn rdt_to_wire(rdt: &runtime::LinuxIntelRdt) -> Result<oci::LinuxIntelRdt, SpecError> {
    let monitored = [rdt.enable_cmt(), rdt.enable_mbm(), rdt.enable_monitoring()];
    not_carried("linux.intelRdt.closID", rdt.clos_id().is_some())?;
    not_carried("linux.intelRdt.schemata", !items(rdt.schemata()).is_empty())?;
    not_carried("linux.intelRdt.memBwSchema", rdt.mem_bw_schema().is_some())?;
    not_carried("linux.intelRdt.enableMonitoring", monitored.contains(&&Some(true)))?;
    let l3_cache_schema = rdt.l3_cache_schema().clone().unwrap_or_default();
    Ok(oci::LinuxIntelRdt { L3CacheSchema: l3_cache_schema, ..Default::default() })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn namespace(typ: &str, path: &str) -> oci::LinuxNamespace {
        oci::LinuxNamespace { Type: typ.into(), Path: path.into(), ..Default::default() }
    }

    #[test]
    fn nothing_sent_is_nothing_set() {
        let linux = from_wire(&oci::Linux::default()).unwrap();
        assert_eq!(serde_json::to_value(&linux).unwrap(), json!({}));
        assert_eq!(to_wire(&linux).unwrap(), oci::Linux::default());
    }

    #[test]
    fn every_namespace_survives_both_ways_and_an_empty_path_is_a_new_one() {
        for typ in ["mount", "cgroup", "uts", "ipc", "user", "pid", "network", "time"] {
            for path in ["", "/run/ns/x"] {
                let wire = namespace(typ, path);
                let read = namespace_from_wire(&wire).unwrap();
                assert_eq!(read.path().is_none(), path.is_empty());
                assert_eq!(namespace_to_wire(&read).unwrap(), wire);
                assert_eq!(serde_json::to_value(&read).unwrap()["type"], typ, "the name in config.json");
            }
        }
    }

    #[test]
    fn the_kernel_names_are_taken_too() {
        assert_eq!(namespace_from_wire(&namespace("mnt", "")).unwrap().typ(), LinuxNamespaceType::Mount);
        assert_eq!(namespace_from_wire(&namespace("net", "")).unwrap().typ(), LinuxNamespaceType::Network);
    }

    #[test]
    fn an_unknown_namespace_is_refused_by_name() {
        let wire = oci::Linux { Namespaces: vec![namespace("warp", "")], ..Default::default() };
        assert_eq!(from_wire(&wire).unwrap_err().to_string(), "linux.namespaces.type: unknown name \"warp\"");
    }

    #[test]
    fn the_rest_survives_both_ways() {
        let mapping =
            oci::LinuxIDMapping { HostID: 1000, ContainerID: 0, Size: u32::MAX, ..Default::default() };
        let wire = oci::Linux {
            UIDMappings: vec![mapping.clone()],
            GIDMappings: vec![oci::LinuxIDMapping { HostID: 7, ..mapping }],
            Sysctl: [("net.core.somaxconn".to_owned(), "1".to_owned())].into(),
            CgroupsPath: "/kata/x".into(),
            RootfsPropagation: "rslave".into(),
            MaskedPaths: vec!["/proc/kcore".into()],
            ReadonlyPaths: vec!["/proc/sys".into()],
            MountLabel: "label".into(),
            IntelRdt: Some(oci::LinuxIntelRdt { L3CacheSchema: "L3:0=f".into(), ..Default::default() })
                .into(),
            ..Default::default()
        };
        assert_eq!(to_wire(&from_wire(&wire).unwrap()).unwrap(), wire);
    }

    #[test]
    fn what_the_wire_lacks_is_refused_by_name() {
        let mut linux = from_wire(&oci::Linux::default()).unwrap();
        linux.set_personality(Some(runtime::LinuxPersonality::default()));
        assert!(matches!(to_wire(&linux), Err(SpecError::NotCarried { field: "linux.personality" })));
    }
}
