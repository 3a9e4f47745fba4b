//! The cgroups above a container's: made for the path only, and gone when the last cgroup below them is.
//!
//! Several agents on one system may have containers below the same cgroup, and whoever goes last has to remove it,
//! which need not be who made it. So those that an agent has made bear a mark, an extended attribute (xattr(7)); what
//! the system or its administrator has made bears none, and stays.

#![expect(unsafe_code, reason = "setxattr(2) and getxattr(2) have no safe wrapper here")]

use std::collections::BTreeSet;
use std::ffi::{CStr, CString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::Cgroup;

/// Its value says nothing.
const MARK: &CStr = c"user.nakai.made";

impl Cgroup {
    /// Makes the cgroups above this one where they are missing, in all trees; returns them all, for [`remove_empty`].
    /// One that can't be made is left to whoever makes the cgroup itself, and says why.
    pub fn make_ancestors(&self) -> Vec<PathBuf> {
        let mut roots = self.hierarchy.mount_points();
        // Those of a unit are systemd's, which takes what is there. libcontainer fails where another one makes them at
        // the same time.
        if self.unit.is_some() {
            for root in roots.extract_if(.., |root| self.hierarchy.has_systemd(root)) {
                let _ = std::fs::create_dir_all(root.join(self.path.parent().unwrap_or(&self.path)));
            }
        }
        let mut ancestors: Vec<&Path> =
            self.path.ancestors().skip(1).filter(|path| !path.as_os_str().is_empty()).collect();
        ancestors.reverse();
        let all = roots.iter().flat_map(|root| ancestors.iter().map(move |ancestor| root.join(ancestor)));
        all.inspect(|directory| {
            if std::fs::create_dir(directory).is_ok() {
                // Without it the directory stays behind, and nothing else.
                let _ = mark(directory);
            }
        })
        .collect()
    }
}

/// Removes those of the cgroups that an agent has made, the deepest first; one that is not empty stays.
pub fn remove_empty(directories: &BTreeSet<PathBuf>) {
    for directory in directories.iter().rev().filter(|directory| is_marked(directory)) {
        let _ = std::fs::remove_dir(directory);
    }
}

fn mark(directory: &Path) -> io::Result<()> {
    let path = CString::new(directory.as_os_str().as_bytes())?;
    // SAFETY: both strings end with NUL and outlive the call; of the value, no byte is read.
    let result = unsafe { libc::setxattr(path.as_ptr(), MARK.as_ptr(), [0_u8; 0].as_ptr().cast(), 0, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

pub(super) fn is_marked(directory: &Path) -> bool {
    let Ok(path) = CString::new(directory.as_os_str().as_bytes()) else { return false };
    // SAFETY: both strings end with NUL and outlive the call; with size 0 nothing is written (getxattr(2)).
    unsafe { libc::getxattr(path.as_ptr(), MARK.as_ptr(), std::ptr::null_mut(), 0) >= 0 }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::cgroup::Hierarchy;

    /// A directory stands for a hierarchy. Not in /tmp: that may be a tmpfs of a kernel that has no such attributes
    /// there.
    fn cgroup(root: &Path, path: &str) -> Cgroup {
        let hierarchy = Arc::new(Hierarchy::V2 { mount_point: root.to_owned() });
        Cgroup::new(hierarchy, path.into()).unwrap()
    }

    #[test]
    fn the_last_agent_removes_what_the_first_has_made_and_nothing_else() {
        let program = std::env::current_exe().unwrap();
        let root = tempfile::tempdir_in(program.parent().unwrap()).unwrap();
        let root = root.path();
        std::fs::create_dir(root.join("slice")).unwrap();
        let first = cgroup(root, "/slice/pods/one").make_ancestors();
        let second = cgroup(root, "/slice/pods/deep/two").make_ancestors();
        assert_eq!(first, [root.join("slice"), root.join("slice/pods")]);
        assert_eq!(second, [root.join("slice"), root.join("slice/pods"), root.join("slice/pods/deep")]);
        std::fs::create_dir(root.join("slice/pods/deep/two")).unwrap();

        remove_empty(&first.into_iter().collect());
        assert!(root.join("slice/pods").exists(), "the second agent has a container below it");
        std::fs::remove_dir(root.join("slice/pods/deep/two")).unwrap();
        remove_empty(&second.into_iter().collect());
        assert!(!root.join("slice/pods").exists());
        assert!(root.join("slice").exists(), "no agent has made it");
    }

    #[test]
    fn of_a_units_only_those_are_noted_that_systemd_has_not() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let tree = |name: &str| (name.to_owned(), root.join(name));
        let controllers = ["freezer", "memory", "name=systemd"].map(tree).into();
        let unit = crate::systemd::Unit::parse("pods-a.slice:cri:x").unwrap();
        let path = unit.as_ref().unwrap().path();
        let cgroup = Cgroup::new(Arc::new(Hierarchy::V1 { controllers }), path).unwrap().in_unit(unit);
        std::fs::create_dir(root.join("freezer")).unwrap();
        let slices = ["freezer/pods.slice", "freezer/pods.slice/pods-a.slice"].map(|path| root.join(path));
        assert_eq!(cgroup.make_ancestors(), slices);
        for tree in ["freezer", "memory", "name=systemd"] {
            assert!(root.join(tree).join("pods.slice/pods-a.slice").is_dir(), "{tree}");
        }
    }
}
