//! A container's whole configuration as the agent's specification.
//!
//! In the order of containerd's CRI plugin: image, process, user, privileges, mounts, devices, limits, annotations.
//! What a VM shim changes afterwards is done on the way: namespaces have no paths, the network is the VM's, host
//! paths are those of the shared directory. [`plan`] touches nothing; what is to be done first is in the [`Plan`].

use std::collections::BTreeSet;
use std::path::PathBuf;

use nakai_protocols::oci;

use super::config::{
    ContainerConfig, LinuxContainerResources, NamespaceMode, NamespaceOption, PodSandboxConfig,
};
use super::devices::BlockDevice;
use super::extras::{Extras, RootKind};
use super::image::{ImageConfig, signal};
use super::mounts::{Bind, Places};
use super::users::{Accounts, Otherwise};
use super::{CriError, capabilities, devices, labels, mounts, resources, seccomp, user_namespace, users};
use crate::SpecBuilder;

/// All that a container is made of.
#[derive(Debug)]
pub struct Request<'a> {
    /// Its name at the agent.
    pub id: &'a str,
    /// Its pod.
    pub pod: &'a PodSandboxConfig,
    /// What was asked for.
    pub config: &'a ContainerConfig,
    /// What CRI has no word for.
    pub extras: &'a Extras,
    /// What its image says.
    pub image: &'a ImageConfig,
    /// The users that its root filesystem knows.
    pub accounts: &'a Accounts,
    /// Its root filesystem as the agent sees it.
    pub root: &'a str,
    /// How the agent sees the host's paths.
    pub places: &'a Places,
}

/// Tells the agent what a container has by the names of CDI: what they mean, files in the guest say, as it is the guest
/// that has the devices.
const CDI_DEVICES: &str = "cdi.k8s.io/cri";

/// By this annotation the agent makes nodes of all of the guest's devices, which this host does not know.
const GUEST_DEVICES: &str = "io.nakai.guest-devices";

/// What has to be done to make it.
#[derive(Clone, Debug)]
pub struct Plan {
    /// For the agent.
    pub spec: oci::Spec,
    /// It is in the pod's PID namespace.
    pub shared_pid: bool,
    /// Paths to be seen in the shared directory.
    pub binds: Vec<Bind>,
    /// Block devices to be plugged into the machine.
    pub blocks: Vec<BlockDevice>,
    /// Files to be written first.
    pub files: Vec<(PathBuf, String)>,
    /// What is left out, for the user.
    pub warnings: Vec<String>,
}

/// Makes the plan.
///
/// # Errors
///
/// A field that can't be carried out, by its name.
pub fn plan(request: &Request<'_>) -> Result<Plan, CriError> {
    let Request { id, pod, config, extras, image, root, .. } = request;
    let security = &config.linux.security_context;
    if security.privileged && !pod.linux.security_context.privileged {
        let reason = "a privileged container needs a pod whose security_context is privileged too";
        return Err(CriError::field("linux.security_context.privileged", reason));
    }
    if let Some(text) = config.stop_signal.as_deref().filter(|text| signal(text).is_none()) {
        return Err(CriError::field("stop_signal", format!("{text:?} is no signal")));
    }
    let user = user(request)?;
    let (namespaces, shared_pid, mut warnings) = namespaces(&security.namespace_options)?;
    warnings.extend(not_the_agents(pod));
    let mut builder = SpecBuilder::new(id, root)
        .args(image.arguments(config)?)
        .cwd(first([&config.working_dir, &image.working_dir, "/"]))
        .user(user.uid, user.gid, user.groups)
        .terminal(config.tty)
        .environment(environment(request))
        .no_new_privileges(security.no_new_privs)
        .readonly_rootfs(security.readonly_rootfs)
        .hostname(&pod.hostname)
        .namespaces(namespaces)
        .cgroups_path(&cgroup(&pod.linux.cgroup_parent, id));
    for limit in &extras.ulimits {
        builder = builder.rlimit(&limit.kind, limit.soft, limit.hard);
    }
    for (name, value) in &pod.linux.sysctls {
        builder = builder.sysctl(name, value);
    }
    let mut spec = builder.build();
    let sets = capabilities::sets(&security.capabilities, security.privileged)?;
    let filter = seccomp::filter(
        security.seccomp.as_ref(),
        &security.seccomp_profile_path,
        security.privileged,
        &sets.Bounding,
    )?;
    spec.Linux.mut_or_insert_default().Seccomp = filter.into();
    spec.Process.mut_or_insert_default().Capabilities = Some(sets).into();
    if let Some(owners) = user_namespace::owners(&security.namespace_options)? {
        user_namespace::apply(&mut spec, &owners);
    }
    labels::apply(&mut spec, security)?;
    if security.privileged {
        writable(&mut spec);
    }
    let files = pod_files(request, &mut spec);
    memory_filesystems(&mut spec, extras);
    let (binds, more) = mounts::apply(&mut spec, config, request.places, id)?;
    warnings.extend(more);
    let blocks = devices::apply(&mut spec, &config.devices, security.privileged)?;
    resources::apply(&mut spec, &config.linux.resources, extras)?;
    annotate(request, &mut spec);
    if let Some(names) = devices::cdi_names(&config.cdi_devices)? {
        spec.Annotations.insert(CDI_DEVICES.to_owned(), names);
    }
    if security.privileged {
        spec.Annotations.insert(GUEST_DEVICES.to_owned(), "true".to_owned());
    }
    Ok(Plan { spec, shared_pid, binds, blocks, files, warnings })
}

