//! Creating a container: by our own code (`init`), or by libcontainer, and what is done around both.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use nix::unistd::Pid;

use super::cgroups::{self, Stay};
use super::console::Console;
use super::executor::{ContainerExecutor, LastSteps};
use super::filter::Filter;
use super::job::{CreateJob, Failure, FailureKind};
use super::report::Report;
use super::start_hooks::StartHooks;
use super::{chain, copy_up, init, limits, mounts, nodes, propagation, sys};
use crate::guest::beneath::{BeneathError, Root};
use crate::spec::WorkingDirectory;

/// A process that has been started, and the descriptors that belong to it.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) pid: Pid,
    pub(super) fds: Vec<OwnedFd>,
}

/// How a process is wired before libcontainer forks it.
struct Wiring {
    builder: ContainerBuilder,
    console: Option<Console>,
}

/// Makes the container and leaves its init waiting before exec. Says, too, what has failed without failing it.
pub(super) fn create(mut job: CreateJob, mut stdio: Vec<OwnedFd>) -> Result<(Started, Vec<String>), Failure> {
    make_working_directory(&job)?;
    nodes::make(&job.rootfs, &job.outside_nodes, false)?;
    let filter = take_filter(&mut stdio, job.filter_flags)?;
    let started = match job.own_init.take() {
        Some(spec) => init::launch(&job, &spec, stdio, filter)?,
        None => {
            let report = super::report()?;
            return by_libcontainer(job, stdio, filter, &report).map(|started| (started, report.warnings()));
        }
    };
    make_what_was_hidden(started.pid, &job).inspect_err(|_| {
        // Not reaped: it is still this one.
        let _ = nix::sys::signal::kill(started.pid, nix::sys::signal::Signal::SIGKILL);
    })?;
    Ok((started, Vec::new()))
}

fn by_libcontainer(
    mut job: CreateJob,
    stdio: Vec<OwnedFd>,
    filter: Option<Filter>,
    report: &Report,
) -> Result<Started, Failure> {
    let wiring = wire(&job, stdio, filter, report)?;
    let cgroups = job.cgroups.take();
    let mut stay = match &cgroups {
        Some((trees, mount)) => {
            report.on_failure_remove(&trees.stand_in);
            Some((Stay::begin(trees, mount.as_ref())?, mount))
        }
        None => None,
    };
    prepare_root(&job, stay.is_some())?;
    // Where hooks expect to be, and as they expect to be.
    nix::unistd::chdir(&job.bundle)
        .map_err(|errno| Failure::internal(format!("enter the bundle: {errno}")))?;
    sys::heed_signals();
    let container = wiring
        .builder
        .as_init(&job.bundle)
        .with_systemd(false)
        .with_detach(true)
        .build()
        .map_err(|error| about_cwd(report.failure(kind_of(&error), &chain(&error)), &job))?;
    // libcontainer has a nix of its own version.
    let pid = container.pid().map(|pid| Pid::from_raw(pid.as_raw()));
    let pid = pid.ok_or_else(|| Failure::internal("libcontainer names no pid"))?;
    let started = started(pid, wiring.console)?;
    nodes::close_directories(pid, &job.device_directories)?;
    copy_up::apply(pid, &job.rootfs, &job.copy_up)?;
    make_what_was_hidden(pid, &job)?;
    // From here on paths may be the container's.
    if let (Some((stay, Some(mount))), Some(init)) = (&mut stay, started.fds.first()) {
        stay.show(pid, init, mount)?;
    }
    drop(stay);
    if let Some(init) = started.fds.first() {
        propagation::apply(init, &job)?;
    }
    Ok(started)
}

/// The container's cgroup on v2, and all that is mounted before libcontainer comes.
fn prepare_root(job: &CreateJob, hide_cgroups: bool) -> Result<(), Failure> {
    let cgroup = job.unified.as_ref().map(cgroups::make_unified).transpose()?;
    if hide_cgroups || job.mounts.is_some() {
        mounts::leave_guest(job.mounts.as_ref())?;
    }
    if hide_cgroups {
        cgroups::hide()?;
    }
    job.mounts.as_ref().map_or(Ok(()), |mounts| mounts::make(&job.rootfs, mounts, cgroup.as_deref()))
}

