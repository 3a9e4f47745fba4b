//! Starting a further process in a container.
//!
//! The supervisor forks it into the container's PID namespace and, on v2, into its cgroup ([`enter`]); where that
//! can't be, and for one with a terminal, a worker does ([`start`]). libcontainer has a process in between, and reads
//! the container's state and specification for it: most of what an exec then costs.
//!
//! Where the container is, is said by the handle of its init and by the namespaces that init was made in; who has moved
//! init elsewhere gets no further process there. The child is born in the container's cgroup (v2) or
//! enters it first of all (v1). Order of what it does then: session, standard streams, namespaces, terminal, security
//! labels, umask; the user namespace, which ends its rights over the guest; all descriptors are closed that lead out
//! of the container; working directory, credentials, capabilities (`user`), and the last steps of every process
//! (`executor`).
//!
//! The child can't be looked into from the container (it is not dumpable), and does not become the program when nobody
//! waits for it any more: neither the worker nor, without one, the server.

use std::fs::File;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::Mode;
use oci_spec::runtime::Process;

use super::cgroups::{self, Way};
use super::child::{self, failed};
use super::create::{Started, started};
use super::executor::{LastSteps, open_proc, program};
use super::job::{ExecCgroups, ExecJob, Failure, FailureKind, ProcessIo};
use super::{console, create, limits, sys, user};
use crate::spec::NamespaceId;
use crate::supervisor::{Forked, fork, fork_into};

/// How often the fork is tried, each time in another sub-cgroup. A container that divides its cgroup needs two or
/// three attempts.
const PLACES_MAX: usize = 100;

/// All that the child needs.
struct Entry<'a> {
    init: OwnedFd,
    /// The namespaces that are not the guest's.
    namespaces: CloneFlags,
    /// Which ones those are.
    pinned: &'a [NamespaceId],
    stdio: Vec<OwnedFd>,
    process: &'a Process,
    io: &'a ProcessIo,
    cgroups: &'a ExecCgroups,
    way: Way,
    steps: LastSteps,
    /// The agent's `/proc`: what is at that place in the container is not to be trusted.
    proc: OwnedFd,
}

/// Starts the process; it has been exec'd when this returns. `fds`: the handle of init, then those of a process.
pub(super) fn start(job: ExecJob, fds: Vec<OwnedFd>) -> Result<Started, Failure> {
    let way = Way::open(&job.cgroups)?;
    let entry = Entry::prepare(&job, fds, way)?;
    child::hide()?;
    entry.launch()
}

/// Becomes the process, in a child of the supervisor's that is in the container's PID namespace already and, on v2,
/// in its cgroup; comes back only with the reason why not. It is not dumpable.
pub(super) fn enter(job: &ExecJob, fds: Vec<OwnedFd>, server: &OwnedFd) -> Failure {
    let way = match &job.cgroups {
        ExecCgroups::V1(_) => Way::open(&job.cgroups),
        ExecCgroups::V2 { .. } => Ok(Way::default()),
    };
    match way.and_then(|way| Entry::prepare(job, fds, way)) {
        // Or it would have the supervisor's.
        Ok(entry) if entry.stdio.len() != 3 => Failure::internal("a process without its standard streams"),
        Ok(mut entry) => {
            entry.namespaces -= CloneFlags::CLONE_NEWPID;
            ManuallyDrop::new(entry).become_program(server)
        }
        Err(failure) => failure,
    }
}

/// Those that are not the guest's.
fn flags_of(pinned: &[NamespaceId]) -> Result<CloneFlags, Failure> {
    let mut flags = CloneFlags::empty();
    for namespace in pinned.iter().filter(|namespace| namespace.own) {
        flags |= match namespace.kind.as_str() {
            "mnt" => CloneFlags::CLONE_NEWNS,
            "pid" => CloneFlags::CLONE_NEWPID,
            "ipc" => CloneFlags::CLONE_NEWIPC,
            "uts" => CloneFlags::CLONE_NEWUTS,
            "net" => CloneFlags::CLONE_NEWNET,
            "cgroup" => CloneFlags::CLONE_NEWCGROUP,
            "user" => CloneFlags::CLONE_NEWUSER,
            "time" => CloneFlags::from_bits_retain(libc::CLONE_NEWTIME),
            other => return Err(Failure::internal(format!("a namespace of the unknown kind {other:?}"))),
        };
    }
    Ok(flags)
}