fn user(request: &Request<'_>) -> Result<users::User, CriError> {
    let otherwise = match &request.extras.user {
        Some(user) => Otherwise { who: "--user", user },
        None => Otherwise { who: "the image's user", user: &request.image.user },
    };
    let security = &request.config.linux.security_context;
    let mut user = users::resolve(security, otherwise, request.accounts)?;
    for group in &request.extras.groups {
        let gid = request.accounts.group(group, "--group-add")?;
        if !user.groups.contains(&gid) {
            user.groups.push(gid);
        }
    }
    Ok(user)
}

/// What of a pod is for who makes the machine.
fn not_the_agents(pod: &PodSandboxConfig) -> impl Iterator<Item = String> {
    let sizes = [("overhead", &pod.linux.overhead), ("resources", &pod.linux.resources)];
    let given = sizes.into_iter().filter(|(_, size)| **size != LinuxContainerResources::default());
    given.map(|(name, _)| {
        format!("linux.{name} of the pod: that is the machine's size, which is as it was made")
    })
}

/// The first that is not empty.
fn first(texts: [&str; 3]) -> &str {
    texts.into_iter().find(|text| !text.is_empty()).unwrap_or("/")
}

/// The image's variables below the container's own; a path, the host's name and the terminal's kind below both.
fn environment(request: &Request<'_>) -> Vec<String> {
    let mut all = vec![format!("PATH={}", crate::spec::DEFAULT_PATH)];
    if !request.pod.hostname.is_empty() {
        all.push(format!("HOSTNAME={}", request.pod.hostname));
    }
    if request.config.tty {
        all.push("TERM=xterm".to_owned());
    }
    let own = request.config.envs.iter().map(|env| format!("{}={}", env.key, env.value));
    all.extend(request.image.env.iter().cloned().chain(own));
    // Of several of one name the last counts. An image may have very many.
    let mut seen = BTreeSet::new();
    all.reverse();
    all.retain(|entry| seen.insert(entry.split('=').next().unwrap_or_default().to_owned()));
    all.reverse();
    all
}

/// A cgroup below the pod's.
fn cgroup(parent: &str, id: &str) -> String {
    match parent.trim_end_matches('/') {
        "" => format!("/nakai/{id}"),
        slice if slice.ends_with(".slice") && !slice.contains('/') => format!("{slice}:nakai:{id}"),
        path => format!("{path}/{id}"),
    }
}

/// The namespaces, and whether the PID namespace is the pod's.
#[expect(clippy::type_complexity, reason = "three results of one table")]
fn namespaces(
    options: &NamespaceOption,
) -> Result<(Vec<(&'static str, &'static str)>, bool, Vec<String>), CriError> {
    let refuse =
        |field: &str, reason: &str| Err(CriError::field(format!("namespace_options.{field}"), reason));
    let mut list = vec![("ipc", ""), ("uts", ""), ("mount", "")];
    let mut warnings = Vec::new();
    match options.network {
        // The VM is the node, and its network the pod's. The caller has looked whether the target's is the pod's.
        NamespaceMode::Pod | NamespaceMode::Node | NamespaceMode::Target => {}
        NamespaceMode::Container => list.push(("network", "")),
    }
    let shared_pid = match options.pid {
        NamespaceMode::Pod => true,
        NamespaceMode::Container => false,
        NamespaceMode::Node => {
            return refuse("pid", "NODE: in a VM that is the agent's own, which no container sees");
        }
        // The caller has looked whether that one is in the pod's.
        NamespaceMode::Target if !options.target_id.is_empty() => true,
        NamespaceMode::Target => return refuse("pid", "TARGET without target_id"),
    };
    match options.ipc {
        NamespaceMode::Pod | NamespaceMode::Target => {}
        NamespaceMode::Node => {
            warnings.push("namespace_options.ipc: NODE is the pod's: the VM runs no other".to_owned());
        }
        NamespaceMode::Container => return refuse("ipc", "CONTAINER: all containers share the pod's"),
    }
    Ok((list, shared_pid, warnings))
}

