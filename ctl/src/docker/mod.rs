//! `docker run`'s flags as a CRI configuration.
//!
//! A flag means what it means to Docker's users, and becomes the field of [`crate::cri`] that says the same; what
//! CRI has no word for goes into [`Extras`]. A flag whose effect nobody here can bring about is refused by name.

mod flags;
mod network;
pub mod parse;

use std::path::Path;

pub use flags::{CommandLine, Flags};

use clap::{Args as _, FromArgMatches as _};

use crate::cri::config::{
    Device, KeyValue, LinuxContainerSecurityContext, NamespaceMode, ProfileType, SeLinuxOption,
    SecurityProfile,
};
use crate::cri::extras::{HealthCheck, RestartPolicy};
use crate::cri::image::signal;
use crate::cri::{ContainerConfig, CriError, Extras, Order, PodSandboxConfig};

/// The CFS period that Docker uses, in microseconds.
pub(crate) const CPU_PERIOD: i64 = 100_000;

impl CommandLine {
    /// Reads the words behind `docker run`.
    ///
    /// # Errors
    ///
    /// A flag is not known, or has a wrong value: the parser's own words.
    pub fn read<S: Into<String>>(words: impl IntoIterator<Item = S>) -> Result<Self, String> {
        let words = std::iter::once("run".to_owned()).chain(words.into_iter().map(Into::into));
        let command = Self::augment_args(clap::Command::new("run"));
        let matches = command.try_get_matches_from(words).map_err(|error| error.to_string())?;
        Self::from_arg_matches(&matches).map_err(|error| error.to_string())
    }

    /// What is asked for.
    ///
    /// # Errors
    ///
    /// As [`Flags::order`].
    pub fn order(&self, id: &str) -> Result<Order, CriError> {
        self.flags.order(&self.image, &self.args, id)
    }
}

impl Flags {
    /// What is asked for: a container of `image` with `args`, which is called `id` where no flag names it.
    ///
    /// # Errors
    ///
    /// A flag that can't be carried out, by its name.
    pub fn order(&self, image: &str, args: &[String], id: &str) -> Result<Order, CriError> {
        let id = self.name.as_deref().unwrap_or(id);
        let mut order = Order { id: Some(id.to_owned()), ..Order::default() };
        order.extras = self.extras()?;
        order.pod = self.pod(id)?;
        let config = &mut order.config;
        config.metadata.name = id.to_owned();
        image.clone_into(&mut config.image.image);
        config.command = self.entrypoint.iter().cloned().collect();
        config.args = args.to_vec();
        if self.entrypoint.as_deref() == Some("") {
            // The image's is not to count.
            config.command = std::mem::take(&mut config.args);
        }
        self.workdir.clone_into(&mut config.working_dir);
        config.envs = self.environment()?;
        config.labels = self.label.iter().map(|label| parse::pair(label)).collect();
        config.annotations = self.annotation.iter().map(|label| parse::pair(label)).collect();
        (config.stdin, config.stdin_once, config.tty) = (self.interactive, self.interactive, self.tty);
        config.stop_signal.clone_from(&self.stop_signal);
        if let Some(text) = self.stop_signal.as_deref().filter(|text| signal(text).is_none()) {
            return Err(CriError::field("--stop-signal", format!("{text:?} is no signal")));
        }
        self.mounts(config, &mut order.extras)?;
        for device in &self.device {
            config.devices.push(self::device(device)?);
        }
        self.resources(config)?;
        self.security(&mut config.linux.security_context)?;
        Ok(order)
    }

    /// Those of the files come first: of several variables of a name the last counts.
    fn environment(&self) -> Result<Vec<KeyValue>, CriError> {
        let mut variables = Vec::new();
        for file in &self.env_file {
            let what = || format!("--env-file {}", file.display());
            let text = std::fs::read_to_string(file).map_err(CriError::io(what()))?;
            let lines = text.lines().map(str::trim_start).filter(|line| !line.is_empty());
            variables.extend(lines.filter(|line| !line.starts_with('#')).filter_map(variable));
        }
        variables.extend(self.env.iter().filter_map(|entry| variable(entry)));
        match variables.iter().find(|variable| variable.key.is_empty()) {
            Some(KeyValue { value, .. }) => {
                Err(CriError::field("--env", format!("{:?}: a variable without a name", format!("={value}"))))
            }
            None => Ok(variables),
        }
    }

