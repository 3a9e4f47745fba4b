//! The worker: one short-lived process for each piece of work that needs a process of its own.
//!
//! libcontainer forks with a raw clone and changes the working directory, so it may only run in a process
//! with one thread. The supervisor forks a worker for each launch; the worker takes the [`job`] from the
//! first descriptor it is given, does it, sends one reply to the server, and ends. Its children (the
//! container's init, an exec'd process) are then the supervisor's.
//!
//! Failure behaviour: every failure comes back as one [`job::Failure`] that names the true cause, which
//! libcontainer's forks only log (`report`).

mod bpf;
mod capabilities;
mod cgroups;
mod child;
mod compact;
pub(crate) mod console;
mod copy_up;
mod create;
mod exec;
mod executor;
mod filter;
mod guest_hooks;
mod hooks;
mod init;
pub mod job;
mod limits;
mod mounts;
mod namespaces;
mod newer_calls;
mod nodes;
mod passwd;
mod program;
mod propagation;
mod report;
mod shared_mounts;
mod shell;
pub mod stand_in;
mod start_hooks;
mod sys;
mod user;

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::signal::{SigHandler, Signal};
use nix::sys::socket::MsgFlags;

use self::create::Started;
pub use self::guest_hooks::run_if_asked as run_guest_hooks_if_asked;
use self::job::{Failure, Job, Outcome, ProcessIo};
use self::namespaces::Pause;
use self::report::Report;
use crate::supervisor::WorkerChannels;
use crate::supervisor::channel::{Header, Kind};

/// What all workers inherit from the supervisor, once, before it forks the first of them.
pub fn prepare_for_workers() {
    sys::note_ignored_signals();
    sys::restrict_name_service_to_files();
}

/// Does the job behind the first of `fds` and ends. Called by the supervisor in the child it forked.
///
/// What it has started is given to the supervisor to hold before the server hears of it: the process can't end
/// unnoticed, whatever becomes of the server.
pub fn run(channels: &WorkerChannels<'_>, request: u64, fds: Vec<OwnedFd>) -> ! {
    let result = work(fds);
    let (pid, fds, result) = match result {
        Ok(Done { outcome, pid: Some(pid), fds, ours, stay }) => {
            let held: Vec<BorrowedFd<'_>> = fds.iter().chain(&ours).map(AsFd::as_fd).collect();
            let hold = Header { kind: Kind::Hold, request, pid: pid.as_raw(), status: 0 };
            if let (Ok(()), Some(stay)) = (channels.holds.send(hold, b"", &held, MsgFlags::empty()), stay) {
                let _ = nix::unistd::write(&stay, b"y");
            }
            (pid.as_raw(), fds, Ok(outcome))
        }
        Ok(Done { outcome, fds, .. }) => (0, fds, Ok(outcome)),
        Err(failure) => (0, Vec::new(), Err(failure)),
    };
    let header = Header { kind: Kind::Reply, request, pid, status: 0 };
    let payload = encode(&result);
    let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    let _ = channels.replies.send(header, &payload, &borrowed, MsgFlags::empty());
    sys::exit_now(0)
}

/// Becomes the process of an exec. Called by the supervisor in the child that it forked into the container's PID
/// namespace and, on v2, into its cgroup: `fds` are the socket to the server, in which a job of that length waits,
/// and what comes with it. The server hears nothing but why it can't be.
pub fn enter(mut fds: Vec<OwnedFd>, job_len: usize) -> ! {
    let server = if fds.is_empty() { None } else { Some(fds.remove(0)) };
    let Some(server) = server else { sys::exit_now(1) };
    let failure = match receive_job(&server, job_len) {
        Ok(Job::Exec(job)) => exec::enter(&job, fds, &server),
        Ok(_) => Failure::internal("a job that needs a worker"),
        Err(failure) => failure,
    };
    child::tell(&server, failure);
    sys::exit_now(1)
}

fn receive_job(server: &OwnedFd, len: usize) -> Result<Job, Failure> {
    let mut bytes = vec![0; len];
    nix::unistd::read(server, &mut bytes).map_err(|errno| failed("receive the job", &errno))?;
    serde_json::from_slice(&bytes).map_err(|error| failed("decode the job", &error))
}

/// The answer as JSON.
fn encode(result: &Result<Outcome, Failure>) -> Vec<u8> {
    serde_json::to_vec(&result.clone().map_err(Failure::brief)).unwrap_or_default()
}

struct Done {
    outcome: Outcome,
    /// The process that was started, if one was.
    pid: Option<nix::unistd::Pid>,
    fds: Vec<OwnedFd>,
    /// The server's ends of the process's pipes, to be held.
    ours: Vec<OwnedFd>,
    /// Where a process is told to stay that ends with the worker until it is held.
    stay: Option<OwnedFd>,
}