/// sysfs and the cgroups of a privileged container.
fn writable(spec: &mut oci::Spec) {
    for mount in spec.Mounts.iter_mut().filter(|mount| mount.type_ == "sysfs" || mount.type_ == "cgroup") {
        for option in mount.options.iter_mut().filter(|option| *option == "ro") {
            "rw".clone_into(option);
        }
    }
}

/// `/etc/hostname`, `/etc/hosts` and `/etc/resolv.conf`, where the configuration does not mount its own.
fn pod_files(request: &Request<'_>, spec: &mut oci::Spec) -> Vec<(PathBuf, String)> {
    let (host, guest) = request.places.directory(request.id);
    let pod = request.pod;
    let mut texts = Vec::new();
    // A directory that is the root itself is left as it is.
    let is_own = request.extras.root != RootKind::Itself;
    if is_own && !pod.hostname.is_empty() {
        texts.push(("hostname", format!("{}\n", pod.hostname)));
        let localhost = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";
        texts.push(("hosts", format!("{localhost}127.0.1.1\t{}\n", pod.hostname)));
    }
    let dns = resolv_conf(pod);
    if !dns.is_empty() {
        texts.push(("resolv.conf", dns.join("\n") + "\n"));
    }
    texts.retain(|(name, _)| {
        !request.config.mounts.iter().any(|mount| mount.container_path == format!("/etc/{name}"))
    });
    let access = if request.config.linux.security_context.readonly_rootfs { "ro" } else { "rw" };
    let mut files = Vec::new();
    for (name, text) in texts {
        spec.Mounts.push(oci::Mount {
            destination: format!("/etc/{name}"),
            source: format!("{guest}/files/{name}"),
            type_: "bind".to_owned(),
            options: ["rbind", "rprivate", access].map(str::to_owned).to_vec(),
            ..Default::default()
        });
        files.push((host.join("files").join(name), text));
    }
    files
}

/// The lines of resolv.conf(5); none where nothing is said of DNS.
pub fn resolv_conf(pod: &PodSandboxConfig) -> Vec<String> {
    let dns = &pod.dns_config;
    let mut lines = Vec::new();
    if !dns.searches.is_empty() {
        lines.push(format!("search {}", dns.searches.join(" ")));
    }
    lines.extend(dns.servers.iter().map(|server| format!("nameserver {server}")));
    if !dns.options.is_empty() {
        lines.push(format!("options {}", dns.options.join(" ")));
    }
    lines
}

fn memory_filesystems(spec: &mut oci::Spec, extras: &Extras) {
    let mut add = |path: &str, options: Vec<String>| {
        spec.Mounts.retain(|mount| mount.destination != path);
        spec.Mounts.push(oci::Mount {
            destination: path.to_owned(),
            source: "tmpfs".to_owned(),
            type_: "tmpfs".to_owned(),
            options,
            ..Default::default()
        });
    };
    if let Some(size) = extras.shm_size {
        let options = ["nosuid", "noexec", "nodev", "mode=1777"].map(str::to_owned);
        add("/dev/shm", options.into_iter().chain([format!("size={size}")]).collect());
    }
    for tmpfs in &extras.tmpfs {
        let usual = ["nosuid", "nodev", "noexec"].map(str::to_owned);
        add(&tmpfs.path, usual.into_iter().chain(tmpfs.options.iter().cloned()).collect());
    }
}

/// The user's labels and annotations, and the names by which containerd's CRI plugin tells a shim about the pod.
fn annotate(request: &Request<'_>, spec: &mut oci::Spec) {
    let Request { pod, config, .. } = request;
    let pairs = config.labels.iter().chain(&config.annotations);
    spec.Annotations.extend(pairs.map(|(key, value)| (key.clone(), value.clone())));
    let metadata = &pod.metadata;
    let own = [
        ("container-type", "container"),
        ("container-name", &config.metadata.name),
        ("sandbox-name", &metadata.name),
        ("sandbox-namespace", &metadata.namespace),
        ("sandbox-uid", &metadata.uid),
        ("sandbox-id", &sandbox_id(pod)),
        ("image-name", &config.image.image),
    ];
    let own = own.into_iter().filter(|(_, value)| !value.is_empty());
    spec.Annotations.extend(own.map(|(key, value)| (format!("io.kubernetes.cri.{key}"), value.to_owned())));
}

/// The sandbox's name at the agent.
pub fn sandbox_id(pod: &PodSandboxConfig) -> String {
    let named = [&pod.metadata.uid, &pod.metadata.name].into_iter().find(|name| !name.is_empty());
    named.map_or_else(|| "pod".to_owned(), |name| file_name(name))
}

/// A text as a name that the agent takes: letters, digits, `.`, `_` and `-`.
pub(super) fn file_name(text: &str) -> String {
    let harmless = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '-' };
    let name: String = text.chars().map(harmless).take(100).collect();
    let name = name.trim_start_matches(['.', '_', '-']);
    if name.is_empty() { "x".to_owned() } else { name.to_owned() }
}
