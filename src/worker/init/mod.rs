//! A container's init, made without libcontainer: for the usual specification, see `spec::own_init`.
//!
//! The worker forks once. The child is born in the container's new namespaces, and on v2 in its cgroup; it joins the
//! sandbox's namespaces, makes the container's root and enters it, becomes the user, and waits at the [`gate`] until
//! the container is started. libcontainer does the same with a process in between and with its own state and
//! specification in files, and looks at each place again and again.
//!
//! Order: cgroups, session, standard streams, namespaces, mounts, `/dev`, the new root, propagation, sysctls, terminal,
//! security labels and umask, read-only and masked paths; a user namespace ([`users`]); all descriptors are closed
//! that lead out of the container; working directory, credentials, capabilities (`user`), the look for the program
//! (`executor`). Then the worker is told, and everything closed but the standard streams and the gate.
//!
//! Failure behaviour: the child sends the worker one [`Failure`] and ends. It can't be looked into from a container (it
//! is not dumpable) until it is the program, and ends with the worker before it is ready. What the server takes back
//! when a creation fails ends it, too: it is in the container's cgroup.

mod dev;
pub(super) mod gate;
mod namespaces;
mod paths;
mod root;
mod users;

use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::MsgFlags;

use self::gate::Gate;
use self::namespaces::Namespaces;
use super::child::{self, failed};
use super::create::{self, Started, started};
use super::executor::{LastSteps, open_proc};
use super::filter::Filter;
use super::job::{CreateJob, Failure, FailureKind};
use super::{cgroups, console, limits, propagation, sys, user};
use crate::spec::{OwnInit, OwnMounts};
use crate::supervisor::{Forked, fork_apart};

/// What the child says when it waits at the gate; a [`Failure`] is longer.
const READY: &[u8] = b"ready";

/// Sysctls of a user namespace, which only who is in it finds.
const OF_USERS: &str = "user.";

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
    let steps = LastSteps::new(job.late.clone(), filter);
    let gate = Gate::make(&job.state_root.join(&job.id))?;
    let cgroup = job.unified.as_ref().map(cgroups::make_unified).transpose()?;
    let cgroup = cgroup.map(cgroups::Directory::open).transpose()?;
    if let Some((trees, _)) = &job.cgroups {
        cgroups::make_trees(trees)?;
    }
    let proc = open_proc()?;
    child::set_oom_score(wanted.process.oom_score_adj())?;
    child::hide()?;
    let namespaces = Namespaces::of(&wanted.linux)?;
    let stdio = stdio.into_iter().map(|fd| create::give(fd, job.io.owner)).collect();
    Init { job, wanted, namespaces, cgroup, stdio, steps, gate, proc }.launch()
}

impl Init<'_> {
    /// Forks the child and waits until it is ready, or says why it can't be.
    fn launch(self) -> Result<Started, Failure> {
        self.namespaces.join_for_children()?;
        let (ours, theirs) = child::pair()?;
        let cgroup = self.cgroup.as_ref().map(AsFd::as_fd);
        match fork_apart(self.namespaces.born_in(), cgroup).map_err(about_fork)?.forked {
            Forked::Child => {
                drop(ours);
                let failure = self.become_init(&theirs);
                child::tell(&theirs, failure);
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
                None if message.text == users::BEGUN => {
                    users::map(process.pid, child, &self.wanted.linux)?;
                }
                None => return Err(child::told(&message.text)),
            }
        }
        if self.job.io.terminal && process.fds.len() < 2 {
            return Err(Failure::internal("the container's terminal did not arrive"));
        }
        Ok(process)
    }

    /// Everything up to execve(2); comes back only with the reason why not.
    fn become_init(self, worker: &OwnedFd) -> Failure {
        sys::heed_signals();
        // Most of its descriptors are not its own any more in a moment.
        let this = ManuallyDrop::new(self);
        let found = this.enter(worker).and_then(|()| {
            sys::keep_only([worker.as_fd(), this.gate.as_fd()].into_iter());
            user::become_user(&this.wanted.process, this.steps.early_capabilities())?;
            user::depend_on(worker)?;
            this.steps.look(&this.wanted.process)
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
        sys::keep_only(std::iter::once(this.gate.as_fd()));
        if this.gate.wait().is_err() {
            sys::exit_now(1);
        }
        sys::keep_only(std::iter::empty());
        this.steps.run_started(&this.wanted.process, found)
    }

    /// Into the container, still as root.
    fn enter(&self, worker: &OwnedFd) -> Result<(), Failure> {
        let linux = &self.wanted.linux;
        user::depend_on(worker)?;
        if let Some((trees, _)) = &self.job.cgroups {
            cgroups::enter_trees(trees)?;
        }
        child::connect(&self.stdio)?;
        if self.namespaces.have_users() {
            users::create_as_root(linux)?;
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
        namespaces::set_sysctls(linux, &self.proc, |name| !name.starts_with(OF_USERS))?;
        if self.job.io.terminal {
            let terminal = console::open(&self.proc, &self.job.io, worker)?;
            dev::show_console(&dev, &terminal)?;
        }
        user::confine(&self.wanted.process, self.steps.selinux_label(), &self.proc)?;
        if self.wanted.is_read_only {
            root::make_read_only(&root)?;
        }
        paths::make_read_only(&root, linux.readonly_paths().as_deref().unwrap_or_default())?;
        paths::mask(&root, &dev, linux.masked_paths().as_deref().unwrap_or_default())?;
        if self.job.read_only_dev {
            propagation::make_dev_read_only()?;
        }
        if self.namespaces.have_users() { self.leave_guest(worker) } else { Ok(()) }
    }

    /// Becomes root of the container's users, and nobody in the guest.
    fn leave_guest(&self, worker: &OwnedFd) -> Result<(), Failure> {
        users::enter(worker, self.namespaces.late())?;
        // In the copy of the mounts each follows its original, whatever it was.
        propagation::set(&self.job.propagation)?;
        namespaces::set_sysctls(&self.wanted.linux, &self.proc, |name| name.starts_with(OF_USERS))
    }
}

fn about_fork(errno: Errno) -> Failure {
    child::not_forked(errno, (FailureKind::Internal, "the shared PID namespace is gone, or memory is short"))
}
