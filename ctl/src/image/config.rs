//! What an image says about the containers that are made of it: the OCI image specification's `config`, and the
//! health check that Docker adds.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Deserializer};

/// An image's defaults. Empty where the image says nothing.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(default, rename_all = "PascalCase")]
pub struct ImageConfig {
    /// What the container's arguments are appended to.
    #[serde(deserialize_with = "or_default")]
    pub entrypoint: Vec<String>,
    /// The arguments, if the container has none.
    #[serde(deserialize_with = "or_default")]
    pub cmd: Vec<String>,
    /// `NAME=VALUE`
    #[serde(deserialize_with = "or_default")]
    pub env: Vec<String>,
    /// `user`, `uid`, `user:group`, `uid:gid` or a mixture; empty for root.
    #[serde(deserialize_with = "or_default")]
    pub user: String,
    /// Empty for `/`.
    #[serde(deserialize_with = "or_default")]
    pub working_dir: String,
    /// The signal that asks it to end, such as `SIGTERM`; empty for that.
    #[serde(deserialize_with = "or_default")]
    pub stop_signal: String,
    /// Directories that want a volume.
    #[serde(deserialize_with = "keys")]
    pub volumes: Vec<String>,
    /// Ports, such as `80/tcp`.
    #[serde(deserialize_with = "keys")]
    pub exposed_ports: Vec<String>,
    /// Names and values.
    #[serde(deserialize_with = "or_default")]
    pub labels: BTreeMap<String, String>,
    /// How to tell whether the container is well.
    #[serde(deserialize_with = "or_default")]
    pub healthcheck: Option<Healthcheck>,
}

/// A health check. What is zero is the orchestrator's to choose.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(default, rename_all = "PascalCase")]
pub struct Healthcheck {
    /// `NONE`; `CMD` and a program with its arguments; `CMD-SHELL` and a line for a shell.
    #[serde(deserialize_with = "or_default")]
    pub test: Vec<String>,
    /// Between two checks.
    #[serde(deserialize_with = "nanoseconds")]
    pub interval: Duration,
    /// Of one check.
    #[serde(deserialize_with = "nanoseconds")]
    pub timeout: Duration,
    /// Failures in this time after the start don't count.
    #[serde(deserialize_with = "nanoseconds")]
    pub start_period: Duration,
    /// Failures in a row that make it unhealthy.
    #[serde(deserialize_with = "or_default")]
    pub retries: u32,
}

/// The parts of an image's configuration that are read.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Configuration {
    pub(super) architecture: String,
    pub(super) os: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) config: ImageConfig,
    #[serde(deserialize_with = "or_default")]
    pub(super) rootfs: RootFs,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct RootFs {
    pub(super) diff_ids: Vec<String>,
}

/// `null` is what is not there.
fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(source: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(source)?.unwrap_or_default())
}

/// The specification has sets as objects with empty values.
fn keys<'de, D: Deserializer<'de>>(source: D) -> Result<Vec<String>, D::Error> {
    let set = Option::<BTreeMap<String, serde::de::IgnoredAny>>::deserialize(source)?;
    Ok(set.unwrap_or_default().into_keys().collect())
}

fn nanoseconds<'de, D: Deserializer<'de>>(source: D) -> Result<Duration, D::Error> {
    let nanoseconds = Option::<i64>::deserialize(source)?.unwrap_or_default();
    Ok(Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_is_read_and_null_is_nothing() {
        let text = r#"{"architecture":"amd64","os":"linux","config":{"Entrypoint":["/init"],"Cmd":null,
            "Env":["A=1"],"User":"web:7","WorkingDir":"/srv","StopSignal":"SIGQUIT","Volumes":{"/data":{}},
            "ExposedPorts":{"80/tcp":{},"53/udp":{}},"Labels":{"a":"b"},"Healthcheck":{"Test":["CMD-SHELL","true"],
            "Interval":30000000000,"Timeout":1000000000,"Retries":3}},"rootfs":{"type":"layers","diff_ids":["x"]}}"#;
        let Configuration { architecture, os, config, rootfs } = serde_json::from_str(text).unwrap();
        assert_eq!((&*architecture, &*os, &*rootfs.diff_ids), ("amd64", "linux", &["x".to_owned()][..]));
        assert_eq!((config.entrypoint, config.cmd), (vec!["/init".to_owned()], vec![]));
        assert_eq!((&*config.user, &*config.working_dir, &*config.stop_signal), ("web:7", "/srv", "SIGQUIT"));
        assert_eq!((config.volumes, config.env), (vec!["/data".to_owned()], vec!["A=1".to_owned()]));
        assert_eq!((config.exposed_ports.len(), &*config.labels["a"]), (2, "b"));
        let check = config.healthcheck.unwrap();
        assert_eq!((check.test.len(), check.retries, check.start_period), (2, 3, Duration::ZERO));
        assert_eq!((check.interval, check.timeout), (Duration::from_secs(30), Duration::from_secs(1)));
        let empty: Configuration = serde_json::from_str(r#"{"config":null}"#).unwrap();
        assert_eq!(empty.config, ImageConfig::default());
    }
}
