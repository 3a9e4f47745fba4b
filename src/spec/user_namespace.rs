//! The user namespace of a container: which of the guest's ids are its own.
//!
//! Everything that the specification says of users is said in the container's ids. What is done while the process is the
//! guest's root still, needs the guest's: owners of streams, of device nodes and of what memory filesystems are mounted
//! with. What has no id in the guest is refused by name, here: the kernel would say EINVAL.
//!
//! Ids of files are not shifted: the protocol has no mappings for mounts, and the host hands out a root filesystem whose
//! files belong to the mapped ids already.

use oci_spec::runtime::{Linux, LinuxIdMapping, LinuxNamespaceType as Type, Mount, User};
use serde::{Deserialize, Serialize};

use super::SpecError;

/// How many ranges the kernel takes (user_namespaces(7)).
const RANGES_MAX: usize = 340;
/// It reads less than a page of them.
const TEXT_MAX: usize = 4096;

const UIDS: &str = "linux.uidMappings";
const GIDS: &str = "linux.gidMappings";

/// The guest's ids of a container's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserNamespace {
    uids: Vec<LinuxIdMapping>,
    gids: Vec<LinuxIdMapping>,
}

/// Ranges as the kernel reads them from `uid_map` and `gid_map`.
pub fn map_text(ranges: &[LinuxIdMapping]) -> String {
    let line =
        |range: &LinuxIdMapping| format!("{} {} {}\n", range.container_id(), range.host_id(), range.size());
    ranges.iter().map(line).collect()
}

/// Looks whether `linux` has mappings if it asks for such a namespace, and none if not.
pub(super) fn check(linux: &mut Linux) -> Result<Option<UserNamespace>, SpecError> {
    let is_asked = linux.namespaces().iter().flatten().any(|namespace| namespace.typ() == Type::User);
    let uids = linux.uid_mappings().clone().unwrap_or_default();
    let gids = linux.gid_mappings().clone().unwrap_or_default();
    if !is_asked {
        if !uids.is_empty() || !gids.is_empty() {
            let field = if uids.is_empty() { GIDS } else { UIDS }.to_owned();
            return Err(SpecError::Unsupported { field, reason: "the container has no user namespace" });
        }
        // The wire has empty lists in their place.
        linux.set_uid_mappings(None).set_gid_mappings(None);
        return Ok(None);
    }
    check_ranges(UIDS, &uids)?;
    check_ranges(GIDS, &gids)?;
    Ok(Some(UserNamespace { uids, gids }))
}

fn check_ranges(field: &'static str, ranges: &[LinuxIdMapping]) -> Result<(), SpecError> {
    let refuse = |value: String, reason| Err(SpecError::Invalid { field, value, reason });
    if ranges.is_empty() {
        return Err(SpecError::Missing { field });
    }
    if ranges.len() > RANGES_MAX || map_text(ranges).len() >= TEXT_MAX {
        return refuse(format!("{} ranges", ranges.len()), "these are more than the kernel takes");
    }
    for (index, range) in ranges.iter().enumerate() {
        let about = |reason| {
            let (inside, outside, size) = (range.container_id(), range.host_id(), range.size());
            refuse(format!("containerID {inside}, hostID {outside}, size {size}"), reason)
        };
        if range.size() == 0 {
            return about("there is nothing in it");
        }
        // The last number is nobody's.
        if [range.container_id(), range.host_id()]
            .iter()
            .any(|first| first.checked_add(range.size()).is_none())
        {
            return about("it goes beyond the last id");
        }
        let overlaps = |other: &LinuxIdMapping| {
            overlap((range.container_id(), range.size()), (other.container_id(), other.size()))
                || overlap((range.host_id(), range.size()), (other.host_id(), other.size()))
        };
        if ranges.iter().take(index).any(overlaps) {
            return about("it overlaps with one before it");
        }
    }
    match outside(ranges, 0) {
        Some(_) => Ok(()),
        None => refuse(map_text(ranges).trim_end().replace('\n', ", "), "0 is not among its ids"),
    }
}

/// Whether two ranges, by their first id and their size, have an id in common.
fn overlap(a: (u32, u32), b: (u32, u32)) -> bool {
    a.0 < b.0.saturating_add(b.1) && b.0 < a.0.saturating_add(a.1)
}

/// The guest's id.
fn outside(ranges: &[LinuxIdMapping], id: u32) -> Option<u32> {
    ranges.iter().find_map(|range| {
        let offset = id.checked_sub(range.container_id()).filter(|offset| *offset < range.size())?;
        range.host_id().checked_add(offset)
    })
}

impl UserNamespace {
    /// Whom in the guest a process's streams belong to; all of its ids have to be the container's.
    pub(super) fn owner(&self, user: &User) -> Result<(u32, u32), SpecError> {
        for gid in user.additional_gids().iter().flatten() {
            mapped("process.user.additionalGids", &self.gids, *gid)?;
        }
        let uid = mapped("process.user.uid", &self.uids, user.uid())?;
        Ok((uid, mapped("process.user.gid", &self.gids, user.gid())?))
    }

    /// Gives nodes the guest's ids.
    pub(super) fn map_devices(&self, linux: &mut Linux) -> Result<(), SpecError> {
        let Some(mut nodes) = linux.devices().clone() else { return Ok(()) };
        for node in &mut nodes {
            let uid = mapped("linux.devices.uid", &self.uids, node.uid().unwrap_or(0))?;
            let gid = mapped("linux.devices.gid", &self.gids, node.gid().unwrap_or(0))?;
            node.set_uid(Some(uid)).set_gid(Some(gid));
        }
        linux.set_devices(Some(nodes));
        Ok(())
    }

