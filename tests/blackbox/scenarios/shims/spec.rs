//! The specifications that containerd's CRI plugin makes for a pod, as they are when a shim has edited them.
//!
//! The host has AppArmor, as Debian and Ubuntu have, and cgroups by systemd.

use std::path::Path;

use nakai_ctl::SpecBuilder;
use nakai_protocols::oci::{LinuxCPU, LinuxHugepageLimit, LinuxMemory, LinuxNamespace, LinuxResources, User};

use crate::harness::{Ctx, Fallible};

/// What the container's files on the host are named after.
const FILES: [(&str, &str, &str); 4] = [
    ("hostname", "/etc/hostname", "pod-host\n"),
    ("hosts", "/etc/hosts", "127.0.0.1 localhost pod-host\n"),
    ("resolv.conf", "/etc/resolv.conf", "nameserver 192.0.2.53\n"),
    ("termination-log", "/dev/termination-log", ""),
];

/// Which container of the pod, and how its host arranges its cgroups.
pub(super) struct Place<'a> {
    pub(super) pod: &'a str,
    pub(super) name: &'a str,
    pub(super) cgroups_path: String,
}

/// What containers of the pod have in common.
fn common(id: &str, root: &str, place: &Place<'_>) -> SpecBuilder {
    let Place { pod, name, cgroups_path } = place;
    SpecBuilder::new(id, root)
        .cgroups_path(cgroups_path)
        .annotation("io.katacontainers.pkg.oci.bundle_path", &format!("/run/containerd/{id}"))
        .annotation("io.kubernetes.cri.sandbox-id", pod)
        .annotation("io.kubernetes.cri.sandbox-name", "pod")
        .annotation("io.kubernetes.cri.sandbox-namespace", "default")
        .annotation("io.kubernetes.cri.container-name", name)
        .edit(|spec| {
            spec.Version = "1.2.1".to_owned();
            let process = spec.Process.mut_or_insert_default();
            process.ApparmorProfile = "cri-containerd.apparmor.d".to_owned();
            process.Rlimits.clear();
            let linux = spec.Linux.mut_or_insert_default();
            // No shim hands the host's device rules on.
            linux.Resources = Some(LinuxResources::new()).into();
        })
}

/// The container that holds the pod's namespaces on an ordinary node.
pub(super) fn pause(ctx: &Ctx, id: &str, place: &Place<'_>) -> SpecBuilder {
    // Root of a host that is a container itself may not be spared.
    let score = if ctx.is_host() { 998 } else { -998 };
    common(id, &ctx.guest_root(id), place)
        .annotation("io.katacontainers.pkg.oci.container_type", "pod_sandbox")
        .annotation("io.kubernetes.cri.container-type", "sandbox")
        .args(["sleep", "1000000"])
        .user(65535, 65535, [65535])
        .oom_score_adj(score)
        .readonly_rootfs(true)
        .hostname("pod-host")
        .sysctl("net.ipv4.ip_unprivileged_port_start", "0")
        .sysctl("net.ipv4.ping_group_range", "0 2147483647")
        .without_mount("/sys/fs/cgroup")
        .edit(|spec| {
            let cpu = LinuxCPU { Shares: 2, ..Default::default() };
            let resources = spec.Linux.mut_or_insert_default().Resources.mut_or_insert_default();
            resources.CPU = Some(cpu).into();
        })
}

/// A container of a pod with limits, of a node that has huge pages.
pub(super) fn workload(id: &str, root: &str, place: &Place<'_>) -> SpecBuilder {
    common(id, root, place)
        .annotation("io.katacontainers.pkg.oci.container_type", "pod_container")
        .annotation("io.kubernetes.cri.container-type", "container")
        .annotation("io.kubernetes.container.terminationMessagePath", "/dev/termination-log")
        .env("HOSTNAME", "pod-host")
        .env("KUBERNETES_SERVICE_HOST", "192.0.2.1")
        .oom_score_adj(985)
        .seccomp(super::profile::runtime_default())
        .edit(|spec| {
            let page = |size: &str| LinuxHugepageLimit { Pagesize: size.to_owned(), ..Default::default() };
            let memory = LinuxMemory { Limit: 64 << 20, Swap: 64 << 20, ..Default::default() };
            let cpu = LinuxCPU { Shares: 204, Quota: 20_000, Period: 100_000, ..Default::default() };
            let linux = spec.Linux.mut_or_insert_default();
            linux.Resources = Some(LinuxResources {
                CPU: Some(cpu).into(),
                Memory: Some(memory).into(),
                HugepageLimits: ["1GB", "2MB"].map(page).to_vec(),
                ..Default::default()
            })
            .into();
        })
}

/// The user of an image, as the Go shim sends it: with groups, and nothing that the container has already.
pub(super) fn exec_process(args: &[&str], terminal: bool) -> nakai_protocols::oci::Process {
    nakai_protocols::oci::Process {
        Terminal: terminal,
        User: Some(User { UID: 1000, GID: 1000, AdditionalGids: vec![2000], ..Default::default() }).into(),
        Args: args.iter().map(|&arg| arg.to_owned()).collect(),
        Env: vec!["PATH=/bin".to_owned(), "TERM=xterm".to_owned()],
        Cwd: "/".to_owned(),
        ..Default::default()
    }
}

/// Puts the files that the kubelet and containerd make for a container where the guest sees them, and mounts them.
pub(super) fn with_files(spec: SpecBuilder, host: &Path, guest: &str) -> Fallible<SpecBuilder> {
    let mut spec = spec;
    for (name, destination, text) in FILES {
        std::fs::write(host.join(name), text)?;
        spec = spec.mount(destination, &format!("{guest}/{name}"), "bind", &["rbind", "rprivate", "rw"]);
    }
    Ok(spec)
}

/// Namespaces as the node's runtime would join them: the pod's.
pub(super) fn joining(spec: SpecBuilder) -> SpecBuilder {
    spec.edit(|spec| {
        let namespace = |kind: &str, path: &str| LinuxNamespace {
            Type: kind.to_owned(),
            Path: path.to_owned(),
            ..Default::default()
        };
        spec.Linux.mut_or_insert_default().Namespaces = vec![
            namespace("ipc", "/proc/4242/ns/ipc"),
            namespace("uts", "/proc/4242/ns/uts"),
            namespace("mount", ""),
            namespace("cgroup", ""),
        ];
    })
}

/// A directory for a container's files, on the host and in the guest.
pub(super) fn files_of(ctx: &Ctx, id: &str) -> Fallible<(std::path::PathBuf, String)> {
    ctx.directory_of(id, "files")
}
