//! A program of the guest, in the guest's own namespaces, between three files.

use std::ffi::{CStr, CString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;

use nix::errno::Errno;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::SigSet;
use nix::unistd::{chdir, dup2_stderr, dup2_stdin, dup2_stdout, execve, setsid};

use super::create::Started;
use super::job::{Failure, ProgramJob};
use super::sys;
use crate::supervisor::{Forked, fork};

/// What the network's tools need: they load modules. Their words are for people who search for them.
const ENVIRONMENT: [&CStr; 2] = [c"PATH=/usr/sbin:/sbin:/usr/bin:/bin", c"LC_ALL=C"];

/// Starts the program, with the files behind the job as its standard input, output and error.
pub(super) fn start(job: &ProgramJob, fds: Vec<OwnedFd>) -> Result<Started, Failure> {
    let files: [OwnedFd; 3] =
        fds.try_into().map_err(|_| Failure::internal("a program without its three files"))?;
    let args = arguments(job)?;
    match fork().map_err(|errno| Failure::internal(format!("fork a process: {errno}")))? {
        Forked::Child => {
            let errno = become_program(&args, &files, job.max_file);
            // The program's standard error, unless that is what could not be had.
            let _ = nix::unistd::write(&files[2], format!("can't be executed: {}", errno.desc()).as_bytes());
            sys::exit_now(127)
        }
        Forked::Parent(pid) => Ok(Started { pid, fds: Vec::new() }),
    }
}

/// The program's path and its arguments.
fn arguments(job: &ProgramJob) -> Result<Vec<CString>, Failure> {
    let program = job.program.as_os_str().as_bytes();
    std::iter::once(program)
        .chain(job.args.iter().map(String::as_bytes))
        .map(CString::new)
        .collect::<Result<_, _>>()
        .map_err(|_| Failure::internal(format!("{}: an argument has a NUL byte", job.program.display())))
}

/// Returns only when it fails.
fn become_program(args: &[CString], [stdin, stdout, stderr]: &[OwnedFd; 3], max_file: u64) -> Errno {
    let prepared = || {
        setsid()?;
        chdir("/")?;
        dup2_stdin(stdin)?;
        dup2_stdout(stdout)?;
        dup2_stderr(stderr)?;
        setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
        setrlimit(Resource::RLIMIT_FSIZE, max_file, max_file)
    };
    if let Err(errno) = prepared() {
        return errno;
    }
    sys::default_signal_actions();
    let _ = SigSet::empty().thread_set_mask();
    let Some(program) = args.first() else { return Errno::EINVAL };
    let Err(errno) = execve(program, args, &ENVIRONMENT);
    errno
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(program: &str, args: &[&str]) -> ProgramJob {
        let args = args.iter().map(|&arg| arg.to_owned()).collect();
        ProgramJob { program: program.into(), args, max_file: 1 }
    }

    #[test]
    fn the_first_argument_is_the_program_itself() {
        let args = arguments(&job("/usr/sbin/tool", &["--wait", "5"])).unwrap();
        assert_eq!(args, [c"/usr/sbin/tool", c"--wait", c"5"].map(CString::from));
    }

    #[test]
    fn what_can_not_be_an_argument_is_refused_before_the_fork() {
        assert!(arguments(&job("/tool", &["a\0b"])).unwrap_err().message.contains("NUL byte"));
        assert!(start(&job("/tool", &[]), Vec::new()).unwrap_err().message.contains("three files"));
    }
}
