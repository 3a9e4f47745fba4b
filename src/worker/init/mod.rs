//! A container's init, made without libcontainer: for the usual specification, see `spec::own_init`.
//!
//! The worker forks once. The child is born in the container's new namespaces, and on v2 in its cgroup; it joins the
//! sandbox's namespaces, makes the container's root and enters it, becomes the user, and waits at the [`gate`] until
//! the container is started. libcontainer does the same with a process in between and with its own state and
//! specification in files, and looks at each place again and again.
//!
//! Order: cgroups, session, standard streams, namespaces, mounts, `/dev`, the new root, propagation, sysctls, terminal,
//! security labels and umask, read-only and masked paths, working directory, credentials, capabilities (`user`), the
//! look for the program (`executor`). Then the worker is told, and everything closed but the standard streams.
//!
//! Failure behaviour: the child sends the worker one [`Failure`] and ends. It can't be looked into from a container (it
//! is not dumpable) until it is the program, and ends with the worker before it is ready. What the server takes back
//! when a creation fails ends it, too: it is in the container's cgroup.

mod dev;
mod gate;
mod namespaces;
mod paths;
mod root;

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, socketpair};
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout, setsid};

use self::gate::Gate;
use self::namespaces::Namespaces;
use super::create::{self, Started, started};
use super::executor::{LastSteps, open_proc};
use super::filter::Filter;
use super::job::{CreateJob, Failure, FailureKind};
use super::{cgroups, console, limits, propagation, sys, user};
use crate::spec::{OwnInit, OwnMounts};
use crate::supervisor::{Forked, fork_apart};

/// What the child says when it waits at the gate; a [`Failure`] is longer.
const READY: &[u8] = b"ready";

/// All that the child needs.
struct Init<'a> {
    job: &'a CreateJob,
    wanted: &'a OwnInit,
    namespaces: Namespaces,
    /// Where the cgroup is, on v2.
    cgroup: Option<cgroups::Directory>,
    stdio: Vec<OwnedFd>,
    steps: LastSteps,
    gate: Gate,
    /// The agent's `/proc`.
    proc: OwnedFd,
}

/// Makes the container of `job` as `wanted`, and leaves its init waiting at its gate.
pub(super) fn launch(
    job: &CreateJob,
    wanted: &OwnInit,
    stdio: Vec<OwnedFd>,
    filter: Option<Filter>,
) -> Result<Started, Failure> {
    limits::raise(&job.late.rlimits)?;
    let steps = LastSteps::new(job.late.clone(), filter)?;
    let gate = Gate::make(&job.state_root.join(&job.id))?;
    let cgroup = job.unified.as_ref().map(cgroups::make_unified).transpose()?;
    let cgroup = cgroup.map(cgroups::Directory::open).transpose()?;
    if let Some((trees, _)) = &job.cgroups {
        cgroups::make_trees(trees)?;
    }
    let proc = open_proc()?;
    // Inherited. Who is not dumpable may not write there without a capability.
    if let Some(score) = wanted.process.oom_score_adj() {
        std::fs::write("/proc/self/oom_score_adj", score.to_string())
            .map_err(|error| Failure::internal(format!("set the OOM score to {score}: {error}")))?;
    }
    prctl::set_dumpable(false).map_err(|errno| failed("become undumpable", errno))?;
    let namespaces = Namespaces::of(&wanted.linux)?;
    let stdio = stdio.into_iter().map(|fd| create::give(fd, job.io.owner)).collect();
    Init { job, wanted, namespaces, cgroup, stdio, steps, gate, proc }.launch()
}

fn failed(step: &str, errno: Errno) -> Failure {
    Failure::internal(format!("{step}: {}", errno.desc()))
}

