//! One process of a container: its init, or one that was exec'd.
//!
//! ```text
//! launching -> running -> exited(status) -> waited -> gone
//! ```
//!
//! - *launching*: only the launch knows it; its exec id is taken.
//! - *running*: in its container's directory; signals go to its pidfd, so never to a stranger.
//! - *exited*: its status is kept until someone waits for it.
//! - *waited*: signals and further waits find nothing. The streams of an exec'd process can be read until their
//!   end, for a while; init's until the container is removed.
//! - *gone*: the last holder of the [`Process`] drops its descriptors.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use nix::errno::Errno;
use tokio::sync::watch;

use super::create::blocking;
use super::error::SandboxError;
use super::lock;
use super::pidfd;
use super::pumps::Pumps;
use super::records::{ProcessRecord, exec_name};
use crate::ids::{ContainerId, ExecId};
use crate::records::Records;
use crate::stdio::{StdioError, StreamName, Streams};
use crate::supervisor::ExitStatus;
use crate::supervisor::client::{Held, Hold, StartedProcess};

/// A process that has been started.
#[derive(Debug)]
pub struct Process {
    pid: nix::unistd::Pid,
    pidfd: OwnedFd,
    exit: watch::Receiver<Option<ExitStatus>>,
    waited: AtomicBool,
    streams: Streams,
    pumps: Pumps,
    /// The supervisor's duplicates of all of this.
    hold: Hold,
    /// Where it is written down, if it is an exec'd one.
    record: Option<Recorded>,
}

/// A process's record, which goes with it.
#[derive(Debug)]
struct Recorded {
    records: Arc<Records>,
    name: PathBuf,
    /// Whether it has been removed: held while it is written or removed, by threads that may block.
    removed: Arc<Mutex<bool>>,
}

impl Drop for Recorded {
    fn drop(&mut self) {
        // Without a runtime the agent is on its way out. What stays is found to be of nothing.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let (records, name) = (self.records.clone(), std::mem::take(&mut self.name));
        let removed = self.removed.clone();
        runtime.spawn_blocking(move || {
            let mut removed = lock(&removed);
            *removed = true;
            let _ = records.remove(&name);
        });
    }
}

/// A process that nobody knows yet: when it is dropped, nobody ever will.
struct Unknown(Option<Process>);

impl Drop for Unknown {
    fn drop(&mut self) {
        if let Some(process) = &self.0 {
            let _ = process.signal(libc::SIGKILL as u32);
        }
    }
}

/// How many descriptors the supervisor holds of a process without a terminal when its standard input is closed:
/// pidfd, standard output and error. Standard input is the last one.
const WITHOUT_STDIN: u8 = 3;

impl Process {
    /// Takes over what a worker started.
    pub(super) fn new(started: StartedProcess, pidfd: OwnedFd, streams: Streams) -> Self {
        let StartedProcess { pid, exit, hold } = started;
        let (waited, pumps) = (AtomicBool::new(false), Pumps::default());
        Self { pid, pidfd, exit, waited, streams, pumps, hold, record: None }
    }

    /// Writes down how the next server finds it; undone when it is dropped.
    pub(super) async fn recorded(
        mut self,
        container: &ContainerId,
        exec_id: &ExecId,
        records: &Arc<Records>,
    ) -> Result<Self, SandboxError> {
        let record = self.record(exec_id.as_str());
        let name = exec_name(container.as_str(), record.key);
        // Before it is there: half a record, too, has to go.
        let removed = Arc::new(Mutex::new(false));
        self.record =
            Some(Recorded { records: records.clone(), name: name.clone(), removed: removed.clone() });
        let records = records.clone();
        let mut unknown = Unknown(Some(self));
        blocking(move || {
            let removed = lock(&removed);
            if *removed { Ok(()) } else { Ok(records.write(&name, &record)?) }
        })
        .await?;
        unknown.0.take().ok_or(SandboxError::TaskEnded("the record of a process"))
    }

    /// The same for one that is written down already.
    pub(super) fn with_record(mut self, container: &str, records: &Arc<Records>) -> Self {
        let name = exec_name(container, self.hold.key());
        self.record = Some(Recorded { records: records.clone(), name, removed: Arc::default() });
        self
    }

