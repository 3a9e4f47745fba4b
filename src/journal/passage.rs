//! A pipe through which an answer's data passes from a process's pipe to a connection.
//!
//! splice(2) moves pages from pipe to pipe and into a unix socket without a copy of what is in them. The supervisor holds
//! both ends with the file: whenever the server is killed each byte is in the process's pipe, in this one or sent,
//! and how many are in this one the kernel knows. There is one pipe, which one call has at a time; the others take
//! chunks.
//!
//! Invariant: what is in the pipe is of the call that the file's head names, or of nobody and thrown away.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

use super::Journal;
use super::call::current;
use super::layout::{self, head};
use super::pipe::{bytes_waiting, splice};

/// What the pipe has room for once it has been used, if the kernel allows it: as much as a process's pipe.
const ROOM: i32 = 1 << 20;

/// The pipe, while a call has it.
#[derive(Debug)]
pub struct Passage {
    journal: Arc<Journal>,
    /// How many bytes are in it.
    left: AtomicUsize,
}

/// The pipe for the call that this thread works at. `None` if there is no such call, if what answers it takes no
/// pages, or if another has the pipe.
pub fn passage_of_current_call() -> Option<Passage> {
    let call = current()?;
    let number = call.number.filter(|_| call.takes_pages())?;
    let journal = &call.journal;
    let pipe = journal.pipe.as_ref()?;
    let mut taken = journal.taken();
    if std::mem::replace(&mut taken.pipe, true) {
        return None;
    }
    if !std::mem::replace(&mut taken.pipe_is_large, true) {
        // A wish: what does not fit waits for the next look.
        let _ = fcntl(pipe.writer(), FcntlArg::F_SETPIPE_SZ(ROOM));
    }
    drop(taken);
    journal.memory.store(head::PASSAGE, layout::reference(Some(number)));
    Some(Passage { journal: journal.clone(), left: AtomicUsize::new(0) })
}

impl Passage {
    /// What an earlier server has left in the pipe, for the call that had it.
    pub(super) fn left(journal: &Arc<Journal>) -> Option<Self> {
        let left = bytes_waiting(journal.pipe.as_ref()?.reader()).unwrap_or(0);
        journal.taken().pipe = true;
        Some(Self { journal: journal.clone(), left: AtomicUsize::new(left) })
    }

    pub(super) fn journal(&self) -> &Arc<Journal> {
        &self.journal
    }

    /// How many bytes are in it.
    pub(super) fn len(&self) -> usize {
        self.left.load(Ordering::Relaxed)
    }

    /// Takes what is in a process's pipe, up to `limit` bytes, without waiting. None is its end.
    ///
    /// # Errors
    /// What splice(2) says; EAGAIN where there is nothing.
    pub fn fill(&mut self, from: BorrowedFd<'_>, limit: usize) -> Result<usize, Errno> {
        let pipe = self.journal.pipe.as_ref().ok_or(Errno::EBADF)?;
        let taken = splice(from, pipe.writer(), limit)?;
        *self.left.get_mut() = self.len().saturating_add(taken);
        Ok(taken)
    }

    /// Sends what there is room for, and at most so many bytes; true when all of it is sent.
    pub(super) fn send(&self, socket: BorrowedFd<'_>, most: usize) -> Result<bool, Errno> {
        let left = self.len();
        if left == 0 {
            return Ok(true);
        }
        let pipe = self.journal.pipe.as_ref().ok_or(Errno::EBADF)?;
        let sent = splice(pipe.reader(), socket, left.min(most))?;
        self.left.store(left.saturating_sub(sent), Ordering::Relaxed);
        Ok(sent >= left)
    }

    /// Takes the bytes out.
    pub(super) fn take_out(&mut self) -> Vec<u8> {
        let mut bytes = vec![0; self.len()];
        let mut read = 0;
        if let Some(pipe) = &self.journal.pipe {
            while let Some(room) = bytes.get_mut(read..).filter(|room| !room.is_empty()) {
                match nix::unistd::read(pipe.reader(), room) {
                    Ok(0) | Err(_) => break,
                    Ok(now) => read = read.saturating_add(now),
                }
            }
        }
        *self.left.get_mut() = 0;
        bytes.truncate(read);
        bytes
    }
}

impl Drop for Passage {
    fn drop(&mut self) {
        if self.len() > 0
            && let Some(pipe) = &self.journal.pipe
        {
            pipe.empty();
        }
        self.journal.memory.store(head::PASSAGE, 0);
        self.journal.taken().pipe = false;
    }
}
