//! Frames of ttrpc: a header of 10 bytes (length, stream and kind) and a body of up to 4 MiB.
//!
//! What comes in is read ahead as far as it is there, so that a small request costs one read(2). A body that does not
//! fit is read straight into a buffer of its own. A body that is longer than allowed is passed over and told as
//! [`Body::TooLong`]; the next frame is read as if nothing had happened.

use std::io;

use ttrpc::proto::{MESSAGE_HEADER_LENGTH, MESSAGE_LENGTH_MAX, MessageHeader};

use super::socket::Socket;

/// Room for what is read ahead: nearly every request, and two pages of memory for a connection that idles.
const READ_AHEAD: usize = 8 << 10;

/// A frame as it came.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) header: MessageHeader,
    pub(super) body: Body,
}

#[derive(Debug)]
pub(super) enum Body {
    Bytes(Vec<u8>),
    TooLong,
}

/// Takes a connection's bytes apart. Keeps its place when [`Frames::next`] is dropped.
#[derive(Debug)]
pub(super) struct Frames {
    /// Read, and not yet part of a frame.
    ahead: Vec<u8>,
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
        let body = if self.is_too_long() { Body::TooLong } else { Body::Bytes(self.body) };
        Frame { header: self.header, body }
    }
}

fn length(header: &MessageHeader) -> usize {
    usize::try_from(header.length).unwrap_or(usize::MAX)
}

impl Frames {
    pub(super) fn new() -> Self {
        Self { ahead: Vec::with_capacity(READ_AHEAD), begun: None }
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
                _ => socket.read(&mut self.ahead).await?,
            };
            if read == 0 {
                return Ok(None);
            }
        }
    }

    /// A frame out of what has been read.
    fn take(&mut self) -> Option<Frame> {
        if self.begun.is_none() {
            let header = MessageHeader::from(self.ahead.first_chunk::<MESSAGE_HEADER_LENGTH>()?);
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
}

/// A frame's header, in front of `body` bytes.
pub(super) fn push_header(buffer: &mut Vec<u8>, stream: u32, body: usize) {
    let header = MessageHeader::new_response(stream, u32::try_from(body).unwrap_or(u32::MAX));
    buffer.extend(Vec::from(header));
}