impl<'a> Entry<'a> {
    /// Takes what of the descriptors is the process's, and sets what it inherits.
    fn prepare(job: &'a ExecJob, mut fds: Vec<OwnedFd>, way: Way) -> Result<Self, Failure> {
        let filter = create::take_filter(&mut fds, job.filter_flags)?;
        let mut fds = fds.into_iter();
        let init = fds.next().ok_or_else(|| Failure::internal("an exec without the container's init"))?;
        limits::raise(&job.late.rlimits)?;
        child::set_oom_score(job.process.oom_score_adj())?;
        Ok(Self {
            init,
            namespaces: flags_of(&job.late.namespaces)?,
            pinned: &job.late.namespaces,
            stdio: fds.map(|fd| create::give(fd, job.io.owner)).collect(),
            process: &job.process,
            io: &job.io,
            cgroups: &job.cgroups,
            way,
            steps: LastSteps::new(job.late.clone(), filter),
            proc: open_proc()?,
        })
    }

    /// Forks the child and waits until it is the program, or says why it can't be.
    fn launch(mut self) -> Result<Started, Failure> {
        // A PID namespace is for children only.
        let pid_namespace = self.namespaces & CloneFlags::CLONE_NEWPID;
        self.join(pid_namespace)?;
        self.namespaces -= pid_namespace;
        let (ours, theirs) = child::pair()?;
        match self.fork()? {
            Forked::Child => {
                drop(ours);
                let failure = self.become_program(&theirs);
                child::tell(&theirs, failure);
                sys::exit_now(1)
            }
            Forked::Parent(pid) => {
                drop(theirs);
                let mut process = started(pid, None)?;
                let next = || console::receive(&ours).map_err(|errno| failed("hear of the process", errno));
                while let Some(message) = next()? {
                    match message.fd {
                        Some(master) => process.fds.push(master),
                        None => return Err(child::told(&message.text)),
                    }
                }
                if self.io.terminal && process.fds.len() < 2 {
                    return Err(Failure::internal("the process's terminal did not arrive"));
                }
                Ok(process)
            }
        }
    }

    fn fork(&self) -> Result<Forked, Failure> {
        let Some(cgroup) = self.way.directory() else { return fork().map_err(about_fork) };
        let fork_into = |place: BorrowedFd<'_>| fork_into(Some(place)).map(|born| born.forked);
        born_beside_init(cgroup, fork_into, || cgroups::open_beside_init(self.cgroups))
    }

    fn join(&self, namespaces: CloneFlags) -> Result<(), Failure> {
        if namespaces.is_empty() {
            return Ok(());
        }
        setns(&self.init, namespaces).map_err(|errno| match errno {
            Errno::ESRCH => Failure {
                kind: FailureKind::ContainerState,
                message: "the container's init has ended".to_owned(),
            },
            _ => failed("enter the container's namespaces", errno),
        })
    }

    /// Everything up to execve(2); comes back only with the reason why not, and then without most descriptors of this.
    fn become_program(&self, waiting: &OwnedFd) -> Failure {
        let ready = self.enter(waiting).and_then(|()| {
            sys::keep_only(std::iter::once(waiting.as_fd()));
            user::become_user(self.process, self.steps.early_capabilities())?;
            user::depend_on(waiting)?;
            program(self.process)
        });
        match ready {
            Ok(program) => self.steps.become_program(self.process, &program),
            Err(failure) => failure,
        }
    }

    /// Whether the child is where the container's init was made, but for the user namespace or in that.
    fn check_namespaces(&self, in_users: bool) -> Result<(), Failure> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let own = nix::fcntl::openat(&self.proc, "thread-self/ns", flags, Mode::empty())
            .map_err(|errno| failed("open /proc/thread-self/ns", errno))?;
        let is_checked = |namespace: &&NamespaceId| namespace.own && (namespace.kind == "user") == in_users;
        for NamespaceId { kind, device, inode, .. } in self.pinned.iter().filter(is_checked) {
            let seen = nix::sys::stat::fstatat(&own, kind.as_str(), AtFlags::empty())
                .map_err(|errno| failed(&format!("look at /proc/thread-self/ns/{kind}"), errno))?;
            if (seen.st_dev, seen.st_ino) != (*device, *inode) {
                let message = format!(
                    "the container's init has left its {kind} namespace: a process started now would not be in the \
                     container"
                );
                return Err(Failure { kind: FailureKind::ContainerState, message });
            }
        }
        Ok(())
    }

    /// Into the container, still as root.
    fn enter(&self, waiting: &OwnedFd) -> Result<(), Failure> {
        self.way.take()?;
        child::connect(&self.stdio)?;
        let users = self.namespaces & CloneFlags::CLONE_NEWUSER;
        self.join(self.namespaces - users)?;
        self.check_namespaces(false)?;
        if self.io.terminal {
            let _terminal = console::open(&self.proc, self.io, waiting)?;
        }
        user::confine(self.process, self.steps.selinux_label(), &self.proc)?;
        if users.is_empty() {
            return Ok(());
        }
        self.join(users)?;
        user::become_root_inside()?;
        self.check_namespaces(true)
    }
}

