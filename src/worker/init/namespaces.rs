//! The namespaces of a container's init, and what is set in them.
//!
//! New ones it is born in, but for a user namespace (`users`) and the cgroup namespace: that begins at the cgroup of
//! who makes it, and a child on v1 has not entered its cgroups yet, while one on v2 would get its parent's
//! (kernel/cgroup/namespace.c, `copy_cgroup_ns`).

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sched::{CloneFlags, setns, unshare};
use oci_spec::runtime::{Linux, LinuxNamespaceType as Type};

use super::super::child::failed;
use super::super::job::Failure;
use super::super::sys;
use crate::guest::loopback;
use crate::spec::OwnInit;

/// Which ones init makes, and which it joins.
#[derive(Debug)]
pub(super) struct Namespaces {
    new: CloneFlags,
    joined: Vec<(CloneFlags, PathBuf)>,
}

impl Namespaces {
    pub(super) fn of(linux: &Linux) -> Result<Self, Failure> {
        let mut all = Self { new: CloneFlags::empty(), joined: Vec::new() };
        for namespace in linux.namespaces().iter().flatten() {
            let flag = flag(namespace.typ())?;
            match namespace.path() {
                Some(path) => all.joined.push((flag, path.clone())),
                None => all.new |= flag,
            }
        }
        Ok(all)
    }

    /// Those that the child is to be born in.
    pub(super) fn born_in(&self) -> CloneFlags {
        self.new - CloneFlags::CLONE_NEWCGROUP - CloneFlags::CLONE_NEWUSER
    }

    /// Whether the container has users of its own.
    pub(super) fn have_users(&self) -> bool {
        self.new.contains(CloneFlags::CLONE_NEWUSER)
    }

    /// What begins in its user namespace, if it has one.
    pub(super) fn late(&self) -> CloneFlags {
        self.new & CloneFlags::CLONE_NEWCGROUP
    }

    /// A PID namespace is joined for children only.
    pub(super) fn join_for_children(&self) -> Result<(), Failure> {
        self.join(|flag| flag == CloneFlags::CLONE_NEWPID)
    }

    /// In the child: all that it is not in yet. It is in its cgroup.
    pub(super) fn enter(&self) -> Result<(), Failure> {
        self.join(|flag| flag != CloneFlags::CLONE_NEWPID)?;
        if self.new.contains(CloneFlags::CLONE_NEWCGROUP) && !self.have_users() {
            unshare(CloneFlags::CLONE_NEWCGROUP)
                .map_err(|errno| failed("begin a cgroup namespace", errno))?;
        }
        if self.new.contains(CloneFlags::CLONE_NEWNET) {
            // Nobody else would, and 127.0.0.1 is to be reached everywhere.
            loopback::up().map_err(|error| Failure::internal(error.to_string()))?;
        }
        Ok(())
    }

    fn join(&self, which: impl Fn(CloneFlags) -> bool) -> Result<(), Failure> {
        for (flag, path) in self.joined.iter().filter(|(flag, _)| which(*flag)) {
            File::open(path)
                .and_then(|file| Ok(setns(file, *flag)?))
                .map_err(|error| Failure::internal(format!("join {}: {error}", path.display())))?;
        }
        Ok(())
    }
}

fn flag(kind: Type) -> Result<CloneFlags, Failure> {
    Ok(match kind {
        Type::Mount => CloneFlags::CLONE_NEWNS,
        Type::Cgroup => CloneFlags::CLONE_NEWCGROUP,
        Type::Uts => CloneFlags::CLONE_NEWUTS,
        Type::Ipc => CloneFlags::CLONE_NEWIPC,
        Type::Pid => CloneFlags::CLONE_NEWPID,
        Type::Network => CloneFlags::CLONE_NEWNET,
        Type::User => CloneFlags::CLONE_NEWUSER,
        Type::Time => return Err(Failure::internal(format!("no {kind} namespace is made here"))),
    })
}

/// The names of the host in a UTS namespace of the container's own; for another the specification has none.
pub(super) fn name_host(wanted: &OwnInit) -> Result<(), Failure> {
    if let Some(name) = &wanted.hostname {
        nix::unistd::sethostname(name).map_err(|errno| failed("set the host name", errno))?;
    }
    wanted.domainname.as_ref().map_or(Ok(()), |name| {
        sys::set_domain_name(name.as_bytes()).map_err(|errno| failed("set the domain name", errno))
    })
}

/// Writes those sysctls of the namespaces that this process is in, by way of the agent's `/proc`.
pub(super) fn set_sysctls(
    linux: &Linux,
    proc: &OwnedFd,
    which: impl Fn(&str) -> bool,
) -> Result<(), Failure> {
    for (name, value) in linux.sysctl().iter().flatten().filter(|(name, _)| which(name)) {
        let how = OpenHow::new()
            .flags(OFlag::O_WRONLY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
        let path = format!("sys/{}", name.replace('.', "/"));
        openat2(proc, path.as_str(), how)
            .map_err(std::io::Error::from)
            .and_then(|file| File::from(file).write_all(value.as_bytes()))
            .map_err(|error| Failure::internal(format!("set the sysctl {name} to {value:?}: {error}")))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_child_is_born_in_new_ones_but_for_the_cgroup_namespace() {
        let linux = json!({"namespaces": [
            {"type": "ipc", "path": "/run/ns/ipc"}, {"type": "pid", "path": "/run/ns/pid"}, {"type": "mount"},
            {"type": "network"}, {"type": "cgroup"}, {"type": "user"}
        ]});
        let all = Namespaces::of(&serde_json::from_value(linux).unwrap()).unwrap();
        assert_eq!(all.born_in(), CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET);
        assert!(all.have_users());
        let failure = all.join_for_children().unwrap_err().to_string();
        assert!(failure.contains("/run/ns/pid"), "{failure}");
        let failure = all.enter().unwrap_err().to_string();
        assert!(failure.contains("/run/ns/ipc"), "{failure}");
        let time = serde_json::from_value(json!({"namespaces": [{"type": "time"}]})).unwrap();
        assert!(Namespaces::of(&time).is_err());
    }
}
