//! Memory limits and unified keys, in the form that libcgroups carries out rightly.
//!
//! `memory.swap` of the specification is memory and swap together. On v2 libcgroups writes the difference,
//! but not when it is 0: no swap at all, what Kubernetes asks for, would mean unlimited swap. Then
//! `memory.swap.max` is set as a unified key. In a guest without swap files in its cgroups there is no swap
//! to limit, so that a limit of none (or of any amount, -1) holds by itself and is left out; another one is
//! refused.

use std::collections::HashMap;

use oci_spec::runtime::{Linux, LinuxMemory, LinuxResources};

use super::{CgroupVersion, SpecError};

pub(super) const SWAP_MAX: &str = "memory.swap.max";

/// Rewrites `linux.resources.memory` and `.unified`.
pub(super) fn apply(
    linux: &mut Linux,
    version: CgroupVersion,
    swap_accounting: bool,
    warnings: &mut Vec<String>,
) -> Result<(), SpecError> {
    let Some(resources) = linux.resources_mut().as_mut() else { return Ok(()) };
    check_unified(resources, version)?;
    let Some(mut memory) = *resources.memory() else { return Ok(()) };
    if memory.kernel().is_some_and(|kernel| kernel > 0) {
        warnings
            .push("linux.resources.memory.kernel left out: kernels have no such limit any more".to_owned());
    }
    memory.set_kernel(None);
    // 0 is the wire's way to say nothing.
    memory.set_limit(memory.limit().filter(|limit| *limit != 0));
    memory.set_swap(memory.swap().filter(|swap| *swap != 0));
    memory.set_reservation(memory.reservation().filter(|reservation| *reservation != 0));
    check_swap(&memory)?;
    let none = memory.swap().is_some_and(|swap| swap > 0 && Some(swap) == memory.limit());
    if !swap_accounting {
        if memory.swap().is_some_and(|swap| swap > 0) && !none {
            return Err(SpecError::Unsupported {
                field: "linux.resources.memory.swap".to_owned(),
                reason: "the guest's cgroups have no swap limit",
            });
        }
        memory.set_swap(None);
        if version == CgroupVersion::V2 && memory.limit() == Some(-1) {
            // libcgroups would write the swap file too; a new cgroup has no limit anyway.
            memory.set_limit(None);
        }
    } else if version == CgroupVersion::V2 && memory.limit().is_none() && memory.swap() == Some(-1) {
        // libcgroups would refuse it; a new cgroup has no limit of swap anyway.
        memory.set_swap(None);
    } else if version == CgroupVersion::V2 && none {
        memory.set_swap(None);
        let unified = resources.unified_mut().get_or_insert_with(HashMap::new);
        unified.entry(SWAP_MAX.to_owned()).or_insert_with(|| "0".to_owned());
    }
    resources.set_memory(Some(memory));
    Ok(())
}

fn check_swap(memory: &LinuxMemory) -> Result<(), SpecError> {
    let invalid =
        |field, value: i64, reason| Err(SpecError::Invalid { field, value: value.to_string(), reason });
    let (limit, swap) = (memory.limit(), memory.swap());
    for (field, value) in [
        ("linux.resources.memory.limit", limit),
        ("linux.resources.memory.swap", swap),
        ("linux.resources.memory.reservation", memory.reservation()),
    ] {
        if let Some(value) = value.filter(|value| *value < -1) {
            return invalid(field, value, "below -1, which means no limit");
        }
    }
    match (limit, swap) {
        (None | Some(-1), Some(swap)) if swap > 0 => invalid(
            "linux.resources.memory.swap",
            swap,
            "memory and swap together, without a limit of memory",
        ),
        (Some(limit), Some(swap)) if swap > 0 && swap < limit => invalid(
            "linux.resources.memory.swap",
            swap,
            "memory and swap together, but less than the limit of memory",
        ),
        _ => Ok(()),
    }
}

