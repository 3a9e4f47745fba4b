//! Frames of ttrpc: a header of 10 bytes (length, stream and kind) and a body of up to 4 MiB.
//!
//! What comes in is read ahead as far as it is there, so that a request costs one read(2). A large frame takes the buffer
//! that it was read into with it; after one the next buffer has room for another, for as long as they keep coming. A body
//! that does not fit is read straight into a buffer of its own. A body that is longer than allowed is passed over and
//! told as [`Body::TooLong`]; the next frame is read as if nothing had happened.

use std::io;

use ttrpc::proto::{MESSAGE_HEADER_LENGTH, MESSAGE_LENGTH_MAX, MessageHeader};

use super::socket::Socket;

/// Room for what is read ahead: nearly every request, and two pages of memory for a connection that idles.
const READ_AHEAD: usize = 8 << 10;
/// The most room that is made for the next frame before its length is known.
const LARGEST_AHEAD: usize = 72 << 10;
/// How many small frames may follow a large one until the next is taken to be small.
const MEMORY: u8 = 16;
/// A body from here on is not copied out of the buffer that it is in.
const LARGE: usize = 2 << 10;

/// A frame as it came.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) header: MessageHeader,
    pub(super) body: Body,
}

#[derive(Debug)]
pub(super) enum Body {
    /// The buffer has it from `start` to its end.
    Bytes {
        buffer: Vec<u8>,
        start: usize,
    },
    TooLong,
}

/// Takes a connection's bytes apart. Keeps its place when [`Frames::next`] is dropped.
#[derive(Debug)]
pub(super) struct Frames {
    /// Read, and not yet part of a frame.
    ahead: Vec<u8>,
    /// Room for the last large frame and a small one behind it.
    usual: usize,
    /// How many more frames `usual` is worth.
    memory: u8,
    /// A frame whose body is not all there.
    begun: Option<Begun>,
}

#[derive(Debug)]
struct Begun {
    header: MessageHeader,
    /// What there is of the body; nothing of one that is too long.
    body: Vec<u8>,
    /// How much is still to come.
    missing: usize,
}

impl Begun {
    fn is_too_long(&self) -> bool {
        length(&self.header) > MESSAGE_LENGTH_MAX
    }

    fn into_frame(self) -> Frame {
        let body =
            if self.is_too_long() { Body::TooLong } else { Body::Bytes { buffer: self.body, start: 0 } };
        Frame { header: self.header, body }
    }
}

fn length(header: &MessageHeader) -> usize {
    usize::try_from(header.length).unwrap_or(usize::MAX)
}

impl Frames {
    pub(super) fn new() -> Self {
        Self { ahead: Vec::new(), usual: READ_AHEAD, memory: 0, begun: None }
    }

    /// The next frame; `None` at the end, which is also where the peer breaks off within a frame.
    pub(super) async fn next(&mut self, socket: &Socket) -> io::Result<Option<Frame>> {
        loop {
            if let Some(frame) = self.take() {
                return Ok(Some(frame));
            }
            let read = match &mut self.begun {
                Some(begun) if !begun.is_too_long() => {
                    // The capacity is what is missing, so nothing of the next frame comes along.
                    begun.body.reserve_exact(begun.missing);
                    let read = socket.read(&mut begun.body).await?;
                    begun.missing = begun.missing.saturating_sub(read);
                    read
                }
                _ => {
                    self.make_room();
                    socket.read(&mut self.ahead).await?
                }
            };
            if read == 0 {
                return Ok(None);
            }
        }
    }

    /// How much to read ahead.
    fn room(&self) -> usize {
        if self.memory > 0 { self.usual } else { READ_AHEAD }
    }

    /// A buffer as large as it has to be. Between frames one that is too large is given back.
    fn make_room(&mut self) {
        let room = self.room();
        let is_idle = self.ahead.is_empty();
        if is_idle && (self.ahead.capacity() < room || self.ahead.capacity() > room.saturating_mul(2)) {
            self.ahead = Vec::with_capacity(room);
        }
    }

    /// Learns from a frame how large the next one may be.
    fn note(&mut self, frame: usize) {
        if frame > READ_AHEAD {
            self.usual = frame.saturating_add(LARGE).min(LARGEST_AHEAD);
            self.memory = MEMORY;
        } else {
            self.memory = self.memory.saturating_sub(1);
        }
    }

    /// A frame out of what has been read.
    fn take(&mut self) -> Option<Frame> {
        if self.begun.is_none() {
            let header = MessageHeader::from(self.ahead.first_chunk::<MESSAGE_HEADER_LENGTH>()?);
            let end = length(&header).saturating_add(MESSAGE_HEADER_LENGTH);
            if (LARGE..=MESSAGE_LENGTH_MAX).contains(&length(&header)) && end < self.ahead.capacity() {
                return self.take_buffer(header, end);
            }
            self.note(end);
            self.ahead.drain(..MESSAGE_HEADER_LENGTH);
            self.begun = Some(Begun { header, body: Vec::new(), missing: length(&header) });
        }
        let begun = self.begun.as_mut()?;
        let here = begun.missing.min(self.ahead.len());
        if !begun.is_too_long() {
            begun.body.reserve_exact(begun.missing);
            begun.body.extend_from_slice(self.ahead.get(..here).unwrap_or_default());
        }
        self.ahead.drain(..here);
        begun.missing = begun.missing.saturating_sub(here);
        if begun.missing > 0 {
            return None;
        }
        self.begun.take().map(Begun::into_frame)
    }

    /// The frame that begins the buffer, which has room for it, once all of it is there. It takes the buffer.
    fn take_buffer(&mut self, header: MessageHeader, end: usize) -> Option<Frame> {
        let next = self.ahead.get(end..)?;
        let mut rest = Vec::new();
        if !next.is_empty() {
            rest.reserve_exact(self.room().max(next.len()));
            rest.extend_from_slice(next);
        }
        self.note(end);
        let mut buffer = std::mem::replace(&mut self.ahead, rest);
        buffer.truncate(end);
        Some(Frame { header, body: Body::Bytes { buffer, start: MESSAGE_HEADER_LENGTH } })
    }
}

/// A frame's header, in front of `body` bytes.
pub(super) fn push_header(buffer: &mut Vec<u8>, stream: u32, body: usize) {
    let header = MessageHeader::new_response(stream, u32::try_from(body).unwrap_or(u32::MAX));
    buffer.extend(Vec::from(header));
}
