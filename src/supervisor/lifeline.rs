//! How the supervisor learns that the server has died, whatever a thread of it waits for.
//!
//! A thread that waits for a file system whose own server does not answer is ended by no signal. As long as there is one,
//! its process is not reported as dead (wait(2)), and none of the descriptors that the threads share is closed. So
//! the server has a thread with a table of descriptors of its own (unshare(2), `CLONE_FILES`), in which there is
//! nothing but one end of a pipe. It sleeps, and can be killed at any time: then the pipe closes.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, unshare};
use nix::unistd::Pid;
use tokio::sync::oneshot;

use super::channel::{Channel, ChannelError};
use super::fds::close_all_but;
use super::reaper::ExitStatus;

/// How long a server whose lifeline is cut may take to be reported as dead. Usually that is at once.
const GRACE: Duration = Duration::from_millis(200);
/// Of the thread, which needs next to nothing.
const STACK: usize = 32 << 10;

/// The server's end.
#[derive(Debug)]
pub struct Tied(OwnedFd);

impl Tied {
    /// Starts the thread. Without it a server that dies while a thread hangs has no successor.
    ///
    /// # Errors
    /// When there can be no other thread, or no other table of descriptors.
    pub async fn start(self) -> io::Result<()> {
        let (answer, is_alone) = oneshot::channel();
        let mut keep = [self.0.as_raw_fd()];
        let run = move || {
            let alone = unshare(CloneFlags::CLONE_FILES);
            let stays = alone.is_ok();
            let _ = answer.send(alone);
            if stays {
                close_all_but(&mut keep);
                loop {
                    std::thread::park();
                }
            }
        };
        let started = std::thread::Builder::new().name("lifeline".to_owned()).stack_size(STACK).spawn(run);
        let alone = match started {
            Ok(_) => is_alone.await.map_err(io::Error::other).and_then(|alone| Ok(alone?)),
            Err(error) => Err(error),
        };
        if alone.is_err() {
            // It is not cut before the server has ended.
            std::mem::forget(self);
        }
        alone
    }
}

/// What a server has of the supervisor.
#[derive(Debug)]
pub struct ServerEnds {
    /// Its end of the channel.
    pub channel: Channel,
    /// Its end of the lifeline.
    pub lifeline: Tied,
}

/// The supervisor's end.
#[derive(Debug)]
pub(super) struct Lifeline {
    pipe: Option<OwnedFd>,
    cut: Option<Instant>,
}

impl Lifeline {
    /// Both ends.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub(super) fn pair() -> Result<(Self, Tied), ChannelError> {
        let failed = |source| ChannelError::Io { step: "make the lifeline", source };
        let (ours, theirs) = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(failed)?;
        Ok((Self { pipe: Some(ours), cut: None }, Tied(theirs)))
    }

    /// What becomes readable when it is cut, if it is not.
    pub(super) fn pipe(&self) -> Option<BorrowedFd<'_>> {
        self.pipe.as_ref().map(AsFd::as_fd)
    }

    /// When to ask whether the server is [`Lifeline::lost`], if it is cut.
    pub(super) fn due(&self) -> Option<Instant> {
        self.cut.and_then(|cut| cut.checked_add(GRACE))
    }

    /// Notes that it is cut.
    pub(super) fn is_cut(&mut self, now: Instant) {
        self.pipe = None;
        self.cut = Some(now);
    }

    /// How the server has ended, if it has and is not reported as dead.
    pub(super) fn lost(&mut self, server: Pid, now: Instant) -> Option<ExitStatus> {
        if self.due().is_none_or(|due| due > now) {
            return None;
        }
        self.cut = None;
        let stat = std::fs::read_to_string(format!("/proc/{server}/stat")).ok()?;
        end_of_zombie(&stat)
    }
}

/// How a process has ended that is one no more, by its `/proc/PID/stat` (`proc_pid_stat(5)`, fields 3 and 52).
fn end_of_zombie(stat: &str) -> Option<ExitStatus> {
    // The name, which comes before, may be anything; its end is the last parenthesis.
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split_ascii_whitespace();
    let is_zombie = fields.next()? == "Z";
    let status = fields.nth(48).and_then(|status| status.parse().ok());
    is_zombie.then(|| status.map_or(ExitStatus::Signal(libc::SIGKILL), ExitStatus::from_wire))
}

#[cfg(test)]
mod tests {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;

    #[test]
    fn the_end_of_a_zombie_is_told_by_proc() {
        let zeros = "0 ".repeat(48);
        let of = |name, state, status: i32| end_of_zombie(&format!("7 ({name}) {state} {zeros}{status}\n"));
        assert_eq!(of("nakai-server", "S", 0), None);
        assert_eq!(of("a) Z (b", "S", 0), None);
        assert_eq!(of("a) R (b", "Z", 6), Some(ExitStatus::Signal(6)));
        assert_eq!(of("nakai-server", "Z", 0x100), Some(ExitStatus::Code(1)));
        assert_eq!(end_of_zombie("7 (short) Z"), Some(ExitStatus::Signal(9)));
        assert_eq!(end_of_zombie(""), None);
    }

    #[tokio::test]
    async fn it_is_one_thread_that_holds_it() {
        let (mut lifeline, tied) = Lifeline::pair().unwrap();
        tied.start().await.unwrap();
        let is_cut = |lifeline: &Lifeline| {
            poll(&mut [PollFd::new(lifeline.pipe().unwrap(), PollFlags::POLLIN)], PollTimeout::ZERO).unwrap()
                > 0
        };
        assert!(!is_cut(&lifeline));
        let now = Instant::now();
        lifeline.is_cut(now);
        assert!(lifeline.pipe().is_none(), "it would be readable for ever");
        assert_eq!(lifeline.due(), now.checked_add(GRACE));
        assert_eq!(lifeline.lost(Pid::this(), now + GRACE), None, "this process lives");
        assert_eq!(lifeline.due(), None);
        let (lifeline, tied) = Lifeline::pair().unwrap();
        drop(tied);
        assert!(is_cut(&lifeline));
    }
}
