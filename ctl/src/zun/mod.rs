//! Zun's container create request as a CRI configuration.
//!
//! The names and values are those of Zun's API. Fields that only its control plane can act on are refused by name:
//! whoever sends them relies on something that would not happen.

mod nets;
mod request;
mod split;
mod values;

use std::path::{Path, PathBuf};

pub use request::Request;
pub use split::split;
pub use values::{BOOL_WORDS, Bool};

use crate::cri::config::{KeyValue, Mount, NamespaceMode, SecurityProfile};
use crate::cri::extras::{HealthCheck, RestartPolicy, Volume};
use crate::cri::{CriError, Order};
use crate::docker::{CPU_PERIOD, need_memory};
use crate::nets::HostNetworks;

/// How long a volume is waited for.
pub const VOLUME_SECONDS: u64 = 60;

/// What this host has for a request.
#[derive(Clone, Debug, Default)]
pub struct Host {
    /// Where images are looked for by their name.
    pub images: Option<PathBuf>,
    /// Where volumes appear, by their id.
    pub volumes: Option<PathBuf>,
    /// How long a volume may take.
    pub volume_seconds: u64,
    /// Its networks and PCI functions.
    pub networks: HostNetworks,
}

impl Request {
    /// What is asked for; `id` is the container's name where the request has none.
    ///
    /// # Errors
    ///
    /// A field that can't be carried out, by its name.
    pub fn order(&self, id: &str, host: &Host) -> Result<Order, CriError> {
        self.refuse_control_plane()?;
        let id = if self.name.is_empty() { id } else { &self.name };
        let mut order = Order { id: Some(id.to_owned()), ..Order::default() };
        let privileged = self.privileged.get();
        id.clone_into(&mut order.pod.metadata.name);
        id.clone_into(&mut order.pod.metadata.uid);
        let hostname = if self.hostname.is_empty() { id } else { &self.hostname };
        hostname.clone_into(&mut order.pod.hostname);
        order.pod.linux.security_context.privileged = privileged;
        order.pod.linux.security_context.namespace_options.pid = NamespaceMode::Container;

        let config = &mut order.config;
        id.clone_into(&mut config.metadata.name);
        config.image.image = self.image_path(host)?;
        config.command = self.entrypoint.words("entrypoint")?;
        config.args = self.command.words("command")?;
        config.working_dir.clone_from(&self.workdir);
        let variables = self.environment.iter();
        config.envs =
            variables.map(|(key, value)| KeyValue { key: key.clone(), value: value.clone() }).collect();
        config.labels.clone_from(&self.labels);
        let interactive = self.interactive.get();
        (config.stdin, config.tty) = (interactive, interactive || self.tty.get());
        let security = &mut config.linux.security_context;
        security.privileged = privileged;
        security.seccomp = Some(SecurityProfile::default());
        security.namespace_options.pid = NamespaceMode::Container;
        self.resources(&mut order)?;
        self.volumes(&mut order, host)?;

        let extras = &mut order.extras;
        extras.disk = self.disk.gibibytes()?;
        extras.restart = self.restart()?;
        extras.auto_remove = self.auto_remove.get();
        if extras.auto_remove && extras.restart != RestartPolicy::No {
            return Err(CriError::field("auto_remove", "not together with a restart_policy"));
        }
        extras.health = self.health()?;
        extras.image_health = true;
        extras.exposed_ports = self.exposed_ports.keys().cloned().collect();
        extras.needs_hostname = !self.hostname.is_empty();
        nets::apply(&self.nets, &self.pci_requests, &host.networks, extras)?;
        Ok(order)
    }

    /// Fields that somebody else would have to act on.
    fn refuse_control_plane(&self) -> Result<(), CriError> {
        let rest = &self.rest;
        let given = |name: &str| rest.get(name).is_some_and(|value| !values::is_empty(value));
        let control_plane = [
            ("hints", "scheduling"),
            ("availability_zone", "scheduling"),
            ("host", "scheduling"),
            ("security_groups", "the network service's"),
            ("registry", "registry credentials"),
            ("auto_heal", "Zun's own periodic task"),
            ("quota", "Zun's API"),
        ];
        for (name, whose) in control_plane {
            if given(name) {
                let reason = format!("control plane only ({whose}): no agent can act on it");
                return Err(CriError::field(name, reason));
            }
        }
        if let Some((name, _)) = rest.iter().find(|(_, value)| !values::is_empty(value)) {
            return Err(CriError::field(name.as_str(), "no such field in a create request"));
        }
        let one_of = |field: &str, value: &str, known: &[&str]| {
            if known.contains(&value) {
                return Ok(());
            }
            let known: Vec<_> = known.iter().filter(|word| !word.is_empty()).copied().collect();
            Err(CriError::field(field, format!("{value:?} is none of {}", known.join(", "))))
        };
        one_of("image_pull_policy", &self.image_pull_policy, &["", "always", "never", "ifnotpresent"])?;
        one_of("image_driver", &self.image_driver, &["", "local", "docker"])?;
        one_of("runtime", &self.runtime, &["", "nakai", "kata"])
    }