    fn pod(&self, id: &str) -> Result<PodSandboxConfig, CriError> {
        let mut pod = PodSandboxConfig::default();
        id.clone_into(&mut pod.metadata.name);
        id.clone_into(&mut pod.metadata.uid);
        self.hostname.as_deref().unwrap_or(id).clone_into(&mut pod.hostname);
        self.cgroup_parent.as_deref().unwrap_or_default().clone_into(&mut pod.linux.cgroup_parent);
        pod.dns_config.servers.clone_from(&self.dns);
        pod.dns_config.searches.clone_from(&self.dns_search);
        pod.dns_config.options.clone_from(&self.dns_option);
        for sysctl in &self.sysctl {
            let (name, value) = sysctl
                .split_once('=')
                .ok_or_else(|| CriError::field("--sysctl", format!("{sysctl:?} is not NAME=VALUE")))?;
            pod.linux.sysctls.insert(name.to_owned(), value.to_owned());
        }
        let security = &mut pod.linux.security_context;
        security.privileged = self.privileged;
        security.namespace_options.pid = NamespaceMode::Container;
        Ok(pod)
    }

    fn extras(&self) -> Result<Extras, CriError> {
        let wrong = |flag: &str| {
            let flag = flag.to_owned();
            move |reason: String| CriError::field(flag, reason)
        };
        let restart = RestartPolicy::parse(&self.restart).map_err(wrong("--restart"))?;
        if self.auto_remove && restart != RestartPolicy::No {
            return Err(CriError::field("--rm", "not together with --restart"));
        }
        let mut extras = Extras {
            user: self.user.clone(),
            groups: self.group_add.clone(),
            pids_limit: self.pids_limit,
            shm_size: self.shm_size,
            restart,
            auto_remove: self.auto_remove,
            exposed_ports: self.expose.clone(),
            needs_hostname: self.hostname.is_some(),
            cards: network::cards(self)?,
            image_health: !self.no_healthcheck,
            ..Extras::default()
        };
        for option in &self.storage_opt {
            let size = option.strip_prefix("size=").and_then(parse::bytes);
            let wrong = || CriError::field("--storage-opt", format!("{option:?} is not size=BYTES"));
            extras.disk = Some(size.ok_or_else(wrong)?);
        }
        for option in &self.log_opt {
            extras.log_limits.set(option).map_err(wrong("--log-opt"))?;
        }
        for limit in &self.ulimit {
            extras.ulimits.push(parse::ulimit(limit).map_err(wrong("--ulimit"))?);
        }
        for tmpfs in &self.tmpfs {
            extras.tmpfs.push(parse::tmpfs(tmpfs).map_err(wrong("--tmpfs"))?);
        }
        extras.health = self.health();
        Ok(extras)
    }

    fn health(&self) -> Option<HealthCheck> {
        let mut check = HealthCheck::shell(self.health_cmd.as_deref()?);
        check.interval = self.health_interval.unwrap_or(check.interval);
        check.timeout = self.health_timeout.unwrap_or(check.timeout);
        check.retries = self.health_retries.unwrap_or(check.retries);
        check.start_period = self.health_start_period.unwrap_or(check.start_period);
        Some(check)
    }

    fn mounts(&self, config: &mut ContainerConfig, extras: &mut Extras) -> Result<(), CriError> {
        for volume in &self.volume {
            let mount = parse::volume(volume).map_err(|reason| CriError::field("--volume", reason))?;
            config.mounts.push(mount);
        }
        for mount in &self.mount {
            match parse::mount(mount).map_err(|reason| CriError::field("--mount", reason))? {
                parse::Mounted::Bind(mount) if Path::new(&mount.host_path).exists() => {
                    config.mounts.push(mount);
                }
                // Only --volume makes it.
                parse::Mounted::Bind(mount) => {
                    let reason = format!("source {}: no such file or directory", mount.host_path);
                    return Err(CriError::field("--mount", reason));
                }
                parse::Mounted::Tmpfs(tmpfs) => extras.tmpfs.push(tmpfs),
            }
        }
        Ok(())
    }

