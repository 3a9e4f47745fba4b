//! Which namespaces a container gets.
//!
//! | type    | rule |
//! |---------|------|
//! | ipc, uts| the sandbox's, or a new one where it has none; added when missing; a host's path is replaced |
//! | pid     | as the sandbox says: a new one, or joined; added when missing |
//! | mount   | always a new one |
//! | cgroup  | a new one when asked for, and always on v2, so that a container sees no cgroup but its own |
//! | network | the sandbox's (no entry) unless a new one is asked for |
//! | time    | a new one when asked for |
//! | user    | a new one when asked for (`user_namespace`) |
//!
//! A path that the host gives is refused in every other place: it could name the agent's own.

use std::path::PathBuf;

use oci_spec::runtime::{Linux, LinuxNamespace, LinuxNamespaceType as Type};

use super::SpecError;
use super::facts::{CgroupVersion, PidNamespace, SharedNamespaces};

/// What the other edits need to know of the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout {
    /// The container has a network namespace of its own.
    pub(super) own_network: bool,
    /// The container has a UTS namespace of its own.
    pub(super) own_uts: bool,
}

/// Rewrites `linux.namespaces`.
pub(super) fn apply(
    linux: &mut Linux,
    shared: &SharedNamespaces,
    version: CgroupVersion,
) -> Result<Layout, SpecError> {
    let given = linux.namespaces().clone().unwrap_or_default();
    check(&given)?;
    let asked = |kind| given.iter().any(|ns| ns.typ() == kind);
    let pid = match &shared.pid {
        PidNamespace::Own => None,
        PidNamespace::Join(path) => Some(path.clone()),
    };
    let mut wanted = vec![
        namespace(Type::Ipc, shared.ipc.clone()),
        namespace(Type::Uts, shared.uts.clone()),
        namespace(Type::Pid, pid),
        namespace(Type::Mount, None),
    ];
    if asked(Type::Cgroup) || version == CgroupVersion::V2 {
        wanted.push(namespace(Type::Cgroup, None));
    }
    let kept = [Type::Network, Type::Time, Type::User];
    wanted.extend(kept.into_iter().filter(|kind| asked(*kind)).map(|kind| namespace(kind, None)));
    linux.set_namespaces(Some(wanted));
    time_offsets(linux, asked(Type::Time))?;
    Ok(Layout { own_network: asked(Type::Network), own_uts: shared.uts.is_none() })
}

fn check(given: &[LinuxNamespace]) -> Result<(), SpecError> {
    for (index, ns) in given.iter().enumerate() {
        let kind = ns.typ();
        if given.iter().take(index).any(|other| other.typ() == kind) {
            return Err(SpecError::Duplicate { field: "linux.namespaces", value: kind.to_string() });
        }
        let replaced = matches!(kind, Type::Ipc | Type::Uts);
        match ns.path() {
            Some(path) if !replaced && !path.as_os_str().is_empty() => {
                return Err(SpecError::HostNamespace { kind, path: path.clone() });
            }
            _ => {}
        }
    }
    Ok(())
}

fn namespace(kind: Type, path: Option<PathBuf>) -> LinuxNamespace {
    let mut ns = LinuxNamespace::default();
    ns.set_typ(kind).set_path(path);
    ns
}

fn time_offsets(linux: &mut Linux, has_time: bool) -> Result<(), SpecError> {
    match linux.time_offsets() {
        Some(offsets) if offsets.is_empty() => {
            linux.set_time_offsets(None);
            Ok(())
        }
        Some(_) if !has_time => Err(SpecError::Unsupported {
            field: "linux.timeOffsets".to_owned(),
            reason: "the container has no time namespace of its own",
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn shared() -> SharedNamespaces {
        SharedNamespaces {
            ipc: Some("/run/ns/ipc".into()),
            uts: Some("/run/ns/uts".into()),
            pid: PidNamespace::Own,
        }
    }

    fn run(list: Value, shared: &SharedNamespaces, version: CgroupVersion) -> Result<Value, SpecError> {
        let mut linux: Linux = serde_json::from_value(json!({ "namespaces": list })).unwrap();
        apply(&mut linux, shared, version)?;
        Ok(serde_json::to_value(linux.namespaces()).unwrap())
    }

    #[test]
    fn what_a_shim_sends_becomes_the_sandboxs_namespaces() {
        let expected = json!([
            {"type": "ipc", "path": "/run/ns/ipc"}, {"type": "uts", "path": "/run/ns/uts"},
            {"type": "pid"}, {"type": "mount"}
        ]);
        for list in [
            json!(null),
            json!([]),
            json!([{"type": "ipc"}, {"type": "uts"}, {"type": "mount"}]),
            json!([{"type": "ipc", "path": ""}, {"type": "pid"}]),
            json!([{"type": "uts", "path": "/proc/1/ns/uts"}]),
        ] {
            assert_eq!(run(list.clone(), &shared(), CgroupVersion::V1).unwrap(), expected, "{list}");
        }
    }

    #[test]
    fn nothing_shared_means_new_ones_never_the_agents() {
        let nothing = SharedNamespaces::default();
        assert_eq!(
            run(json!([]), &nothing, CgroupVersion::V2).unwrap(),
            json!([{"type": "ipc"}, {"type": "uts"}, {"type": "pid"}, {"type": "mount"}, {"type": "cgroup"}])
        );
    }

    #[test]
    fn a_pid_namespace_is_joined_when_the_sandbox_says_so() {
        let joining = SharedNamespaces {
            pid: PidNamespace::Join("/proc/self/fd/9".into()),
            ..SharedNamespaces::default()
        };
        let out = run(json!([{"type": "pid"}]), &joining, CgroupVersion::V1).unwrap();
        assert_eq!(out[2], json!({"type": "pid", "path": "/proc/self/fd/9"}));
    }

    #[test]
    fn others_are_kept_when_asked_for() {
        let list =
            json!([{"type": "user"}, {"type": "network", "path": ""}, {"type": "cgroup"}, {"type": "time"}]);
        let out = run(list, &shared(), CgroupVersion::V1).unwrap();
        assert_eq!(out.as_array().unwrap().len(), 8);
        assert_eq!(out[5], json!({"type": "network"}));
        assert_eq!(out[7], json!({"type": "user"}));
    }

    #[test]
    fn a_hostile_or_ambiguous_list_is_refused_by_name() {
        for (list, named) in [
            (json!([{"type": "mount", "path": "/proc/1/ns/mnt"}]), "/proc/1/ns/mnt"),
            (json!([{"type": "pid", "path": "/proc/1/ns/pid"}]), "/proc/1/ns/pid"),
            (json!([{"type": "network", "path": "/proc/1/ns/net"}]), "net namespace"),
            (json!([{"type": "cgroup", "path": "/x"}]), "cgroup"),
            (json!([{"type": "user", "path": "/proc/1/ns/user"}]), "/proc/1/ns/user"),
            (json!([{"type": "ipc"}, {"type": "ipc"}]), "two entries for ipc"),
        ] {
            let error = run(list, &shared(), CgroupVersion::V2).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }

    #[test]
    fn clock_offsets_need_a_time_namespace() {
        let offsets = json!({"timeOffsets": {"boottime": {"secs": 5}}, "namespaces": []});
        let mut linux: Linux = serde_json::from_value(offsets).unwrap();
        assert!(apply(&mut linux, &shared(), CgroupVersion::V2).is_err());
        let mut linux: Linux = serde_json::from_value(json!({"timeOffsets": {}})).unwrap();
        apply(&mut linux, &shared(), CgroupVersion::V2).unwrap();
        assert!(linux.time_offsets().is_none());
    }
}
