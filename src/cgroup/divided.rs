//! A cgroup that its container has divided, as systemd and Docker do inside one.
//!
//! On v2 a cgroup that shares its controllers out holds no processes itself (cgroups(7), "no internal processes"): a
//! further process can't be put into it, but beside the container's init.

use nix::unistd::Pid;
use std::path::Path;

/// The sub-cgroup of the cgroup at `path` that its container's init is in, if it is in one (v2); blocks.
pub(crate) fn place_beside(init: Pid, path: &Path) -> Option<String> {
    // One that has ended is in none, and gets no further process anyway.
    let text = std::fs::read_to_string(format!("/proc/{init}/cgroup")).ok()?;
    below(&text, path)
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
