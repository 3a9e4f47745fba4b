//! The OCI specification: the wire's messages ([`crate::oci`]) to the model that the runtime takes
//! ([`oci_spec::runtime`]), and back.
//!
//! Pure functions over borrowed values. They never panic, whatever they are given, and add nothing:
//! of the model's defaults (a shell, capabilities, limits, mounts, namespaces) none can show. What a
//! side can't hold is refused with the field's name: nothing is dropped silently, nothing cut.
//!
//! # What is absent
//!
//! A message that is not there is absent, and stays so. Strings, numbers, flags and lists have no
//! absent value in proto3; a shim that has nothing to say sends the empty one. So an empty string,
//! list or map, a zero and a `false` become absent, and absent becomes them. The exceptions:
//!
//! | field | reading |
//! | --- | --- |
//! | `ociVersion` | empty is [`oci_spec::runtime::VERSION`] |
//! | `process.user` | an absent message is uid and gid 0 |
//! | `process.oomScoreAdj` | 0 is 0: left out, a process would inherit the agent's |
//! | `process.capabilities` | present, it has all five sets, empty ones too |
//! | `process.noNewPrivileges` | `false` is absent as elsewhere, and never `false`: the runtime takes its mere presence for a reason to load the filter late |
//! | `hooks` timeout | 0 is absent, a negative one is refused |
//! | `linux.resources.pids.limit` | 0 and below is -1, no limit |
//! | `linux.resources.hugepageLimits.limit`, `blockIO` rates | 0 is 0; a huge-page limit above [`i64::MAX`] becomes that |
//! | `linux.resources.devices` | negative numbers are any; so are some zeros (see `devices.rs`) |
//! | numbers that identify: ids, indices, device nodes | 0 is 0 |
//!
//! # What does not come back
//!
//! From the wire and to it again, all comes back but: what the table says; the spelling, order and
//! repetition of capabilities, and those that do not exist ([`unknown_capabilities`]); `mnt` and `net` (as `mount`
//! and `network`); `Solaris` and `Windows`, which are not read at all (a Linux guest has no use for them, and the
//! wire only has a place-holder there).
//!
//! From the model to the wire, what the wire has no field for is [`SpecError::NotCarried`], and so
//! is a zero that means something where the wire's zero means absent (`swappiness`, `errnoRet` of an
//! errno action, a device's mode): better refused by the client than a container that differs.

mod blkio;
mod capabilities;
mod devices;
mod error;
mod hooks;
mod linux;
mod mounts;
mod process;
mod resources;
mod seccomp;
mod value;

use oci_spec::runtime;

pub use self::capabilities::CAPABILITIES;
pub use self::error::SpecError;
use self::value::{blank, each, items, list, map, not_carried, text};
use crate::oci;

/// A container's specification off the wire.
///
/// # Errors
///
/// A name that the specification doesn't have, or a number that the model can't hold.
pub fn from_wire(wire: &oci::Spec) -> Result<runtime::Spec, SpecError> {
    let version = text(&wire.Version).unwrap_or_else(|| runtime::VERSION.to_owned());
    let mut spec: runtime::Spec = blank("spec", "{}")?;
    spec.set_version(version)
        .set_root(wire.Root.as_ref().map(mounts::root_from_wire).transpose()?)
        .set_mounts(list(&wire.Mounts, mounts::from_wire)?)
        .set_process(wire.Process.as_ref().map(process::from_wire).transpose()?)
        .set_hostname(text(&wire.Hostname))
        .set_hooks(wire.Hooks.as_ref().map(hooks::from_wire).transpose()?)
        .set_annotations(map(&wire.Annotations))
        .set_linux(wire.Linux.as_ref().map(linux::from_wire).transpose()?);
    Ok(spec)
}

/// A container's specification as it goes on the wire.
///
/// # Errors
///
/// A field that the wire lacks, a number that it can't hold, or a path that is not UTF-8.
pub fn to_wire(spec: &runtime::Spec) -> Result<oci::Spec, SpecError> {
    not_carried("domainname", spec.domainname().is_some())?;
    not_carried("solaris", spec.solaris().is_some())?;
    not_carried("windows", spec.windows().is_some())?;
    not_carried("vm", spec.vm().is_some())?;
    not_carried("zos", spec.zos().is_some())?;
    not_carried("uidMappings", !items(spec.uid_mappings()).is_empty())?;
    not_carried("gidMappings", !items(spec.gid_mappings()).is_empty())?;
    Ok(oci::Spec {
        Version: spec.version().clone(),
        Process: spec.process().as_ref().map(process::to_wire).transpose()?.into(),
        Root: spec.root().as_ref().map(mounts::root_to_wire).transpose()?.into(),
        Hostname: spec.hostname().clone().unwrap_or_default(),
        Mounts: each(items(spec.mounts()), mounts::to_wire)?,
        Hooks: spec.hooks().as_ref().map(hooks::to_wire).transpose()?.into(),
        Annotations: spec.annotations().clone().unwrap_or_default(),
        Linux: spec.linux().as_ref().map(linux::to_wire).transpose()?.into(),
        ..Default::default()
    })
}

