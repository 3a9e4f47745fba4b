//! What libcontainer reads of a container's specification for each further process: little, and it takes long to read
//! the rest.

use oci_spec::runtime::{Linux, Process, Spec};

/// The specification with no more than that. libcontainer takes the process from elsewhere, and does nothing again
/// that it has done for the container.
pub(super) fn reduce(spec: &Spec) -> Spec {
    let mut process = Process::default();
    process.set_args(None).set_env(None).set_capabilities(None).set_rlimits(None);
    let linux = spec.linux().as_ref().map(|given| {
        let mut linux = Linux::default();
        linux
            .set_namespaces(given.namespaces().clone())
            .set_cgroups_path(given.cgroups_path().clone())
            .set_personality(given.personality().clone())
            .set_time_offsets(given.time_offsets().clone())
            .set_resources(None)
            .set_masked_paths(None)
            .set_readonly_paths(None);
        linux
    });
    let mut reduced = Spec::default();
    reduced
        .set_version(spec.version().clone())
        .set_root(spec.root().clone())
        .set_process(Some(process))
        .set_linux(linux)
        .set_mounts(None)
        .set_hostname(None)
        .set_annotations(None);
    reduced
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_belongs_to_init_is_left_out() {
        let spec: Spec = serde_json::from_value(json!({
            "ociVersion": "1.2.0", "root": {"path": "/r"}, "hostname": "h", "annotations": {"a": "b"},
            "process": {"args": ["sh"], "cwd": "/x", "user": {"uid": 1, "gid": 1}},
            "mounts": [{"destination": "/proc", "type": "proc"}],
            "linux": {
                "namespaces": [{"type": "pid"}], "cgroupsPath": "/c", "personality": {"domain": "LINUX"},
                "maskedPaths": ["/proc/keys"], "resources": {"pids": {"limit": 1}}, "sysctl": {"a": "b"},
            },
        }))
        .unwrap();
        let process = json!({"cwd": "/", "user": {"uid": 0, "gid": 0}, "noNewPrivileges": true});
        let mut reduced = serde_json::to_value(reduce(&spec)).unwrap();
        for member in ["terminal", "args", "env"] {
            reduced["process"].as_object_mut().unwrap().remove(member);
        }
        reduced["process"]["noNewPrivileges"] = json!(true);
        assert_eq!(
            reduced,
            json!({
                "ociVersion": "1.2.0", "root": {"path": "/r"}, "process": process,
                "linux": {"namespaces": [{"type": "pid"}], "cgroupsPath": "/c", "personality": {"domain": "LINUX"}},
            })
        );
    }
}