    #[expect(clippy::cast_possible_truncation, reason = "a saturating cast of a count of CPUs")]
    fn resources(&self, config: &mut ContainerConfig) -> Result<(), CriError> {
        let resources = &mut config.linux.resources;
        if let Some(cpus) = self.cpus {
            resources.cpu_period = CPU_PERIOD;
            resources.cpu_quota = (cpus * CPU_PERIOD as f64) as i64;
        }
        resources.cpu_shares = self.cpu_shares.unwrap_or_default();
        resources.cpuset_cpus.clone_from(&self.cpuset_cpus);
        resources.cpuset_mems.clone_from(&self.cpuset_mems);
        resources.memory_limit_in_bytes = signed(self.memory);
        resources.memory_swap_limit_in_bytes = signed(self.memory_swap);
        resources.oom_score_adj = self.oom_score_adj.unwrap_or_default();
        need_memory("--memory", resources.memory_limit_in_bytes)
    }

    fn security(&self, security: &mut LinuxContainerSecurityContext) -> Result<(), CriError> {
        security.privileged = self.privileged;
        security.readonly_rootfs = self.read_only;
        security.capabilities.add_capabilities.clone_from(&self.cap_add);
        security.capabilities.drop_capabilities.clone_from(&self.cap_drop);
        security.seccomp = Some(SecurityProfile::default());
        for option in &self.security_opt {
            security_option(security, option)?;
        }
        let namespaces = &mut security.namespace_options;
        let mut targets = Vec::new();
        let mut target = |flag: &'static str, word: &str| {
            let id = word.strip_prefix("container:").filter(|id| !id.is_empty())?;
            targets.push((flag, id.to_owned()));
            Some(NamespaceMode::Target)
        };
        namespaces.pid = match self.pid.as_str() {
            "" | "private" => NamespaceMode::Container,
            "host" => NamespaceMode::Node,
            word => target("--pid", word)
                .ok_or_else(|| CriError::field("--pid", "none of private, host, container:ID"))?,
        };
        namespaces.ipc = match self.ipc.as_str() {
            "" | "private" | "shareable" => NamespaceMode::Pod,
            "host" => NamespaceMode::Node,
            word => target("--ipc", word).ok_or_else(|| {
                CriError::field("--ipc", "none of private, shareable, host, container:ID: all share the VM's")
            })?,
        };
        let network = self.network.first().and_then(|word| target("--network", word));
        if let Some((_, id)) = targets.first() {
            if let Some((flag, other)) = targets.iter().find(|(_, other)| other != id) {
                return Err(CriError::field(
                    *flag,
                    format!("container:{other} beside container:{id}: one only"),
                ));
            }
            namespaces.target_id.clone_from(id);
        }
        namespaces.network = network.unwrap_or_else(|| network::mode(self));
        Ok(())
    }
}

/// An error of a field as one of the flag that became it.
#[must_use]
pub fn by_flag(error: CriError) -> CriError {
    const FLAGS: [(&str, &str); 7] = [
        ("add_capabilities", "--cap-add"),
        ("drop_capabilities", "--cap-drop"),
        ("devices[", "--device"),
        ("mounts[", "--volume, --mount"),
        ("namespace_options.pid", "--pid"),
        ("namespace_options.ipc", "--ipc"),
        ("namespace_options.network", "--network"),
    ];
    match error {
        CriError::Field { field, reason } => {
            let flag = FLAGS.iter().find(|(name, _)| field.starts_with(name));
            CriError::Field { field: flag.map_or(field, |(_, flag)| (*flag).to_owned()), reason }
        }
        // What such a field is about is behind its name.
        CriError::Io { what, source } => {
            let flag = FLAGS.iter().find(|(name, _)| what.starts_with(name));
            let flagged =
                flag.zip(what.split_once(' ')).map(|((_, flag), (_, rest))| format!("{flag} {rest}"));
            CriError::Io { what: flagged.unwrap_or(what), source }
        }
        other => other,
    }
}

