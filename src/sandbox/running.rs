//! What the containers of a running sandbox share.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Mutex;

use oci_spec::runtime::Hooks;

use tokio::sync::watch;

use super::cgroup_paths::CgroupPaths;
use super::lock;
use super::process::Process;
use super::undo::Undo;
use crate::spec::SharedNamespaces;
use crate::supervisor::ExitStatus;

/// A PID namespace, and the end of the process that is its init: nobody can join it after that.
#[derive(Debug)]
pub(super) struct PidNamespace {
    pub(super) namespace: OwnedFd,
    pub(super) init: watch::Receiver<Option<ExitStatus>>,
}

/// A sandbox that runs.
#[derive(Debug)]
pub struct Running {
    pub(super) id: String,
    pub(super) uts: PathBuf,
    pub(super) ipc: PathBuf,
    /// The guest hooks, to be merged into each container's.
    pub(super) hooks: Option<Hooks>,
    /// The PID namespace that containers can share: of the pause process, else of the first container.
    pub(super) pid: Mutex<Option<PidNamespace>>,
    /// What the supervisor holds of the pause process.
    pub(super) pause: Option<u64>,
    /// Mount points of the sandbox's own storages.
    pub(super) storages: Vec<String>,
    /// The containers' cgroups, and those above.
    pub(super) cgroups: CgroupPaths,
    /// Gives all of it back.
    pub(super) undo: Mutex<Option<Undo>>,
}

impl Running {
    /// The namespaces for the next container, but for the PID namespace, which each chooses.
    pub(super) fn shared_namespaces(&self) -> SharedNamespaces {
        SharedNamespaces { ipc: Some(self.ipc.clone()), uts: Some(self.uts.clone()), ..Default::default() }
    }

    /// A path to the shared PID namespace, if there is one that lives. It is the namespace itself, whichever process
    /// has its init's number by now.
    pub(super) fn pid_namespace(&self) -> Option<PathBuf> {
        let mut pid = lock(&self.pid);
        pid.take_if(|shared| shared.init.borrow().is_some());
        let fd = pid.as_ref()?.namespace.as_raw_fd();
        Some(PathBuf::from(format!("/proc/{}/fd/{fd}", std::process::id())))
    }

    /// The first container's PID namespace becomes the one that later containers can join.
    pub(super) fn publish_pid_namespace(&self, init: &Process) {
        let mut pid = lock(&self.pid);
        pid.take_if(|shared| shared.init.borrow().is_some());
        if pid.is_none() {
            // A container that has ended already has none to share; the next one is asked then.
            let namespace = std::fs::File::open(format!("/proc/{}/ns/pid", init.pid())).ok();
            *pid = namespace.map(|file| PidNamespace { namespace: file.into(), init: init.exit().clone() });
        }
    }
}
