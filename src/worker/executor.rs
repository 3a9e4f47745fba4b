//! The last steps of a process before it becomes the container's program.
//!
//! Namespaces, root and user are in place: an init comes here by itself (`init`), as a further process does (`exec`), or
//! libcontainer calls this in one that it has made. libcontainer's own executor would refuse programs without `o+x`,
//! and lose the order and the duplicates of the environment.
//!
//! Order: capabilities, the look for the program; when init is started, wait for the terminal, default signals, session
//! keyring, resource limits, seccomp filter, final capabilities, execve; with `noNewPrivileges` the filter comes
//! after the capabilities, so that it need not allow what sets them. Nothing else comes after the filter, which may
//! refuse anything. What fails while the launch of an init is waiting, as the look for the program, is left in the
//! report as a [`Failure`]. What fails in an init that has been started goes to its standard error, and the init ends
//! as a shell would.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag};
use nix::sys::stat::Mode;
use nix::unistd::{AccessFlags, faccessat};
use oci_spec::runtime::{Process, Spec};

use super::filter::Filter;
use super::job::{Failure, FailureKind};
use super::start_hooks::StartHooks;
use super::{capabilities, child, limits, passwd, report, sys, user};
use crate::spec::{CapabilitySets, LateProcess};

/// Where programs are looked for when the environment has no `PATH` (execvp(3)).
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How much of a name is told, in letters.
const MAX_NAME: usize = 200;

/// What every process does last, in its container.
#[derive(Debug, Clone)]
pub(super) struct LastSteps {
    late: LateProcess,
    filter: Option<Filter>,
}

impl LastSteps {
    pub(super) fn new(late: LateProcess, filter: Option<Filter>) -> Self {
        Self { late, filter }
    }

    /// What the process may do until its filter is loaded.
    pub(super) fn early_capabilities(&self) -> &CapabilitySets {
        &self.late.early_capabilities
    }

    /// What its program is labelled with, which is set before: it takes the guest's `/proc`.
    pub(super) fn selinux_label(&self) -> Option<&str> {
        self.late.selinux_label.as_deref()
    }

    /// Looks the program up before the container is started, so that CreateContainer reports a missing one. Nothing
    /// for a program that is named from a directory which is not there yet.
    pub(super) fn look(&self, process: &Process) -> Result<Option<CString>, Failure> {
        let name = process.args().iter().flatten().next();
        let is_relative = name.is_some_and(|name| name.contains('/') && !name.starts_with('/'));
        if self.late.cwd.is_some() && is_relative { Ok(None) } else { program(process).map(Some) }
    }

    /// Everything from the start of an init on, for which `look` has `found` the program or nothing.
    pub(super) fn run_started(&self, process: &Process, found: Option<CString>) -> ! {
        let found = self.enter_directory().and_then(|()| found.map_or_else(|| program(process), Ok));
        let failure = match found {
            Ok(program) => self.become_program(process, &program),
            Err(failure) => failure,
        };
        give_up(&failure)
    }

    /// Everything up to execve; comes back only with the reason why not.
    pub(super) fn become_program(&self, process: &Process, program: &CStr) -> Failure {
        sys::default_signal_actions();
        let _ = nix::sys::signal::SigSet::empty().thread_set_mask();
        let (Some(args), Some(env)) =
            (c_strings(process.args().iter().flatten()), c_strings(self.environment(process).iter()))
        else {
            return invalid("an argument or environment variable holds a NUL byte".to_owned());
        };
        if let Err(failure) = self.confine(process.no_new_privileges().unwrap_or_default()) {
            return failure;
        }
        let Err(errno) = nix::unistd::execve(program, &args, &env);
        exec_failure(program, errno)
    }

    /// Enters the working directory, if that was not there before. Not by a link out of the root: such a directory has
    /// no path.
    fn enter_directory(&self) -> Result<(), Failure> {
        let Some(cwd) = &self.late.cwd else { return Ok(()) };
        nix::unistd::chdir(cwd).map_err(|errno| user::about_cwd(cwd, errno))?;
        user::check_directory(cwd)
    }

    /// The environment in its own order; HOME is the user's in the container's own passwd file, unless it is given.
    fn environment(&self, process: &Process) -> Vec<String> {
        let mut env = process.env().clone().unwrap_or_default();
        if self.late.find_home
            && let Some(home) = passwd::home_of(self.late.uid)
        {
            crate::spec::set_home(&mut env, &home);
        }
        env
    }