/// Forks into `cgroup`, or where init is if the container has divided that. It may be about to: what was init's place a
/// moment ago may be divided or gone now, or init may be back.
fn born_beside_init<T>(
    cgroup: BorrowedFd<'_>,
    fork_into: impl Fn(BorrowedFd<'_>) -> Result<T, Errno>,
    find_init: impl Fn() -> Result<Option<File>, Failure>,
) -> Result<T, Failure> {
    let mut place = None::<File>;
    for _ in 0..PLACES_MAX {
        match fork_into(place.as_ref().map_or(cgroup, AsFd::as_fd)) {
            // Divided; removed.
            Err(Errno::EBUSY | Errno::ENODEV) => place = find_init()?,
            other => return other.map_err(about_fork),
        }
    }
    Err(about_fork(Errno::EBUSY))
}

fn about_fork(errno: Errno) -> Failure {
    child::not_forked(
        errno,
        (FailureKind::ContainerState, "the container's init has ended, or memory is short"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::os::unix::fs::MetadataExt;

    /// What a fork into each place in turn comes to, and which places they were: `c` for the cgroup, `i` for init's.
    fn born(results: &[Result<(), Errno>], init_is_below: &[bool]) -> (Result<(), Failure>, String) {
        let directory = tempfile::tempdir().unwrap();
        let (cgroup, below) = (directory.path(), directory.path().join("below"));
        std::fs::create_dir(&below).unwrap();
        let top = File::open(cgroup).unwrap();
        let inode = top.metadata().unwrap().ino();
        let (mut results, mut places) = (results.iter().copied(), init_is_below.iter().copied());
        let (results, places) = (RefCell::new(&mut results), RefCell::new(&mut places));
        let tried = RefCell::new(String::new());
        let result = born_beside_init(
            top.as_fd(),
            |place| {
                let is_top = nix::sys::stat::fstat(place).unwrap().st_ino == inode;
                tried.borrow_mut().push(if is_top { 'c' } else { 'i' });
                results.borrow_mut().next().unwrap_or(Err(Errno::EBUSY))
            },
            || Ok(places.borrow_mut().next().unwrap_or(false).then(|| File::open(&below).unwrap())),
        );
        (result, tried.into_inner())
    }

    #[test]
    fn a_child_is_born_where_init_is_however_the_container_divides_its_cgroup() {
        let (busy, gone) = (Err(Errno::EBUSY), Err(Errno::ENODEV));
        for (results, init_is_below, tried) in [
            (&[Ok(())][..], &[][..], "c"),
            (&[busy, Ok(())], &[true], "ci"),
            (&[busy, gone, busy, Ok(())], &[true, true, true], "ciii"),
            // Init has come back, and the cgroup is whole again.
            (&[busy, Ok(())], &[false], "cc"),
            (&[busy, busy, Ok(())], &[true, false], "cic"),
        ] {
            let (result, seen) = born(results, init_is_below);
            result.unwrap();
            assert_eq!(seen, tried);
        }
    }

    #[test]
    fn a_cgroup_that_stays_busy_and_any_other_refusal_are_told() {
        let (refused, tried) = born(&[Err(Errno::EAGAIN)], &[]);
        assert_eq!((refused.unwrap_err().kind, tried.as_str()), (FailureKind::Exhausted, "c"));
        let (busy, tried) = born(&[], &[]);
        assert!(busy.unwrap_err().message.contains("cgroup"));
        assert_eq!(tried.len(), PLACES_MAX);
    }
}
