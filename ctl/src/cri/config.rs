//! CRI's `ContainerConfig` and `PodSandboxConfig`, as far as Linux goes, with the protocol's own names.
//!
//! Field by field what `runtime.v1` of k8s.io/cri-api says; [`super::json`] reads them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::json::{int, ints, wire_enum, wrapped};

/// Gives a message its derives and lets absent fields be their defaults.
macro_rules! message {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
        #[serde(default)]
        #[expect(missing_docs, reason = "the fields are the protocol's and are described there")]
        pub struct $name { $($(#[$field_doc])* pub $field: $type,)* }
    };
}

message! {
    /// What a pod's sandbox is to be.
    PodSandboxConfig {
        metadata: PodSandboxMetadata,
        hostname: String,
        log_directory: String,
        dns_config: DnsConfig,
        port_mappings: Vec<PortMapping>,
        labels: BTreeMap<String, String>,
        annotations: BTreeMap<String, String>,
        linux: LinuxPodSandboxConfig,
    }
}
message! {
    /// A pod's names.
    PodSandboxMetadata { name: String, uid: String, namespace: String, attempt: u32, }
}
message! {
    /// What becomes resolv.conf.
    DnsConfig { servers: Vec<String>, searches: Vec<String>, options: Vec<String>, }
}
message! {
    /// A port that the host forwards.
    PortMapping { protocol: Protocol, container_port: i32, host_port: i32, host_ip: String, }
}
message! {
    /// The part of a sandbox that is Linux's.
    LinuxPodSandboxConfig {
        cgroup_parent: String,
        security_context: LinuxSandboxSecurityContext,
        sysctls: BTreeMap<String, String>,
        overhead: LinuxContainerResources,
        resources: LinuxContainerResources,
    }
}
message! {
    /// Privileges of the sandbox.
    LinuxSandboxSecurityContext {
        namespace_options: NamespaceOption,
        selinux_options: Option<SeLinuxOption>,
        #[serde(deserialize_with = "wrapped")]
        run_as_user: Option<i64>,
        #[serde(deserialize_with = "wrapped")]
        run_as_group: Option<i64>,
        readonly_rootfs: bool,
        #[serde(deserialize_with = "ints")]
        supplemental_groups: Vec<i64>,
        supplemental_groups_policy: SupplementalGroupsPolicy,
        privileged: bool,
        seccomp: Option<SecurityProfile>,
        apparmor: Option<SecurityProfile>,
        seccomp_profile_path: String,
    }
}
message! {
    /// What a container is to be.
    ContainerConfig {
        metadata: ContainerMetadata,
        image: ImageSpec,
        command: Vec<String>,
        args: Vec<String>,
        working_dir: String,
        envs: Vec<KeyValue>,
        mounts: Vec<Mount>,
        devices: Vec<Device>,
        labels: BTreeMap<String, String>,
        annotations: BTreeMap<String, String>,
        log_path: String,
        stdin: bool,
        stdin_once: bool,
        tty: bool,
        linux: LinuxContainerConfig,
        cdi_devices: Vec<CdiDevice>,
        stop_signal: Option<String>,
    }
}
message! {
    /// A container's name, and how often it was made before.
    ContainerMetadata { name: String, attempt: u32, }
}
message! {
    /// Where its root filesystem comes from.
    ImageSpec {
        image: String,
        annotations: BTreeMap<String, String>,
        user_specified_image: String,
        runtime_handler: String,
        image_ref: String,
    }
}
message! {
    /// A variable.
    KeyValue { key: String, value: String, }
}
message! {
    /// A directory or file of the host's in the container.
    Mount {
        container_path: String,
        host_path: String,
        readonly: bool,
        selinux_relabel: bool,
        propagation: MountPropagation,
        uid_mappings: Vec<IdMapping>,
        gid_mappings: Vec<IdMapping>,
        recursive_read_only: bool,
        image: Option<ImageSpec>,
        image_sub_path: String,
    }
}
message! {
    /// A range of ids.
    IdMapping { host_id: u32, container_id: u32, length: u32, }
}
message! {
    /// A device node.
    Device { container_path: String, host_path: String, permissions: String, }
}
message! {
    /// A device by a name that the node's administrator has given it.
    CdiDevice { name: String, }
}
message! {
    /// The part of a container that is Linux's.
    LinuxContainerConfig {
        resources: LinuxContainerResources,
        security_context: LinuxContainerSecurityContext,
    }
}
message! {
    /// Limits.
    LinuxContainerResources {
        #[serde(deserialize_with = "int")]
        cpu_period: i64,
        #[serde(deserialize_with = "int")]
        cpu_quota: i64,
        #[serde(deserialize_with = "int")]
        cpu_shares: i64,
        #[serde(deserialize_with = "int")]
        memory_limit_in_bytes: i64,
        #[serde(deserialize_with = "int")]
        oom_score_adj: i64,
        cpuset_cpus: String,
        cpuset_mems: String,
        hugepage_limits: Vec<HugepageLimit>,
        unified: BTreeMap<String, String>,
        #[serde(deserialize_with = "int")]
        memory_swap_limit_in_bytes: i64,
    }
}
message! {
    /// A limit of huge pages of one size.
    HugepageLimit {
        page_size: String,
        #[serde(deserialize_with = "int")]
        limit: i64,
    }
}
message! {
    /// Privileges of the container.
    LinuxContainerSecurityContext {
        capabilities: Capability,
        privileged: bool,
        namespace_options: NamespaceOption,
        selinux_options: Option<SeLinuxOption>,
        #[serde(deserialize_with = "wrapped")]
        run_as_user: Option<i64>,
        #[serde(deserialize_with = "wrapped")]
        run_as_group: Option<i64>,
        run_as_username: String,
        readonly_rootfs: bool,
        #[serde(deserialize_with = "ints")]
        supplemental_groups: Vec<i64>,
        supplemental_groups_policy: SupplementalGroupsPolicy,
        no_new_privs: bool,
        /// Absent means the usual ones; empty means none.
        masked_paths: Option<Vec<String>>,
        /// Absent means the usual ones; empty means none.
        readonly_paths: Option<Vec<String>>,
        seccomp: Option<SecurityProfile>,
        apparmor: Option<SecurityProfile>,
        apparmor_profile: String,
        seccomp_profile_path: String,
        /// Not CRI's: the kubelet checks it before it calls the runtime, and here there is no kubelet.
        run_as_non_root: bool,
    }
}
message! {
    /// Changes to the usual capabilities.
    Capability {
        add_capabilities: Vec<String>,
        drop_capabilities: Vec<String>,
        add_ambient_capabilities: Vec<String>,
    }
}
message! {
    /// Which namespaces are whose.
    NamespaceOption {
        network: NamespaceMode,
        pid: NamespaceMode,
        ipc: NamespaceMode,
        target_id: String,
        userns_options: Option<UserNamespace>,
    }
}
message! {
    /// A user namespace.
    UserNamespace { mode: NamespaceMode, uids: Vec<IdMapping>, gids: Vec<IdMapping>, }
}
message! {
    /// The parts of a label.
    SeLinuxOption {
        user: String,
        role: String,
        #[serde(rename = "type")]
        kind: String,
        level: String,
    }
}
message! {
    /// A profile of seccomp or AppArmor.
    SecurityProfile { profile_type: ProfileType, localhost_ref: String, }
}

wire_enum! {
    /// Of a port.
    Protocol {
        /// TCP
        Tcp = 0 "TCP",
        /// UDP
        Udp = 1 "UDP",
        /// SCTP
        Sctp = 2 "SCTP",
    }
}
wire_enum! {
    /// Whose a namespace is.
    NamespaceMode {
        /// The pod's.
        Pod = 0 "POD",
        /// The container's own.
        Container = 1 "CONTAINER",
        /// The node's.
        Node = 2 "NODE",
        /// Another container's.
        Target = 3 "TARGET",
    }
}
wire_enum! {
    /// How mounts reach the other side.
    MountPropagation {
        /// Not at all.
        Private = 0 "PROPAGATION_PRIVATE",
        /// From the host to the container.
        HostToContainer = 1 "PROPAGATION_HOST_TO_CONTAINER",
        /// Both ways.
        Bidirectional = 2 "PROPAGATION_BIDIRECTIONAL",
    }
}
wire_enum! {
    /// Whether the image's groups of a user count.
    SupplementalGroupsPolicy {
        /// They do.
        Merge = 0 "Merge",
        /// They don't.
        Strict = 1 "Strict",
    }
}
wire_enum! {
    /// Which profile.
    ProfileType {
        /// The runtime's own.
        RuntimeDefault = 0 "RuntimeDefault",
        /// None.
        Unconfined = 1 "Unconfined",
        /// One that the node has.
        Localhost = 2 "Localhost",
    }
}
