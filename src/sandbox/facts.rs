//! What the specification's edits are told about the guest, read from it for each container: CPUs, swap and
//! security modules can change while the guest runs.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use oci_spec::runtime::{Hooks, Spec};

use super::Environment;
use super::create::CONTAINERS;
use super::error::SandboxError;
use super::system_devices;
use crate::cgroup::Hierarchy;
use crate::device::{DeviceKind as FoundKind, FoundDevice, FoundDevices};
use crate::guest::details::Hardware;
use crate::guest::security::has_selinux_policy;
use crate::ids::ContainerId;
use crate::spec::{
    AddedDevice, CgroupVersion, CpuSet, DeviceKind, DeviceNumber, DeviceUpdate, Facts, Profiles,
    SharedNamespaces,
};
use crate::systemd;
use crate::worker::stand_in;

/// Gathers everything but what is online; blocks for a handful of file reads.
pub(super) fn gather(
    environment: &Environment,
    container_id: ContainerId,
    rootfs: PathBuf,
    shared: SharedNamespaces,
    devices: FoundDevices,
    bound_devices: Vec<AddedDevice>,
    hooks: Option<Hooks>,
) -> Result<Facts, SandboxError> {
    let system = system_devices::find();
    let state_root = environment.config.state_dir.join(CONTAINERS);
    let stand_in =
        can_make_cgroups(&environment.hierarchy).then(|| stand_in::path(&state_root, &container_id));
    Ok(Facts {
        container_id,
        rootfs,
        shared,
        cgroup_version: if environment.hierarchy.is_v2() { CgroupVersion::V2 } else { CgroupVersion::V1 },
        systemd: systemd::is_running(),
        stand_in,
        swap_accounting: has_swap_accounting(&environment.hierarchy),
        online_cpus: CpuSet::default(),
        online_mems: None,
        hooks,
        devices: devices.nodes.into_iter().map(device_update).collect(),
        added_devices: devices.added.into_iter().map(added_device).collect(),
        bound_devices,
        lent_devices: Vec::new(),
        pci_map: devices.pci,
        root_devices: system.blocks,
        system_chars: system.chars,
        selinux: has_selinux_policy(Path::new("/sys/fs/selinux")),
        apparmor: Profiles { loaded: apparmor_profiles(), required: environment.config.apparmor_required },
    })
}

/// The same, with what is online of CPUs and memory nodes if `spec` names some.
pub(super) fn with_online(facts: Facts, spec: &Spec) -> Result<Facts, SandboxError> {
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    let cpu = resources.and_then(|resources| resources.cpu().as_ref());
    if cpu.is_none_or(|cpu| cpu.cpus().is_none() && cpu.mems().is_none()) {
        return Ok(facts);
    }
    let (online_cpus, online_mems) = online()?;
    Ok(Facts { online_cpus, online_mems, ..facts })
}

/// Whether the worker can make cgroups without libcontainer: on v1, where the trees are mounted as usual and the kernel
/// has v2 to cover them with.
fn can_make_cgroups(hierarchy: &Hierarchy) -> bool {
    const USUAL: &str = "/sys/fs/cgroup";
    let Hierarchy::V1 { controllers } = hierarchy else { return false };
    let has_v2 = || {
        let text = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
        text.lines().any(|line| line.ends_with("\tcgroup2"))
    };
    controllers.values().all(|root| root.parent() == Some(Path::new(USUAL)))
        && statfs(USUAL).is_ok_and(|root| root.filesystem_type() == TMPFS_MAGIC)
        && has_v2()
}

/// The names of the loaded profiles: each line is `name (mode)`. Whoever loads one needs securityfs for it, so that
/// without that filesystem there are none.
fn apparmor_profiles() -> BTreeSet<String> {
    let text = std::fs::read_to_string("/sys/kernel/security/apparmor/profiles").unwrap_or_default();
    text.lines().filter_map(|line| line.rsplit_once(" (")).map(|(name, _)| name.to_owned()).collect()
}

/// The CPUs and memory nodes that are online; no nodes are known without NUMA.
pub(super) fn online() -> Result<(CpuSet, Option<CpuSet>), SandboxError> {
    let hardware = Hardware::default();
    let cpus = cpu_set("online CPUs", &hardware.online_cpus()?)?;
    let nodes =
        hardware.online_memory_nodes()?.map(|text| cpu_set("online memory nodes", &text)).transpose()?;
    Ok((cpus, nodes))
}

/// Whether cgroups limit swap: a kernel option, and on v1 a boot parameter, too. On v2 the root has no such file,
/// but the kernel's own view tells.
fn has_swap_accounting(hierarchy: &Hierarchy) -> bool {
    match hierarchy {
        Hierarchy::V1 { controllers } => controllers
            .get("memory")
            .is_some_and(|memory| memory.join("memory.memsw.limit_in_bytes").exists()),
        Hierarchy::V2 { .. } => Path::new("/proc/swaps").exists(),
    }
}

fn cpu_set(what: &'static str, text: &str) -> Result<CpuSet, SandboxError> {
    text.trim().parse().map_err(|error| SandboxError::File {
        step: "read the",
        path: what.to_owned(),
        source: std::io::Error::other(error),
    })
}

fn kind(found: FoundKind) -> DeviceKind {
    match found {
        FoundKind::Block => DeviceKind::Block,
        FoundKind::Char => DeviceKind::Char,
    }
}

fn added_device(found: FoundDevice) -> AddedDevice {
    AddedDevice {
        path: found.container_path,
        kind: kind(found.kind),
        number: DeviceNumber { major: found.major, minor: found.minor },
    }
}

fn device_update(found: FoundDevice) -> DeviceUpdate {
    DeviceUpdate {
        container_path: found.container_path,
        final_path: found.final_path,
        kind: kind(found.kind),
        number: DeviceNumber { major: found.major, minor: found.minor },
    }
}
