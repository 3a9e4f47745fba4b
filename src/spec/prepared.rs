//! What the edits return: the spec as it is left for the worker or for libcontainer, and what is done around it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use oci_spec::runtime::{
    Hook, LinuxCapabilities, LinuxDeviceCgroup, LinuxResources, PosixRlimit, Process, Spec,
};
use serde::{Deserialize, Serialize};

use super::{
    CapabilitySets, Facts, MountPropagation, OutsideNode, OwnCgroups, OwnMounts, Profiles, SeccompProfile,
    Sysctl, UserNamespace, WorkingDirectory,
};
use crate::systemd::Unit;

/// A container ready to be launched.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// What the worker makes init from; or what is written as the bundle's `config.json`, where libcontainer does.
    pub spec: Spec,
    /// What the process does last of all before execve(2).
    pub late: LateProcess,
    /// `net.*` sysctls: to be written in the sandbox's network namespace before the container starts.
    pub sandbox_sysctls: Vec<Sysctl>,
    /// The container's path in the cgroup hierarchy (in each one on v1), absolute.
    pub cgroup_path: PathBuf,
    /// The unit that has the cgroup at that path, if systemd is to know of it.
    pub unit: Option<Unit>,
    /// The device rules, complete: to be enforced between create and start where libcontainer does not.
    pub device_rules: Vec<LinuxDeviceCgroup>,
    /// Limits that libcontainer gets wrong, or all, if the cgroups are our own: to be written to the cgroup between
    /// create and start.
    pub limits: Option<LinuxResources>,
    /// On v1: what the worker does for the cgroups, if it and not libcontainer makes them. The path in `spec` is a
    /// stand-in then.
    pub own_cgroups: Option<OwnCgroups>,
    /// The mounts that the worker and not libcontainer makes; `spec` has the others.
    pub own_mounts: Option<OwnMounts>,
    /// Whether init is made without libcontainer: then `spec` is the worker's, who makes all mounts.
    pub own_init: bool,
    /// Whether the process gets a terminal; libcontainer then wants a console socket.
    pub terminal: bool,
    /// The terminal's first size, which libcontainer ignores.
    pub console_size: Option<ConsoleSize>,
    /// The working directory, absolute, for messages.
    pub cwd: PathBuf,
    /// Where the working directory is to be made when it is missing.
    pub working_directory: WorkingDirectory,
    /// Directories beneath `/dev` that libcontainer makes for devices, if it makes init.
    pub device_directories: Vec<PathBuf>,
    /// Nodes that libcontainer does not make.
    pub outside_nodes: Vec<OutsideNode>,
    /// Memory filesystems that get what they hide of the image, between create and start.
    pub copy_up: Vec<PathBuf>,
    /// What libcontainer ignores: to be set in the container's mount namespace between create and start, in
    /// order.
    pub propagation: Vec<MountPropagation>,
    /// Whether nothing may be made in `/dev` once it is furnished.
    pub read_only_dev: bool,
    /// To be run in the container before its program: whoever starts it is told how they end.
    pub start_hooks: Vec<Hook>,
    /// To be run in the guest once the container has been started.
    pub poststart: Vec<Hook>,
    /// To be run in the guest once the container has been deleted.
    pub poststop: Vec<Hook>,
    /// What later processes take from this container: to be kept, for [`super::prepare_exec`].
    pub exec: ExecFacts,
    /// What was left out as meaningless in this guest: to be logged.
    pub warnings: Vec<String>,
}

/// A further process of a container, ready to be launched.
#[derive(Debug, Clone)]
pub struct PreparedExec {
    /// For the worker, complete but for what is `late`.
    pub process: Process,
    /// What the process does last of all before execve(2).
    pub late: LateProcess,
    /// Whether the process gets a terminal; libcontainer then wants a console socket.
    pub terminal: bool,
    /// The terminal's first size, which libcontainer ignores.
    pub console_size: Option<ConsoleSize>,
    /// What was left out as meaningless in this guest: to be logged.
    pub warnings: Vec<String>,
}

