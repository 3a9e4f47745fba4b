//! What an ordinary container has before its caller asks for anything.
//!
//! Values are those of the OCI specification's example (config.md, config-linux.md) and of
//! containerd's defaults, which Kubernetes nodes and `ctr` use.

use nakai_protocols::oci;

/// `PATH` of a container that sets none.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The capabilities of an unprivileged container.
pub const DEFAULT_CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// The paths that an unprivileged container can't see into.
pub const DEFAULT_MASKED_PATHS: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

/// The paths that an unprivileged container can't write below.
pub const DEFAULT_READONLY_PATHS: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Where the sandbox's shared memory is in the guest.
const SANDBOX_SHM: &str = "/run/kata-containers/sandbox/shm";

/// The annotation by which an agent tells the pod's first container from the others.
const CONTAINER_TYPE: &str = "io.katacontainers.pkg.oci.container_type";

pub(super) fn spec(id: &str, root: &str) -> oci::Spec {
    oci::Spec {
        Version: "1.1.0".to_owned(),
        Process: Some(process()).into(),
        Root: Some(oci::Root { Path: root.to_owned(), ..Default::default() }).into(),
        Mounts: mounts(),
        Annotations: [(CONTAINER_TYPE.to_owned(), "pod_container".to_owned())].into(),
        Linux: Some(linux(id)).into(),
        ..Default::default()
    }
}

fn process() -> oci::Process {
    let nofile =
        oci::POSIXRlimit { Type: "RLIMIT_NOFILE".to_owned(), Hard: 1024, Soft: 1024, ..Default::default() };
    oci::Process {
        User: Some(oci::User::new()).into(),
        Args: vec!["sh".to_owned()],
        Env: vec![format!("PATH={DEFAULT_PATH}")],
        Cwd: "/".to_owned(),
        Capabilities: Some(capabilities(&DEFAULT_CAPABILITIES.map(str::to_owned))).into(),
        Rlimits: vec![nofile],
        NoNewPrivileges: true,
        ..Default::default()
    }
}

pub(super) fn capabilities(names: &[String]) -> oci::LinuxCapabilities {
    oci::LinuxCapabilities {
        Bounding: names.to_vec(),
        Effective: names.to_vec(),
        Permitted: names.to_vec(),
        ..Default::default()
    }
}

fn linux(id: &str) -> oci::Linux {
    let deny_all = oci::LinuxDeviceCgroup { Access: "rwm".to_owned(), ..Default::default() };
    let resources = oci::LinuxResources { Devices: vec![deny_all], ..Default::default() };
    oci::Linux {
        Resources: Some(resources).into(),
        CgroupsPath: format!("/nakai/{id}"),
        Namespaces: [("ipc", ""), ("uts", ""), ("mount", "")].map(namespace).to_vec(),
        MaskedPaths: DEFAULT_MASKED_PATHS.map(str::to_owned).to_vec(),
        ReadonlyPaths: DEFAULT_READONLY_PATHS.map(str::to_owned).to_vec(),
        ..Default::default()
    }
}

pub(super) fn namespace((kind, path): (&str, &str)) -> oci::LinuxNamespace {
    oci::LinuxNamespace { Type: kind.to_owned(), Path: path.to_owned(), ..Default::default() }
}

fn mounts() -> Vec<oci::Mount> {
    vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("/dev/shm", SANDBOX_SHM, "bind", &["rbind"]),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
    ]
}

pub(super) fn mount(destination: &str, source: &str, kind: &str, options: &[&str]) -> oci::Mount {
    oci::Mount {
        destination: destination.to_owned(),
        source: source.to_owned(),
        type_: kind.to_owned(),
        options: options.iter().map(|&option| option.to_owned()).collect(),
        ..Default::default()
    }
}