    /// A path of this host, or the name of one in the directory of images.
    fn image_path(&self, host: &Host) -> Result<String, CriError> {
        if self.image.is_empty() {
            return Err(CriError::field("image", "it is missing"));
        }
        match &host.images {
            Some(_) if Path::new(&self.image).is_absolute() => Ok(self.image.clone()),
            Some(directory) => Ok(directory.join(&self.image).display().to_string()),
            None => Ok(self.image.clone()),
        }
    }

    fn resources(&self, order: &mut Order) -> Result<(), CriError> {
        let resources = &mut order.config.linux.resources;
        resources.memory_limit_in_bytes = self.memory.mebibytes()?.unwrap_or_default();
        need_memory("memory", resources.memory_limit_in_bytes)?;
        if let Some(quota) = self.cpu.quota(CPU_PERIOD)? {
            (resources.cpu_quota, resources.cpu_period) = (quota, CPU_PERIOD);
        }
        match self.cpu_policy.as_str() {
            "" | "shared" => Ok(()),
            "dedicated" if !self.cpuset.cpus.is_empty() => {
                resources.cpuset_cpus.clone_from(&self.cpuset.cpus);
                resources.cpuset_mems.clone_from(&self.cpuset.mems);
                Ok(())
            }
            "dedicated" => {
                Err(CriError::field("cpu_policy", "dedicated needs cpuset.cpus, which the claim has given"))
            }
            other => Err(CriError::field("cpu_policy", format!("{other:?} is none of shared, dedicated"))),
        }
    }

    fn volumes(&self, order: &mut Order, host: &Host) -> Result<(), CriError> {
        for (number, mount) in self.mounts.iter().enumerate() {
            let field = |name: &str| format!("mounts[{number}].{name}");
            if !matches!(mount.kind.as_str(), "" | "volume") {
                return Err(CriError::field(field("type"), format!("{:?} is not volume", mount.kind)));
            }
            if !mount.destination.starts_with('/') {
                return Err(CriError::field(field("destination"), "not an absolute path"));
            }
            let path = match &host.volumes {
                _ if Path::new(&mount.source).is_absolute() => PathBuf::from(&mount.source),
                Some(directory) if !mount.source.is_empty() && !mount.source.contains('/') => {
                    directory.join(&mount.source)
                }
                _ => {
                    return Err(CriError::field(
                        field("source"),
                        "no volume of this host: a name needs --volumes",
                    ));
                }
            };
            order.config.mounts.push(Mount {
                host_path: path.display().to_string(),
                container_path: mount.destination.clone(),
                ..Mount::default()
            });
            order.extras.volumes.push(Volume {
                name: mount.source.clone(),
                path,
                seconds: host.volume_seconds,
            });
        }
        Ok(())
    }

    fn restart(&self) -> Result<RestartPolicy, CriError> {
        let policy = &self.restart_policy;
        let field = |reason: String| CriError::field("restart_policy", reason);
        let count = policy.count.count("restart_policy.MaximumRetryCount")?;
        let text = match (policy.name.as_str(), count) {
            ("on-failure", count) => format!("on-failure:{count}"),
            (_, 0) => policy.name.clone(),
            (name, _) => return Err(field(format!("MaximumRetryCount is for on-failure, not for {name:?}"))),
        };
        RestartPolicy::parse(&text).map_err(field)
    }

    fn health(&self) -> Result<Option<HealthCheck>, CriError> {
        let Some(asked) = &self.healthcheck else { return Ok(None) };
        if asked.cmd.is_empty() {
            return Err(CriError::field("healthcheck.cmd", "it is missing"));
        }
        let mut check = HealthCheck::shell(&asked.cmd);
        let seconds = |field: &str, number: &values::Number, default: std::time::Duration| {
            let count = number.count(&format!("healthcheck.{field}"))?;
            Ok::<_, CriError>(if count == 0 { default } else { std::time::Duration::from_secs(count.into()) })
        };
        check.interval = seconds("interval", &asked.interval, check.interval)?;
        check.timeout = seconds("timeout", &asked.timeout, check.timeout)?;
        match asked.retries.count("healthcheck.retries")? {
            0 => {}
            count => check.retries = count,
        }
        Ok(Some(check))
    }
}

#[cfg(test)]
mod tests;
