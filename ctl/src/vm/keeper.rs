//! The child processes of one VM, and the certainty that they end with it.
//!
//! Each child asks the kernel to be killed when its parent dies (`PR_SET_PDEATHSIG`, prctl(2)), so
//! that not even SIGKILL leaves a QEMU behind. "Parent" is the *thread* that forked, and callers live
//! on threads that come and go (test harnesses, runtimes). So a [`Keeper`] has a thread of its own
//! that starts all of its children and lives until the keeper is dropped; then it kills and reaps
//! them, last started first.

#![expect(unsafe_code, reason = "prctl(PR_SET_PDEATHSIG) belongs between fork and exec")]

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;

/// Owner of a VM's child processes.
#[derive(Debug)]
pub(crate) struct Keeper {
    /// None once dropped, which ends the thread.
    orders: Option<Sender<Order>>,
    thread: Option<JoinHandle<()>>,
}

enum Order {
    Spawn(Command, Sender<io::Result<Spawned>>),
    Exited(u32, Sender<Option<ExitStatus>>),
}

/// A child as it was started; the keeper holds the process itself.
#[derive(Debug)]
pub(crate) struct Spawned {
    pub(crate) pid: u32,
    pub(crate) stdout: Option<std::process::ChildStdout>,
}

impl Keeper {
    /// Starts the thread.
    pub(crate) fn new() -> io::Result<Self> {
        let (orders, receiver) = mpsc::channel();
        let thread =
            std::thread::Builder::new().name("vm-keeper".to_owned()).spawn(move || keep(&receiver))?;
        Ok(Self { orders: Some(orders), thread: Some(thread) })
    }

    /// Starts a child that lives no longer than the keeper and this process.
    pub(crate) fn spawn(&self, command: Command) -> io::Result<Spawned> {
        self.order(|answer| Order::Spawn(command, answer))?
    }

    /// The exit status of the child, if it has ended.
    pub(crate) fn exited(&self, pid: u32) -> Option<ExitStatus> {
        self.order(|answer| Order::Exited(pid, answer)).ok().flatten()
    }

    fn order<T>(&self, order: impl FnOnce(Sender<T>) -> Order) -> io::Result<T> {
        let gone = || io::Error::other("the thread that keeps the child processes is gone");
        let (answer, receiver) = mpsc::channel();
        self.orders.as_ref().ok_or_else(gone)?.send(order(answer)).map_err(|_| gone())?;
        receiver.recv().map_err(|_| gone())
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            // Its only failure is a panic, which it has printed.
            let _ = thread.join();
        }
    }
}

fn keep(orders: &Receiver<Order>) {
    let mut children: Vec<Child> = Vec::new();
    while let Ok(order) = orders.recv() {
        // An asker that is gone needs no answer.
        match order {
            Order::Spawn(command, answer) => {
                let _ = answer.send(spawn(command, &mut children));
            }
            Order::Exited(pid, answer) => {
                let child = children.iter_mut().find(|child| child.id() == pid);
                let _ = answer.send(child.and_then(|child| child.try_wait().ok().flatten()));
            }
        }
    }
    for child in children.iter_mut().rev() {
        // An error means that it has ended already.
        let _ = child.kill();
        let _ = child.wait();
    }
}

fn spawn(mut command: Command, children: &mut Vec<Child>) -> io::Result<Spawned> {
    let parent = nix::unistd::getpid();
    let leave_with_parent = move || {
        nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
        // The parent may have died before the request was made.
        if nix::unistd::getppid() == parent { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::ESRCH)) }
    };
    // SAFETY: the closure only makes the system calls prctl and getppid, both async-signal-safe.
    unsafe { command.pre_exec(leave_with_parent) };
    let mut child = command.spawn()?;
    let spawned = Spawned { pid: child.id(), stdout: child.stdout.take() };
    children.push(child);
    Ok(spawned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Stdio;

    fn alive(pid: u32) -> bool {
        std::path::Path::new(&format!("/proc/{pid}")).exists()
    }

    #[test]
    fn children_end_with_the_keeper_not_with_the_thread_that_asked() {
        let keeper = Keeper::new().unwrap();
        let pid = std::thread::scope(|scope| {
            let spawned = scope.spawn(|| {
                let mut command = Command::new("sleep");
                command.arg("1000");
                keeper.spawn(command).unwrap()
            });
            spawned.join().unwrap().pid
        });
        assert!(alive(pid) && keeper.exited(pid).is_none());
        drop(keeper);
        assert!(!alive(pid));
    }

    #[test]
    fn exit_status_and_missing_program_are_told() {
        let keeper = Keeper::new().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "exit 3"]).stdout(Stdio::piped());
        let spawned = keeper.spawn(command).unwrap();
        // The end of its output is the end of the process, but for a moment.
        io::copy(&mut spawned.stdout.unwrap(), &mut io::sink()).unwrap();
        let status = loop {
            if let Some(status) = keeper.exited(spawned.pid) {
                break status;
            }
            std::thread::yield_now();
        };
        assert_eq!(status.code(), Some(3));
        let error = keeper.spawn(Command::new("/nonexistent/program")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
