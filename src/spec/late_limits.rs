//! Limits that the agent writes itself also where libcontainer writes the others: block I/O, huge pages, few processes.
//!
//! libcgroups 0.7 turns a block I/O weight for v2 into one of another range in 16 bits, which overflow from 17 on
//! (of 10 to 1000), and fails for a limit of huge pages of a size that the guest does not have. Hosts send one such
//! limit for each size of their own. On v2 it writes the limit of processes before it has forked those that it needs
//! itself, so that a container of one process could not be made.

use oci_spec::runtime::{Linux, LinuxPids, LinuxResources};

use super::CgroupVersion;

/// More than libcontainer needs itself.
const FEW: i64 = 16;

/// Takes them out of `linux.resources`; nothing if there are none.
pub(super) fn take(linux: &mut Linux, version: CgroupVersion) -> Option<LinuxResources> {
    let resources = linux.resources_mut().as_mut()?;
    let block_io = resources.block_io().clone();
    let huge_pages = resources.hugepage_limits().clone().filter(|limits| !limits.is_empty());
    resources.set_block_io(None).set_hugepage_limits(None);
    let is_few = |pids: &LinuxPids| version == CgroupVersion::V2 && (1..FEW).contains(&pids.limit());
    let pids = resources.pids().filter(is_few);
    if pids.is_some() {
        resources.set_pids(None);
    }
    if block_io.is_none() && huge_pages.is_none() && pids.is_none() {
        return None;
    }
    let mut taken = LinuxResources::default();
    taken.set_devices(None).set_block_io(block_io).set_hugepage_limits(huge_pages).set_pids(pids);
    Some(taken)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_libcontainer_gets_wrong_is_taken() {
        let io = json!({"weight": 1000});
        let pages = json!([{"pageSize": "1GB", "limit": 0}]);
        for (given, left, taken) in [
            (json!({}), json!({}), json!(null)),
            (json!({"pids": {"limit": 50}}), json!({"pids": {"limit": 50}}), json!(null)),
            (json!({"pids": {"limit": 1}}), json!({}), json!({"pids": {"limit": 1}})),
            (json!({"hugepageLimits": []}), json!({}), json!(null)),
            (
                json!({"pids": {"limit": 50}, "blockIO": io, "hugepageLimits": pages}),
                json!({"pids": {"limit": 50}}),
                json!({"blockIO": io, "hugepageLimits": pages}),
            ),
        ] {
            let mut linux: Linux = serde_json::from_value(json!({ "resources": given })).unwrap();
            assert_eq!(serde_json::to_value(take(&mut linux, CgroupVersion::V2)).unwrap(), taken);
            assert_eq!(serde_json::to_value(linux.resources()).unwrap(), left);
        }
        let mut linux: Linux = serde_json::from_value(json!({"resources": {"pids": {"limit": 1}}})).unwrap();
        assert_eq!(take(&mut linux, CgroupVersion::V1), None);
    }
}
