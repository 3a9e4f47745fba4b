//! The user namespace of a container: `userns_options` as containerd's CRI plugin takes them.
//!
//! Each container of a pod gets one of its own, with the ids that the pod was given. The files of its image are copied
//! for it, with the owners that they have there: the agent shifts no ids.

use nakai_protocols::oci;

use super::CriError;
use super::config::{IdMapping, NamespaceMode, NamespaceOption};
use crate::image::{Ids, Owners};

/// Which ids it has; nothing for a container whose users are the guest's.
///
/// # Errors
///
/// Another mode than POD and NODE, and other than one range of users and one of groups.
pub(super) fn owners(options: &NamespaceOption) -> Result<Option<Owners>, CriError> {
    let Some(users) = &options.userns_options else { return Ok(None) };
    let refuse = |reason: &str| Err(CriError::field("namespace_options.userns_options", reason));
    match (users.mode, &users.uids[..], &users.gids[..]) {
        (NamespaceMode::Node, [], []) => Ok(None),
        (NamespaceMode::Node, ..) => refuse("NODE has no mappings"),
        (NamespaceMode::Pod, [uids], [gids]) => Ok(Some(Owners { uids: ids(uids), gids: ids(gids) })),
        (NamespaceMode::Pod, ..) => refuse("POD has one mapping of uids and one of gids"),
        _ => refuse("there are POD and NODE"),
    }
}

fn ids(range: &IdMapping) -> Ids {
    Ids { inside: range.container_id, outside: range.host_id, size: range.length }
}

/// Asks the agent for it.
pub(super) fn apply(spec: &mut oci::Spec, owners: &Owners) {
    let mapping = |ids: &Ids| oci::LinuxIDMapping {
        ContainerID: ids.inside,
        HostID: ids.outside,
        Size: ids.size,
        ..Default::default()
    };
    let linux = spec.Linux.mut_or_insert_default();
    linux.Namespaces.push(oci::LinuxNamespace { Type: "user".to_owned(), ..Default::default() });
    (linux.UIDMappings, linux.GIDMappings) = (vec![mapping(&owners.uids)], vec![mapping(&owners.gids)]);
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(options: &Value) -> Result<Option<Owners>, String> {
        let options = serde_json::from_value(json!({ "userns_options": options })).unwrap();
        owners(&options).map_err(|error| error.to_string())
    }

    #[test]
    fn a_pod_has_one_range_of_each_kind_and_a_node_none() {
        let range = |length| json!({"host_id": 1000, "container_id": 0, "length": length});
        let both = read(&json!({"mode": "POD", "uids": [range(5)], "gids": [range(6)]})).unwrap().unwrap();
        assert_eq!((both.uids.size, both.gids.size), (5, 6));
        let mut spec = oci::Spec::new();
        apply(&mut spec, &both);
        let linux = spec.Linux.unwrap();
        assert_eq!((&*linux.Namespaces[0].Type, linux.UIDMappings[0].HostID), ("user", 1000));
        assert!(read(&json!({"mode": "NODE"})).unwrap().is_none() && read(&json!(null)).unwrap().is_none());
        for bad in [
            json!({"mode": "POD"}),
            json!({"mode": "POD", "uids": [range(5)]}),
            json!({"mode": "POD", "uids": [range(5), range(6)], "gids": [range(5)]}),
            json!({"mode": "NODE", "uids": [range(5)]}),
            json!({"mode": "CONTAINER"}),
        ] {
            assert!(read(&bad).unwrap_err().contains("userns_options"), "{bad}");
        }
    }
}
