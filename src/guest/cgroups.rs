//! The cgroup file systems of a guest whose first process we are.
//!
//! v2: the unified hierarchy, with every controller it has handed down from its root.
//! v1: a tmpfs with one hierarchy for each controller. One each, because a container's cgroup namespace can't
//! mount two controllers together.
//!
//! A controller that the kernel lacks, or will not hand out, is reported and left out: containers that need
//! it are refused later, by name.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::mount::{MountError, MountOptions, mount};
use super::mountinfo;
use crate::config::CgroupVersion;
use nix::mount::MsFlags;

const ROOT: &str = "/sys/fs/cgroup";
/// What both kinds are mounted with.
const FLAGS: MsFlags =
    MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC).union(MsFlags::MS_RELATIME);

/// Why there are no cgroups.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// A hierarchy can't be mounted.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// A file can't be read, written or made.
    #[error("{step} {path}: {source}", path = path.display())]
    File {
        /// What was done.
        step: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Not one controller of v1 could be mounted.
    #[error("no controller of cgroup v1 could be mounted")]
    Nothing,
}

/// A controller that is left out.
#[derive(Debug)]
pub struct Missing {
    /// Its name.
    pub name: String,
    /// Why.
    pub source: CgroupError,
}

/// Mounts the hierarchy or hierarchies on `/sys/fs/cgroup`, unless something is mounted there. Returns the
/// controllers that are left out.
///
/// # Errors
///
/// [`CgroupError`]: no cgroups.
pub fn set_up(version: CgroupVersion) -> Result<Vec<Missing>, CgroupError> {
    let root = Path::new(ROOT);
    let mounted = mountinfo::is_mount_point(root);
    let mounted =
        mounted.map_err(|source| CgroupError::File { step: "look at", path: root.into(), source })?;
    match version {
        CgroupVersion::V2 => {
            if !mounted {
                mount_v2(root)?;
            }
            enable_controllers(root)
        }
        CgroupVersion::V1 if mounted => Ok(Vec::new()),
        CgroupVersion::V1 => mount_v1(root),
    }
}

/// With `favordynmods` a process enters its cgroup without waiting for an RCU grace period (Linux 6.0,
/// Documentation/admin-guide/cgroup-v2.rst): some ten milliseconds of each container in an emulated guest. Older
/// kernels don't know it.
fn mount_v2(root: &Path) -> Result<(), CgroupError> {
    Ok(mount("cgroup2", root, "cgroup2", &options(FLAGS, "nsdelegate,favordynmods"))
        .or_else(|_| mount("cgroup2", root, "cgroup2", &options(FLAGS, "nsdelegate")))?)
}

fn options(flags: MsFlags, data: &str) -> MountOptions {
    MountOptions { flags, data: data.to_owned(), ..MountOptions::default() }
}

/// Hands every controller down to the children of the root, one by one, so that one that refuses (cpu, while
/// there are real-time processes) takes no other with it.
fn enable_controllers(root: &Path) -> Result<Vec<Missing>, CgroupError> {
    let path = root.join("cgroup.controllers");
    let found =
        fs::read_to_string(&path).map_err(|source| CgroupError::File { step: "read", path, source })?;
    let control = root.join("cgroup.subtree_control");
    let enable = |name: &str| write(&control, &format!("+{name}"));
    Ok(found.split_whitespace().filter_map(|name| missing(name, enable(name))).collect())
}

fn mount_v1(root: &Path) -> Result<Vec<Missing>, CgroupError> {
    let path = PathBuf::from("/proc/cgroups");
    let table =
        fs::read_to_string(&path).map_err(|source| CgroupError::File { step: "read", path, source })?;
    mount("cgroup", root, "tmpfs", &options(FLAGS - MsFlags::MS_RELATIME, "mode=755"))?;
    let controllers = enabled_controllers(&table);
    let left_out: Vec<_> =
        controllers.iter().filter_map(|name| missing(name, mount_controller(root, name))).collect();
    if left_out.len() == controllers.len() {
        return Err(CgroupError::Nothing);
    }
    let hierarchy = root.join("memory/memory.use_hierarchy");
    if hierarchy.exists() {
        write(&hierarchy, "1")?;
    }
    let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | (FLAGS - MsFlags::MS_RELATIME);
    mount("cgroup", root, "tmpfs", &options(read_only, "mode=755"))?;
    Ok(left_out)
}

fn mount_controller(root: &Path, name: &str) -> Result<(), CgroupError> {
    let path = root.join(name);
    fs::create_dir(&path).map_err(|source| CgroupError::File {
        step: "create directory",
        path: path.clone(),
        source,
    })?;
    mount("cgroup", &path, "cgroup", &options(FLAGS, name))?;
    Ok(())
}

fn missing(name: &str, done: Result<(), CgroupError>) -> Option<Missing> {
    done.err().map(|source| Missing { name: name.to_owned(), source })
}

fn write(path: &Path, text: &str) -> Result<(), CgroupError> {
    fs::write(path, text).map_err(|source| CgroupError::File { step: "write", path: path.to_owned(), source })
}

/// The controllers that `/proc/cgroups` shows as enabled: name, hierarchy, number of cgroups, enabled
/// (cgroups(7)).
fn enabled_controllers(table: &str) -> Vec<&str> {
    let rows = table.lines().filter(|line| !line.starts_with('#'));
    rows.filter_map(|row| match row.split_whitespace().collect::<Vec<_>>().as_slice() {
        [name, _, _, "1"] => Some(*name),
        _ => None,
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_enabled_controllers_count() {
        let table = "#subsys_name\thierarchy\tnum_cgroups\tenabled\n\
                     cpuset\t0\t1\t1\ncpu\t0\t1\t1\nmemory\t0\t1\t0\n\nhalf\t1\npids\t4\t9\t1\n";
        assert_eq!(enabled_controllers(table), ["cpuset", "cpu", "pids"]);
    }

    #[test]
    fn controllers_are_handed_down_one_by_one() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("cgroup.controllers"), "cpu memory pids\n").unwrap();
        assert!(enable_controllers(dir.path()).unwrap().is_empty());
        assert_eq!(fs::read_to_string(dir.path().join("cgroup.subtree_control")).unwrap(), "+pids");
    }

    #[test]
    fn a_controller_that_refuses_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("cgroup.controllers"), "cpu memory\n").unwrap();
        fs::create_dir(dir.path().join("cgroup.subtree_control")).unwrap();
        let left_out = enable_controllers(dir.path()).unwrap();
        let names: Vec<_> = left_out.iter().map(|missing| missing.name.as_str()).collect();
        assert_eq!(names, ["cpu", "memory"]);
    }

    #[test]
    fn a_tree_that_is_no_cgroup_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let error = enable_controllers(dir.path()).unwrap_err().to_string();
        assert!(error.starts_with("read ") && error.contains("cgroup.controllers: "), "{error}");
    }
}