    /// Gives filesystems that are made for the container options with the guest's ids.
    pub(super) fn map_options(&self, mounts: &mut [Mount]) -> Result<(), SpecError> {
        for mount in mounts {
            let mut options = mount.options().clone().unwrap_or_default();
            for option in &mut options {
                let ids = match option.split_once('=') {
                    Some(("uid", id)) => Some(("uid", &self.uids, id)),
                    Some(("gid", id)) => Some(("gid", &self.gids, id)),
                    _ => None,
                };
                // What is no number the kernel will say.
                if let Some((name, ranges, Ok(id))) = ids.map(|(name, ranges, id)| (name, ranges, id.parse()))
                {
                    *option = format!("{name}={}", mapped("mounts.options", ranges, id)?);
                }
            }
            mount.set_options(Some(options));
        }
        Ok(())
    }
}

fn mapped(field: &'static str, ranges: &[LinuxIdMapping], id: u32) -> Result<u32, SpecError> {
    outside(ranges, id).ok_or_else(|| SpecError::Invalid {
        field,
        value: id.to_string(),
        reason: "the container's user namespace has no such id",
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn range(inside: u32, outside: u32, size: u32) -> Value {
        json!({"containerID": inside, "hostID": outside, "size": size})
    }

    fn linux(uids: &Value, gids: &Value) -> Linux {
        let namespaces = json!([{"type": "user"}]);
        serde_json::from_value(json!({"namespaces": namespaces, "uidMappings": uids, "gidMappings": gids}))
            .unwrap()
    }

    fn two() -> UserNamespace {
        let uids = json!([range(0, 100_000, 1000), range(1000, 5000, 1)]);
        let gids = json!([range(0, 200_000, 10)]);
        check(&mut linux(&uids, &gids)).unwrap().unwrap()
    }

    #[test]
    fn ranges_that_can_not_be_are_refused_by_name() {
        let good = json!([range(0, 100_000, 65536)]);
        let far: Vec<_> = (0..300).map(|n| range(n, 4_000_000_000 + n, 1)).collect();
        let many: Vec<_> = (0..341).map(|n| range(n, n, 1)).collect();
        for (bad, said) in [
            (json!([]), "has no linux.uidMappings"),
            (json!([range(0, 5, 0)]), "containerID 0, hostID 5, size 0"),
            (json!([range(0, u32::MAX, 1)]), "beyond the last id"),
            (json!([range(0, 0, 1), range(u32::MAX - 1, 10, 2)]), "beyond the last id"),
            (json!([range(0, 100, 10), range(9, 500, 1)]), "overlaps"),
            (json!([range(0, 100, 10), range(10, 109, 1)]), "overlaps"),
            (json!([range(1, 100, 10)]), "0 is not among its ids"),
            (json!(many), "341 ranges"),
            (json!(far), "300 ranges"),
        ] {
            let error = check(&mut linux(&bad, &good)).unwrap_err().to_string();
            assert!(error.contains("linux.uidMappings") && error.contains(said), "{error}");
            let error = check(&mut linux(&good, &bad)).unwrap_err().to_string();
            assert!(error.contains("linux.gidMappings"), "{error}");
        }
        let whole = json!([range(0, 0, u32::MAX)]);
        assert!(check(&mut linux(&whole, &good)).unwrap().is_some());
    }

    #[test]
    fn mappings_belong_to_a_namespace() {
        let without = |ids: Value| serde_json::from_value::<Linux>(ids).unwrap();
        for field in ["uidMappings", "gidMappings"] {
            let error = check(&mut without(json!({field: [range(0, 1, 1)]}))).unwrap_err().to_string();
            assert!(error.contains(field), "{error}");
        }
        let mut none = without(json!({"uidMappings": [], "gidMappings": []}));
        assert_eq!(check(&mut none).unwrap(), None);
        assert_eq!(serde_json::to_value(none).unwrap(), json!({}));
    }

    #[test]
    fn users_nodes_and_options_get_the_guests_ids() {
        let user = |user: Value| two().owner(&serde_json::from_value(user).unwrap());
        assert_eq!(user(json!({"uid": 1000, "gid": 9, "additionalGids": [3]})).unwrap(), (5000, 200_009));
        for (bad, field) in [
            (json!({"uid": 1001, "gid": 0}), "process.user.uid"),
            (json!({"uid": 0, "gid": 10}), "process.user.gid"),
            (json!({"uid": 0, "gid": 0, "additionalGids": [1, 10]}), "process.user.additionalGids"),
        ] {
            assert!(user(bad).unwrap_err().to_string().contains(field));
        }
        let node = json!({"path": "/dev/a", "type": "c", "major": 1, "minor": 2, "uid": 7});
        let mut linux = serde_json::from_value(json!({ "devices": [node] })).unwrap();
        two().map_devices(&mut linux).unwrap();
        let node = &linux.devices().as_ref().unwrap()[0];
        assert_eq!((node.uid(), node.gid()), (Some(100_007), Some(200_000)));

        let mount = |options: &[&str]| json!({"destination": "/t", "type": "tmpfs", "options": options});
        let mut mounts: Vec<Mount> =
            serde_json::from_value(json!([mount(&["mode=755", "uid=1000", "gid=5"])])).unwrap();
        two().map_options(&mut mounts).unwrap();
        assert_eq!(mounts[0].options().as_ref().unwrap(), &["mode=755", "uid=5000", "gid=200005"]);
        let mut mounts: Vec<Mount> = serde_json::from_value(json!([mount(&["gid=10"])])).unwrap();
        assert!(two().map_options(&mut mounts).unwrap_err().to_string().contains("mounts.options"));
    }

    #[test]
    fn the_kernel_reads_a_line_for_each_range() {
        assert_eq!(map_text(&two().uids), "0 100000 1000\n1000 5000 1\n");
    }
}
