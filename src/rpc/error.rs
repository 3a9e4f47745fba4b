//! From our errors to ttrpc status codes: the only place where codes are chosen.
//!
//! What shims act on: UNIMPLEMENTED for optional calls, NOT_FOUND for a process that is gone, UNAVAILABLE for
//! a resize without a terminal.

use nix::errno::Errno;
use ttrpc::{Code, get_status};

use crate::cgroup::CgroupError;
use crate::device::DeviceError;
use crate::ids::IdError;
use crate::sandbox::SandboxError;
use crate::stdio::StdioError;
use crate::storage::StorageError;
use crate::supervisor::client::LaunchError;
use crate::worker::job::FailureKind;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum RpcError {
    /// Not there yet.
    #[error("{call} is not implemented")]
    Unimplemented {
        /// The method.
        call: &'static str,
    },
    /// A part of the request that is not there yet.
    #[error("{what} is not implemented")]
    UnimplementedPart {
        /// Which part.
        what: &'static str,
    },
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
    /// The guest could not be asked.
    #[error(transparent)]
    Details(#[from] crate::guest::details::HardwareError),
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
        match self {
            Self::Unimplemented { .. } | Self::UnimplementedPart { .. } => Code::UNIMPLEMENTED,
            Self::Missing { .. } | Self::LogType { .. } | Self::Id(_) | Self::WireSpec(_) => {
                Code::INVALID_ARGUMENT
            }
            Self::Sandbox(error) => sandbox_code(error),
            Self::BootFailed | Self::Ending => Code::UNAVAILABLE,
            Self::Details(_) | Self::Task(_) => Code::INTERNAL,
        }
    }
}

fn sandbox_code(error: &SandboxError) -> Code {
    use SandboxError as E;
    match error {
        E::SandboxState { .. } | E::CgroupInUse { .. } | E::ContainerState { .. } | E::Removing(_) => {
            Code::FAILED_PRECONDITION
        }
        E::SandboxExists { .. } | E::ContainerExists(_) | E::ProcessExists { .. } => Code::ALREADY_EXISTS,
        E::NoContainer(_) | E::NoProcess { .. } | E::NoTerminationLog(_) => Code::NOT_FOUND,
        E::Device(error) => device_code(error),
        E::Storage(error) => storage_code(error),
        E::Spec(_) | E::Root { .. } => Code::INVALID_ARGUMENT,
        E::Stdio { source, .. } => stdio_code(source),
        E::Launch { source, .. } => launch_code(source),
        E::Cgroup { source, .. } => cgroup_code(source),
        E::Signal { source: Errno::EINVAL, .. } => Code::INVALID_ARGUMENT,
        E::File { source, .. } if source.kind() == std::io::ErrorKind::NotFound => Code::NOT_FOUND,
        E::File { source, .. } if source.kind() == std::io::ErrorKind::InvalidInput => Code::INVALID_ARGUMENT,
        E::RemovalTimeout { .. } => Code::DEADLINE_EXCEEDED,
        E::CallerGone => Code::CANCELLED,
        E::Signal { .. }
        | E::File { .. }
        | E::Pipes { .. }
        | E::Module(_)
        | E::Dns(_)
        | E::Guest(_)
        | E::SandboxLeftovers(_)
        | E::Stale(_)
        | E::Leftovers { .. }
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
        | E::NotBlock { .. } => Code::INVALID_ARGUMENT,
        E::UnsupportedType { .. } => Code::UNIMPLEMENTED,
        E::Timeout { .. } => Code::DEADLINE_EXCEEDED,
        _ => Code::INTERNAL,
    }
}

fn storage_code(error: &StorageError) -> Code {
    use StorageError as E;
    match error {
        E::MountPoint { .. } | E::Field { .. } | E::Outside { .. } | E::UnknownDriver { .. } => {
            Code::INVALID_ARGUMENT
        }
        E::NotBlockDevice { .. } => Code::INVALID_ARGUMENT,
        E::Unsupported { .. } => Code::UNIMPLEMENTED,
        E::NotAttached { .. } => Code::NOT_FOUND,
        E::Conflict { .. } => Code::FAILED_PRECONDITION,
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
        CgroupError::NoController { .. } | CgroupError::NoSuchLimit { .. } => Code::UNIMPLEMENTED,
        CgroupError::Freezer { .. } => Code::DEADLINE_EXCEEDED,
        _ => Code::INTERNAL,
    }
}

fn stdio_code(error: &StdioError) -> Code {
    match error {
        StdioError::NotATerminal => Code::UNAVAILABLE,
        StdioError::ZeroLength => Code::INVALID_ARGUMENT,
        StdioError::Closed { .. } => Code::FAILED_PRECONDITION,
        _ => Code::INTERNAL,
    }
}

fn launch_code(error: &LaunchError) -> Code {
    let LaunchError::Failed(failure) = error else { return Code::INTERNAL };
    match failure.kind {
        FailureKind::ProgramNotFound => Code::NOT_FOUND,
        FailureKind::ProgramNotExecutable => Code::PERMISSION_DENIED,
        FailureKind::WorkingDirectory | FailureKind::InvalidSpec => Code::INVALID_ARGUMENT,
        FailureKind::ContainerState => Code::FAILED_PRECONDITION,
        FailureKind::Hook | FailureKind::Internal => Code::INTERNAL,
    }
}

impl From<RpcError> for ttrpc::Error {
    fn from(error: RpcError) -> Self {
        Self::RpcStatus(get_status(error.code(), error.to_string()))
    }
}
