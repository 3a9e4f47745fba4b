//! What the supervisor keeps for the next server: descriptors under a key, and how a process ended.
//!
//! It looks into none of it. The descriptors are duplicates, so that a pipe keeps its bytes and a terminal its
//! session when the server goes. The end of a held process is kept until the server lets go of the key, so no end
//! that happens while there is no server is lost.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::socket::MsgFlags;

use super::channel::{Channel, ChannelError, Header, Kind};
use super::reaper::ExitStatus;

/// The most keys. Far above what a guest can run; who asks for more is not a server of ours.
const MAX_HOLDS: usize = 1 << 16;

#[derive(Debug)]
struct Hold {
    /// 0 if no process belongs to it.
    pid: i32,
    ended: Option<ExitStatus>,
    fds: Vec<OwnedFd>,
}

/// All that is held, by key.
#[derive(Debug, Default)]
pub(super) struct Holds {
    entries: BTreeMap<u64, Hold>,
}

impl Holds {
    /// Keeps `fds` under `key`; an earlier entry under this key is dropped, and its descriptors are closed.
    pub(super) fn keep(&mut self, key: u64, pid: i32, fds: Vec<OwnedFd>) {
        if self.entries.len() < MAX_HOLDS {
            self.entries.insert(key, Hold { pid, ended: None, fds });
        }
    }

    /// Keeps only the first `count` descriptors, or lets go of the key if that is none.
    pub(super) fn release(&mut self, key: u64, count: i32) {
        let count = usize::try_from(count).unwrap_or(0);
        if count == 0 {
            self.entries.remove(&key);
        } else if let Some(hold) = self.entries.get_mut(&key) {
            hold.fds.truncate(count);
        }
    }

    /// Lets go of the key; the process that belongs to it, if it has not ended.
    pub(super) fn discard(&mut self, key: u64) -> Option<i32> {
        let hold = self.entries.remove(&key)?;
        (hold.ended.is_none() && hold.pid > 0).then_some(hold.pid)
    }

    /// Notes the end of a process, whose pid is not another's yet.
    pub(super) fn exited(&mut self, pid: i32, status: ExitStatus) {
        let of_it = |hold: &&mut Hold| hold.pid == pid && hold.ended.is_none();
        if let Some(hold) = self.entries.values_mut().find(of_it) {
            hold.ended = Some(status);
        }
    }

    /// Tells all of it, and that it was all, for which the server waits. What can't be told is left out.
    ///
    /// # Errors
    /// When the server is gone.
    pub(super) fn tell(&self, channel: &Channel) -> Result<(), ChannelError> {
        // Nothing tells when there is memory again; but that the server is gone is told.
        let pause = || {
            let _ = poll(&mut [PollFd::new(channel.as_fd(), PollFlags::empty())], PAUSE);
        };
        self.tell_by(|header, fds| channel.send(header, b"", fds, MsgFlags::empty()), pause)
    }

