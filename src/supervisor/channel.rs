//! The channel between the supervisor, its workers and the server: one `SOCK_SEQPACKET` pair.
//!
//! Every message is a fixed 24-byte header, an optional payload and optional file descriptors. The
//! supervisor sends and reads headers only; the payload of a [`Kind::Reply`] is between a worker and the
//! server. A second pair, on which workers tell the supervisor what to hold, is of the same make. Because workers
//! inherit the supervisor's end, the server sees replies and exits in the order in which they happened: a process's
//! exit can never overtake the reply that names its pid.
//!
//! Invariants: a message that is too short, too long, of another version or of an unknown kind is an error
//! and never a guess; received descriptors are close-on-exec and owned from the first moment.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recv, recvmsg, sendmsg,
    setsockopt, socketpair, sockopt,
};

use super::fds::own;

/// Raised when the format changes: both ends are one binary, so a mismatch is a bug or a stray writer.
const VERSION: u16 = 3;
/// Bytes of a header on the wire.
pub const HEADER_LEN: usize = 24;
/// The longest payload a worker may send. A longer one is refused by the receiver, and the launch then fails as
/// if the worker had died; what a worker has to say is far shorter.
pub const MAX_PAYLOAD: usize = 64 * 1024;
/// For what may be longer than this the length is asked first.
const MOST: usize = 1024;
/// The most descriptors one message carries.
pub const MAX_FDS: usize = 10;
/// Room for the replies of many workers at once, so that the server's pauses don't stop the reaper.
const BUFFER_BYTES: usize = 1024 * 1024;

/// What a message says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Kind {
    /// Server to supervisor: fork a worker and hand it these descriptors. With a `status` other than 0 it is soon done,
    /// and may come to its end although the server is gone.
    Launch = 1,
    /// Server to supervisor: the sandbox is gone; power off, or exit when not PID 1.
    ShutDown = 2,
    /// Supervisor to server: the worker of `request` is `pid`.
    Forked = 3,
    /// Supervisor to server: no worker for `request`; `status` is the errno.
    ForkFailed = 4,
    /// Supervisor to server: child `pid` ended; `status` is its wait(2) status.
    Exited = 5,
    /// Worker to server: the outcome of `request`, as payload and descriptors.
    Reply = 6,
    /// Server to supervisor: it listens, and the guest has booted. When the first server ends before it has said so,
    /// no other is tried.
    Serving = 7,
    /// Worker or server to supervisor: keep these descriptors under the key `request`, and the end of `pid`.
    Hold = 8,
    /// Server to supervisor: of what is held under `request`, keep the first `status` descriptors; none is nothing.
    Release = 9,
    /// Server to supervisor: tell all that is held.
    List = 10,
    /// Supervisor to server: this is held under `request`; its `pid` has not ended.
    Held = 11,
    /// Supervisor to server: this is held under `request`; its `pid` has ended with `status`.
    HeldEnded = 12,
    /// Supervisor to server: that was all that is held.
    Listed = 13,
    /// Supervisor to server: destroy the sandbox and end.
    Stop = 14,
    /// Server to supervisor: nobody will ask for what is held under `request`; end its process.
    Discard = 15,
    /// Server to supervisor: fork a process into a container, see `entry.rs`.
    Enter = 16,
    /// Supervisor to server: the process of `request` is `pid`; its handle comes along, and it is held.
    Entered = 17,
}

/// All kinds.
const KINDS: [Kind; 17] = [
    Kind::Launch,
    Kind::ShutDown,
    Kind::Forked,
    Kind::ForkFailed,
    Kind::Exited,
    Kind::Reply,
    Kind::Serving,
    Kind::Hold,
    Kind::Release,
    Kind::List,
    Kind::Held,
    Kind::HeldEnded,
    Kind::Listed,
    Kind::Stop,
    Kind::Discard,
    Kind::Enter,
    Kind::Entered,
];

impl Kind {
    /// Whether somebody waits for an answer to such a message, with a process.
    pub(super) fn asks_for_process(self) -> bool {
        matches!(self, Self::Launch | Self::Enter)
    }

    fn from_wire(value: u16) -> Option<Self> {
        KINDS.into_iter().find(|kind| *kind as u16 == value)
    }
}

/// The fixed part of a message. Fields that a kind has no use for are 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What the message says.
    pub kind: Kind,
    /// The launch it belongs to; chosen by the server, never 0 for a launch. What the launch brings is held under it.
    pub request: u64,
    /// A process, in the supervisor's pid namespace; or how long a job is.
    pub pid: i32,
    /// A wait(2) status, an errno, a number of descriptors, whether a worker is soon done, or how a process enters.
    pub status: i32,
}

