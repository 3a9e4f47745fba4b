//! Cgroups of v1 that the agent makes itself, because libcontainer takes longer for them than for all else.
//!
//! libcgroups 0.7 reads the mount table and the caller's cgroups anew for each v1 controller, for a container as for
//! each further process, and binds each hierarchy into the container in thirty system calls. Where nothing
//! of the container depends on it, the specification keeps no limits and a stand-in for the path, a directory in
//! which a process can be "put" without effect; the worker makes the cgroups and their mounts (`worker::cgroups`), and
//! the limits and device rules are written between create and start, as on v2.
//!
//! Not where a hook, a mount or a limit has to see or do what only libcontainer's way has: then all is left to it.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{Linux, LinuxNamespaceType, LinuxResources, Mount, Spec};
use serde::{Deserialize, Serialize};

use super::memory;

/// Where libcgroups looks for hierarchies.
const CGROUP_ROOT: &str = "/sys/fs/cgroup";

/// What the worker does for the cgroups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnCgroups {
    /// Where the container sees them, if it does.
    pub mount: Option<CgroupMount>,
}

/// The mounts of a container's v1 cgroups, below a memory filesystem that libcontainer mounts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupMount {
    /// The directory that has one for each hierarchy.
    pub destination: PathBuf,
    /// Whether the container may not write there.
    pub readonly: bool,
}

/// Takes limits, path and mount out of the specification and adds the limits to `late`; nothing if libcontainer has to
/// do it all. `stand_in` is there if the guest has v1 and the way is open.
pub(super) fn take(
    spec: &mut Spec,
    linux: &mut Linux,
    stand_in: Option<&Path>,
    late: &mut Option<LinuxResources>,
) -> Option<OwnCgroups> {
    let stand_in = stand_in?;
    let mount = sole_mount(spec.mounts().as_deref().unwrap_or_default())?;
    let own_mounts = linux
        .namespaces()
        .iter()
        .flatten()
        .any(|namespace| namespace.typ() == LinuxNamespaceType::Mount && namespace.path().is_none());
    if spec.hooks().is_some() || !own_mounts || !can_write_limits(linux) {
        return None;
    }
    let covered = |paths: &Option<Vec<String>>, mount: &CgroupMount| {
        paths.iter().flatten().any(|path| overlap(Path::new(path), &mount.destination))
    };
    if let Some(mount) = &mount {
        if covered(linux.readonly_paths(), mount) || covered(linux.masked_paths(), mount) {
            return None;
        }
        spec.mounts_mut().iter_mut().flatten().filter(|mount| is_cgroup(mount)).for_each(become_tmpfs);
    }
    take_limits(linux, late);
    // libcgroups joins the path to its root: climb out of that, to the stand-in.
    let climb = Path::new("/../../..");
    linux
        .set_resources(None)
        .set_cgroups_path(Some(climb.join(stand_in.strip_prefix("/").unwrap_or(stand_in))));
    Some(OwnCgroups { mount })
}

/// Moves all limits of `linux` to `late`, which has those that libcontainer never gets.
pub(super) fn take_limits(linux: &mut Linux, late: &mut Option<LinuxResources>) {
    let Some(mut resources) = linux.resources_mut().take() else { return };
    resources.set_devices(None);
    if asks_for_no_swap(&resources)
        && let Some(mut limits) = *resources.memory()
    {
        limits.set_swap(limits.limit());
        resources.set_memory(Some(limits)).set_unified(None);
    }
    if let Some(taken) = late.take() {
        let (block_io, pages) = (taken.block_io().clone(), taken.hugepage_limits().clone());
        resources.set_block_io(block_io).set_hugepage_limits(pages);
        if taken.pids().is_some() {
            resources.set_pids(*taken.pids());
        }
    }
    *late = Some(resources);
}

/// Whether the only unified key is that of `memory`, which the agent says without it.
fn asks_for_no_swap(resources: &LinuxResources) -> bool {
    let of_memory = resources.memory().is_some_and(|limits| limits.limit().is_some_and(|limit| limit > 0));
    let unified = resources.unified().iter().flatten();
    let is_no_swap = |(key, value): (&String, &String)| key == memory::SWAP_MAX && value == "0";
    of_memory
        && resources.unified().as_ref().is_some_and(|keys| keys.len() == 1)
        && unified.into_iter().all(is_no_swap)
}

/// Whether the agent can write all limits of `linux` itself.
pub(super) fn can_write_limits(linux: &Linux) -> bool {
    !linux.resources().as_ref().is_some_and(needs_libcgroups)
}

