//! The shell of the debug console: a process in the guest's own namespaces, on a terminal.

use std::ffi::{CStr, CString};
use std::os::fd::OwnedFd;

use nix::sys::signal::SigSet;
use nix::unistd::{AccessFlags, access, chdir, dup2_stderr, dup2_stdin, dup2_stdout, execve, setsid};

use super::create::Started;
use super::job::{Failure, FailureKind, ShellJob};
use super::sys;
use crate::supervisor::{Forked, fork};

/// What a shell needs to be of use. Whoever debugs sets the rest.
const ENVIRONMENT: [&CStr; 3] = [c"PATH=/sbin:/bin:/usr/sbin:/usr/bin", c"TERM=linux", c"HOME=/"];

/// Starts the first of the job's shells that is there, on the terminal behind the job.
pub(super) fn start(job: &ShellJob, fds: Vec<OwnedFd>) -> Result<Started, Failure> {
    let terminal = fds.into_iter().next().ok_or_else(|| Failure::internal("a shell without a terminal"))?;
    let shell = job.shells.iter().find(|shell| access(shell.as_str(), AccessFlags::X_OK).is_ok());
    let shell = shell.ok_or_else(|| Failure {
        kind: FailureKind::ProgramNotFound,
        message: format!("there is no shell in this guest: looked for {}", job.shells.join(", ")),
    })?;
    let shell =
        CString::new(shell.as_str()).map_err(|_| Failure::internal("the shell's path has a NUL byte"))?;
    match fork().map_err(|errno| Failure::internal(format!("fork a shell: {errno}")))? {
        Forked::Child => {
            become_shell(&shell, &terminal);
            sys::exit_now(127)
        }
        Forked::Parent(pid) => Ok(Started { pid, fds: Vec::new() }),
    }
}

/// Returns only when it fails.
fn become_shell(shell: &CStr, terminal: &OwnedFd) {
    let _ = setsid();
    // Without one there is a shell all the same, only without job control.
    let _ = sys::take_terminal(terminal);
    let _ = chdir("/");
    let connected = dup2_stdin(terminal).and_then(|()| dup2_stdout(terminal));
    if connected.and_then(|()| dup2_stderr(terminal)).is_err() {
        return;
    }
    sys::default_signal_actions();
    let _ = SigSet::empty().thread_set_mask();
    let _ = execve(shell, &[shell, c"-i"], &ENVIRONMENT);
}
