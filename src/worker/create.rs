//! Creating a container and starting a process in one, by libcontainer.

use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use libcontainer::container::ContainerStatus;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::Pid;

use super::cgroups::{self, Stay, Way};
use super::console::Console;
use super::executor::{ContainerExecutor, OnFailure};
use super::filter::Filter;
use super::job::{CreateJob, ExecJob, Failure, FailureKind, ProcessIo};
use super::report::Report;
use super::{chain, copy_up, limits, propagation, sys};
use crate::spec::LateProcess;

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
    let state = job.state_root.join(&job.id);
    let wiring = wire(
        &job.id,
        &job.state_root,
        &job.bundle,
        &job.io,
        stdio,
        job.late,
        filter,
        None,
        report,
        OnFailure::Exit,
    )?;
    let cgroups = job.cgroups.take();
    let mut stay = match &cgroups {
        Some((trees, mount)) => {
            report.on_failure_remove(&trees.stand_in);
            Some((Stay::begin(trees, mount.as_ref())?, mount))
        }
        None => None,
    };
    let mut container = wiring
        .builder
        .as_init(&job.bundle)
        .with_systemd(false)
        .with_detach(true)
        .build()
        .map_err(|error| about_cwd(report.failure(kind_of(&error), &chain(&error)), &job.cwd))?;
    // libcontainer has a nix of its own version.
    let pid = container.pid().map(|pid| Pid::from_raw(pid.as_raw()));
    let pid = pid.ok_or_else(|| Failure::internal("libcontainer names no pid"))?;
    // The server owns the container's state. libcontainer only has to let execs in, once the server does, and then
    // looks for the specification in the bundle.
    let failed = |cause: &str| Failure::internal(format!("write {}: {cause}", state.display()));
    let spec = serde_json::to_vec(&job.spec_for_execs).map_err(|error| failed(&error.to_string()))?;
    std::fs::write(state.join("config.json"), spec).map_err(|error| failed(&error.to_string()))?;
    container.state.bundle.clone_from(&state);
    container.set_status(ContainerStatus::Running).save().map_err(|error| failed(&chain(&error)))?;
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

/// Starts a process in the container; it has been exec'd when this returns.
pub(super) fn exec(job: ExecJob, mut stdio: Vec<OwnedFd>, report: &Report) -> Result<Started, Failure> {
    let state = job.state_root.join(&job.id);
    let process = process_file(&job.process)?;
    let notify_socket = predict_notify_socket(&state);
    let filter = take_filter(&mut stdio, job.filter_flags)?;
    let way = job.cgroups.as_ref().map(Way::open).transpose()?;
    if way.is_some() {
        cgroups::hide()?;
    }
    let wiring = wire(
        &job.id,
        &job.state_root,
        &state,
        &job.io,
        stdio,
        job.late,
        filter,
        way,
        report,
        OnFailure::Report,
    )?;
    let result = wiring
        .builder
        .as_tenant()
        .with_process(Some(format!("/proc/self/fd/{}", process.as_raw_fd())))
        .with_sub_cgroup(job.sub_cgroup)
        .with_detach(true)
        .build();
    for leftover in notify_socket {
        let _ = std::fs::remove_file(leftover);
    }
    let cwd = job.process.cwd();
    let failed = |error| about_limits(about_cwd(report.failure(kind_of(&error), &chain(&error)), cwd));
    let pid = result.map_err(failed)?;
    started(Pid::from_raw(pid.as_raw()), wiring.console)
}

#[expect(clippy::too_many_arguments, reason = "what both ways of launching share")]
fn wire(
    id: &str,
    state_root: &Path,
    console_dir: &Path,
    io: &ProcessIo,
    stdio: Vec<OwnedFd>,
    late: LateProcess,
    filter: Option<Filter>,
    way: Option<Way>,
    report: &Report,
    on_failure: OnFailure,
) -> Result<Wiring, Failure> {
    limits::raise(&late.rlimits);
    let console = if io.terminal { Some(Console::prepare(console_dir, io)?) } else { None };
    let copy = |e: std::io::Error| Failure::internal(format!("copy a descriptor: {e}"));
    let ready = console.as_ref().map(|console| console.ready.try_clone()).transpose().map_err(copy)?;
    let executor =
        ContainerExecutor::new(late, filter, way, report.try_clone().map_err(copy)?, ready, on_failure)?;
    let mut builder = ContainerBuilder::new(id.to_owned(), SyscallType::default())
        .with_root_path(state_root)
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
fn take_filter(fds: &mut Vec<OwnedFd>, flags: Option<u32>) -> Result<Option<Filter>, Failure> {
    let Some(flags) = flags else { return Ok(None) };
    let file = fds.pop().ok_or_else(|| Failure::internal("a job without its seccomp filter"))?;
    Filter::read(file, flags).map(Some)
}

/// A pipe belongs to whom it is made for, so that a process can open its own /dev/stdout again.
fn give(fd: OwnedFd, (uid, gid): (u32, u32)) -> OwnedFd {
    if uid != 0 || gid != 0 {
        let _ = nix::unistd::fchown(&fd, Some(uid.into()), Some(gid.into()));
    }
    fd
}

fn started(pid: Pid, console: Option<Console>) -> Result<Started, Failure> {
    // The process is a child of this worker until the worker ends, so the pid can't be another's yet.
    let pidfd = sys::pidfd_open(pid).map_err(|e| Failure::internal(format!("pidfd of {pid}: {e}")))?;
    let mut fds = vec![pidfd];
    if let Some(console) = console {
        fds.push(console.master()?);
    }
    Ok(Started { pid, fds })
}

fn process_file(process: &oci_spec::runtime::Process) -> Result<OwnedFd, Failure> {
    let failed = |e: &dyn std::fmt::Display| Failure::internal(format!("write the process description: {e}"));
    let json = serde_json::to_vec(process).map_err(|e| failed(&e))?;
    let file = memfd_create("process.json", MFdFlags::MFD_CLOEXEC).map_err(|e| failed(&e))?;
    let mut file = std::fs::File::from(file);
    file.write_all(&json).map_err(|e| failed(&e))?;
    Ok(file.into())
}

/// libcontainer leaves a socket, and a link to the console's, in the state directory for each exec. Their
/// names are the next two random numbers of its generator, so with a seed of ours they are known.
fn predict_notify_socket(state: &Path) -> [std::path::PathBuf; 2] {
    let seed = u64::from(std::process::id()) ^ fastrand::u64(..);
    fastrand::seed(seed);
    let mut twin = fastrand::Rng::with_seed(seed);
    let notify = format!("tenant-notify-{:x}.sock", twin.i32(..));
    let tty = format!("tenant-tty-{:x}.sock", twin.i32(..));
    [state.join(notify), state.join(tty)]
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

/// A fork that is refused for want of room: in the container's cgroup, or in the guest.
fn about_limits(failure: Failure) -> Failure {
    if failure.kind != FailureKind::Internal || !failure.message.contains("failed to clone process") {
        return failure;
    }
    let message = format!("no more processes are allowed (pids limit): {}", failure.message);
    Failure { kind: FailureKind::ProcessLimit, message }
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
