//! What the edits need to know of the guest and of the sandbox: plain data, gathered by the caller.

use std::collections::BTreeMap;
use std::path::PathBuf;

use oci_spec::runtime::Hooks;

use super::{AddedDevice, CpuSet, DeviceNumber, DeviceUpdate, LentDevice, Profiles};
use crate::ids::ContainerId;

/// What [`super::prepare`] is told of the guest, the sandbox and the container's devices.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The container that is being made.
    pub container_id: ContainerId,
    /// Absolute path of its root filesystem in the guest; it replaces `root.path`.
    pub rootfs: PathBuf,
    /// The namespaces that the sandbox's containers share.
    pub shared: SharedNamespaces,
    /// Which cgroup interface the guest has mounted.
    pub cgroup_version: CgroupVersion,
    /// Whether systemd is there to make units for containers.
    pub systemd: bool,
    /// A directory that stands in for the container's cgroup on v1, if the agent can make that itself.
    pub stand_in: Option<PathBuf>,
    /// Whether a cgroup has swap files (`memory.swap.max`, `memory.memsw.limit_in_bytes`): they need
    /// CONFIG_SWAP, and on v1 `swapaccount=1`.
    pub swap_accounting: bool,
    /// The CPUs online now, from `/sys/devices/system/cpu/online`. These and the nodes only for a specification that
    /// names some.
    pub online_cpus: CpuSet,
    /// The memory nodes online now; `None` where the kernel has no NUMA (`/sys/devices/system/node` missing).
    pub online_mems: Option<CpuSet>,
    /// The hooks found in the sandbox's guest hook directory.
    pub hooks: Option<Hooks>,
    /// Where the devices of this request appeared in the guest.
    pub devices: Vec<DeviceUpdate>,
    /// Devices that the container gets besides.
    pub added_devices: Vec<AddedDevice>,
    /// Nodes of the guest's `/dev` that mounts of the specification name, each by itself.
    pub bound_devices: Vec<AddedDevice>,
    /// Disks whose nodes are the container's storages.
    pub lent_devices: Vec<LentDevice>,
    /// PCI addresses of passed-through devices, host to guest, `dddd:bb:dd.f` each.
    pub pci_map: BTreeMap<String, String>,
    /// What the guest's own root is on: the partition and the whole disk, or the device-mapper target and all that is
    /// below it. Block devices that no container may open.
    pub root_devices: Vec<DeviceNumber>,
    /// Character devices that lead to the same disks.
    pub system_chars: Vec<DeviceNumber>,
    /// Whether the guest's kernel runs SELinux, with a policy.
    pub selinux: bool,
    /// What it has of AppArmor.
    pub apparmor: Profiles,
}

/// The namespaces that the sandbox's containers share. A member that is `None` is made anew for each
/// container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SharedNamespaces {
    /// The sandbox's IPC namespace, a path to open.
    pub ipc: Option<PathBuf>,
    /// The sandbox's UTS namespace, a path to open.
    pub uts: Option<PathBuf>,
    /// Which PID namespace the container gets.
    pub pid: PidNamespace,
}

/// Which PID namespace a container gets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum PidNamespace {
    /// One of its own.
    #[default]
    Own,
    /// The one at this path: the sandbox's, or another container's.
    Join(PathBuf),
}

/// Which cgroup interface the guest has mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CgroupVersion {
    /// A hierarchy per controller; also the hybrid layout.
    V1,
    /// The unified hierarchy.
    V2,
}
