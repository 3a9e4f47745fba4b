//! The mapped memory file, and the system calls whose result the kernel writes into it.
//!
//! A process can be killed after any system call, before it has taken note of the result. Three calls of Linux store
//! their result in the caller's memory before they return: sendmmsg(2) and recvmmsg(2) the length of each message,
//! splice(2) the offset in the file. With that memory in this file the next process knows it all the same.
//!
//! Places are offsets into the file. One that is not in it is taken for the first word, which nobody uses.

#![expect(
    unsafe_code,
    reason = "mapped memory is addresses, and system calls that have no safe wrapper write there"
)]

use std::ffi::c_void;
use std::io;
use std::mem::offset_of;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, munmap};

/// What a `msghdr` and the length behind it take.
pub(super) const MESSAGE: usize = size_of::<libc::mmsghdr>();
/// Where the word of a message is of which the kernel writes the lower half: the length. The upper half is padding.
pub(super) const MESSAGE_WORD: usize = offset_of!(libc::mmsghdr, msg_len);
const _: () = assert!(MESSAGE == 64 && MESSAGE_WORD == 56, "another layout than that of 64-bit Linux");

/// See the module.
#[derive(Debug)]
pub(super) struct Memory {
    base: NonNull<c_void>,
    len: NonZeroUsize,
    file: OwnedFd,
}

