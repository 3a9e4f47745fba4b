//! Which containers the worker makes without libcontainer (`worker::init`).
//!
//! What a specification may ask for, and nearly none does, is left to libcontainer: hooks, priorities and scheduling,
//! memory policies, execution domains, time namespaces. So are cgroups and
//! mounts that are libcontainer's (`own_cgroups`, `own_mounts`). It makes no user namespaces: with one, each of these is
//! refused by its name.

use std::path::{Component, Path};

use oci_spec::runtime::{Linux, LinuxNamespaceType as Type, Process, Root, Spec};
use serde::{Deserialize, Serialize};

/// What the worker needs of a specification for that, besides the mounts.
#[derive(Debug, Serialize, Deserialize)]
pub struct OwnInit {
    /// The process.
    pub process: Process,
    /// Namespaces, devices, paths and sysctls; nothing else is in it that has not been taken out.
    pub linux: Linux,
    /// Whether the root is read-only.
    pub is_read_only: bool,
    /// The host name, for a UTS namespace of the container's own.
    pub hostname: Option<String>,
    /// The domain name, likewise.
    pub domainname: Option<String>,
}

impl OwnInit {
    /// Takes it out of a prepared specification; nothing if that has been taken before.
    pub fn take(spec: &mut Spec) -> Option<Self> {
        Some(Self {
            process: spec.process_mut().take()?,
            linux: spec.linux_mut().take()?,
            is_read_only: spec.root().as_ref().and_then(Root::readonly) == Some(true),
            hostname: spec.hostname().clone(),
            domainname: spec.domainname().clone(),
        })
    }
}

/// What speaks against it; nothing, if it is cgroups and mounts or nothing at all.
pub(super) fn unusual(spec: &Spec, linux: &Linux, process: &Process) -> Option<&'static str> {
    let is_plain = |path: &String| {
        let path = Path::new(path);
        path.is_absolute() && !path.components().any(|part| part == Component::ParentDir)
    };
    let paths = [linux.masked_paths(), linux.readonly_paths()];
    let only_known = linux.namespaces().iter().flatten().all(|namespace| {
        let is_joined = namespace.path().is_some();
        match namespace.typ() {
            Type::Ipc | Type::Uts | Type::Pid => true,
            Type::Mount | Type::Cgroup | Type::Network | Type::User => !is_joined,
            Type::Time => false,
        }
    });
    let reasons = [
        (spec.hooks().is_some(), "hooks"),
        (!only_known || linux.time_offsets().is_some(), "a time namespace"),
        (
            !paths.iter().all(|paths| paths.iter().flatten().all(is_plain)),
            "a path to be hidden that climbs or is relative",
        ),
        (linux.personality().is_some(), "linux.personality"),
        (linux.memory_policy().is_some(), "linux.memoryPolicy"),
        (process.io_priority().is_some(), "process.ioPriority"),
        (process.scheduler().is_some(), "process.scheduler"),
        (process.exec_cpu_affinity().is_some(), "process.execCPUAffinity"),
    ];
    reasons.into_iter().find_map(|(is_there, name)| is_there.then_some(name))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn usual(linux: Value, process: Value, hooks: Value) -> bool {
        let mut base = json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["sh"]});
        base.as_object_mut().unwrap().extend(process.as_object().unwrap().clone());
        let spec = serde_json::from_value(json!({"ociVersion": "1.2.0", "hooks": hooks})).unwrap();
        let (linux, process) =
            (serde_json::from_value(linux).unwrap(), serde_json::from_value(base).unwrap());
        unusual(&spec, &linux, &process).is_none()
    }

    #[test]
    fn what_nearly_all_ask_for_is_usual_and_the_rest_is_not() {
        let none = || json!({});
        let namespaces =
            json!([{"type": "ipc", "path": "/i"}, {"type": "pid"}, {"type": "mount"}, {"type": "user"}]);
        let plain = json!({
            "namespaces": namespaces, "maskedPaths": ["/proc/kcore"], "readonlyPaths": ["/proc/sys"],
            "sysctl": {"kernel.domainname": "d"}, "devices": [{"path": "/dev/fuse", "type": "c", "major": 1, "minor": 2}]
        });
        assert!(usual(plain, json!({"oomScoreAdj": 5, "noNewPrivileges": true}), json!(null)));
        for linux in [
            json!({"namespaces": [{"type": "time"}]}),
            json!({"namespaces": [{"type": "network", "path": "/n"}]}),
            json!({"maskedPaths": ["/proc/../kcore"]}),
            json!({"readonlyPaths": ["relative"]}),
            json!({"personality": {"domain": "LINUX32"}}),
            json!({"timeOffsets": {"boottime": {"secs": 5}}}),
        ] {
            assert!(!usual(linux.clone(), none(), json!(null)), "{linux}");
        }
        for process in [
            json!({"ioPriority": {"class": "IOPRIO_CLASS_IDLE", "priority": 1}}),
            json!({"scheduler": {"policy": "SCHED_BATCH"}}),
            json!({"execCPUAffinity": {"initial": "0"}}),
        ] {
            assert!(!usual(none(), process.clone(), json!(null)), "{process}");
        }
        assert!(!usual(none(), none(), json!({"createRuntime": [{"path": "/bin/true"}]})));
    }
}
