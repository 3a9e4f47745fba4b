//! Creating a container, by libcontainer.

use std::os::fd::OwnedFd;
use std::path::Path;

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use nix::unistd::Pid;

use super::cgroups::{self, Stay};
use super::console::Console;
use super::executor::{ContainerExecutor, LastSteps};
use super::filter::Filter;
use super::job::{CreateJob, Failure, FailureKind};
use super::report::Report;
use super::{chain, copy_up, limits, mounts, propagation, sys};

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

/// Makes the container and leaves its init waiting before exec.
pub(super) fn create(
    mut job: CreateJob,
    mut stdio: Vec<OwnedFd>,
    report: &Report,
) -> Result<Started, Failure> {
    make_working_directory(&job.rootfs, &job.cwd)?;
    let filter = take_filter(&mut stdio, job.filter_flags)?;
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
    let container = wiring
        .builder
        .as_init(&job.bundle)
        .with_systemd(false)
        .with_detach(true)
        .build()
        .map_err(|error| about_cwd(report.failure(kind_of(&error), &chain(&error)), &job.cwd))?;
    // libcontainer has a nix of its own version.
    let pid = container.pid().map(|pid| Pid::from_raw(pid.as_raw()));
    let pid = pid.ok_or_else(|| Failure::internal("libcontainer names no pid"))?;
    let started = started(pid, wiring.console)?;
    copy_up::apply(pid, &job.rootfs, &job.copy_up)?;
    // From here on paths may be the container's.
    if let (Some((stay, Some(mount))), Some(init)) = (&mut stay, started.fds.first()) {
        stay.show(pid, init, mount)?;
    }
    drop(stay);
    if let Some(init) = started.fds.first() {
        propagation::apply(init, &job.propagation)?;
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
    limits::raise(&late.rlimits);
    let console = if io.terminal { Some(Console::prepare(&job.bundle, io)?) } else { None };
    let copy = |e: std::io::Error| Failure::internal(format!("copy a descriptor: {e}"));
    let ready = console.as_ref().map(|console| console.ready.try_clone()).transpose().map_err(copy)?;
    let steps = LastSteps::new(late.clone(), filter)?;
    let executor = ContainerExecutor::new(steps, report.try_clone().map_err(copy)?, ready);
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

/// Makes the working directory inside the root if it is missing, as every OCI runtime does.
fn make_working_directory(rootfs: &Path, cwd: &Path) -> Result<(), Failure> {
    let cwd = cwd.strip_prefix("/").unwrap_or(cwd);
    if cwd.as_os_str().is_empty() {
        return Ok(());
    }
    crate::guest::beneath::create_dir_beneath(rootfs, cwd, 0o755).map(drop).map_err(|error| Failure {
        kind: FailureKind::WorkingDirectory,
        message: format!("make the working directory /{}: {error}", cwd.display()),
    })
}

/// libcontainer logs that its chdir(2) has failed, but not where to.
fn about_cwd(failure: Failure, cwd: &Path) -> Failure {
    if failure.kind != FailureKind::Internal || !failure.message.contains("failed to chdir") {
        return failure;
    }
    let message = format!("enter the working directory {}: {}", cwd.display(), failure.message);
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
