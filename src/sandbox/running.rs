//! What the containers of a running sandbox share.

use std::collections::BTreeSet;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Mutex;

use oci_spec::runtime::Hooks;

use super::lock;
use super::undo::Undo;
use crate::spec::SharedNamespaces;

/// A sandbox that runs.
#[derive(Debug)]
pub struct Running {
    pub(super) id: String,
    pub(super) uts: PathBuf,
    pub(super) ipc: PathBuf,
    /// The guest hooks, to be merged into each container's.
    pub(super) hooks: Option<Hooks>,
    /// The PID namespace that containers can share: of the pause process, else of the first container.
    pub(super) pid: Mutex<Option<OwnedFd>>,
    /// Cgroups above the containers' that the guest did not have before.
    pub(super) cgroup_parents: Mutex<BTreeSet<PathBuf>>,
    /// Gives all of it back.
    pub(super) undo: Mutex<Option<Undo>>,
}

impl Running {
    /// The namespaces for the next container, but for the PID namespace, which each chooses.
    pub(super) fn shared_namespaces(&self) -> SharedNamespaces {
        SharedNamespaces { ipc: Some(self.ipc.clone()), uts: Some(self.uts.clone()), ..Default::default() }
    }

    /// A path to the shared PID namespace, if there is one. It is the namespace itself, whatever became of the
    /// process that made it.
    pub(super) fn pid_namespace(&self) -> Option<PathBuf> {
        let pid = lock(&self.pid);
        let fd = pid.as_ref()?.as_raw_fd();
        Some(PathBuf::from(format!("/proc/{}/fd/{fd}", std::process::id())))
    }

    /// The first container's PID namespace becomes the one that later containers can join.
    pub(super) fn publish_pid_namespace(&self, init: nix::unistd::Pid) {
        let mut pid = lock(&self.pid);
        if pid.is_none() {
            // A container that has ended already has none to share; the next one is asked then.
            *pid = std::fs::File::open(format!("/proc/{init}/ns/pid")).ok().map(OwnedFd::from);
        }
    }
}