    fn confine(&self, no_new_privileges: bool) -> Result<(), Failure> {
        if let Ok(name) = CString::new(self.late.session_keyring.as_str()) {
            match sys::join_session_keyring(&name) {
                // Kernels without keyrings, and a full quota, are no reason to refuse a container.
                Ok(()) | Err(Errno::ENOSYS | Errno::EDQUOT | Errno::EPERM | Errno::EACCES) => {}
                Err(errno) => return Err(Failure::internal(format!("join a session keyring: {errno}"))),
            }
        }
        for limit in &self.late.rlimits {
            limits::set(limit)?;
        }
        // From here on the process can do without its worker.
        let _ = nix::sys::prctl::set_pdeathsig(None);
        if no_new_privileges {
            self.take_capabilities()?;
            self.load_filter()
        } else {
            // Loading it takes CAP_SYS_ADMIN (seccomp(2)).
            self.load_filter()?;
            self.take_capabilities()
        }
    }

    fn load_filter(&self) -> Result<(), Failure> {
        let Some(filter) = &self.filter else { return Ok(()) };
        filter.load().map_err(|errno| invalid(format!("load the seccomp filter: {}", errno.desc())))
    }

    fn take_capabilities(&self) -> Result<(), Failure> {
        let Some(capabilities) = &self.late.capabilities else { return Ok(()) };
        capabilities::set(capabilities)
    }
}

/// Ends an init that has been started, for which nobody waits but for its end.
fn give_up(failure: &Failure) -> ! {
    let line = format!("nakai: {failure}\n");
    let _ = nix::unistd::write(std::io::stderr(), line.as_bytes());
    let not_found = failure.kind == FailureKind::ProgramNotFound;
    sys::exit_now(if not_found { 127 } else { 126 })
}

/// nakai's executor for a container's init that libcontainer makes.
#[derive(Debug, Clone)]
pub(super) struct ContainerExecutor {
    steps: LastSteps,
    report: Rc<OwnedFd>,
    terminal_ready: Option<Rc<OwnedFd>>,
    /// The guest's `/proc`, if the program is labelled.
    proc: Option<Rc<OwnedFd>>,
    start: Option<Rc<StartHooks>>,
    /// Where the program was found when the container was created.
    found: OnceCell<CString>,
}

impl ContainerExecutor {
    pub(super) fn new(
        steps: LastSteps,
        report: OwnedFd,
        terminal_ready: Option<OwnedFd>,
        start: Option<StartHooks>,
    ) -> Result<Self, Failure> {
        let proc = steps.selinux_label().map(|_| open_proc()).transpose()?.map(Rc::new);
        let (terminal_ready, start) = (terminal_ready.map(Rc::new), start.map(Rc::new));
        Ok(Self { steps, report: Rc::new(report), terminal_ready, proc, start, found: OnceCell::new() })
    }

    fn check(&self, process: &Process) -> Result<Option<CString>, Failure> {
        if self.steps.late.cwd.is_none() {
            // libcontainer asks glibc.
            user::check_directory(process.cwd())?;
        }
        if let (Some(label), Some(proc)) = (self.steps.selinux_label(), &self.proc) {
            user::set_selinux_label(proc, label)?;
        }
        capabilities::set(self.steps.early_capabilities())?;
        self.steps.look(process)
    }
}

impl Executor for ContainerExecutor {
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let Some(process) = spec.process() else { return Err(ExecutorError::InvalidArg) };
        if let Some(ready) = &self.terminal_ready {
            // The end of the relay is the end of this pipe.
            let _ = nix::unistd::read(ready.as_fd(), &mut [0]);
        }
        // Nothing of libcontainer's is needed any more, and nothing may be open that leads out when a hook is looked up.
        sys::keep_only(self.start.iter().map(|start| start.words()));
        if let Some(start) = &self.start
            && let Err(failure) = start.run(&self.steps.environment(process))
        {
            give_up(&failure);
        }
        sys::keep_only(std::iter::empty());
        self.steps.run_started(process, self.found.get().cloned())
    }

    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        sys::heed_signals();
        let process = spec.process().as_ref().ok_or_else(|| invalid("no process is given".to_owned()));
        let found = process.and_then(|process| self.check(process));
        let kept = found.map(|program| drop(program.map(|program| self.found.set(program))));
        kept.map_err(|failure| {
            report::leave(&self.report, &failure);
            ExecutorValidationError::ArgValidationError(failure.message)
        })
    }

    fn setup_envs(&self, _: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        // The process's own environment is never used: execve gets the ordered list of the specification.
        Ok(())
    }
}

/// A handle of the `/proc` that is there now.
pub(super) fn open_proc() -> Result<OwnedFd, Failure> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    nix::fcntl::open("/proc", flags, Mode::empty())
        .map_err(|errno| Failure::internal(format!("open /proc: {}", errno.desc())))
}

fn invalid(message: String) -> Failure {
    Failure { kind: FailureKind::InvalidSpec, message }
}