impl Init<'_> {
    /// Forks the child and waits until it is ready, or says why it can't be.
    fn launch(self) -> Result<Started, Failure> {
        self.namespaces.join_for_children()?;
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
                .map_err(|errno| failed("socket pair", errno))?;
        let cgroup = self.cgroup.as_ref().map(AsFd::as_fd);
        match fork_apart(self.namespaces.born_in(), cgroup).map_err(about_fork)?.forked {
            Forked::Child => {
                drop(ours);
                let failure = self.become_init(&theirs);
                let text = serde_json::to_vec(&failure.brief()).unwrap_or_default();
                let _ = nix::sys::socket::send(theirs.as_raw_fd(), &text, MsgFlags::MSG_NOSIGNAL);
                sys::exit_now(1)
            }
            Forked::Parent(pid) => {
                drop(theirs);
                let ready = started(pid, None).and_then(|process| self.hear(&ours, process));
                // It has not been reaped: it is still this one.
                ready.inspect_err(|_| {
                    let _ = kill(pid, Signal::SIGKILL);
                })
            }
        }
    }

    /// What the child says, up to its readiness.
    fn hear(&self, child: &OwnedFd, mut process: Started) -> Result<Started, Failure> {
        loop {
            let message = console::receive(child).map_err(|errno| failed("hear of the init", errno))?;
            let message = message.ok_or_else(|| Failure::internal("the init ended before it was ready"))?;
            match message.fd {
                Some(master) => process.fds.push(master),
                None if message.text == READY => break,
                None => return Err(told(&message.text)),
            }
        }
        if self.job.io.terminal && process.fds.len() < 2 {
            return Err(Failure::internal("the container's terminal did not arrive"));
        }
        Ok(process)
    }

    /// Everything up to execve(2); comes back only with the reason why not.
    fn become_init(self, worker: &OwnedFd) -> Failure {
        let found = self.enter(worker).and_then(|()| {
            user::become_user(&self.wanted.process, self.steps.early_capabilities())?;
            user::depend_on(worker)?;
            self.steps.look(&self.wanted.process)
        });
        let found = match found {
            Ok(found) => found,
            Err(failure) => return failure,
        };
        // Who has heard that it is ready sees to it.
        let _ = prctl::set_pdeathsig(None);
        if let Err(errno) = nix::sys::socket::send(worker.as_raw_fd(), READY, MsgFlags::MSG_NOSIGNAL) {
            return failed("tell the worker", errno);
        }
        let Self { steps, wanted, gate, .. } = self;
        let gate = if steps.needs_descriptors() { gate } else { gate.keep_alone() };
        if gate.wait().is_err() {
            sys::exit_now(1);
        }
        steps.run_started(&wanted.process, found)
    }

    /// Into the container, still as root.
    fn enter(&self, worker: &OwnedFd) -> Result<(), Failure> {
        let linux = &self.wanted.linux;
        user::depend_on(worker)?;
        if let Some((trees, _)) = &self.job.cgroups {
            cgroups::enter_trees(trees)?;
        }
        setsid().map_err(|errno| failed("begin a session", errno))?;
        if let [stdin, stdout, stderr] = self.stdio.as_slice() {
            dup2_stdin(stdin)
                .and_then(|()| dup2_stdout(stdout))
                .and_then(|()| dup2_stderr(stderr))
                .map_err(|errno| failed("connect the standard streams", errno))?;
        }
        self.namespaces.enter()?;
        namespaces::name_host(self.wanted)?;
        let root = root::make(self.job, self.cgroup.as_ref().map(cgroups::Directory::path))?;
        let dev = dev::open(&root)?;
        if !self.job.mounts.as_ref().is_some_and(OwnMounts::binds_dev) {
            dev::furnish(&dev, linux, &self.proc)?;
        }
        root::enter(&root)?;
        root::make_working_directory(&root, self.job);
        propagation::set(&self.job.propagation)?;
        namespaces::set_sysctls(linux, &self.proc)?;
        if self.job.io.terminal {
            let terminal = console::open(&self.proc, &self.job.io, worker)?;
            dev::show_console(&dev, &terminal)?;
        }
        user::confine(&self.wanted.process, &self.proc)?;
        if self.wanted.is_read_only {
            root::make_read_only(&root)?;
        }
        paths::make_read_only(&root, linux.readonly_paths().as_deref().unwrap_or_default())?;
        paths::mask(&root, &dev, linux.masked_paths().as_deref().unwrap_or_default())?;
        if self.job.read_only_dev { propagation::make_dev_read_only() } else { Ok(()) }
    }
}

/// A fork that is refused for want of room, in the container's cgroup or in the guest, or for want of an init.
fn about_fork(errno: Errno) -> Failure {
    let (kind, message) = match errno {
        Errno::EAGAIN => (FailureKind::ProcessLimit, "no more processes are allowed (pids limit)"),
        // A PID namespace whose init has ended (pid_namespaces(7)).
        Errno::ENOMEM => (FailureKind::Internal, "the shared PID namespace is gone, or memory is short"),
        _ => (FailureKind::Internal, "fork the container's init"),
    };
    Failure { kind, message: format!("{message}: {}", errno.desc()) }
}

/// What the child said went wrong.
fn told(text: &[u8]) -> Failure {
    serde_json::from_slice(text).unwrap_or_else(|_| Failure::internal("the init could not be made"))
}
