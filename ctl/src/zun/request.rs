//! The body of `POST /v1/containers`.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::nets::{Net, PciRequest};
use super::values::{Bool, Number, Words};
use crate::cri::CriError;
use crate::cri::json::wrong;

/// A create request. `null` is as if the field were not there.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default)]
pub struct Request {
    pub(super) name: String,
    pub(super) image: String,
    pub(super) image_driver: String,
    pub(super) image_pull_policy: String,
    pub(super) runtime: String,
    pub(super) command: Words,
    pub(super) entrypoint: Words,
    pub(super) environment: BTreeMap<String, String>,
    pub(super) workdir: String,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) hostname: String,
    pub(super) interactive: Bool,
    pub(super) tty: Bool,
    pub(super) run: Bool,
    pub(super) memory: Number,
    pub(super) cpu: Number,
    pub(super) cpu_policy: String,
    pub(super) cpuset: Cpuset,
    pub(super) disk: Number,
    pub(super) privileged: Bool,
    #[serde(alias = "volumes")]
    pub(super) mounts: Vec<ZunMount>,
    pub(super) healthcheck: Option<ZunHealth>,
    pub(super) restart_policy: ZunRestart,
    pub(super) auto_remove: Bool,
    pub(super) exposed_ports: BTreeMap<String, Value>,
    #[serde(alias = "requested_networks")]
    pub(super) nets: Vec<Net>,
    pub(super) pci_requests: Vec<PciRequest>,
    /// Whatever else there is.
    #[serde(flatten)]
    pub(super) rest: BTreeMap<String, Value>,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Cpuset {
    pub(super) cpus: String,
    pub(super) mems: String,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub(super) struct ZunMount {
    pub(super) source: String,
    pub(super) destination: String,
    /// Of a volume to be made, which has been done by then.
    pub(super) size: Number,
    #[serde(rename = "type")]
    pub(super) kind: String,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub(super) struct ZunHealth {
    pub(super) cmd: String,
    pub(super) interval: Number,
    pub(super) retries: Number,
    pub(super) timeout: Number,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub(super) struct ZunRestart {
    #[serde(rename = "Name")]
    pub(super) name: String,
    #[serde(rename = "MaximumRetryCount")]
    pub(super) count: Number,
}

impl Request {
    /// Reads a request; `what` names it in errors.
    ///
    /// # Errors
    ///
    /// It is no JSON, or a field has a wrong type.
    pub fn read(what: &str, text: &str) -> Result<Self, CriError> {
        let json = |source| CriError::Json { what: what.to_owned(), source };
        let fields: Map<String, Value> = serde_json::from_str(text).map_err(json)?;
        let fields = Value::Object(fields.into_iter().filter(|(_, value)| !value.is_null()).collect());
        Self::deserialize(&fields).map_err(|source| wrong::<Self>(what, &fields, &source))
    }

    /// Whether it is to be started, too.
    pub fn runs(&self) -> bool {
        self.run.get()
    }
}