    /// The same by functions that send a message, and wait for memory. Until all has been told the supervisor does
    /// nothing else, so all of it together has so much patience, and no message has its own.
    fn tell_by(
        &self,
        send: impl Fn(Header, &[BorrowedFd<'_>]) -> Result<(), ChannelError>,
        pause: impl Fn(),
    ) -> Result<(), ChannelError> {
        let mut patience = PATIENCE;
        for (key, hold) in &self.entries {
            let (kind, status) = match hold.ended {
                None => (Kind::Held, 0),
                Some(status) => (Kind::HeldEnded, status.to_wire()),
            };
            let fds: Vec<BorrowedFd<'_>> = hold.fds.iter().map(AsFd::as_fd).collect();
            let header = Header { kind, request: *key, pid: hold.pid, status };
            insist(|| send(header, &fds), &pause, &mut patience)?;
        }
        let mut endless = u32::MAX;
        insist(|| send(Header::new(Kind::Listed, 0), &[]), &pause, &mut endless)
    }
}

/// How long to wait for memory at a time, in milliseconds.
const PAUSE: u8 = 50;
/// How often: for a second.
const PATIENCE: u32 = 20;

/// Sends a message, or tries some times: memory may be short for a moment, just when a server has died of that. What
/// could not be sent then never will be.
fn insist(
    send: impl Fn() -> Result<(), ChannelError>,
    pause: impl Fn(),
    patience: &mut u32,
) -> Result<(), ChannelError> {
    loop {
        match send() {
            Err(ChannelError::Io {
                source: Errno::ENOMEM | Errno::ENOBUFS | Errno::ETOOMANYREFS, ..
            }) if *patience > 0 => {
                *patience = patience.saturating_sub(1);
                pause();
            }
            Err(ChannelError::Closed) => return Err(ChannelError::Closed),
            Ok(()) | Err(_) => return Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;

    fn pipe() -> OwnedFd {
        nix::unistd::pipe().unwrap().0
    }

    /// What a server is told: kind, key, pid, status, and how many descriptors.
    fn told(holds: &Holds) -> Vec<(Kind, u64, i32, i32, usize)> {
        let (ours, theirs) = Channel::pair().unwrap();
        holds.tell(&ours).unwrap();
        drop(ours);
        let mut all = Vec::new();
        while let Ok(message) = theirs.receive(0, MsgFlags::empty()) {
            let Header { kind, request, pid, status } = message.header;
            all.push((kind, request, pid, status, message.fds.len()));
        }
        all
    }

    #[test]
    fn what_is_held_is_told_with_the_ends_that_came_meanwhile() {
        let mut holds = Holds::default();
        holds.keep(7, 100, vec![pipe(), pipe(), pipe()]);
        holds.keep(8, 101, vec![pipe()]);
        holds.keep(9, 0, vec![pipe()]);
        holds.exited(101, ExitStatus::Code(3));
        holds.exited(555, ExitStatus::Code(4));
        let status = ExitStatus::Code(3).to_wire();
        assert_eq!(
            told(&holds),
            [
                (Kind::Held, 7, 100, 0, 3),
                (Kind::HeldEnded, 8, 101, status, 1),
                (Kind::Held, 9, 0, 0, 1),
                (Kind::Listed, 0, 0, 0, 0),
            ]
        );
    }

    #[test]
    fn what_cannot_be_told_keeps_nobody_waiting_for_the_rest() {
        let mut holds = Holds::default();
        // More than a message can carry.
        holds.keep(7, 100, (0..300).map(|_| pipe()).collect());
        holds.keep(8, 101, vec![pipe()]);
        let told: Vec<_> = told(&holds).into_iter().map(|told| (told.0, told.1)).collect();
        assert_eq!(told, [(Kind::Held, 8), (Kind::Listed, 0)]);
    }

    /// The supervisor neither reaps nor forks meanwhile.
    #[test]
    fn memory_that_stays_short_is_waited_for_once_and_not_for_each() {
        let mut holds = Holds::default();
        (0..100).for_each(|key| holds.keep(key, 100, vec![pipe()]));
        let (told, pauses) = (RefCell::new(Vec::new()), Cell::new(0));
        let send = |header: Header, fds: &[BorrowedFd<'_>]| {
            // Descriptors need more of it.
            if !fds.is_empty() && header.request != 99 {
                return Err(ChannelError::Io { step: "sendmsg", source: Errno::ENOMEM });
            }
            told.borrow_mut().push((header.kind, header.request));
            Ok(())
        };
        holds.tell_by(send, || pauses.set(pauses.get() + 1)).unwrap();
        assert_eq!(pauses.get(), PATIENCE);
        assert_eq!(told.take(), [(Kind::Held, 99), (Kind::Listed, 0)], "what can be told is");
    }

    #[test]
    fn a_pid_that_is_used_again_does_not_change_what_the_first_ended_with() {
        let mut holds = Holds::default();
        holds.keep(1, 100, Vec::new());
        holds.exited(100, ExitStatus::Code(1));
        holds.keep(2, 100, Vec::new());
        holds.exited(100, ExitStatus::Signal(9));
        let statuses: Vec<i32> = told(&holds).iter().map(|told| told.3).collect();
        assert_eq!(statuses, [ExitStatus::Code(1).to_wire(), ExitStatus::Signal(9).to_wire(), 0]);
    }

    #[test]
    fn releasing_closes_from_the_end_and_then_all() {
        let mut holds = Holds::default();
        let (reader, writer) = nix::unistd::pipe().unwrap();
        holds.keep(1, 100, vec![pipe(), writer]);
        holds.release(1, 1);
        // Nobody writes any more.
        assert_eq!(nix::unistd::read(&reader, &mut [0]), Ok(0));
        assert_eq!(told(&holds).first().map(|told| told.4), Some(1));
        holds.release(1, 0);
        holds.release(1, 0);
        assert_eq!(told(&holds).len(), 1);
    }

    #[test]
    fn what_nobody_asks_for_is_named_to_be_ended_once_and_only_while_it_runs() {
        let mut holds = Holds::default();
        holds.keep(1, 100, vec![pipe()]);
        holds.keep(2, 101, vec![pipe()]);
        holds.keep(3, 0, vec![pipe()]);
        holds.exited(101, ExitStatus::Code(0));
        let named: Vec<_> = [1, 1, 2, 3, 4].into_iter().map(|key| holds.discard(key)).collect();
        assert_eq!(named, [Some(100), None, None, None, None]);
        assert_eq!(told(&holds).len(), 1);
    }
}
