//! Units: their names, and what systemd is told of them.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::bus::Bus;
use super::wire::Writer;
use super::{Limit, SystemdError};

/// systemd's own socket.
const SOCKET: &str = "/run/systemd/private";
/// Where a container goes that names no slice.
const DEFAULT_SLICE: &str = "system.slice";
const SLICE: &str = ".slice";
/// The longest name of a unit.
const NAME_MAX: usize = 255;

/// The scope that a container's processes are in, and the slice that this is in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unit {
    name: String,
    slice: String,
}

/// Why a text in systemd's form names no unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadUnit(pub &'static str);

impl Unit {
    /// The unit of a `linux.cgroupsPath` of the form `slice:prefix:name`. `None` if it has another form.
    ///
    /// # Errors
    /// [`BadUnit`] if it has that form, and no unit can have such a name.
    pub fn parse(text: &str) -> Result<Option<Self>, BadUnit> {
        let is_plain = |part: &str| part.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b));
        let mut parts = text.split(':');
        let (Some(slice), Some(prefix), Some(name), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Ok(None);
        };
        if ![slice, prefix, name].into_iter().all(is_plain) {
            return Ok(None);
        }
        if name.is_empty() || name.ends_with(SLICE) {
            return Err(BadUnit("its last part does not name a scope"));
        }
        let slice = if slice.is_empty() { DEFAULT_SLICE } else { slice };
        slice_path(slice)?;
        let name = if prefix.is_empty() { format!("{name}.scope") } else { format!("{prefix}-{name}.scope") };
        if name.len() > NAME_MAX {
            return Err(BadUnit("the name of its scope is too long"));
        }
        Ok(Some(Self { name, slice: slice.to_owned() }))
    }

    /// The path of its cgroup below the root of the hierarchy, absolute.
    pub fn path(&self) -> PathBuf {
        // It has been looked at.
        slice_path(&self.slice).unwrap_or_default().join(&self.name)
    }

    /// Makes the unit, of the processes that are in its cgroup already. From here on systemd leaves what is below to us
    /// (`Delegate`), and keeps these limits in force.
    ///
    /// # Errors
    /// [`SystemdError`].
    pub fn start(&self, description: &str, processes: &[i32], limits: &[Limit]) -> Result<(), SystemdError> {
        self.start_over(&mut Bus::connect(Path::new(SOCKET))?, description, processes, limits)
    }

    pub(super) fn start_over(
        &self,
        bus: &mut Bus,
        description: &str,
        processes: &[i32],
        limits: &[Limit],
    ) -> Result<(), SystemdError> {
        let mut body = Writer::default();
        body.string(&self.name).string("fail");
        body.array(8, |list| {
            let text = |list: &mut Writer, name: &str, value: &str| {
                list.structure().string(name).signature("s").string(value);
            };
            text(list, "Description", description);
            text(list, "Slice", &self.slice);
            // One that has failed would stay, and keep its name.
            text(list, "CollectMode", "inactive-or-failed");
            list.structure().string("Delegate").signature("b").boolean(true);
            list.structure().string("DefaultDependencies").signature("b").boolean(false);
            list.structure().string("PIDs").signature("au").array(4, |pids| {
                for pid in processes {
                    pids.u32(u32::try_from(*pid).unwrap_or(0));
                }
            });
            limits.iter().for_each(|limit| limit.write(list));
        });
        // No units beside it.
        body.array(8, |_| {});
        bus.job("StartTransientUnit", "ssa(sv)a(sa(sv))", body)
    }

    /// Tells systemd which limits are in force now.
    ///
    /// # Errors
    /// [`SystemdError`].
    pub fn set(&self, limits: &[Limit]) -> Result<(), SystemdError> {
        self.set_over(&mut Bus::connect(Path::new(SOCKET))?, limits)
    }

    pub(super) fn set_over(&self, bus: &mut Bus, limits: &[Limit]) -> Result<(), SystemdError> {
        let mut body = Writer::default();
        body.string(&self.name).boolean(true);
        body.array(8, |list| limits.iter().for_each(|limit| limit.write(list)));
        bus.call("SetUnitProperties", "sba(sv)", body).map(drop)
    }

    /// Takes the unit away, when its processes have ended. One that is gone has nothing to be done.
    ///
    /// # Errors
    /// [`SystemdError`].
    pub fn stop(&self) -> Result<(), SystemdError> {
        self.stop_over(&mut Bus::connect(Path::new(SOCKET))?)
    }

    pub(super) fn stop_over(&self, bus: &mut Bus) -> Result<(), SystemdError> {
        let mut body = Writer::default();
        body.string(&self.name).string("replace");
        match bus.job("StopUnit", "ss", body) {
            Err(SystemdError::Refused { name, .. }) if name.ends_with(".NoSuchUnit") => Ok(()),
            stopped => stopped,
        }
    }
}

/// Where a slice is: each `-` in its name is a level (systemd.slice(5)).
fn slice_path(slice: &str) -> Result<PathBuf, BadUnit> {
    let name = slice.strip_suffix(SLICE).ok_or(BadUnit("its first part is no slice"))?;
    let mut path = PathBuf::from("/");
    if name == "-" {
        return Ok(path);
    }
    if slice.len() > NAME_MAX || name.split('-').any(str::is_empty) {
        return Err(BadUnit("no slice can have the name of its first part"));
    }
    let ends = name.match_indices('-').map(|(at, _)| at).chain([name.len()]);
    for end in ends {
        path.push(format!("{}{SLICE}", name.get(..end).unwrap_or(name)));
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_units_in_the_cgroup_of_their_slice() {
        for (text, name, path) in [
            ("system.slice:cri:abc", "cri-abc.scope", "/system.slice/cri-abc.scope"),
            (
                "kubepods-besteffort-podx.slice:cri-containerd:a.b_c",
                "cri-containerd-a.b_c.scope",
                "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podx.slice/cri-containerd-a.b_c.scope",
            ),
            (":cri:abc", "cri-abc.scope", "/system.slice/cri-abc.scope"),
            ("-.slice::abc", "abc.scope", "/abc.scope"),
        ] {
            let unit = Unit::parse(text).unwrap().unwrap();
            assert_eq!((unit.name.as_str(), unit.path()), (name, PathBuf::from(path)), "{text}");
        }
    }

    #[test]
    fn paths_are_no_units_and_impossible_names_are_refused() {
        for text in ["/a/b", "abc", "a:b", "a:b:c:d", "a/b:c:d", "a:b:c d", ""] {
            assert_eq!(Unit::parse(text), Ok(None), "{text}");
        }
        let long = format!("a.slice:b:{}", "x".repeat(255));
        for text in [
            "a:b:c",
            "a.slice:b:",
            ".slice:b:c",
            "a--b.slice:c:d",
            "-a.slice:b:c",
            "a.slice:b:c.slice",
            &long,
        ] {
            assert!(Unit::parse(text).is_err(), "{text}");
        }
    }
}