/// What a process does last of all before execve(2), in the order of the fields. It travels to the worker as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LateProcess {
    /// Whose process it is, in the container: for the look-up of HOME.
    pub uid: u32,
    /// Its user and group in the guest: for the owner of its streams.
    pub owner: (u32, u32),
    /// The working directory, if libcontainer could not enter it because it is made behind it.
    pub cwd: Option<PathBuf>,
    /// The session keyring to join, see `KEYCTL_JOIN_SESSION_KEYRING` in keyctl(2).
    pub session_keyring: String,
    /// For `/proc/self/attr/exec`, where the guest has SELinux.
    pub selinux_label: Option<String>,
    /// The limits, complete: libcontainer would set them before it has opened what it needs. The worker
    /// raises the hard limits beforehand, as the executor may not.
    pub rlimits: Vec<PosixRlimit>,
    /// Whether the environment's `HOME=/` is a stand-in, to be replaced (by [`super::set_home`]) with what
    /// the container's `/etc/passwd` says of `uid`. It keeps libcontainer from asking NSS, which would load
    /// code from the image.
    pub find_home: bool,
    /// Whether libcontainer has set PR_SET_NO_NEW_PRIVS.
    pub no_new_privileges: bool,
    /// The filter to load. The worker gets it compiled.
    #[serde(skip)]
    pub seccomp: Option<SeccompProfile>,
    /// The namespaces that it has to be in by then. Who moved the container's init elsewhere gets no further process
    /// there.
    pub namespaces: Vec<NamespaceId>,
    /// What the process may do, to be set before the look for its program.
    pub early_capabilities: CapabilitySets,
    /// The process's capabilities, to be set after the filter. `None`: those above are. `Some`: those above have
    /// CAP_SYS_ADMIN and CAP_SETPCAP besides, which loading a filter without `no_new_privileges` needs.
    pub capabilities: Option<CapabilitySets>,
}

/// A namespace, as stat(2) of its file in `/proc/<pid>/ns` tells it from others (namespaces(7)).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespaceId {
    /// The name of the file.
    pub kind: String,
    /// Its device.
    pub device: u64,
    /// Its inode.
    pub inode: u64,
    /// Whether it is another than the guest's.
    pub own: bool,
}

/// The size of a terminal in characters, as in `struct winsize` of ioctl_tty(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleSize {
    /// Lines.
    pub rows: u16,
    /// Characters on a line.
    pub cols: u16,
}

/// What a further process takes from its container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecFacts {
    pub(super) container_id: String,
    pub(super) capabilities: Option<LinuxCapabilities>,
    pub(super) rlimits: Vec<PosixRlimit>,
    pub(super) seccomp: Option<SeccompProfile>,
    pub(super) no_new_privileges: bool,
    pub(super) oom_score_adj: Option<i32>,
    pub(super) apparmor_profile: Option<String>,
    pub(super) selinux_label: Option<String>,
    pub(super) selinux: bool,
    pub(super) apparmor: Profiles,
    pub(super) pci_map: BTreeMap<String, String>,
    pub(super) namespaces: Vec<NamespaceId>,
    pub(super) users: Option<UserNamespace>,
}

impl ExecFacts {
    /// What a container's first process finds: the guest, and a seccomp filter.
    pub(super) fn of_guest(facts: &Facts, seccomp: Option<SeccompProfile>) -> Self {
        Self {
            container_id: facts.container_id.as_str().to_owned(),
            capabilities: None,
            rlimits: Vec::new(),
            seccomp,
            no_new_privileges: false,
            oom_score_adj: None,
            apparmor_profile: None,
            selinux_label: None,
            selinux: facts.selinux,
            apparmor: facts.apparmor.clone(),
            pci_map: facts.pci_map.clone(),
            namespaces: Vec::new(),
            users: None,
        }
    }

    /// The same, in the namespaces that the container's init has been made in.
    #[must_use]
    pub fn within(self, namespaces: Vec<NamespaceId>) -> Self {
        Self { namespaces, ..self }
    }

    /// The same for the processes after it.
    pub(super) fn with_container(
        self,
        late: &LateProcess,
        capabilities: LinuxCapabilities,
        process: Option<&Process>,
    ) -> Self {
        Self {
            capabilities: Some(capabilities),
            rlimits: late.rlimits.clone(),
            no_new_privileges: late.no_new_privileges,
            oom_score_adj: process.and_then(Process::oom_score_adj),
            apparmor_profile: process.and_then(|p| p.apparmor_profile().clone()),
            selinux_label: late.selinux_label.clone(),
            ..self
        }
    }
}
