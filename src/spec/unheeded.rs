//! Limits that cgroup v2 does not have: the container is made without them, with a warning for each.

use oci_spec::runtime::Linux;

use super::CgroupVersion;

/// Adds a warning for each.
pub(super) fn warn(linux: &Linux, version: CgroupVersion, warnings: &mut Vec<String>) {
    let Some(resources) = linux.resources().as_ref().filter(|_| version == CgroupVersion::V2) else { return };
    let network = resources.network().as_ref();
    let has_network = network.is_some_and(|network| {
        network.class_id().is_some_and(|class| class != 0)
            || network.priorities().as_ref().is_some_and(|priorities| !priorities.is_empty())
    });
    let memory = resources.memory().as_ref();
    let asked = [
        ("network", has_network),
        ("memory.swappiness", memory.and_then(|memory| memory.swappiness()).is_some_and(|value| value != 0)),
        ("memory.disableOOMKiller", memory.and_then(|memory| memory.disable_oom_killer()) == Some(true)),
        ("memory.kernelTCP", memory.and_then(|memory| memory.kernel_tcp()).is_some_and(|limit| limit > 0)),
    ];
    for (field, _) in asked.into_iter().filter(|(_, is_asked)| *is_asked) {
        warnings.push(format!("linux.resources.{field} left out: cgroup v2 has no such limit"));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn warnings(resources: Value, version: CgroupVersion) -> Vec<String> {
        let linux: Linux = serde_json::from_value(json!({ "resources": resources })).unwrap();
        let mut warnings = Vec::new();
        warn(&linux, version, &mut warnings);
        warnings
    }

    #[test]
    fn what_v2_has_not_is_told_and_what_says_nothing_is_not() {
        let all = json!({
            "network": {"classID": 7, "priorities": [{"name": "eth0", "priority": 3}]},
            "memory": {"swappiness": 10, "disableOOMKiller": true, "kernelTCP": 4096, "limit": 9}
        });
        let told = warnings(all.clone(), CgroupVersion::V2);
        assert_eq!(told.len(), 4);
        for (warning, field) in told.iter().zip(["network", "swappiness", "disableOOMKiller", "kernelTCP"]) {
            assert!(warning.contains(field), "{warning}");
        }
        assert!(warnings(all, CgroupVersion::V1).is_empty());
        let nothing = json!({
            "network": {"classID": 0, "priorities": []},
            "memory": {"swappiness": 0, "disableOOMKiller": false, "kernelTCP": 0}
        });
        assert!(warnings(nothing, CgroupVersion::V2).is_empty());
    }
}