fn wire(
    job: &CreateJob,
    stdio: Vec<OwnedFd>,
    filter: Option<Filter>,
    report: &Report,
) -> Result<Wiring, Failure> {
    let (late, io) = (&job.late, &job.io);
    limits::raise(&late.rlimits)?;
    let console = if io.terminal { Some(Console::prepare(&job.bundle, io)?) } else { None };
    let copy = |e: std::io::Error| Failure::internal(format!("copy a descriptor: {e}"));
    let ready = console.as_ref().map(|console| console.ready.try_clone()).transpose().map_err(copy)?;
    let steps = LastSteps::new(late.clone(), filter);
    let start = StartHooks::prepare(job)?;
    let executor = ContainerExecutor::new(steps, report.try_clone().map_err(copy)?, ready, start)?;
    let mut builder = ContainerBuilder::new(job.id.clone(), SyscallType::default())
        .with_root_path(&job.state_root)
        .map_err(|error| Failure::internal(chain(&error)))?
        .with_console_socket(console.as_ref().map(|console| console.socket.clone()))
        .with_executor(executor);
    if !io.terminal {
        let mut stdio = stdio.into_iter().map(|fd| give(fd, io.owner));
        if let (Some(stdin), Some(stdout), Some(stderr)) = (stdio.next(), stdio.next(), stdio.next()) {
            builder = builder.with_stdin(stdin).with_stdout(stdout).with_stderr(stderr);
        }
    }
    Ok(Wiring { builder, console })
}

/// The filter in the last descriptor, if the job comes with one.
pub(super) fn take_filter(fds: &mut Vec<OwnedFd>, flags: Option<u32>) -> Result<Option<Filter>, Failure> {
    let Some(flags) = flags else { return Ok(None) };
    let file = fds.pop().ok_or_else(|| Failure::internal("a job without its seccomp filter"))?;
    Filter::read(file, flags).map(Some)
}

/// A pipe belongs to whom it is made for, so that a process can open its own /dev/stdout again.
pub(super) fn give(fd: OwnedFd, (uid, gid): (u32, u32)) -> OwnedFd {
    if uid != 0 || gid != 0 {
        let _ = nix::unistd::fchown(&fd, Some(uid.into()), Some(gid.into()));
    }
    fd
}

pub(super) fn started(pid: Pid, console: Option<Console>) -> Result<Started, Failure> {
    // The process is a child of this worker until the worker ends, so the pid can't be another's yet.
    let pidfd = sys::pidfd_open(pid).map_err(|e| Failure::internal(format!("pidfd of {pid}: {e}")))?;
    let mut fds = vec![pidfd];
    if let Some(console) = console {
        fds.push(console.master()?);
    }
    Ok(Started { pid, fds })
}

/// Makes the working directory if it is missing, as every OCI runtime does: on the root before that may be read-only, in
/// a volume before it is mounted.
fn make_working_directory(job: &CreateJob) -> Result<(), Failure> {
    match &job.working_directory {
        WorkingDirectory::OnRoot(path) => make_directory(&job.rootfs, path, path),
        WorkingDirectory::InVolume { volume, inside } => match Root::open(volume) {
            // What is wrong with a volume its mount will say.
            Err(BeneathError::Root { .. }) => Ok(()),
            _ => make_directory(volume, inside, &job.cwd),
        },
        WorkingDirectory::InMemory(_) | WorkingDirectory::There | WorkingDirectory::Seen(_) => Ok(()),
    }
}

/// What has its place in mounts that only init has.
fn make_what_was_hidden(init: Pid, job: &CreateJob) -> Result<(), Failure> {
    let root = PathBuf::from(format!("/proc/{init}/root"));
    if let WorkingDirectory::InMemory(path) = &job.working_directory {
        make_directory(&root, path, path)?;
    }
    nodes::make(&root, &job.outside_nodes, true)
}

fn make_directory(root: &Path, path: &Path, name: &Path) -> Result<(), Failure> {
    let path = path.strip_prefix("/").unwrap_or(path);
    if path.as_os_str().is_empty() {
        return Ok(());
    }
    crate::guest::beneath::create_dir_beneath(root, path, 0o755).map(drop).map_err(|error| Failure {
        kind: FailureKind::WorkingDirectory,
        message: format!("make the working directory {}: {error}", name.display()),
    })
}

/// libcontainer logs that its chdir(2) has failed, but not where to.
fn about_cwd(failure: Failure, job: &CreateJob) -> Failure {
    if failure.kind != FailureKind::Internal || !failure.message.contains("failed to chdir") {
        return failure;
    }
    let message = format!("enter the working directory {}: {}", job.cwd.display(), failure.message);
    Failure { kind: FailureKind::WorkingDirectory, message }
}

/// What libcontainer's error is about, as far as callers care.
fn kind_of(error: &libcontainer::error::LibcontainerError) -> FailureKind {
    use libcontainer::error::LibcontainerError as E;
    match error {
        E::InvalidID(_) | E::MissingSpec(_) | E::InvalidSpec(_) | E::InvalidInput(_) => {
            FailureKind::InvalidSpec
        }
        E::IncorrectStatus(_) | E::NoDirectory => FailureKind::ContainerState,
        _ => FailureKind::Internal,
    }
}