/// The one mount of cgroups, or `Some(None)`; `None` if there are several, if another mount has to do with it, or shows
/// the guest's.
fn sole_mount(mounts: &[Mount]) -> Option<Option<CgroupMount>> {
    let mut found: Option<CgroupMount> = None;
    for mount in mounts {
        if is_cgroup(mount) {
            if found.is_some() {
                return None;
            }
            let readonly = mount.options().iter().flatten().any(|option| option == "ro");
            found = Some(CgroupMount { destination: mount.destination().clone(), readonly });
        } else {
            let is_bind =
                mount.options().iter().flatten().any(|option| option == "bind" || option == "rbind");
            let shows = |source: &PathBuf| overlap(source, Path::new(CGROUP_ROOT));
            let in_the_way =
                found.as_ref().is_some_and(|found| overlap(mount.destination(), &found.destination));
            if in_the_way || is_bind && mount.source().as_ref().is_none_or(shows) {
                return None;
            }
        }
    }
    Some(found)
}

/// Whether one of the paths is the other, or beneath it.
fn overlap(a: &Path, b: &Path) -> bool {
    a.starts_with(b) || b.starts_with(a)
}

fn is_cgroup(mount: &Mount) -> bool {
    mount.typ().as_deref() == Some("cgroup")
}

fn become_tmpfs(mount: &mut Mount) {
    let options = ["nosuid", "noexec", "nodev", "mode=755"].map(str::to_owned).to_vec();
    mount
        .set_typ(Some("tmpfs".to_owned()))
        .set_source(Some(PathBuf::from("tmpfs")))
        .set_options(Some(options));
}

/// Limits that `cgroup::update` does not know.
fn needs_libcgroups(resources: &LinuxResources) -> bool {
    let cpu = resources.cpu().as_ref();
    resources.network().is_some()
        || resources.rdma().is_some()
        || resources.unified().is_some() && !asks_for_no_swap(resources)
        || cpu.is_some_and(|cpu| cpu.burst().is_some() || cpu.idle().is_some())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn run(mounts: Value, linux: Value, hooks: Value) -> (Option<OwnCgroups>, Spec, Linux) {
        let mut spec: Spec =
            serde_json::from_value(json!({"ociVersion": "1.2.0", "mounts": mounts, "hooks": hooks})).unwrap();
        let mut linux: Linux = serde_json::from_value(linux).unwrap();
        let mut late = serde_json::from_value(json!({"blockIO": {"weight": 10}})).unwrap();
        let own = take(&mut spec, &mut linux, Some(Path::new("/run/c/cgroup")), &mut late);
        if own.is_some() {
            let late = serde_json::to_value(late).unwrap();
            assert_eq!(late, json!({"pids": {"limit": 5}, "blockIO": {"weight": 10}}));
        }
        (own, spec, linux)
    }

    fn linux() -> Value {
        json!({
            "namespaces": [{"type": "mount"}],
            "resources": {"pids": {"limit": 5}, "devices": [{"allow": false, "access": "rwm"}]},
            "cgroupsPath": "/a",
        })
    }

    fn cgroup(option: &str) -> Value {
        json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": [option]})
    }

    #[test]
    fn limits_path_and_mount_are_taken() {
        let (own, spec, linux) = run(json!([cgroup("ro")]), linux(), json!(null));
        let mount = CgroupMount { destination: "/sys/fs/cgroup".into(), readonly: true };
        assert_eq!(own, Some(OwnCgroups { mount: Some(mount) }));
        assert_eq!(linux.cgroups_path().as_deref(), Some(Path::new("/../../../run/c/cgroup")));
        assert!(linux.resources().is_none());
        let mounts = serde_json::to_value(spec.mounts()).unwrap();
        assert_eq!(mounts[0]["type"], "tmpfs");
    }

    #[test]
    fn what_needs_libcontainers_way_gets_it() {
        let plain = |mounts: Value, linux: Value, hooks: Value| {
            let (own, spec, after) = run(mounts.clone(), linux.clone(), hooks);
            assert_eq!(own, None);
            assert_eq!(serde_json::to_value(after).unwrap()["cgroupsPath"], linux["cgroupsPath"]);
            assert_eq!(serde_json::to_value(spec.mounts()).unwrap(), mounts);
        };
        let bind = |source: &str| json!({"destination": "/x", "source": source, "options": ["rbind"]});
        let below = json!({"destination": "/sys/fs/cgroup/x", "type": "tmpfs", "source": "tmpfs"});
        plain(json!([cgroup("ro"), cgroup("ro")]), linux(), json!(null));
        plain(json!([cgroup("ro"), below]), linux(), json!(null));
        for source in ["/", "/sys", "/sys/fs/cgroup/cpu"] {
            plain(json!([bind(source)]), linux(), json!(null));
        }
        plain(json!([]), linux(), json!({"createRuntime": [{"path": "/bin/true"}]}));
        for (member, value) in [
            ("namespaces", json!([{"type": "pid"}])),
            ("resources", json!({"unified": {"memory.high": "1"}})),
            ("resources", json!({"cpu": {"burst": 5}})),
        ] {
            let mut changed = linux();
            changed[member] = value;
            plain(json!([]), changed, json!(null));
        }
        let mut covered = linux();
        covered["readonlyPaths"] = json!(["/sys"]);
        plain(json!([cgroup("rw")]), covered, json!(null));
    }
}
