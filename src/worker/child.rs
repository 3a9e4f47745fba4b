//! What the two processes that are forked for a container, its init and a further one, have in common with each other and
//! with who waits for them: how they are hidden until they are the program, their streams, and how they say what is
//! wrong.

use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout, setsid};

use super::job::{Failure, FailureKind};

/// A step that the kernel refuses.
pub(super) fn failed(step: &str, errno: Errno) -> Failure {
    let kind = if is_exhausted(errno) { FailureKind::Exhausted } else { FailureKind::Internal };
    Failure { kind, message: format!("{step}: {}", errno.desc()) }
}

/// Whether the guest has no more of what is asked for.
pub(super) fn is_exhausted(errno: Errno) -> bool {
    matches!(errno, Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM)
}

/// What the child inherits of its OOM score. For who is dumpable yet: others may not write there without a capability.
pub(super) fn set_oom_score(score: Option<i32>) -> Result<(), Failure> {
    let Some(score) = score else { return Ok(()) };
    std::fs::write("/proc/self/oom_score_adj", score.to_string())
        .map_err(|error| Failure::internal(format!("set the OOM score to {score}: {error}")))
}

/// Nobody in a container can look into this process or its children, until they are another program.
pub(super) fn hide() -> Result<(), Failure> {
    prctl::set_dumpable(false).map_err(|errno| failed("become undumpable", errno))
}

/// On which the child tells, and who waits hears: theirs and ours.
pub(super) fn pair() -> Result<(OwnedFd, OwnedFd), Failure> {
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
        .map_err(|errno| failed("socket pair", errno))
}

/// In the child: a session of its own, with `streams` as the standard ones, if there are three.
pub(super) fn connect(streams: &[OwnedFd]) -> Result<(), Failure> {
    setsid().map_err(|errno| failed("begin a session", errno))?;
    let [stdin, stdout, stderr] = streams else { return Ok(()) };
    dup2_stdin(stdin)
        .and_then(|()| dup2_stdout(stdout))
        .and_then(|()| dup2_stderr(stderr))
        .map_err(|errno| failed("connect the standard streams", errno))
}

/// In the child: says why there is no process. By write(2), which a seccomp filter that is loaded by now most likely
/// allows; who waits no more lets SIGPIPE end the child, which is about to end.
pub(super) fn tell(waiting: &OwnedFd, failure: Failure) {
    let text = serde_json::to_vec(&failure.brief()).unwrap_or_default();
    let _ = nix::unistd::write(waiting, &text);
}

/// What the child said went wrong.
pub(super) fn told(text: &[u8]) -> Failure {
    serde_json::from_slice(text).unwrap_or_else(|_| Failure::internal("the process could not be started"))
}

/// A fork that is refused: for want of room in the container's cgroup or in the guest, or because there is nobody in the
/// PID namespace any more, of which `gone` is said.
pub(super) fn not_forked(errno: Errno, gone: (FailureKind, &str)) -> Failure {
    let (kind, message) = match errno {
        Errno::EAGAIN => {
            (FailureKind::Exhausted, "no more processes are allowed (pids limit, or the guest's)")
        }
        // A PID namespace whose init has ended (pid_namespaces(7)).
        Errno::ENOMEM => gone,
        _ => (FailureKind::Internal, "fork a process in the container's cgroup"),
    };
    Failure { kind, message: format!("{message}: {}", errno.desc()) }
}