// SAFETY: the mapping is no thread's own; words are only used as atomics, and other bytes by whoever owns their record.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// A new file of `len` bytes, all 0. It takes memory where something is written.
    pub(super) fn create(len: NonZeroUsize) -> io::Result<Self> {
        let file = memfd_create("nakai-journal", MFdFlags::MFD_CLOEXEC)?;
        nix::unistd::ftruncate(&file, i64::try_from(len.get()).unwrap_or(i64::MAX))?;
        Self::map(file, len)
    }

    /// A file of an earlier process's.
    pub(super) fn open(file: OwnedFd, len: NonZeroUsize) -> io::Result<Self> {
        let found = nix::sys::stat::fstat(&file)?.st_size;
        // What is missing of it could not be touched.
        if usize::try_from(found) != Ok(len.get()) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Self::map(file, len)
    }

    fn map(file: OwnedFd, len: NonZeroUsize) -> io::Result<Self> {
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a mapping of its own, at an address that the kernel chooses.
        let base = unsafe { mmap(None, len, access, MapFlags::MAP_SHARED, &file, 0) }?;
        Ok(Self { base, len, file })
    }

    pub(super) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// The address of `len` bytes at `at`.
    fn address(&self, at: usize, len: usize) -> NonNull<u8> {
        let fits = at.checked_add(len).is_some_and(|end| end <= self.len.get());
        debug_assert!(fits, "{at} + {len}");
        let at = if fits { at } else { 0 };
        // SAFETY: the offset is within the mapping.
        unsafe { self.base.cast::<u8>().add(at) }
    }

    /// A word, whose place is a multiple of 8.
    pub(super) fn word(&self, at: usize) -> &AtomicU64 {
        let address = self.address(at / 8 * 8, 8).cast::<AtomicU64>();
        // SAFETY: aligned and mapped for as long as `self` lives; words are only ever used as atomics.
        unsafe { address.as_ref() }
    }

    pub(super) fn load(&self, at: usize) -> u64 {
        self.word(at).load(Ordering::SeqCst)
    }

    /// What was written before is there when this is.
    pub(super) fn store(&self, at: usize, value: u64) {
        self.word(at).store(value, Ordering::SeqCst);
    }

    /// Bytes of a record whose owner does not write there meanwhile.
    pub(super) fn bytes(&self, at: usize, len: usize) -> &[u8] {
        let len = if at.checked_add(len).is_some_and(|end| end <= self.len.get()) { len } else { 0 };
        // SAFETY: mapped, and not written to while it is borrowed: see above.
        unsafe { std::slice::from_raw_parts(self.address(at, len).as_ptr(), len) }
    }

    /// Writes into a record of the caller's.
    pub(super) fn write(&self, at: usize, bytes: &[u8]) {
        if at.checked_add(bytes.len()).is_some_and(|end| end <= self.len.get()) {
            let to = self.address(at, bytes.len()).as_ptr();
            // SAFETY: as many bytes are mapped there, and `bytes` may overlap them.
            unsafe { std::ptr::copy(bytes.as_ptr(), to, bytes.len()) };
        }
    }

    /// Receives up to `room` bytes at `at`, never waiting; `message` is the place of the message's header.
    pub(super) fn receive(
        &self,
        socket: BorrowedFd<'_>,
        message: usize,
        at: usize,
        room: usize,
    ) -> Result<usize, Errno> {
        self.receive_at(socket, message, self.address(at, room), room)
    }

    /// The same into the process's own memory, behind what is in `buffer`.
    pub(super) fn receive_into(
        &self,
        socket: BorrowedFd<'_>,
        message: usize,
        buffer: &mut Vec<u8>,
        limit: usize,
    ) -> Result<usize, Errno> {
        buffer.reserve_exact(limit);
        let room = buffer.spare_capacity_mut();
        let (Some(to), limit) = (NonNull::new(room.as_mut_ptr().cast()), limit.min(room.len())) else {
            return Ok(0);
        };
        let received = self.receive_at(socket, message, to, limit)?;
        let len = buffer.len().saturating_add(received.min(limit));
        // SAFETY: the kernel has written as many bytes behind those that were there.
        unsafe { buffer.set_len(len) };
        Ok(received)
    }

    fn receive_at(
        &self,
        socket: BorrowedFd<'_>,
        message: usize,
        to: NonNull<u8>,
        room: usize,
    ) -> Result<usize, Errno> {
        let mut part = libc::iovec { iov_base: to.as_ptr().cast(), iov_len: room };
        let header = self.prepare(message, &mut part);
        let flags = libc::MSG_DONTWAIT;
        // SAFETY: one header, which names one part, which is as long as it says.
        let count =
            unsafe { libc::recvmmsg(socket.as_raw_fd(), header.as_ptr(), 1, flags, std::ptr::null_mut()) };
        self.transferred(count, message)
    }

    /// Sends the bytes at `at`, or some of them, never waiting.
    pub(super) fn send(
        &self,
        socket: BorrowedFd<'_>,
        message: usize,
        at: usize,
        len: usize,
    ) -> Result<usize, Errno> {
        let address = self.address(at, len);
        let mut part = libc::iovec { iov_base: address.as_ptr().cast(), iov_len: len };
        let header = self.prepare(message, &mut part);
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: one header, which names one part, which is as long as it says.
        let count = unsafe { libc::sendmmsg(socket.as_raw_fd(), header.as_ptr(), 1, flags) };
        self.transferred(count, message)
    }

    /// Fills in a message's header, but for its word.
    fn prepare(&self, message: usize, part: &mut libc::iovec) -> NonNull<libc::mmsghdr> {
        let header = self.address(message, MESSAGE).cast::<libc::mmsghdr>();
        // SAFETY: a structure of numbers and pointers, for which 0 is a value.
        let mut wanted: libc::msghdr = unsafe { std::mem::zeroed() };
        wanted.msg_iov = part;
        wanted.msg_iovlen = 1;
        // SAFETY: the record is aligned, and its owner's, who is at work here.
        unsafe { header.cast::<libc::msghdr>().write(wanted) };
        header
    }

    fn transferred(&self, count: i32, message: usize) -> Result<usize, Errno> {
        if count == 1 {
            let [a, b, c, d, ..] = self.load(message.saturating_add(MESSAGE_WORD)).to_le_bytes();
            return Ok(usize::try_from(u32::from_le_bytes([a, b, c, d])).unwrap_or(usize::MAX));
        }
        Err(if count < 0 { Errno::last() } else { Errno::EAGAIN })
    }

    /// Moves up to `limit` bytes from a pipe to where the word at `offset` says, which goes on with them. Never waits.
    pub(super) fn splice(&self, pipe: BorrowedFd<'_>, offset: usize, limit: usize) -> Result<usize, Errno> {
        let place = self.word(offset).as_ptr().cast::<libc::loff_t>();
        let (pipe, file) = (pipe.as_raw_fd(), self.file.as_raw_fd());
        let flags = libc::SPLICE_F_NONBLOCK;
        // SAFETY: the offset is a word of the mapping; the kernel looks at what it says as write(2) does.
        let moved = unsafe { libc::splice(pipe, std::ptr::null_mut(), file, place, limit, flags) };
        usize::try_from(moved).map_err(|_| Errno::last())
    }

    /// Gives the memory of some bytes back; they are 0 then. Whole pages only.
    pub(super) fn give_back(&self, at: usize, len: usize) {
        // SAFETY: nobody uses these bytes, and they stay mapped.
        let _ = unsafe { madvise(self.address(at, len).cast(), len, MmapAdvise::MADV_REMOVE) };
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: nobody has a reference into it any more.
        let _ = unsafe { munmap(self.base, self.len.get()) };
    }
}
