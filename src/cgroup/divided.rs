//! A cgroup that its container has divided, as systemd and Docker do inside one.
//!
//! On v2 a cgroup that shares its controllers out holds no processes itself (cgroups(7), "no internal processes"): a
//! further process can't be put into it, but beside the container's init.

use nix::unistd::Pid;
use std::path::Path;

use super::{Cgroup, CgroupError, Hierarchy};

impl Cgroup {
    /// The sub-cgroup that `init` is in, if this cgroup can hold no process. Nothing if it can.
    ///
    /// # Errors
    /// When the kernel can't be asked.
    pub fn place_beside(&self, init: Pid) -> Result<Option<String>, CgroupError> {
        let Hierarchy::V2 { mount_point } = &*self.hierarchy else { return Ok(None) };
        let Some(dir) = self.open_at(mount_point)? else { return Ok(None) };
        let controllers = dir.read("cgroup.subtree_control")?.unwrap_or_default();
        if controllers.trim().is_empty() {
            return Ok(None);
        }
        // One that has ended is in none, and gets no further process anyway.
        let text = std::fs::read_to_string(format!("/proc/{init}/cgroup")).unwrap_or_default();
        Ok(below(&text, &self.path))
    }
}

/// What follows `cgroup` in the text of a `/proc/<pid>/cgroup`.
fn below(text: &str, cgroup: &Path) -> Option<String> {
    let place = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let rest = Path::new(place).strip_prefix(cgroup).ok()?;
    rest.to_str().filter(|rest| !rest.is_empty()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_below_the_cgroup_is_a_place() {
        for (text, expected) in [
            ("0::/pods/one/init.scope\n", Some("init.scope")),
            ("1:name=systemd:/x\n0::/pods/one/a/b\n", Some("a/b")),
            ("0::/pods/one\n", None),
            ("0::/pods/one-more/a\n", None),
            ("0::/\n", None),
            ("", None),
        ] {
            assert_eq!(below(text, Path::new("pods/one")).as_deref(), expected, "{text:?}");
        }
    }
}