impl Done {
    fn started(Started { pid, fds }: Started, ours: Vec<OwnedFd>) -> Self {
        Self { outcome: Outcome::Started(Vec::new()), pid: Some(pid), fds, ours, stay: None }
    }
}

fn work(fds: Vec<OwnedFd>) -> Result<Done, Failure> {
    let mut fds = fds.into_iter();
    let job = read_job(fds.next())?;
    let mut fds: Vec<OwnedFd> = fds.collect();
    settle()?;
    if !matches!(job, Job::Exec(_) | Job::Create(_)) {
        // The agent is spared when memory runs out; hooks and programs are not. Containers and exec'd processes get what
        // their specification says, libcontainer sees to that before it runs a hook.
        let _ = std::fs::write("/proc/self/oom_score_adj", "0");
    }
    let mut held = |io: &ProcessIo| fds.split_off(fds.len().saturating_sub(io.held));
    let ours = match &job {
        Job::Create(job) => held(&job.io),
        Job::Exec(job) => held(&job.io),
        _ => Vec::new(),
    };
    let done = Done { outcome: Outcome::Done, pid: None, fds: Vec::new(), ours: Vec::new(), stay: None };
    Ok(match job {
        Job::Create(job) => {
            let (started, warnings) = create::create(*job, fds)?;
            Done { outcome: Outcome::Started(warnings), ..Done::started(started, ours) }
        }
        Job::Exec(job) => Done::started(exec::start(*job, fds)?, ours),
        Job::ShareNamespaces(job) => match namespaces::share(&job)? {
            Some(Pause { pid, stay }) => {
                let started = Started { pid, fds: Vec::new() };
                Done { stay: Some(stay), ..Done::started(started, Vec::new()) }
            }
            None => done,
        },
        Job::Shell(job) => Done::started(shell::start(&job, fds)?, Vec::new()),
        Job::RunProgram(job) => Done::started(program::start(&job, fds)?, Vec::new()),
        Job::Compact(job) => {
            compact::run(&job)?;
            done
        }
        Job::RunHooks(job) => {
            hooks::run(&job, &report()?)?;
            done
        }
        Job::ShareMount(job) => {
            shared_mounts::share(&job, fds)?;
            done
        }
        Job::CompileFilter(profile) => {
            let profile = profile.parse().map_err(|e| Failure::internal(format!("read the profile: {e}")))?;
            let flags = filter::flags(&profile);
            Done { outcome: Outcome::Filter { flags }, fds: vec![filter::compile(&profile)?], ..done }
        }
    })
}

fn read_job(file: Option<OwnedFd>) -> Result<Job, Failure> {
    let mut file = std::fs::File::from(file.ok_or_else(|| Failure::internal("a launch without a job"))?);
    let mut bytes = Vec::new();
    std::io::Seek::rewind(&mut file)
        .and_then(|()| file.read_to_end(&mut bytes))
        .map_err(|error| Failure::internal(format!("read the job: {error}")))?;
    serde_json::from_slice(&bytes).map_err(|error| Failure::internal(format!("decode the job: {error}")))
}

/// Makes a fresh start of what the supervisor's process hands down, so that nothing of it reaches a container.
fn settle() -> Result<(), Failure> {
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null");
    let null = null.map_err(|e| failed("open /dev/null", &e))?;
    nix::unistd::dup2_stdin(&null).map_err(|e| failed("replace stdin", &e))?;
    nix::unistd::dup2_stdout(&null).map_err(|e| failed("replace stdout", &e))?;
    nix::unistd::dup2_stderr(&null).map_err(|e| failed("replace stderr", &e))?;
    // A group of its own, so that who gives the launch up can end the hooks with it.
    let _ = nix::unistd::setsid();
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    nix::unistd::setgroups(&[]).map_err(|e| failed("drop the supplementary groups", &e))?;
    // A hook that ends before it has read the state must not take the worker with it. Hooks and programs get the
    // default action back.
    sys::set_signal(Signal::SIGPIPE, SigHandler::SigIgn);
    Ok(())
}

/// For what runs hooks or calls libcontainer: where both say what is wrong.
fn report() -> Result<Report, Failure> {
    let report = Report::install()?;
    // Hooks write here; what they say then explains why they failed.
    nix::unistd::dup2_stderr(&report).map_err(|e| failed("replace stderr", &e))?;
    // The supervisor has done it, unless this is a launch before the first answer.
    sys::restrict_name_service_to_files();
    Ok(report)
}

fn failed(step: &str, cause: &dyn std::fmt::Display) -> Failure {
    Failure::internal(format!("{step}: {cause}"))
}

/// An error with all its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        if !line.contains(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        source = cause.source();
    }
    line.replace('\n', " ")
}