/// A process off the wire: that of an exec.
///
/// # Errors
///
/// A name that the specification doesn't have, or a number that the model can't hold.
pub fn process_from_wire(wire: &oci::Process) -> Result<runtime::Process, SpecError> {
    process::from_wire(wire)
}

/// The capabilities of a process off the wire that do not exist: it does not get them, and whoever runs it shall tell.
pub fn unknown_capabilities(wire: &oci::Process) -> Vec<&str> {
    wire.Capabilities.as_ref().map(capabilities::unknown).into_iter().flatten().collect()
}

/// A process as it goes on the wire.
///
/// # Errors
///
/// A field that the wire lacks, a number that it can't hold, or a path that is not UTF-8.
pub fn process_to_wire(process: &runtime::Process) -> Result<oci::Process, SpecError> {
    process::to_wire(process)
}

/// Resource limits off the wire: those of an update.
///
/// # Errors
///
/// A name that the specification doesn't have, or a number that the model can't hold.
pub fn resources_from_wire(wire: &oci::LinuxResources) -> Result<runtime::LinuxResources, SpecError> {
    resources::from_wire(wire)
}

/// Resource limits as they go on the wire.
///
/// # Errors
///
/// A field that the wire lacks, or a number that it can't hold.
pub fn resources_to_wire(resources: &runtime::LinuxResources) -> Result<oci::LinuxResources, SpecError> {
    resources::to_wire(resources)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Fails as soon as a default of the model shows.
    #[test]
    fn an_empty_specification_is_but_a_version() {
        let spec = from_wire(&oci::Spec::default()).unwrap();
        assert_eq!(serde_json::to_value(&spec).unwrap(), json!({"ociVersion": runtime::VERSION}));
        assert!(runtime::VERSION.starts_with("1."), "the runtime takes no other");
    }

    #[test]
    fn empty_parts_hold_nothing() {
        let wire = oci::Spec {
            Version: "1.0.2".into(),
            Process: Some(oci::Process::default()).into(),
            Root: Some(oci::Root::default()).into(),
            Hooks: Some(oci::Hooks::default()).into(),
            Linux: Some(oci::Linux {
                Resources: Some(oci::LinuxResources::default()).into(),
                ..Default::default()
            })
            .into(),
            ..Default::default()
        };
        let expected = json!({
            "ociVersion": "1.0.2",
            "process": {"user": {"uid": 0, "gid": 0}, "cwd": "", "oomScoreAdj": 0},
            "root": {"path": ""},
            "hooks": {},
            "linux": {"resources": {}},
        });
        let spec = from_wire(&wire).unwrap();
        assert_eq!(serde_json::to_value(&spec).unwrap(), expected);
        // The runtime reads what we write: nothing may be added on that way either.
        assert_eq!(serde_json::from_value::<runtime::Spec>(expected).unwrap(), spec);
    }

    #[test]
    fn the_outer_fields_survive_both_ways() {
        let wire = oci::Spec {
            Version: "1.2.0".into(),
            Hostname: "pod".into(),
            Annotations: [("a.b".to_owned(), String::new())].into(),
            Root: Some(oci::Root { Path: "/r".into(), Readonly: true, ..Default::default() }).into(),
            Mounts: ["/b", "/a"].map(|d| oci::Mount { destination: d.into(), ..Default::default() }).to_vec(),
            ..Default::default()
        };
        assert_eq!(to_wire(&from_wire(&wire).unwrap()).unwrap(), wire);
    }

    #[test]
    fn what_the_wire_lacks_is_refused_by_name() {
        let mut spec = from_wire(&oci::Spec::default()).unwrap();
        spec.set_domainname(Some("example.org".into()));
        assert_eq!(to_wire(&spec).unwrap_err().to_string(), "domainname: the agent protocol can't carry it");
    }
}