impl Header {
    /// A header of `kind` for `request`, with nothing else in it.
    pub fn new(kind: Kind, request: u64) -> Self {
        Self { kind, request, pid: 0, status: 0 }
    }

    /// The bytes on the wire: version, kind, 4 reserved, request, pid, status; native byte order.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        let fields: [&[u8]; 6] = [
            &VERSION.to_ne_bytes(),
            &(self.kind as u16).to_ne_bytes(),
            &[0; 4],
            &self.request.to_ne_bytes(),
            &self.pid.to_ne_bytes(),
            &self.status.to_ne_bytes(),
        ];
        for (to, from) in bytes.iter_mut().zip(fields.concat()) {
            *to = from;
        }
        bytes
    }

    /// Reads a header back.
    ///
    /// # Errors
    /// [`ChannelError::Malformed`] for anything that [`Header::encode`] could not have written.
    pub fn decode(bytes: &[u8]) -> Result<Self, ChannelError> {
        let malformed = |why| ChannelError::Malformed { why, len: bytes.len() };
        let (version, rest) = bytes.split_first_chunk::<2>().ok_or_else(|| malformed("no version"))?;
        if u16::from_ne_bytes(*version) != VERSION {
            return Err(malformed("another version"));
        }
        let (kind, rest) = rest.split_first_chunk::<2>().ok_or_else(|| malformed("no kind"))?;
        let kind = Kind::from_wire(u16::from_ne_bytes(*kind)).ok_or_else(|| malformed("unknown kind"))?;
        let (_, rest) = rest.split_first_chunk::<4>().ok_or_else(|| malformed("cut short"))?;
        let (request, rest) = rest.split_first_chunk::<8>().ok_or_else(|| malformed("no request"))?;
        let (pid, rest) = rest.split_first_chunk::<4>().ok_or_else(|| malformed("no pid"))?;
        let (status, _) = rest.split_first_chunk::<4>().ok_or_else(|| malformed("no status"))?;
        Ok(Self {
            kind,
            request: u64::from_ne_bytes(*request),
            pid: i32::from_ne_bytes(*pid),
            status: i32::from_ne_bytes(*status),
        })
    }
}

/// One received message.
#[derive(Debug)]
pub struct Message {
    /// The fixed part.
    pub header: Header,
    /// What follows it; empty but for replies.
    pub payload: Vec<u8>,
    /// Descriptors that came along, close-on-exec.
    pub fds: Vec<OwnedFd>,
}

/// Why a message could not be sent or understood.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The other end is gone.
    #[error("the other end of the supervisor channel is closed")]
    Closed,
    /// Nothing to read, or no room to write, now.
    #[error("the supervisor channel would block")]
    WouldBlock,
    /// Not a message of ours.
    #[error("malformed message on the supervisor channel: {why} ({len} bytes)")]
    Malformed {
        /// What is wrong with it.
        why: &'static str,
        /// How long it was.
        len: usize,
    },
    /// It came without some of its descriptors: there was no number left for them here.
    #[error("no room for the descriptors of a message on the supervisor channel: {header:?}")]
    NoDescriptors {
        /// All that is known of it.
        header: Header,
    },
    /// The kernel refused.
    #[error("supervisor channel: {step}: {source}")]
    Io {
        /// What was tried.
        step: &'static str,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
}

/// One end of the channel.
#[derive(Debug)]
pub struct Channel {
    socket: OwnedFd,
}

impl Channel {
    /// Makes both ends, close-on-exec and blocking; the first is the supervisor's.
    ///
    /// # Errors
    /// When the kernel has no descriptors left.
    pub fn pair() -> Result<(Self, Self), ChannelError> {
        let io = |step| move |source| ChannelError::Io { step, source };
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
                .map_err(io("make the socket pair"))?;
        for end in [&ours, &theirs] {
            // Beyond what the guest lets everybody have, where we may.
            setsockopt(end, sockopt::SndBufForce, &BUFFER_BYTES)
                .or_else(|_| setsockopt(end, sockopt::SndBuf, &BUFFER_BYTES))
                .map_err(io("size the send buffer"))?;
        }
        Ok((Self { socket: ours }, Self { socket: theirs }))
    }

