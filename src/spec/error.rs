//! Why a spec is refused.

use std::path::PathBuf;

use oci_spec::runtime::LinuxNamespaceType;

use super::CpuSetError;

/// Why a spec is refused: the field, what was seen in it, and the reason.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// A part that every container needs is not there.
    #[error("the spec has no {field}")]
    Missing {
        /// Its name in the runtime specification.
        field: &'static str,
    },
    /// The spec is of another major version.
    #[error("ociVersion {version:?} is not supported, 1.x is")]
    Version {
        /// What was given.
        version: String,
    },
    /// A part that is not implemented here.
    #[error("{field} is not supported: {reason}")]
    Unsupported {
        /// Its name in the runtime specification, with what names the entry.
        field: String,
        /// Why.
        reason: &'static str,
    },
    /// A value that is malformed or out of range.
    #[error("{field} is {value:?}: {reason}")]
    Invalid {
        /// Its name in the runtime specification.
        field: &'static str,
        /// What was given.
        value: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A path that has to be absolute.
    #[error("{field} is {path:?}, which is not absolute")]
    RelativePath {
        /// Its name in the runtime specification.
        field: &'static str,
        /// What was given.
        path: PathBuf,
    },
    /// Two entries where there may be one.
    #[error("{field} has two entries for {value}")]
    Duplicate {
        /// The list's name in the runtime specification.
        field: &'static str,
        /// What the two have in common.
        value: String,
    },
    /// The host names a namespace to join: it has no business with the guest's.
    #[error("linux.namespaces: joining the {kind} namespace {path:?} is not allowed")]
    HostNamespace {
        /// The type of the namespace.
        kind: LinuxNamespaceType,
        /// What was given.
        path: PathBuf,
    },
    /// A sysctl outside the container's namespaces.
    #[error("sysctl {name} is refused: {reason}")]
    Sysctl {
        /// Its name as given.
        name: String,
        /// Why.
        reason: &'static str,
    },
    /// A path in the cgroup hierarchy that climbs or names the root.
    #[error("linux.cgroupsPath is {path:?}: {reason}")]
    CgroupsPath {
        /// What was given.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A list of CPUs or memory nodes that can't be read.
    #[error("{field}: {source}")]
    CpuSet {
        /// Its name in the runtime specification.
        field: &'static str,
        /// What is wrong with it.
        #[source]
        source: CpuSetError,
    },
    /// The request's devices and the spec's don't fit together.
    #[error("device {path:?} of the request is not in linux.devices")]
    DeviceNotInSpec {
        /// Its path in the container.
        path: PathBuf,
    },
    /// The guest's own root disk is asked for.
    #[error("device {device} is the guest's own root disk: {reason}")]
    RootDevice {
        /// The node or the rule that asks for it.
        device: String,
        /// Why it can't be allowed or denied.
        reason: &'static str,
    },
    /// A mount that can't be made as asked.
    #[error("mount on {destination:?} is refused: {reason}")]
    Mount {
        /// Where in the container.
        destination: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A label of a security module that the guest does not have.
    #[error("{field} is {label:?}, but the guest's kernel does not run {module}, or without a policy")]
    NoSecurityModule {
        /// Its name in the runtime specification.
        field: &'static str,
        /// What was given.
        label: String,
        /// The security module.
        module: &'static str,
    },
    /// An AppArmor profile that the guest does not have.
    #[error("{field} is {label:?}, but no such profile is loaded in the guest")]
    NoAppArmorProfile {
        /// Its name in the runtime specification.
        field: &'static str,
        /// What was given.
        label: String,
    },
    /// libcontainer's own validator has an objection that no edit here foresaw.
    #[error("libcontainer refuses the spec: {source}")]
    Validator {
        /// What it says.
        #[source]
        source: Box<libcontainer::error::ErrInvalidSpec>,
    },
}
