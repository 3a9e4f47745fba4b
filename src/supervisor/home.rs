//! The supervisor's own PID namespace: out of it for one fork, and back.
//!
//! A process is born in the PID namespace that its parent has chosen for its children (setns(2)). The supervisor
//! chooses a container's for one fork, and its own again before it does anything else.
//!
//! Invariants: nothing else is ever forked while a container's namespace is chosen. Where the way back fails, for which
//! the kernel needs nothing but a little memory, every fork is refused until it has succeeded.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl;
use nix::sys::stat::Mode;

use super::fork::{Born, Forked, fork, fork_into};
use crate::observe::console;

/// Chooses where the next child is born.
type Choose = fn(BorrowedFd<'_>) -> Result<(), Errno>;

/// Where the supervisor's children are born.
#[derive(Debug)]
pub(super) struct Home {
    /// Nothing on a kernel without such namespaces: then there is no other place either.
    namespace: Option<OwnedFd>,
    /// Whether a container's is chosen: the way back has failed.
    away: bool,
    choose: Choose,
}

/// Of a process that chooses none.
impl Default for Home {
    fn default() -> Self {
        Self { namespace: None, away: false, choose: |place| setns(place, CloneFlags::CLONE_NEWPID) }
    }
}

impl Home {
    /// Gets hold of the calling process's own.
    pub(super) fn open() -> Self {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let namespace = nix::fcntl::open("/proc/self/ns/pid", flags, Mode::empty());
        Self { namespace: namespace.ok(), ..Self::default() }
    }

    /// Forks a process of the agent.
    ///
    /// # Errors
    /// What fork(2) says, or why it would be in a container.
    pub(super) fn fork(&mut self) -> Result<Forked, Errno> {
        self.come_back()?;
        fork()
    }

    /// Forks a process into the PID namespace of `init`, if one is given, and into a cgroup. From its first moment on it
    /// can be looked into by nobody who has no right to trace the agent.
    ///
    /// # Errors
    /// ESRCH if init has ended, and what [`fork_into`] says.
    pub(super) fn fork_inside(
        &mut self,
        init: Option<BorrowedFd<'_>>,
        cgroup: Option<BorrowedFd<'_>>,
    ) -> Result<Born, Errno> {
        self.born_inside(init, || undumpable(|| fork_into(cgroup)))
    }

    fn born_inside(
        &mut self,
        init: Option<BorrowedFd<'_>>,
        fork: impl FnOnce() -> Result<Born, Errno>,
    ) -> Result<Born, Errno> {
        self.come_back()?;
        let Some(init) = init else { return fork() };
        if self.namespace.is_none() {
            return Err(Errno::ENOSYS);
        }
        (self.choose)(init)?;
        self.away = true;
        let born = fork();
        if let Ok(Born { forked: Forked::Parent(_), .. }) | Err(_) = &born
            && let Err(errno) = self.come_back()
        {
            console::say(format_args!(
                "the supervisor does not get back to its own PID namespace ({errno}): no process until it does"
            ));
        }
        born
    }

    fn come_back(&mut self) -> Result<(), Errno> {
        if let Some(namespace) = self.namespace.as_ref().filter(|_| self.away) {
            (self.choose)(namespace.as_fd())?;
            self.away = false;
        }
        Ok(())
    }
}

/// Forks while the process is not dumpable, which its child inherits.
fn undumpable(fork: impl FnOnce() -> Result<Born, Errno>) -> Result<Born, Errno> {
    let before = prctl::get_dumpable()?;
    prctl::set_dumpable(false)?;
    let born = fork();
    if before && !matches!(&born, Ok(Born { forked: Forked::Child, .. })) {
        let _ = prctl::set_dumpable(true);
    }
    born
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::fs::File;
    use std::os::fd::AsRawFd;

    use nix::unistd::Pid;

    use super::*;

    thread_local! {
        static CHOSEN: RefCell<Vec<i32>> = const { RefCell::new(Vec::new()) };
        /// What can't be chosen.
        static REFUSED: Cell<i32> = const { Cell::new(-1) };
    }

    fn choose(place: BorrowedFd<'_>) -> Result<(), Errno> {
        CHOSEN.with_borrow_mut(|chosen| chosen.push(place.as_raw_fd()));
        if place.as_raw_fd() == REFUSED.get() { Err(Errno::ENOMEM) } else { Ok(()) }
    }

    fn a_child() -> Result<Born, Errno> {
        Ok(Born { forked: Forked::Parent(Pid::from_raw(4711)), pidfd: None })
    }

    #[test]
    fn nothing_is_forked_in_a_containers_namespace_when_the_way_back_fails() {
        let place = || OwnedFd::from(File::open("/dev/null").unwrap());
        let (own, container) = (place(), place());
        let (at_home, away) = (own.as_raw_fd(), container.as_raw_fd());
        let mut home = Home { namespace: Some(own), away: false, choose };
        let chosen = || CHOSEN.take();
        // The one for whom it was chosen is born all the same, and is told of.
        REFUSED.set(at_home);
        assert!(home.born_inside(Some(container.as_fd()), a_child).is_ok());
        assert_eq!(chosen(), [away, at_home]);
        // Neither a server nor a worker, nor a process of another container or without a namespace of its own.
        let no_child = || -> Result<Born, Errno> { panic!("it is forked") };
        assert_eq!(home.fork(), Err(Errno::ENOMEM));
        assert_eq!(home.born_inside(None, no_child).unwrap_err(), Errno::ENOMEM);
        assert_eq!(home.born_inside(Some(container.as_fd()), no_child).unwrap_err(), Errno::ENOMEM);
        assert_eq!(chosen(), [at_home; 3], "it is tried each time, and first of all");
        REFUSED.set(-1);
        assert!(home.born_inside(None, a_child).is_ok());
        assert!(home.born_inside(None, a_child).is_ok());
        assert_eq!(chosen(), [at_home], "once is enough");
    }

    #[test]
    fn it_comes_back_when_the_fork_fails_and_does_not_leave_for_a_container_that_is_gone() {
        let place = || OwnedFd::from(File::open("/dev/null").unwrap());
        let (own, container) = (place(), place());
        let (at_home, away) = (own.as_raw_fd(), container.as_raw_fd());
        let mut home = Home { namespace: Some(own), away: false, choose };
        let failed = home.born_inside(Some(container.as_fd()), || Err(Errno::EAGAIN));
        assert_eq!(failed.unwrap_err(), Errno::EAGAIN);
        assert_eq!(CHOSEN.take(), [away, at_home]);
        REFUSED.set(away);
        let no_child = || -> Result<Born, Errno> { panic!("it is forked") };
        assert_eq!(home.born_inside(Some(container.as_fd()), no_child).unwrap_err(), Errno::ENOMEM);
        assert_eq!(CHOSEN.take(), [away], "it is where it was");
    }
}