fn c_strings<'a>(strings: impl Iterator<Item = &'a String>) -> Option<Vec<CString>> {
    strings.map(|string| CString::new(string.as_bytes()).ok()).collect()
}

/// Finds the program as execvp(3) would, with the rights of the process, and says why it can't be run.
pub(super) fn program(process: &Process) -> Result<CString, Failure> {
    let name = process.args().iter().flatten().next().map(String::as_str).unwrap_or_default();
    if name.is_empty() || name.contains('\0') {
        return Err(invalid(format!("{name:?} is no program name")));
    }
    if name.contains('/') {
        return check_program(name);
    }
    let path = process.env().iter().flatten().find_map(|variable| variable.strip_prefix("PATH="));
    let mut best = None;
    for directory in path.unwrap_or(DEFAULT_PATH).split(':') {
        let directory = if directory.is_empty() { "." } else { directory };
        let path = format!("{directory}/{name}");
        // Most often it is not there, of which nothing needs to be told.
        if faccessat(AT_FDCWD, path.as_str(), AccessFlags::F_OK, AtFlags::empty()) == Err(Errno::ENOENT) {
            continue;
        }
        match check_program(&path) {
            Ok(program) => return Ok(program),
            Err(failure) if failure.kind == FailureKind::ProgramNotExecutable => {
                best = best.or(Some(failure))
            }
            Err(_) => {}
        }
    }
    Err(best.unwrap_or_else(|| Failure {
        kind: FailureKind::ProgramNotFound,
        message: format!(
            "the file {} was not found: executable file not found in $PATH ({})",
            short(name).escape_debug(),
            short(path.unwrap_or(DEFAULT_PATH))
        ),
    }))
}

/// The beginning of what the host may have made as long as it likes.
fn short(text: &str) -> &str {
    text.char_indices().nth(MAX_NAME).map_or(text, |(end, _)| text.get(..end).unwrap_or(text))
}

fn check_program(path: &str) -> Result<CString, Failure> {
    let cannot = |errno| exec_failure(&CString::new(path).unwrap_or_default(), errno);
    let program = CString::new(path).map_err(|_| invalid(format!("{path:?} holds a NUL byte")))?;
    let metadata = std::fs::metadata(path)
        .map_err(|error| cannot(Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))))?;
    if !metadata.is_file() {
        return Err(cannot(if metadata.is_dir() { Errno::EISDIR } else { Errno::EACCES }));
    }
    let flags = AtFlags::AT_EACCESS;
    faccessat(AT_FDCWD, program.as_c_str(), AccessFlags::X_OK, flags).map_err(cannot)?;
    Ok(program)
}

fn exec_failure(program: &CStr, errno: Errno) -> Failure {
    let kind = match errno {
        Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::ENAMETOOLONG => FailureKind::ProgramNotFound,
        Errno::EACCES | Errno::EPERM | Errno::ENOEXEC | Errno::EISDIR => FailureKind::ProgramNotExecutable,
        errno if child::is_exhausted(errno) => FailureKind::Exhausted,
        _ => FailureKind::Internal,
    };
    let program = program.to_string_lossy();
    Failure { kind, message: format!("can't execute {:?}: {}", short(&program), errno.desc()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(json: serde_json::Value) -> Process {
        serde_json::from_value(json).unwrap()
    }

    fn with_args(args: &[&str], env: &[&str]) -> Process {
        process(serde_json::json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": args, "env": env}))
    }

    #[test]
    fn programs_are_found_as_execvp_would_find_them() {
        let dir = tempfile::tempdir().unwrap();
        let bin = dir.path().join("tool");
        std::fs::write(&bin, "").unwrap();
        let path = format!("PATH=/nowhere:{}", dir.path().display());
        let kind = |args: &[&str]| program(&with_args(args, &[&path])).map_err(|failure| failure.kind);

        assert_eq!(kind(&["tool"]), Err(FailureKind::ProgramNotExecutable), "a file without x");
        std::fs::set_permissions(&bin, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        assert_eq!(
            kind(&["tool"]),
            Ok(CString::new(bin.to_str().unwrap()).unwrap()),
            "0700 is enough for its owner"
        );
        assert_eq!(kind(&["other"]), Err(FailureKind::ProgramNotFound));
        assert_eq!(kind(&["/no/such/file"]), Err(FailureKind::ProgramNotFound));
        assert_eq!(
            kind(&[dir.path().to_str().unwrap()]),
            Err(FailureKind::ProgramNotExecutable),
            "a directory"
        );
        assert_eq!(kind(&[""]), Err(FailureKind::InvalidSpec));
        assert_eq!(kind(&[]), Err(FailureKind::InvalidSpec));
    }
}
