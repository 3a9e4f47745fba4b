//! Why the sandbox refused or could not do something.

use crate::ids::{ContainerId, ExecId};
use crate::supervisor::client::LaunchError;

/// A failure of an operation on the sandbox, a container or a process. `rpc::error` gives each its code.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The sandbox is not in the state that the call needs.
    #[error("sandbox is {state}, not {needed}")]
    SandboxState {
        /// What it is.
        state: &'static str,
        /// What it would have to be.
        needed: &'static str,
    },
    /// There is one already.
    #[error("a sandbox exists, it is {state}")]
    SandboxExists {
        /// What it is.
        state: &'static str,
    },
    /// The sandbox is gone, but something stays behind.
    #[error("the sandbox was destroyed, but this could not be taken back: {0}")]
    SandboxLeftovers(String),
    /// There is no such container.
    #[error("container {0} does not exist")]
    NoContainer(String),
    /// The id is taken.
    #[error("container {0} exists")]
    ContainerExists(ContainerId),
    /// The container is not in the state that the call needs.
    #[error("container {id} is {state}, not {needed}")]
    ContainerState {
        /// Which container.
        id: ContainerId,
        /// What it is.
        state: &'static str,
        /// What it would have to be.
        needed: &'static str,
    },
    /// There is no such process, or it has been waited for. The words of ESRCH are what shims look for.
    #[error("process {process:?} of container {container} does not exist (ESRCH: No such process)")]
    NoProcess {
        /// Which container.
        container: ContainerId,
        /// The exec id as given; empty for the container's init.
        process: String,
    },
    /// The container's specification names no termination log, or no mount for it.
    #[error("container {0} has no termination log")]
    NoTerminationLog(ContainerId),
    /// The exec id is taken.
    #[error("process {exec} of container {container} exists")]
    ProcessExists {
        /// Which container.
        container: ContainerId,
        /// Which process.
        exec: ExecId,
    },
    /// What the next server has to know could not be written down.
    #[error(transparent)]
    Record(#[from] crate::records::RecordError),
    /// A device could not be found.
    #[error(transparent)]
    Device(#[from] crate::device::DeviceError),
    /// A storage could not be attached.
    #[error(transparent)]
    Storage(#[from] crate::storage::StorageError),
    /// A mount is to be shared with a container that is not there.
    #[error("container {id} is to see a mount of container {name:?}, but none of that name runs")]
    SharedMountSource {
        /// The container that is to get it.
        id: ContainerId,
        /// The name that annotations would have to tell.
        name: String,
    },
    /// The specification asks for something that can't be.
    #[error(transparent)]
    Spec(#[from] crate::spec::SpecError),
    /// A stream of a process.
    #[error("{stream} of process {process:?} of container {container}: {source}")]
    Stdio {
        /// Which container.
        container: ContainerId,
        /// The exec id as given.
        process: String,
        /// Which stream.
        stream: &'static str,
        /// What happened.
        #[source]
        source: crate::stdio::StdioError,
    },
    /// A connection for a stream.
    #[error(transparent)]
    Port(#[from] crate::stdio::ports::PortError),
    /// The streams of a process could not be made.
    #[error("make the streams of a process: {source}")]
    Pipes {
        /// What happened.
        #[source]
        source: crate::stdio::StdioError,
    },
    /// The same, for want of descriptors.
    #[error("duplicate the streams of a process: {source}")]
    Duplicate {
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// A cgroup operation.
    #[error("cgroup of container {id}: {source}")]
    Cgroup {
        /// Which container.
        id: ContainerId,
        /// What happened.
        #[source]
        source: crate::cgroup::CgroupError,
    },
    /// The cgroup that the container was to have is another's, or is above or beneath that, or holds processes already.
    #[error("container {id}: cgroup {path} is another container's, or has processes in it")]
    CgroupInUse {
        /// Which container.
        id: ContainerId,
        /// Below the root of the hierarchy.
        path: String,
    },
    /// libcontainer, in a worker, could not do it.
    #[error("{what}: {source}")]
    Launch {
        /// What was launched.
        what: String,
        /// Why it failed.
        #[source]
        source: LaunchError,
    },
    /// The root filesystem can't be one.
    #[error("root filesystem {path}: {why}")]
    Root {
        /// Where it is.
        path: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The sandbox's name servers could not be set.
    #[error(transparent)]
    Dns(#[from] super::dns::DnsError),
    /// The guest could not be asked about itself.
    #[error(transparent)]
    Guest(#[from] crate::guest::details::HardwareError),
    /// A kernel module could not be loaded.
    #[error(transparent)]
    Module(#[from] crate::guest::modules::ModuleError),
    /// CDI devices that a container can't have.
    #[error(transparent)]
    Cdi(#[from] crate::device::cdi::CdiError),
    /// What a CDI specification says is no edit of a container.
    #[error("containerEdits of a CDI device: {0}")]
    CdiEdits(String),
    /// Swap space that is none.
    #[error(transparent)]
    Swap(#[from] crate::guest::swap::SwapError),
    /// Something in the guest's filesystem.
    #[error("{step} {path}: {source}")]
    File {
        /// What was tried.
        step: &'static str,
        /// With what.
        path: String,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// The kernel refused to deliver a signal.
    #[error("send signal {signal} to process {process:?} of container {container}: {source}")]
    Signal {
        /// Which container.
        container: ContainerId,
        /// The exec id as given.
        process: String,
        /// The signal's number.
        signal: u32,
        /// What the kernel said.
        #[source]
        source: nix::errno::Errno,
    },
    /// It took longer than the caller allowed; it goes on, and can be asked for again.
    #[error("container {id} is not gone after {seconds} s; the removal goes on")]
    RemovalTimeout {
        /// Which container.
        id: ContainerId,
        /// What the caller allowed.
        seconds: u32,
    },
    /// The operation was given up because the container is being removed, or its task ended.
    #[error("container {0} is being removed")]
    Removing(ContainerId),
    /// What an earlier agent left is in the way.
    #[error("take away what an earlier agent left: {0}")]
    Stale(String),
    /// The caller went away in the middle of it.
    #[error("given up: the caller is gone")]
    CallerGone,
    /// A part of the agent ended unexpectedly.
    #[error("{0} ended unexpectedly")]
    TaskEnded(&'static str),
}

impl SandboxError {
    /// For errors of files and directories.
    pub(super) fn file(step: &'static str, path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.display().to_string();
        move |source| Self::File { step, path, source }
    }
}
