//! The namespaces that the containers of a sandbox share.
//!
//! The worker enters new UTS and IPC namespaces and binds them to files, which keep them alive. A shared PID
//! namespace lives as long as its init, so a pause process is forked for it: it holds nothing of the guest
//! (an empty root, no capabilities, no descriptors), because any container of the sandbox can look at it
//! through `/proc/1`. It ends with the worker until the supervisor holds it.

use std::fs::OpenOptions;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::Pid;

use super::job::{Failure, ShareNamespacesJob};
use super::{capabilities, sys};
use crate::spec::CapabilitySets;
use crate::supervisor::{Forked, fork};

/// A pause process.
pub(super) struct Pause {
    pub(super) pid: Pid,
    /// It stays once something has been written here, and ends when this is closed without.
    pub(super) stay: OwnedFd,
}

/// Makes the namespaces, and the pause process, if one is wanted.
pub(super) fn share(job: &ShareNamespacesJob) -> Result<Option<Pause>, Failure> {
    unshare(CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWIPC)
        .map_err(|e| failed("unshare uts and ipc", e))?;
    if !job.hostname.is_empty() {
        nix::unistd::sethostname(&job.hostname).map_err(|e| failed("set the host name", e))?;
    }
    pin(Path::new("/proc/self/ns/uts"), &job.uts)?;
    pin(Path::new("/proc/self/ns/ipc"), &job.ipc).inspect_err(|_| unpin(&job.uts))?;
    let Some(path) = &job.pid else { return Ok(None) };
    pause(path).map(Some).inspect_err(|_| {
        unpin(&job.uts);
        unpin(&job.ipc);
    })
}

fn failed(step: &str, cause: impl std::fmt::Display) -> Failure {
    Failure::internal(format!("make the sandbox's namespaces: {step}: {cause}"))
}

/// Binds a namespace to a file, which keeps the namespace alive (namespaces(7)).
fn pin(namespace: &Path, path: &Path) -> Result<(), Failure> {
    let describe = |e: &dyn std::fmt::Display| failed(&format!("bind it to {}", path.display()), e);
    OpenOptions::new().write(true).create_new(true).mode(0o444).open(path).map_err(|e| describe(&e))?;
    mount(Some(namespace), path, None::<&str>, MsFlags::MS_BIND, None::<&str>).map_err(|e| {
        let _ = std::fs::remove_file(path);
        describe(&e)
    })
}

fn unpin(path: &Path) {
    let _ = umount2(path, MntFlags::MNT_DETACH);
    let _ = std::fs::remove_file(path);
}

/// Forks the init of a new PID namespace and binds that namespace to `path`.
fn pause(path: &Path) -> Result<Pause, Failure> {
    unshare(CloneFlags::CLONE_NEWPID).map_err(|e| failed("unshare pid", e))?;
    let pipe = || nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(|e| failed("pipe", e));
    let ((ready, begin), (may_stay, stay)) = (pipe()?, pipe()?);
    match fork().map_err(|e| failed("fork the pause process", e))? {
        Forked::Child => {
            drop((ready, stay));
            let isolated = isolate();
            let _ = nix::unistd::write(&begin, if isolated.is_ok() { b"y" } else { b"n" });
            drop(begin);
            if isolated.is_ok() && nix::unistd::read(&may_stay, &mut [0]) == Ok(1) {
                hold();
            }
            sys::exit_now(1)
        }
        Forked::Parent(pid) => {
            drop((begin, may_stay));
            let mut answer = [0];
            let isolated = nix::unistd::read(&ready, &mut answer) == Ok(1) && answer == *b"y";
            let pinned = if isolated {
                pin(Path::new("/proc/self/ns/pid_for_children"), path)
            } else {
                Err(failed("isolate the pause process", "it did not answer"))
            };
            pinned.map(|()| Pause { pid, stay }).inspect_err(|_| {
                let _ = nix::sys::signal::kill(pid, Signal::SIGKILL);
            })
        }
    }
}

/// Leaves the guest's filesystem behind, then all rights.
fn isolate() -> Result<(), nix::Error> {
    let _ = nix::unistd::setsid();
    // Of no use to kill when memory runs out: it has none.
    let _ = std::fs::write("/proc/self/oom_score_adj", "-998");
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | MsFlags::MS_RDONLY;
    mount(Some("pause"), "/run", Some("tmpfs"), flags, Some("size=0,nr_inodes=2"))?;
    nix::unistd::chdir("/run")?;
    nix::unistd::pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    nix::unistd::chdir("/")?;
    let _ = nix::sys::prctl::set_name(c"pause");
    let _ = nix::sys::prctl::set_dumpable(false);
    capabilities::set(&CapabilitySets::default()).map_err(|_| nix::Error::EPERM)
}

/// The life of the init of a PID namespace: to take the orphans of it away.
#[expect(
    clippy::disallowed_methods,
    reason = "an init reaps its own namespace; the supervisor can't see these"
)]
fn hold() -> ! {
    let signals: SigSet = [Signal::SIGCHLD].into_iter().collect();
    let _ = signals.thread_block();
    sys::close_all();
    loop {
        let _ = signals.wait();
        loop {
            match nix::sys::wait::waitpid(None, Some(nix::sys::wait::WaitPidFlag::WNOHANG)) {
                Ok(nix::sys::wait::WaitStatus::StillAlive) | Err(nix::Error::ECHILD) => break,
                // Also an error for a child that a real-time signal ended: it has been reaped all the same.
                Ok(_) | Err(_) => {}
            }
        }
    }
}
