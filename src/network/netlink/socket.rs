//! A socket to the kernel's routing tables, for one request after the other.

#![expect(unsafe_code, reason = "nix has no socket options of netlink(7)")]

use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

use super::message::{Attributes, Fields, Message, Messages, Request};

/// The kernel puts at most 32 KiB into a message of a dump.
const BUFFER: usize = 64 * 1024;
/// How often a dump is begun again because something changed meanwhile.
const MAX_DUMPS: usize = 16;
/// `NLMSGERR_ATTR_MSG` of linux/netlink.h.
const MESSAGE_TEXT: u16 = 1;

const REQUEST: u16 = 1;
const ACK: u16 = 4;
const ROOT_AND_MATCH: u16 = 0x300;
const DUMP_INTERRUPTED: u16 = 0x10;
const ACK_HAS_ATTRIBUTES: u16 = 0x200;
const ERROR: u16 = 2;
const DONE: u16 = 3;

/// What the kernel says to a request that it does not follow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{errno}{}", text.as_deref().map(|text| format!(" ({text})")).unwrap_or_default())]
pub struct Refused {
    /// Its number.
    #[source]
    pub errno: Errno,
    /// Its own words, if it has any.
    text: Option<String>,
}

impl From<Errno> for Refused {
    fn from(errno: Errno) -> Self {
        Self { errno, text: None }
    }
}

/// An open socket.
#[derive(Debug)]
pub(in crate::network) struct Socket {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    pub(in crate::network) fn open() -> Result<Self, Refused> {
        let protocol = SockProtocol::NetlinkRoute;
        let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        // An old kernel answers without a text then.
        for option in [libc::NETLINK_EXT_ACK, libc::NETLINK_CAP_ACK] {
            switch_on(&fd, option);
        }
        Ok(Self { fd, sequence: 0, buffer: vec![0; BUFFER] })
    }

    /// Has the kernel do something.
    pub(in crate::network) fn change(&mut self, request: &Request) -> Result<(), Refused> {
        self.exchange(request, ACK, &mut |_| {}).map(drop)
    }

    /// Asks for all there is of something: `each` gets the body of every message.
    pub(in crate::network) fn dump<T>(
        &mut self,
        request: &Request,
        each: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Vec<T>, Refused> {
        for _ in 0..MAX_DUMPS {
            let mut all = Vec::new();
            let is_whole =
                self.exchange(request, ROOT_AND_MATCH, &mut |message| all.extend(each(message.body)))?;
            if is_whole {
                return Ok(all);
            }
        }
        let text = format!("it changed during each of {MAX_DUMPS} looks");
        Err(Refused { errno: Errno::EBUSY, text: Some(text) })
    }

    /// Sends a request and takes the answer to it, to its end. False if a dump was interrupted (`NLM_F_DUMP_INTR`)
    /// and has to be repeated.
    fn exchange(
        &mut self,
        request: &Request,
        flags: u16,
        each: &mut dyn FnMut(Message<'_>),
    ) -> Result<bool, Refused> {
        self.sequence = self.sequence.wrapping_add(1);
        let bytes = request.encode(REQUEST | flags, self.sequence);
        send(self.fd.as_raw_fd(), &bytes, MsgFlags::empty())?;
        let mut is_whole = true;
        loop {
            let len = match recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::empty()) {
                Err(Errno::EINTR) => continue,
                received => received?,
            };
            for message in Messages(self.buffer.get(..len).unwrap_or_default()) {
                if message.sequence != self.sequence {
                    continue;
                }
                is_whole &= message.flags & DUMP_INTERRUPTED == 0;
                match message.kind {
                    DONE => return outcome(message).map(|()| is_whole),
                    ERROR => return outcome(message).map(|()| is_whole),
                    _ => each(message),
                }
            }
        }
    }
}

/// What an acknowledgement says: a negative error number or 0, the header of the request, and perhaps a text. The end
/// of a dump begins in the same way.
fn outcome(message: Message<'_>) -> Result<(), Refused> {
    let mut fields = Fields(message.body);
    let errno = fields.i32().unwrap_or_default();
    if errno == 0 {
        return Ok(());
    }
    let attributes = message.body.get(20..).filter(|_| message.flags & ACK_HAS_ATTRIBUTES != 0);
    let mut attributes = Attributes(attributes.unwrap_or_default());
    let text = attributes.find(|(kind, _)| *kind == MESSAGE_TEXT).map(|(_, text)| {
        String::from_utf8_lossy(text).trim_end_matches('\0').chars().filter(|c| !c.is_control()).collect()
    });
    Err(Refused { errno: Errno::from_raw(errno.saturating_neg()), text })
}

fn switch_on(fd: &OwnedFd, option: libc::c_int) {
    let on: libc::c_int = 1;
    let len = libc::socklen_t::try_from(size_of::<libc::c_int>()).unwrap_or_default();
    // SAFETY: the pointer is to a number that lives on, and the length is its own.
    unsafe { libc::setsockopt(fd.as_raw_fd(), libc::SOL_NETLINK, option, (&raw const on).cast(), len) };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(errno: i32, flags: u16, attributes: &[u8]) -> Result<(), Refused> {
        let mut body = errno.to_ne_bytes().to_vec();
        body.extend([0; 16]);
        body.extend(attributes);
        outcome(Message { kind: ERROR, flags, sequence: 1, body: &body })
    }

    #[test]
    fn a_refusal_has_the_kernels_number_and_words() {
        assert_eq!(answer(0, 0, b""), Ok(()));
        assert_eq!(answer(-101, 0, b"junk").unwrap_err().to_string(), Errno::ENETUNREACH.to_string());
        let attribute = [[12_u16, 1].map(u16::to_ne_bytes).as_flattened(), b"no way\0\0"].concat();
        let refused = answer(-22, ACK_HAS_ATTRIBUTES, &attribute).unwrap_err();
        assert_eq!(refused.to_string(), format!("{} (no way)", Errno::EINVAL));
        assert_eq!(outcome(Message { kind: ERROR, flags: 0, sequence: 1, body: b"" }), Ok(()));
    }

    #[test]
    fn the_kernel_tells_its_links_to_anybody() {
        let mut socket = Socket::open().unwrap();
        let all = Request::new(libc::RTM_GETLINK, 0, &[0; 16]);
        let lengths = socket.dump(&all, |body| Some(body.len())).unwrap();
        assert!(!lengths.is_empty() && lengths.iter().all(|len| *len > 16), "{lengths:?}");
        // One after the other on the same socket.
        assert_eq!(socket.dump(&all, |_| Some(())).unwrap().len(), lengths.len());
        let unknown = Request::new(0x7fff, 0, &[0; 16]);
        assert_eq!(socket.change(&unknown).unwrap_err().errno, Errno::EOPNOTSUPP);
    }
}
