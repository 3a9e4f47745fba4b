//! Waiting for children: look at the next dead one, report it, and only then let its pid go.

#![expect(
    unsafe_code,
    reason = "nix turns a real-time signal in a wait status into an error, so libc is asked"
)]

use nix::errno::Errno;
use nix::unistd::Pid;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// It called exit with this code.
    Code(i32),
    /// This signal killed it.
    Signal(i32),
}

impl std::fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
        }
    }
}

impl ExitStatus {
    /// What a shell, and the protocol, make of it: the code, or 128 plus the signal's number.
    pub fn code(self) -> i32 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => signal.saturating_add(128),
        }
    }

    /// As wait(2) encodes it.
    pub fn to_wire(self) -> i32 {
        match self {
            Self::Code(code) => (code & 0xff) << 8,
            Self::Signal(signal) => signal & 0x7f,
        }
    }

    /// From wait(2)'s encoding.
    pub fn from_wire(status: i32) -> Self {
        match status & 0x7f {
            0 => Self::Code((status >> 8) & 0xff),
            signal => Self::Signal(signal),
        }
    }
}

/// The next child that has ended, left as a zombie so that its pid stays taken; `None` when there is none.
///
/// # Errors
/// What waitid(2) says, but for "no children", which is `None`.
#[expect(clippy::disallowed_methods, reason = "this is the reaper")]
pub(super) fn next_dead_child() -> Result<Option<(Pid, ExitStatus)>, Errno> {
    // SAFETY: an all-zero siginfo_t is a valid value of that plain C struct.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT | libc::__WALL;
    loop {
        // SAFETY: `info` is a live siginfo_t that the kernel fills.
        let result = unsafe { libc::waitid(libc::P_ALL, 0, &raw mut info, options) };
        match Errno::result(result) {
            Ok(_) => break,
            Err(Errno::EINTR) => {}
            Err(Errno::ECHILD) => return Ok(None),
            Err(errno) => return Err(errno),
        }
    }
    // SAFETY: waitid filled the child fields, or left them zero.
    let pid = unsafe { info.si_pid() };
    if pid == 0 {
        return Ok(None);
    }
    // SAFETY: as above.
    let value = unsafe { info.si_status() };
    let status =
        if info.si_code == libc::CLD_EXITED { ExitStatus::Code(value) } else { ExitStatus::Signal(value) };
    Ok(Some((Pid::from_raw(pid), status)))
}

/// Takes the zombie `pid` away.
#[expect(clippy::disallowed_methods, reason = "this is the reaper")]
pub(super) fn reap(pid: Pid) {
    // SAFETY: a null status pointer is allowed: the status is known already.
    while unsafe { libc::waitpid(pid.as_raw(), std::ptr::null_mut(), libc::__WALL) } == -1
        && Errno::last() == Errno::EINTR
    {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_survive_the_wire_and_become_shell_codes() {
        let table = [
            (ExitStatus::Code(0), 0),
            (ExitStatus::Code(7), 7),
            (ExitStatus::Code(255), 255),
            (ExitStatus::Signal(9), 137),
            (ExitStatus::Signal(15), 143),
            (ExitStatus::Signal(64), 192),
        ];
        for (status, code) in table {
            assert_eq!(ExitStatus::from_wire(status.to_wire()), status);
            assert_eq!(status.code(), code);
        }
    }
}