    /// Sends one message, waiting for room unless `flags` says otherwise.
    ///
    /// # Errors
    /// [`ChannelError::Closed`] once the other end is gone, [`ChannelError::WouldBlock`] with
    /// `MSG_DONTWAIT` and no room.
    pub fn send(
        &self,
        header: Header,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
        flags: MsgFlags,
    ) -> Result<(), ChannelError> {
        let head = header.encode();
        let parts = [IoSlice::new(&head), IoSlice::new(payload)];
        let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
        loop {
            let flags = flags | MsgFlags::MSG_NOSIGNAL;
            match sendmsg::<()>(self.socket.as_raw_fd(), &parts, control, flags, None) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Err(ChannelError::WouldBlock),
                Err(Errno::EPIPE | Errno::ECONNRESET) => return Err(ChannelError::Closed),
                Err(source) => return Err(ChannelError::Io { step: "send", source }),
            }
        }
    }

    /// Receives one message with at most `max_payload` bytes behind the header.
    ///
    /// # Errors
    /// As for [`Channel::send`], and [`ChannelError::Malformed`] for what is no message of ours; the
    /// channel can be used further then.
    pub fn receive(&self, max_payload: usize, flags: MsgFlags) -> Result<Message, ChannelError> {
        self.receive_with(max_payload, flags, nix::cmsg_space!([RawFd; MAX_FDS]))
    }

    /// How long the next message is, which stays where it is. Room for the longest takes longer to clear than all else
    /// that is done to receive one.
    fn next_len(&self, flags: MsgFlags) -> Result<usize, ChannelError> {
        let flags = flags | MsgFlags::MSG_PEEK | MsgFlags::MSG_TRUNC;
        loop {
            match recv(self.socket.as_raw_fd(), &mut [0; HEADER_LEN], flags) {
                Ok(0) => return Err(ChannelError::Closed),
                Ok(len) => return Ok(len),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Err(ChannelError::WouldBlock),
                Err(Errno::ECONNRESET) => return Err(ChannelError::Closed),
                Err(source) => return Err(ChannelError::Io { step: "receive", source }),
            }
        }
    }

    /// The same, with all zeros in place of the descriptors.
    fn receive_with(
        &self,
        max_payload: usize,
        flags: MsgFlags,
        mut control: Vec<u8>,
    ) -> Result<Message, ChannelError> {
        let mut longest = HEADER_LEN.saturating_add(max_payload.min(MAX_PAYLOAD));
        if longest > MOST {
            longest = longest.min(self.next_len(flags)?);
        }
        let mut bytes = vec![0; longest];
        let flags = flags | MsgFlags::MSG_CMSG_CLOEXEC;
        let (len, flags, fds) = loop {
            let mut parts = [IoSliceMut::new(&mut bytes)];
            match recvmsg::<()>(self.socket.as_raw_fd(), &mut parts, Some(&mut control), flags) {
                Ok(got) => {
                    let fds: Option<Vec<OwnedFd>> =
                        got.cmsgs().ok().map(|messages| messages.flat_map(rights_of).collect());
                    break (got.bytes, got.flags, fds);
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Err(ChannelError::WouldBlock),
                Err(Errno::ECONNRESET) => return Err(ChannelError::Closed),
                Err(source) => return Err(ChannelError::Io { step: "receive", source }),
            }
        };
        if len == 0 {
            return Err(ChannelError::Closed);
        }
        // nix tells none of them when some are missing.
        let fds = fds.unwrap_or_else(|| incomplete_rights(&control));
        if flags.contains(MsgFlags::MSG_TRUNC) {
            return Err(ChannelError::Malformed { why: "longer than allowed", len });
        }
        bytes.truncate(len);
        let header = Header::decode(&bytes)?;
        if flags.contains(MsgFlags::MSG_CTRUNC) {
            return Err(ChannelError::NoDescriptors { header });
        }
        let payload = bytes.split_off(HEADER_LEN);
        Ok(Message { header, payload, fds })
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Channel {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

fn rights_of(message: ControlMessageOwned) -> Vec<OwnedFd> {
    match message {
        ControlMessageOwned::ScmRights(fds) => fds.into_iter().map(own).collect(),
        _ => Vec::new(),
    }
}

/// The descriptors that the kernel has made of a message for which there was not enough room: the first header of the
/// control data, which was all zeros, and the numbers behind it (cmsg(3)).
fn incomplete_rights(control: &[u8]) -> Vec<OwnedFd> {
    let Some((len, rest)) = control.split_first_chunk::<8>() else { return Vec::new() };
    let numbers = usize::from_ne_bytes(*len).saturating_sub(16) / size_of::<RawFd>();
    let Some((kind, rest)) = rest.split_first_chunk::<8>() else { return Vec::new() };
    let rights = [libc::SOL_SOCKET.to_ne_bytes(), libc::SCM_RIGHTS.to_ne_bytes()].concat();
    if kind.as_slice() != rights {
        return Vec::new();
    }
    let (numbers_of, _) = rest.as_chunks::<4>();
    numbers_of.iter().take(numbers).map(|number| own(RawFd::from_ne_bytes(*number))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn messages_arrive_whole_in_order_and_with_their_descriptors() {
        let (supervisor, server) = Channel::pair().unwrap();
        let (read, write) = nix::unistd::pipe().unwrap();
        let launch = Header { kind: Kind::Launch, request: 7, pid: -3, status: i32::MAX };
        server.send(launch, b"", &[read.as_fd(), write.as_fd()], MsgFlags::empty()).unwrap();
        server.send(Header::new(Kind::ShutDown, 0), b"", &[], MsgFlags::empty()).unwrap();

        let first = supervisor.receive(0, MsgFlags::empty()).unwrap();
        assert_eq!((first.header, first.fds.len()), (launch, 2));
        nix::unistd::write(&first.fds[1], b"x").unwrap();
        assert_eq!(nix::unistd::read(&read, &mut [0; 2]), Ok(1));
        assert_eq!(supervisor.receive(0, MsgFlags::empty()).unwrap().header.kind, Kind::ShutDown);
        assert!(matches!(supervisor.receive(0, MsgFlags::MSG_DONTWAIT), Err(ChannelError::WouldBlock)));
        drop(server);
        assert!(matches!(supervisor.receive(0, MsgFlags::empty()), Err(ChannelError::Closed)));
    }

    /// Else the supervisor, which has more to do, waits for a server that is stopped.
    #[test]
    fn a_thousand_messages_wait_for_a_server_that_is_stopped() {
        let (supervisor, server) = Channel::pair().unwrap();
        if setsockopt(&server.socket, sockopt::SndBufForce, &BUFFER_BYTES).is_err() {
            // Without CAP_NET_ADMIN it is as much as the machine lets everybody have.
            return;
        }
        for request in 0..1000 {
            supervisor.send(Header::new(Kind::Exited, request), b"", &[], MsgFlags::MSG_DONTWAIT).unwrap();
        }
    }

    #[test]
    fn an_oversized_message_is_refused_and_the_next_one_still_arrives() {
        let (supervisor, server) = Channel::pair().unwrap();
        supervisor.send(Header::new(Kind::Reply, 1), &[1; 100], &[], MsgFlags::empty()).unwrap();
        supervisor.send(Header::new(Kind::Reply, 2), &[2; 10], &[], MsgFlags::empty()).unwrap();
        assert!(matches!(server.receive(50, MsgFlags::empty()), Err(ChannelError::Malformed { .. })));
        assert_eq!(server.receive(50, MsgFlags::empty()).unwrap().payload, [2; 10]);
    }

    /// As where this process may open two files more, and no third.
    #[test]
    fn the_descriptors_that_came_are_closed_when_others_had_no_room() {
        let (supervisor, server) = Channel::pair().unwrap();
        let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_NONBLOCK).unwrap();
        let fds = [write.as_fd(), write.as_fd(), write.as_fd()];
        server.send(Header::new(Kind::Launch, 9), b"", &fds, MsgFlags::empty()).unwrap();
        drop(write);
        let received = supervisor.receive_with(0, MsgFlags::empty(), nix::cmsg_space!([RawFd; 2]));
        assert!(
            matches!(received, Err(ChannelError::NoDescriptors { header }) if header.request == 9),
            "{received:?}"
        );
        // Nobody has the other end of the pipe any more.
        assert_eq!(nix::unistd::read(&read, &mut [0]), Ok(0));
    }

    proptest! {
        #[test]
        fn any_bytes_decode_to_an_error_or_to_what_encodes_to_them(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            if let Ok(header) = Header::decode(&bytes) {
                let again = header.encode();
                prop_assert_eq!(Header::decode(&again).unwrap(), header);
            }
        }

        #[test]
        fn headers_survive_the_wire(request: u64, pid: i32, status: i32) {
            let header = Header { kind: Kind::Exited, request, pid, status };
            prop_assert_eq!(Header::decode(&header.encode()).unwrap(), header);
        }
    }
}