/// Less memory is not enough for a program to start.
const MIN_MEMORY: i64 = 6 << 20;

/// A limit, where there is one, is Docker's least or more.
pub(crate) fn need_memory(field: &str, bytes: i64) -> Result<(), CriError> {
    if bytes == 0 || bytes >= MIN_MEMORY {
        return Ok(());
    }
    Err(CriError::field(field, format!("{bytes} bytes are too few for any program, the least are 6 MiB")))
}

fn signed(bytes: Option<u64>) -> i64 {
    bytes.map_or(0, |bytes| i64::try_from(bytes).unwrap_or(i64::MAX))
}

/// `NAME=VALUE`, or `NAME` with this program's own value if it has one.
fn variable(entry: &str) -> Option<KeyValue> {
    let (key, value) = match entry.split_once('=') {
        Some((key, value)) => (key.to_owned(), value.to_owned()),
        None => (entry.to_owned(), std::env::var(entry).ok()?),
    };
    Some(KeyValue { key, value })
}

/// `HOST[:CONTAINER[:PERMISSIONS]]`
fn device(text: &str) -> Result<Device, CriError> {
    let parts: Vec<&str> = text.split(':').collect();
    let is_access = |text: &str| !text.is_empty() && text.chars().all(|c| "rwm".contains(c));
    let (host, container, permissions) = match *parts.as_slice() {
        [host] => (host, host, "rwm"),
        [host, access] if is_access(access) => (host, host, access),
        [host, container] => (host, container, "rwm"),
        [host, container, access] => (host, container, access),
        _ => return Err(CriError::field("--device", format!("{text:?} is not HOST[:CONTAINER[:rwm]]"))),
    };
    let [host_path, container_path, permissions] = [host, container, permissions].map(str::to_owned);
    Ok(Device { container_path, host_path, permissions })
}

fn security_option(security: &mut LinuxContainerSecurityContext, option: &str) -> Result<(), CriError> {
    let (name, value) = option.split_once('=').or_else(|| option.split_once(':')).unwrap_or((option, ""));
    let profile = |value: &str| match value {
        "unconfined" => {
            SecurityProfile { profile_type: ProfileType::Unconfined, ..SecurityProfile::default() }
        }
        path => SecurityProfile { profile_type: ProfileType::Localhost, localhost_ref: path.to_owned() },
    };
    match (name, value) {
        ("no-new-privileges", "" | "true") => security.no_new_privs = true,
        ("no-new-privileges", "false") => security.no_new_privs = false,
        ("seccomp", "builtin") => {}
        ("seccomp", value) if !value.is_empty() => security.seccomp = Some(profile(value)),
        ("apparmor", value) if !value.is_empty() => security.apparmor = Some(profile(value)),
        ("systempaths", "unconfined") => {
            (security.masked_paths, security.readonly_paths) = (Some(Vec::new()), Some(Vec::new()));
        }
        ("label", "disable") => security.selinux_options = None,
        ("label", label) => {
            let label_parts = security.selinux_options.get_or_insert_with(|| SeLinuxOption {
                user: "system_u".to_owned(),
                role: "system_r".to_owned(),
                kind: "container_t".to_owned(),
                level: String::new(),
            });
            match label.split_once(':') {
                Some(("user", value)) => value.clone_into(&mut label_parts.user),
                Some(("role", value)) => value.clone_into(&mut label_parts.role),
                Some(("type", value)) => value.clone_into(&mut label_parts.kind),
                Some(("level", value)) => value.clone_into(&mut label_parts.level),
                _ => {
                    return Err(CriError::field(
                        "--security-opt",
                        format!("{option:?}: no such part of a label"),
                    ));
                }
            }
        }
        _ => return Err(CriError::field("--security-opt", format!("{option:?} is not known"))),
    }
    Ok(())
}

#[cfg(test)]
mod tests;