/// A unified key is the name of a file in the container's cgroup, and nothing else.
fn check_unified(resources: &mut LinuxResources, version: CgroupVersion) -> Result<(), SpecError> {
    let Some(unified) = resources.unified() else { return Ok(()) };
    if unified.is_empty() {
        resources.set_unified(None);
        return Ok(());
    }
    if version == CgroupVersion::V1 {
        return Err(SpecError::Unsupported {
            field: "linux.resources.unified".to_owned(),
            reason: "the guest has cgroup v1",
        });
    }
    for key in unified.keys() {
        let reason = if key.contains(['/', '\0']) || !key.contains('.') || key.starts_with('.') {
            "not the name of a cgroup file"
        } else if key.starts_with("cgroup.") {
            "it is the agent's to write"
        } else {
            continue;
        };
        return Err(SpecError::Invalid { field: "linux.resources.unified", value: key.clone(), reason });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn run(resources: Value, version: CgroupVersion, swap_accounting: bool) -> Result<Value, SpecError> {
        let mut linux: Linux = serde_json::from_value(json!({ "resources": resources })).unwrap();
        apply(&mut linux, version, swap_accounting, &mut Vec::new())?;
        Ok(serde_json::to_value(linux.resources()).unwrap())
    }

    #[test]
    fn a_limit_of_no_swap_is_one_on_v2() {
        let both = json!({"memory": {"limit": 100, "swap": 100}});
        assert_eq!(
            run(both.clone(), CgroupVersion::V2, true).unwrap(),
            json!({"memory": {"limit": 100}, "unified": {"memory.swap.max": "0"}})
        );
        assert_eq!(run(both.clone(), CgroupVersion::V1, true).unwrap(), both);
        for version in [CgroupVersion::V1, CgroupVersion::V2] {
            assert_eq!(run(both.clone(), version, false).unwrap(), json!({"memory": {"limit": 100}}));
        }
    }

    #[test]
    fn any_amount_of_swap_needs_no_limit_of_memory() {
        let any = json!({"memory": {"swap": -1}});
        assert_eq!(run(any.clone(), CgroupVersion::V2, true).unwrap(), json!({"memory": {}}));
        assert_eq!(run(any.clone(), CgroupVersion::V1, true).unwrap(), any);
        let both = json!({"memory": {"limit": 100, "swap": -1}});
        assert_eq!(run(both.clone(), CgroupVersion::V2, true).unwrap(), both);
    }

    #[test]
    fn the_hosts_own_unified_swap_key_wins() {
        let given = json!({"memory": {"limit": 9, "swap": 9}, "unified": {"memory.swap.max": "7"}});
        assert_eq!(run(given, CgroupVersion::V2, true).unwrap()["unified"]["memory.swap.max"], "7");
    }

    #[test]
    fn swap_that_the_guest_cannot_limit_is_refused_and_no_limit_left_out() {
        let more = json!({"memory": {"limit": 100, "swap": 200}});
        assert!(run(more.clone(), CgroupVersion::V2, false).is_err());
        assert_eq!(run(more.clone(), CgroupVersion::V2, true).unwrap(), more);
        let any = json!({"memory": {"limit": 100, "swap": -1}});
        assert_eq!(run(any, CgroupVersion::V2, false).unwrap(), json!({"memory": {"limit": 100}}));
        assert_eq!(
            run(json!({"memory": {"limit": -1}}), CgroupVersion::V2, false).unwrap(),
            json!({"memory": {}})
        );
    }

    #[test]
    fn a_limit_of_the_kernels_own_memory_is_left_out_and_told() {
        for (kernel, told) in [(4096, 1), (-1, 0), (0, 0)] {
            let mut linux: Linux = serde_json::from_value(
                json!({"resources": {"memory": {"kernel": kernel, "disableOOMKiller": true}}}),
            )
            .unwrap();
            let mut warnings = Vec::new();
            apply(&mut linux, CgroupVersion::V1, true, &mut warnings).unwrap();
            let left = serde_json::to_value(linux.resources()).unwrap();
            assert_eq!(left, json!({"memory": {"disableOOMKiller": true}}), "{kernel}");
            assert_eq!(warnings.len(), told, "{kernel}: {warnings:?}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for memory in [
            json!({"limit": -2}),
            json!({"limit": 100, "swap": 50}),
            json!({"swap": 50}),
            json!({"limit": -1, "swap": 50}),
            json!({"reservation": -9}),
        ] {
            assert!(run(json!({"memory": memory.clone()}), CgroupVersion::V2, true).is_err(), "{memory}");
        }
        assert_eq!(
            run(json!({"memory": {"limit": 0, "swap": 0}}), CgroupVersion::V2, true).unwrap(),
            json!({"memory": {}})
        );
    }

    #[test]
    fn a_unified_key_names_one_file_of_the_containers_cgroup() {
        for key in ["../memory.max", "memory", ".x", "cgroup.procs", "a/b.c", "/memory.max"] {
            let error = run(json!({"unified": {key: "1"}}), CgroupVersion::V2, true).unwrap_err();
            assert!(error.to_string().contains(key), "{error}");
        }
        assert!(run(json!({"unified": {"memory.high": "1"}}), CgroupVersion::V2, true).is_ok());
        assert!(run(json!({"unified": {"memory.high": "1"}}), CgroupVersion::V1, true).is_err());
        assert_eq!(run(json!({"unified": {}}), CgroupVersion::V1, true).unwrap(), json!({}));
    }
}
