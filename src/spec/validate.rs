//! What must hold of a spec before any edit, and what is refused as a whole.
//!
//! libcontainer's own validator runs again in the worker, where an error costs a process and loses its
//! cause; so whatever it would refuse is refused here first, by name.

use std::collections::HashSet;

use oci_spec::runtime::{Linux, LinuxIntelRdt, Spec};

use super::SpecError;

/// The version written when the host gives none.
const VERSION: &str = "1.2.0";

/// Checks the parts that no other edit looks at, and takes out those of other systems.
pub(super) fn spec(spec: &mut Spec) -> Result<(), SpecError> {
    if spec.version().is_empty() {
        spec.set_version(VERSION.to_owned());
    }
    if !spec.version().starts_with("1.") {
        return Err(SpecError::Version { version: spec.version().clone() });
    }
    if spec.root().is_none() {
        return Err(SpecError::Missing { field: "root" });
    }
    // The wire has empty messages in their place.
    spec.set_solaris(None).set_windows(None).set_vm(None).set_zos(None);
    linux(spec.linux_mut().as_mut().ok_or(SpecError::Missing { field: "linux" })?)
}

fn linux(linux: &mut Linux) -> Result<(), SpecError> {
    if linux.intel_rdt().as_ref().is_some_and(|rdt| *rdt != LinuxIntelRdt::default()) {
        return Err(SpecError::Unsupported {
            field: "linux.intelRdt".to_owned(),
            reason: "caches are the host's to allot",
        });
    }
    linux.set_intel_rdt(None);
    if linux.net_devices().as_ref().is_some_and(|devices| !devices.is_empty()) {
        return Err(SpecError::Unsupported {
            field: "linux.netDevices".to_owned(),
            reason: "interfaces are the sandbox's",
        });
    }
    linux.set_net_devices(None);
    linux.set_masked_paths(once_each("linux.maskedPaths", linux.masked_paths().clone())?);
    linux.set_readonly_paths(once_each("linux.readonlyPaths", linux.readonly_paths().clone())?);
    let flags = linux.personality().as_ref().and_then(|p| p.flags().as_ref());
    if flags.is_some_and(|flags| !flags.is_empty()) {
        return Err(SpecError::Unsupported {
            field: "linux.personality.flags".to_owned(),
            reason: "the specification defines none",
        });
    }
    Ok(())
}

/// Absolute paths, each of them once: one that is named again would be mounted again.
fn once_each(field: &'static str, paths: Option<Vec<String>>) -> Result<Option<Vec<String>>, SpecError> {
    let Some(mut paths) = paths else { return Ok(None) };
    if let Some(path) = paths.iter().find(|path| !path.starts_with('/')) {
        return Err(SpecError::RelativePath { field, path: path.into() });
    }
    let mut seen = HashSet::new();
    paths.retain(|path| seen.insert(path.clone()));
    Ok(Some(paths))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn run(spec_json: Value) -> Result<Value, String> {
        let mut parsed: Spec = serde_json::from_value(spec_json).unwrap();
        spec(&mut parsed).map_err(|e| e.to_string())?;
        Ok(serde_json::to_value(parsed).unwrap())
    }

    #[test]
    fn a_spec_needs_its_root_its_linux_section_and_a_version_we_know() {
        let cases = [
            (json!({"ociVersion": "2.0.0", "root": {"path": "/"}, "linux": {}}), "2.0.0"),
            (json!({"ociVersion": "1.0.2", "linux": {}}), "no root"),
            (json!({"ociVersion": "1.0.2", "root": {"path": "/"}}), "no linux"),
        ];
        for (spec, expected) in cases {
            assert!(run(spec.clone()).unwrap_err().contains(expected), "{spec}");
        }
        let out = run(json!({"root": {"path": "/"}, "linux": {}})).unwrap();
        assert_eq!(out["ociVersion"], VERSION);
    }

    #[test]
    fn hidden_paths_are_absolute_and_each_is_hidden_once() {
        let run = |linux: Value| run(json!({"root": {"path": "/"}, "linux": linux}));
        let out = run(json!({"maskedPaths": ["/a", "/b", "/a"], "readonlyPaths": ["/c", "/c"]})).unwrap();
        assert_eq!(out["linux"], json!({"maskedPaths": ["/a", "/b"], "readonlyPaths": ["/c"]}));
        for field in ["maskedPaths", "readonlyPaths"] {
            let error = run(json!({field: ["/a", "b/c"]})).unwrap_err();
            assert!(error.contains(field) && error.contains("b/c"), "{error}");
        }
    }

    #[test]
    fn other_systems_and_empty_parts_are_taken_out_and_unsupported_ones_named() {
        let out = run(json!({"ociVersion": "1.0.2", "root": {"path": "/"}, "windows": {"layerFolders": []},
            "linux": {"intelRdt": {}, "netDevices": {}}}))
        .unwrap();
        assert_eq!(out["linux"], json!({}));
        assert!(out.get("windows").is_none());
        for (linux, named) in [
            (json!({"intelRdt": {"l3CacheSchema": "L3:0=f"}}), "intelRdt"),
            (json!({"netDevices": {"eth0": {}}}), "netDevices"),
            (json!({"personality": {"domain": "LINUX", "flags": ["ADDR_NO_RANDOMIZE"]}}), "personality"),
        ] {
            let error = run(json!({"root": {"path": "/"}, "linux": linux})).unwrap_err();
            assert!(error.contains(named), "{error}");
        }
    }
}