    /// Takes over what an earlier server had.
    ///
    /// # Errors
    /// [`StdioError::Prepare`]; and `None` if it is not all there.
    pub(super) fn recovered(held: Held, terminal: bool) -> Result<Option<Self>, StdioError> {
        let mut fds = held.fds.into_iter();
        let Some(pidfd) = fds.next() else { return Ok(None) };
        let names: &[StreamName] = if terminal {
            &[StreamName::Terminal]
        } else {
            &[StreamName::Stdout, StreamName::Stderr, StreamName::Stdin]
        };
        let streams = Streams::from_fds(names.iter().copied().zip(fds))?;
        Ok(Some(Self::new(held.process, pidfd, streams)))
    }

    /// The number under which the supervisor holds it.
    pub(super) fn key(&self) -> u64 {
        self.hold.key()
    }

    /// What the next server needs to take it over.
    pub(super) fn record(&self, exec_id: &str) -> ProcessRecord {
        let (key, terminal) = (self.hold.key(), self.streams.is_terminal());
        ProcessRecord { exec_id: exec_id.to_owned(), key, terminal }
    }

    /// Closes its standard input, but for a terminal: it sees the end when the supervisor has closed its duplicate too.
    pub(super) fn close_stdin(&self) {
        self.streams.stdin.close();
        if !self.streams.is_terminal() {
            self.hold.keep_first(WITHOUT_STDIN);
        }
    }

    /// Its pid in the agent's namespace; only good for looking at /proc while it lives.
    pub fn pid(&self) -> nix::unistd::Pid {
        self.pid
    }

    /// Another handle of it.
    pub(super) fn handle(&self) -> std::io::Result<OwnedFd> {
        self.pidfd.try_clone()
    }

    /// Its streams.
    pub fn streams(&self) -> &Streams {
        &self.streams
    }

    /// What serves its streams over connections.
    pub(super) fn pumps(&self) -> &Pumps {
        &self.pumps
    }

    /// Becomes `Some` when it has ended.
    pub fn exit(&self) -> &watch::Receiver<Option<ExitStatus>> {
        &self.exit
    }

    /// How it ended, if it has.
    pub fn exit_status(&self) -> Option<ExitStatus> {
        *self.exit.borrow()
    }

    /// Waits for its end.
    pub async fn wait(&self) -> Option<ExitStatus> {
        let mut exit = self.exit.clone();
        exit.wait_for(Option::is_some).await.ok().and_then(|status| *status)
    }

    /// Whether someone has been told how it ended.
    pub fn is_waited(&self) -> bool {
        self.waited.load(Ordering::Relaxed)
    }

    /// Marks that someone has been told how it ended; true for the first.
    pub(super) fn set_waited(&self) -> bool {
        !self.waited.swap(true, Ordering::Relaxed)
    }

    /// Sends a signal; that it has ended already is no error.
    pub(super) fn signal(&self, signal: u32) -> Result<(), Errno> {
        match pidfd::send_signal(&self.pidfd, signal) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(errno) => Err(errno),
        }
    }
}

/// Whether a process does something of its own with SIGTERM, by the text of its `/proc/<pid>/status`: an init
/// of a pid namespace never sees a signal that it neither handles, blocks nor ignores (pid_namespaces(7)).
pub(super) fn handles_sigterm(status: &str) -> bool {
    const SIGTERM_BIT: u64 = 1 << 14;
    status
        .lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(key, _)| matches!(*key, "SigBlk" | "SigIgn" | "SigCgt"))
        .filter_map(|(_, mask)| u64::from_str_radix(mask.trim(), 16).ok())
        .any(|mask| mask & SIGTERM_BIT != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sigterm_is_handled_when_any_mask_has_it() {
        let status = |blk, ign, cgt| {
            format!("Name:\tx\nSigBlk:\t{blk:016x}\nSigIgn:\t{ign:016x}\nSigCgt:\t{cgt:016x}\n")
        };
        for (text, handled) in [
            (status(0, 0, 0), false),
            (status(1 << 14, 0, 0), true),
            (status(0, 1 << 14, 0), true),
            (status(0, 0, 1 << 14), true),
            (status(!(1 << 14), 0, 0), false),
            (String::new(), false),
            ("SigCgt: zz\n".to_owned(), false),
        ] {
            assert_eq!(handles_sigterm(&text), handled, "{text}");
        }
    }
}
