//! Where in the cgroup hierarchy a container lives.
//!
//! `linux.cgroupsPath` comes in two forms: a path, or systemd's `slice:prefix:name`. Both become an absolute
//! path, for the agent writes cgroupfs itself. Where systemd runs, the second form names a unit, and the path is that of
//! its cgroup (`kubepods.slice:cri:abc` -> `/kubepods.slice/cri-abc.scope`). Elsewhere each `:` becomes a `/`, so that
//! the last part stays as given (`/kubepods.slice/cri/abc`). Nothing given means `/<container id>`.
//! libcontainer would take a `:` for a character of a directory's name, and invent a name where there is
//! none.

use std::path::{Path, PathBuf};

use super::SpecError;
use crate::ids::ContainerId;
use crate::systemd::{BadUnit, Unit};

/// The longest file name and the longest path, in bytes (limits.h).
const NAME_MAX: usize = 255;
const PATH_MAX: usize = 2048;

/// The container's cgroup: absolute, below the root, without `.` or `..`; and its unit, if it is to have one.
pub(super) fn resolve(
    given: Option<&Path>,
    id: &ContainerId,
    has_systemd: bool,
) -> Result<(PathBuf, Option<Unit>), SpecError> {
    let text = given.and_then(Path::to_str).filter(|_| has_systemd).unwrap_or_default();
    let refuse = |BadUnit(reason)| SpecError::CgroupsPath { path: text.to_owned(), reason };
    match Unit::parse(text).map_err(refuse)? {
        Some(unit) => Ok((unit.path(), Some(unit))),
        None => Ok((plain(given, id)?, None)),
    }
}

fn plain(given: Option<&Path>, id: &ContainerId) -> Result<PathBuf, SpecError> {
    let given = given.unwrap_or_else(|| Path::new(""));
    let refuse = |reason| SpecError::CgroupsPath { path: given.to_string_lossy().into_owned(), reason };
    let text = given.to_str().ok_or_else(|| refuse("not UTF-8"))?;
    if text.is_empty() {
        return Ok(Path::new("/").join(id.as_str()));
    }
    if text.len() > PATH_MAX {
        return Err(refuse("too long"));
    }
    let mut path = PathBuf::from("/");
    for part in text.split(['/', ':']).filter(|part| !part.is_empty()) {
        if matches!(part, "." | "..") {
            return Err(refuse("it has a '.' or '..' part"));
        }
        if part.len() > NAME_MAX || part.chars().any(char::is_control) {
            return Err(refuse("a part is too long, or has a control character"));
        }
        path.push(part);
    }
    if path == Path::new("/") {
        return Err(refuse("it is the root of the hierarchy"));
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(given: Option<&str>) -> Result<String, SpecError> {
        let id = ContainerId::try_from("c1").unwrap();
        Ok(resolve(given.map(Path::new), &id, false)?.0.to_str().unwrap().to_owned())
    }

    #[test]
    fn every_form_becomes_an_absolute_path_that_ends_as_given() {
        for (given, expected) in [
            (None, "/c1"),
            (Some(""), "/c1"),
            (Some("/kubepods/burstable/podx/abc"), "/kubepods/burstable/podx/abc"),
            (Some("kubepods//abc/"), "/kubepods/abc"),
            (
                Some("kubepods-besteffort.slice:cri-containerd:abc"),
                "/kubepods-besteffort.slice/cri-containerd/abc",
            ),
            (Some(":cri:abc"), "/cri/abc"),
            (Some("system.slice::abc"), "/system.slice/abc"),
        ] {
            assert_eq!(run(given).unwrap(), expected, "{given:?}");
        }
    }

    #[test]
    fn where_systemd_runs_its_form_is_a_units() {
        let id = ContainerId::try_from("c1").unwrap();
        let run = |given: &str| resolve(Some(Path::new(given)), &id, true);
        let (path, unit) = run("kubepods-a.slice:cri:abc").unwrap();
        assert_eq!(path, Path::new("/kubepods.slice/kubepods-a.slice/cri-abc.scope"));
        assert!(unit.is_some());
        assert_eq!(run("/kubepods/abc").unwrap(), ("/kubepods/abc".into(), None));
        let refusal = run("kubepods:cri:abc").unwrap_err().to_string();
        assert!(refusal.contains("kubepods:cri:abc") && refusal.contains("slice"), "{refusal}");
    }

    #[test]
    fn what_climbs_or_names_the_root_is_refused() {
        let long = "x".repeat(256);
        for given in ["/", "::", "//", "/a/../b", "a:..:b", "..", "/a/./b", "/a\nb", "/a\0b", long.as_str()] {
            assert!(matches!(run(Some(given)), Err(SpecError::CgroupsPath { .. })), "{given:?}");
        }
    }
}
