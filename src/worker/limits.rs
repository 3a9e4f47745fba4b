//! Resource limits: the executor sets them last, when it may have lost the right to raise them, so the
//! hard limits are raised beforehand.

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};
use oci_spec::runtime::{PosixRlimit, PosixRlimitType};

use super::job::{Failure, FailureKind};

/// Raises the hard limits of this process to those wanted. What the kernel refuses here, it would refuse the container,
/// too, after it has been started.
pub(super) fn raise(wanted: &[PosixRlimit]) -> Result<(), Failure> {
    for limit in wanted {
        let resource = resource(limit.typ());
        if let Ok((soft, hard)) = getrlimit(resource)
            && hard < limit.hard()
        {
            setrlimit(resource, soft, limit.hard()).map_err(|errno| refused(limit, errno))?;
        }
    }
    Ok(())
}

/// Sets a limit for good.
pub(super) fn set(limit: &PosixRlimit) -> Result<(), Failure> {
    let (soft, hard): (rlim_t, rlim_t) = (limit.soft(), limit.hard());
    setrlimit(resource(limit.typ()), soft, hard).map_err(|errno| refused(limit, errno))
}

fn refused(limit: &PosixRlimit, errno: Errno) -> Failure {
    let message = format!("set {} to {}:{}: {}", limit.typ(), limit.soft(), limit.hard(), errno.desc());
    Failure { kind: FailureKind::InvalidSpec, message }
}

fn resource(kind: PosixRlimitType) -> Resource {
    match kind {
        PosixRlimitType::RlimitCpu => Resource::RLIMIT_CPU,
        PosixRlimitType::RlimitFsize => Resource::RLIMIT_FSIZE,
        PosixRlimitType::RlimitData => Resource::RLIMIT_DATA,
        PosixRlimitType::RlimitStack => Resource::RLIMIT_STACK,
        PosixRlimitType::RlimitCore => Resource::RLIMIT_CORE,
        PosixRlimitType::RlimitRss => Resource::RLIMIT_RSS,
        PosixRlimitType::RlimitNproc => Resource::RLIMIT_NPROC,
        PosixRlimitType::RlimitNofile => Resource::RLIMIT_NOFILE,
        PosixRlimitType::RlimitMemlock => Resource::RLIMIT_MEMLOCK,
        PosixRlimitType::RlimitAs => Resource::RLIMIT_AS,
        PosixRlimitType::RlimitLocks => Resource::RLIMIT_LOCKS,
        PosixRlimitType::RlimitSigpending => Resource::RLIMIT_SIGPENDING,
        PosixRlimitType::RlimitMsgqueue => Resource::RLIMIT_MSGQUEUE,
        PosixRlimitType::RlimitNice => Resource::RLIMIT_NICE,
        PosixRlimitType::RlimitRtprio => Resource::RLIMIT_RTPRIO,
        PosixRlimitType::RlimitRttime => Resource::RLIMIT_RTTIME,
    }
}
