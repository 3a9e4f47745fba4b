//! Devices by the names of the Container Device Interface (CDI), and the files in the guest that say what a container
//! with such a device needs. What they say is carried out elsewhere (`spec/cdi.rs`).
//!
//! A name is `vendor.com/class=device`. Requests come as annotations `cdi.k8s.io/<anything>` with a list of names, or,
//! if that is configured, in the variable `VISIBLE_CDI_DEVICES`. Specification files are written by whoever sets the
//! devices up, perhaps while the container is being made: so a kind that is not there yet is waited for.
//!
//! Source: SPEC.md of github.com/cncf-tags/container-device-interface, versions up to 1.0.

mod catalog;
mod name;
#[cfg(test)]
mod tests;
mod watch;
mod yaml;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use slog::{Logger, info};
use tokio::time::Instant;

use self::catalog::Catalog;
pub use self::name::CdiName;
use self::watch::Watch;

/// Where specifications are looked for; what comes later in the list wins.
const DIRECTORIES: [&str; 3] = ["/etc/cdi", "/var/run/cdi", "/run/cdi"];

const ANNOTATION: &str = "cdi.k8s.io/";
const VARIABLE: &str = "VISIBLE_CDI_DEVICES=";

/// How long one wait for a change lasts: a caller who has gone away is noticed in between.
const ROUND: Duration = Duration::from_secs(1);

/// Why a container can't have the devices that it names.
#[derive(Debug, thiserror::Error)]
pub enum CdiError {
    /// A name that is none.
    #[error("CDI device {name:?}: {reason}")]
    Name {
        /// What was given.
        name: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// The kind is known, and has no such device.
    #[error("CDI device {name} is not among those of its kind: {known}")]
    NoDevice {
        /// Which.
        name: String,
        /// Those that there are.
        known: String,
    },
    /// Nobody has said what it is.
    #[error("no specification for the CDI devices {names} within {timeout:?}; {there}")]
    Timeout {
        /// Which.
        names: String,
        /// How long was waited.
        timeout: Duration,
        /// What is there instead.
        there: String,
    },
    /// The wait ended early.
    #[error("the look-up of CDI devices was cut short")]
    CutShort,
}

/// What a container asks for: devices, and all devices of a kind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CdiRequest {
    names: Vec<CdiName>,
}

impl CdiRequest {
    /// The names in a container's annotations and, if `visible`, in its environment.
    ///
    /// # Errors
    ///
    /// [`CdiError::Name`].
    pub fn gather(
        annotations: &HashMap<String, String>,
        environment: &[String],
        visible: bool,
    ) -> Result<Self, CdiError> {
        let mut names: Vec<CdiName> = Vec::new();
        let annotations: BTreeMap<_, _> = annotations.iter().collect();
        let lists = annotations.into_iter().filter(|(key, _)| key.starts_with(ANNOTATION));
        for text in lists.flat_map(|(_, list)| list.split(',')) {
            names.push(text.trim().parse()?);
        }
        let variable = environment.iter().rev().find_map(|entry| entry.strip_prefix(VARIABLE));
        if let Some(value) = variable.filter(|_| visible) {
            names.extend(name::visible(value)?);
        }
        let mut request = Self::default();
        for name in names {
            if !request.names.contains(&name) {
                request.names.push(name);
            }
        }
        Ok(request)
    }

    /// Whether nothing is asked for.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// What the specifications say of the devices, the `containerEdits` of each kind and device, in order; waits for
    /// specifications up to `timeout`.
    ///
    /// # Errors
    ///
    /// [`CdiError`].
    pub async fn resolve(&self, timeout: Duration, log: &Logger) -> Result<Vec<Value>, CdiError> {
        let directories: Vec<PathBuf> = DIRECTORIES.iter().map(PathBuf::from).collect();
        self.resolve_in(directories, timeout, log).await
    }

    async fn resolve_in(
        &self,
        directories: Vec<PathBuf>,
        timeout: Duration,
        log: &Logger,
    ) -> Result<Vec<Value>, CdiError> {
        let deadline = Instant::now() + timeout;
        let mut watch: Option<Watch> = None;
        loop {
            let late = Instant::now() >= deadline;
            let (places, ready) = (directories.clone(), watch.take());
            let looked = tokio::task::spawn_blocking(move || {
                // Watching starts before looking, so that nothing comes between the two.
                let watch = Watch::renew(ready, &places);
                (watch, Catalog::read(&places))
            });
            let (ready, catalog) = looked.await.map_err(|_| CdiError::CutShort)?;
            let missing = match catalog.edits(&self.names)? {
                Ok(edits) => {
                    let names = join(self.names.iter());
                    info!(log, "CDI devices"; "names" => names, "edits" => edits.len());
                    return Ok(edits);
                }
                Err(missing) => missing,
            };
            if late {
                let names = join(missing.into_iter());
                return Err(CdiError::Timeout { names, timeout, there: catalog.describe() });
            }
            let round = ROUND.min(deadline.saturating_duration_since(Instant::now()));
            let waited = tokio::task::spawn_blocking(move || ready.wait(round)).await;
            watch = Some(waited.map_err(|_| CdiError::CutShort)?);
        }
    }
}

/// What a specification of devices with this text says, for fuzzing.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn edits_in(text: &str, is_json: bool) -> Result<Vec<Value>, String> {
    Catalog::edits_in(text, is_json)
}

fn join<T: ToString>(names: impl Iterator<Item = T>) -> String {
    names.map(|name| name.to_string()).collect::<Vec<_>>().join(", ")
}
