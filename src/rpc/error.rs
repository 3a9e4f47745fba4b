//! From our errors to ttrpc status codes: the only place where codes are chosen.
//!
//! What shims act on: NOT_FOUND for a process that is gone, UNAVAILABLE for a resize without a terminal. UNIMPLEMENTED is
//! for a volume that can't grow, and for methods that the protocol does not have: to a shim it says that an agent is
//! older than itself.

use std::error::Error;

use nix::errno::Errno;
use ttrpc::{Code, get_status};

use crate::cgroup::CgroupError;
use crate::device::DeviceError;
use crate::device::cdi::CdiError;
use crate::guest::clock::ClockError;
use crate::guest::copy_file::CopyError;
use crate::guest::random::RandomError;
use crate::guest::swap::SwapError;
use crate::guest::volume::VolumeError;
use crate::ids::IdError;
use crate::mem_agent::MemAgentError;
use crate::network::NetworkError;
use crate::sandbox::SandboxError;
use crate::stdio::StdioError;
use crate::stdio::ports::PortError;
use crate::storage::StorageError;
use crate::supervisor::client::LaunchError;
use crate::supervisor::tool::ToolError;
use crate::worker::job::FailureKind;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum RpcError {
    /// Nobody could check anything.
    #[error(
        "/grpc.AgentService/SetPolicy is not supported: this agent was built without the feature `policy`"
    )]
    NoPolicyEngine,
    /// The policy refused a request, or can't be one.
    #[cfg(feature = "policy")]
    #[error(transparent)]
    Policy(#[from] crate::policy::PolicyError),
    /// A part of the request is missing.
    #[error("the request has no {field}")]
    Missing {
        /// Its name on the wire.
        field: &'static str,
    },
    /// A diagnosis that there is not.
    #[error("log type {given:?} is not known: there is {known}")]
    LogType {
        /// What was asked for.
        given: String,
        /// What there is.
        known: &'static str,
    },
    /// An id or a path is not one.
    #[error(transparent)]
    Id(#[from] IdError),
    /// The specification on the wire can't be read.
    #[error(transparent)]
    WireSpec(#[from] nakai_protocols::spec::SpecError),
    /// The sandbox refused, or could not.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// The network is not as the host wants it.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The guest could not be asked.
    #[error(transparent)]
    Details(#[from] crate::guest::details::HardwareError),
    /// A file could not be copied.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// A volume could not be asked or grown.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// The clock was not set.
    #[error(transparent)]
    Clock(#[from] ClockError),
    /// The random number generator was not reseeded.
    #[error(transparent)]
    Random(#[from] RandomError),
    /// The memory agent was not told.
    #[error(transparent)]
    MemAgent(#[from] MemAgentError),
    /// The guest has not come up.
    #[error("the guest has not booted completely: see its console")]
    BootFailed,
    /// The sandbox has been destroyed, and the guest ends with it.
    #[error("the agent is about to end")]
    Ending,
    /// A blocking task ended early.
    #[error("{0} ended unexpectedly")]
    Task(&'static str),
}

impl From<DeviceError> for RpcError {
    fn from(error: DeviceError) -> Self {
        Self::Sandbox(error.into())
    }
}

impl From<StorageError> for RpcError {
    fn from(error: StorageError) -> Self {
        Self::Sandbox(error.into())
    }
}

impl RpcError {
    /// The status code of this failure.
    pub fn code(&self) -> Code {
        match self.code_of_step() {
            Code::INTERNAL if is_exhausted(self) => Code::RESOURCE_EXHAUSTED,
            code => code,
        }
    }

    /// The code that the step that failed says.
    fn code_of_step(&self) -> Code {
        match self {
            Self::NoPolicyEngine => Code::NOT_FOUND,
            Self::Missing { .. } | Self::LogType { .. } | Self::Id(_) | Self::WireSpec(_) => {
                Code::INVALID_ARGUMENT
            }
            Self::Sandbox(error) => sandbox_code(error),
            Self::Network(error) => network_code(error),
            #[cfg(feature = "policy")]
            Self::Policy(error) => policy_code(error),
            Self::Copy(error) => copy_code(error),
            Self::Volume(error) => volume_code(error),
            Self::Clock(ClockError::Field { .. })
            | Self::Random(RandomError::Empty | RandomError::TooLong { .. }) => Code::INVALID_ARGUMENT,
            Self::Clock(ClockError::Kernel { source: Errno::EINVAL, .. }) => Code::INVALID_ARGUMENT,
            Self::Clock(_) | Self::Random(_) => Code::INTERNAL,
            Self::MemAgent(MemAgentError::Off) => Code::FAILED_PRECONDITION,
            Self::MemAgent(MemAgentError::Range { .. }) => Code::INVALID_ARGUMENT,
            Self::BootFailed | Self::Ending => Code::UNAVAILABLE,
            Self::MemAgent(MemAgentError::Record(_) | MemAgentError::Task)
            | Self::Details(_)
            | Self::Task(_) => Code::INTERNAL,
        }
    }
}

/// Whether the kernel had no memory or no descriptor for it, whatever was tried.
fn is_exhausted(error: &(dyn Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let errno = match error.downcast_ref::<std::io::Error>() {
            Some(error) => error.raw_os_error().map(Errno::from_raw),
            None => error.downcast_ref::<Errno>().copied(),
        };
        if let Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::ENOBUFS | Errno::ETOOMANYREFS) =
            errno
        {
            return true;
        }
        cause = error.source();
    }
    false
}

fn sandbox_code(error: &SandboxError) -> Code {
    use SandboxError as E;
    match error {
        E::SharedMountSource { .. }
        | E::SandboxState { .. }
        | E::CgroupInUse { .. }
        | E::ContainerState { .. }
        | E::Removing(_) => Code::FAILED_PRECONDITION,
        E::SandboxExists { .. } | E::ContainerExists(_) | E::ProcessExists { .. } => Code::ALREADY_EXISTS,
        E::NoContainer(_) | E::NoProcess { .. } | E::NoTerminationLog(_) => Code::NOT_FOUND,
        E::Device(error) => device_code(error),
        E::Cdi(CdiError::NoDevice { .. }) => Code::NOT_FOUND,
        E::Cdi(CdiError::Timeout { .. }) => Code::DEADLINE_EXCEEDED,
        E::Cdi(CdiError::Name { .. }) => Code::INVALID_ARGUMENT,
        E::Storage(error) => storage_code(error),
        E::Spec(_) | E::Root { .. } => Code::INVALID_ARGUMENT,
        E::Stdio { source, .. } => stdio_code(source),
        E::Launch { source, .. } => launch_code(source),
        E::Cgroup { source, .. } => cgroup_code(source),
        E::Signal { source: Errno::EINVAL, .. } => Code::INVALID_ARGUMENT,
        E::Swap(SwapError { source: Errno::ENOENT, .. }) => Code::NOT_FOUND,
        E::Swap(SwapError { source: Errno::EINVAL, .. }) => Code::INVALID_ARGUMENT,
        E::File { source, .. } if source.kind() == std::io::ErrorKind::NotFound => Code::NOT_FOUND,
        E::File { source, .. } if source.kind() == std::io::ErrorKind::InvalidInput => Code::INVALID_ARGUMENT,
        E::File { source, .. } if matches!(source.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT)) => {
            Code::RESOURCE_EXHAUSTED
        }
        E::Record(error) if error.is_full() => Code::RESOURCE_EXHAUSTED,
        E::Port(PortError::Off { .. }) => Code::FAILED_PRECONDITION,
        E::Port(PortError::Missing { .. }) | E::RemovalTimeout { .. } => Code::DEADLINE_EXCEEDED,
        E::CallerGone => Code::CANCELLED,
        E::Signal { .. }
        | E::File { .. }
        | E::Pipes { .. }
        | E::Duplicate { .. }
        | E::Record(_)
        | E::Module(_)
        | E::Swap(_)
        | E::Cdi(_)
        | E::CdiEdits(_)
        | E::Dns(_)
        | E::Guest(_)
        | E::SandboxLeftovers(_)
        | E::Stale(_)
        | E::TaskEnded(_) => Code::INTERNAL,
    }
}

fn device_code(error: &DeviceError) -> Code {
    use DeviceError as E;
    match error {
        E::UnknownType { .. }
        | E::Missing { .. }
        | E::ContainerPath { .. }
        | E::Pci { .. }
        | E::Scsi { .. }
        | E::NotInDev { .. }
        | E::NotBlock { .. }
        | E::Option { .. }
        | E::Groups { .. } => Code::INVALID_ARGUMENT,
        // The machine is of another kind.
        E::NoIommuGroup { .. } | E::UnsupportedType { .. } | E::NoMemoryProbe { .. } => {
            Code::FAILED_PRECONDITION
        }
        E::MemoryProbe { source, .. } if source.kind() == std::io::ErrorKind::InvalidInput => {
            Code::INVALID_ARGUMENT
        }
        E::Timeout { .. } | E::NoLink { .. } | E::Cpus { .. } => Code::DEADLINE_EXCEEDED,
        _ => Code::INTERNAL,
    }
}

fn network_code(error: &NetworkError) -> Code {
    use NetworkError as E;
    match error {
        E::Mac { .. } | E::LinkName { .. } | E::NamesNothing | E::Field { .. } => Code::INVALID_ARGUMENT,
        E::NoLinkWithMac { .. } | E::NoLinkNamed { .. } | E::LinkGone { .. } => Code::NOT_FOUND,
        // The kernel's words for a value that it does not take.
        E::Change { source, .. } if matches!(source.errno, Errno::EINVAL | Errno::ERANGE) => {
            Code::INVALID_ARGUMENT
        }
        E::Device(error) => device_code(error),
        E::Tool(ToolError::Absent { .. }) => Code::FAILED_PRECONDITION,
        _ => Code::INTERNAL,
    }
}

fn storage_code(error: &StorageError) -> Code {
    use StorageError as E;
    match error {
        E::MountPoint { .. }
        | E::Field { .. }
        | E::Outside { .. }
        | E::UnknownDriver { .. }
        | E::NotBlockDevice { .. }
        | E::Unsupported { .. } => Code::INVALID_ARGUMENT,
        E::NotAttached { .. } => Code::NOT_FOUND,
        E::TooFewPages { .. } => Code::RESOURCE_EXHAUSTED,
        E::Conflict { .. }
        | E::Image { .. }
        | E::PauseImage { .. }
        | E::Format { .. }
        | E::Encrypt { .. } => Code::FAILED_PRECONDITION,
        E::Device { cause, .. } => cause.downcast_ref().map_or(Code::INTERNAL, device_code),
        _ => Code::INTERNAL,
    }
}

fn cgroup_code(error: &CgroupError) -> Code {
    match error {
        CgroupError::BadPath { .. } | CgroupError::BadLimit { .. } | CgroupError::DeviceRules { .. } => {
            Code::INVALID_ARGUMENT
        }
        // The kernel's words for a number that it does not take, and for one that is below what is in use.
        CgroupError::Write { source: Errno::EINVAL | Errno::ERANGE, .. } => Code::INVALID_ARGUMENT,
        CgroupError::Write { source: Errno::EBUSY, .. } => Code::FAILED_PRECONDITION,
        CgroupError::NotFound { .. } => Code::NOT_FOUND,
        CgroupError::NoController { .. } | CgroupError::NoSuchLimit { .. } => Code::FAILED_PRECONDITION,
        CgroupError::Freezer { .. } => Code::DEADLINE_EXCEEDED,
        _ => Code::INTERNAL,
    }
}

#[cfg(feature = "policy")]
fn policy_code(error: &crate::policy::PolicyError) -> Code {
    use crate::policy::PolicyError as E;
    match error {
        E::Denied { .. } => Code::PERMISSION_DENIED,
        E::Invalid { .. } | E::TooLong { .. } => Code::INVALID_ARGUMENT,
        E::File { .. } | E::Record(_) | E::Failed { .. } => Code::INTERNAL,
    }
}

fn copy_code(error: &CopyError) -> Code {
    use CopyError as E;
    match error {
        E::Outside { .. }
        | E::Number { .. }
        | E::TooMuch { .. }
        | E::Type { .. }
        | E::Target { .. }
        | E::Scattered { .. } => Code::INVALID_ARGUMENT,
        E::NoRoom { .. } | E::TooMany { .. } => Code::RESOURCE_EXHAUSTED,
        E::Beneath(_) | E::Step { .. } => match error.errno() {
            Some(Errno::ENOSPC | Errno::EDQUOT | Errno::EFBIG) => Code::RESOURCE_EXHAUSTED,
            // Something else than a directory is on the way, or something is mounted there.
            Some(Errno::ENOTDIR | Errno::ELOOP | Errno::EBUSY) => Code::FAILED_PRECONDITION,
            Some(Errno::ENAMETOOLONG) => Code::INVALID_ARGUMENT,
            _ => Code::INTERNAL,
        },
    }
}

fn volume_code(error: &VolumeError) -> Code {
    use VolumeError as E;
    match error {
        E::Outside { .. } => Code::INVALID_ARGUMENT,
        E::FileSystem { .. } => Code::UNIMPLEMENTED,
        E::DeviceTooSmall { .. } | E::Shrink { .. } => Code::OUT_OF_RANGE,
        E::NoDevice { .. } => Code::FAILED_PRECONDITION,
        E::Open { .. } | E::Step { .. } => match error.errno() {
            Some(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => Code::NOT_FOUND,
            // The kernel can't grow a file system that was made without room for it, or is read-only or damaged.
            Some(Errno::EINVAL | Errno::EPERM | Errno::EROFS | Errno::EOPNOTSUPP | Errno::EBUSY) => {
                Code::FAILED_PRECONDITION
            }
            _ => Code::INTERNAL,
        },
    }
}

fn stdio_code(error: &StdioError) -> Code {
    match error {
        StdioError::NotATerminal => Code::UNAVAILABLE,
        StdioError::ZeroLength => Code::INVALID_ARGUMENT,
        StdioError::Closed { .. } => Code::FAILED_PRECONDITION,
        StdioError::Full { .. } => Code::RESOURCE_EXHAUSTED,
        _ => Code::INTERNAL,
    }
}

fn launch_code(error: &LaunchError) -> Code {
    let failure = match error {
        LaunchError::Failed(failure) => failure,
        // The guest has no room for another process.
        LaunchError::Fork(Errno::EAGAIN) | LaunchError::NoDescriptors => return Code::RESOURCE_EXHAUSTED,
        _ => return Code::INTERNAL,
    };
    match failure.kind {
        FailureKind::ProgramNotFound => Code::NOT_FOUND,
        FailureKind::ProgramNotExecutable => Code::PERMISSION_DENIED,
        FailureKind::WorkingDirectory | FailureKind::InvalidSpec => Code::INVALID_ARGUMENT,
        FailureKind::ContainerState => Code::FAILED_PRECONDITION,
        FailureKind::Exhausted => Code::RESOURCE_EXHAUSTED,
        FailureKind::Hook | FailureKind::Internal => Code::INTERNAL,
    }
}

impl From<RpcError> for ttrpc::Error {
    fn from(error: RpcError) -> Self {
        Self::RpcStatus(get_status(error.code(), error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stdio::StreamName;

    fn launch(source: LaunchError) -> SandboxError {
        SandboxError::Launch { what: "exec".to_owned(), source }
    }

    /// In whatever step of a launch it is.
    #[test]
    fn no_memory_and_no_descriptors_are_told_as_such() {
        let failed = |errno: Errno| {
            let pipes = StdioError::Pipe { stream: StreamName::Stdout, source: errno };
            [
                SandboxError::Pipes { source: pipes },
                SandboxError::Duplicate { source: errno.into() },
                launch(LaunchError::HandOver { step: "memfd_create", source: errno.into() }),
                launch(LaunchError::Fork(errno)),
                SandboxError::File { step: "open", path: "/x".to_owned(), source: errno.into() },
            ]
        };
        let code = |error: SandboxError| RpcError::from(error).code();
        for errno in [Errno::EMFILE, Errno::ENFILE, Errno::ENOMEM] {
            assert_eq!(failed(errno).map(code), [Code::RESOURCE_EXHAUSTED; 5], "{errno}");
        }
        assert_eq!(failed(Errno::EPERM).map(code), [Code::INTERNAL; 5]);
        let record = |errno: Errno| {
            SandboxError::from(crate::records::RecordError::File {
                step: "write",
                path: "/r".into(),
                source: errno.into(),
            })
        };
        assert_eq!(code(record(Errno::ENOSPC)), Code::RESOURCE_EXHAUSTED);
        assert_eq!(code(record(Errno::EPERM)), Code::INTERNAL);
        assert_eq!(code(launch(LaunchError::NoDescriptors)), Code::RESOURCE_EXHAUSTED);
        let network = |errno: Errno| RpcError::from(NetworkError::Socket(errno.into())).code();
        assert_eq!([Errno::EMFILE, Errno::EPERM].map(network), [Code::RESOURCE_EXHAUSTED, Code::INTERNAL]);
    }
}
