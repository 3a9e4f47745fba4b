//! Frames of ttrpc: a header of 10 bytes (length, stream and kind) and a body of up to 4 MiB.
//!
//! What comes in is read ahead as far as it is there, so that a small request costs one system call. A body that does not
//! fit is read straight into a buffer of its own. A body that is longer than allowed is passed over and told as
//! [`Body::TooLong`]; the next frame is read as if nothing had happened.
//!
//! A request is in the journal from the moment it is read: on its line until its call has been noted.

use std::io;

use ttrpc::proto::{MESSAGE_HEADER_LENGTH, MESSAGE_LENGTH_MAX, MessageHeader};

use super::around::data_begins;
use super::socket::Socket;
use crate::journal::{Call, Line, Request};

/// A frame as it came.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) header: MessageHeader,
    pub(super) body: Body,
}

#[derive(Debug)]
pub(super) enum Body {
    /// The request, and the buffer that it came in if it was long.
    Bytes(Vec<u8>),
    /// A request to write: what is in front of its data, and the data in the buffer that it came in, with what is
    /// behind it.
    Write(Vec<u8>, Vec<u8>),
    TooLong,
}

/// Takes a connection's bytes apart. Keeps its place when [`Frames::next`] is dropped.
#[derive(Debug)]
pub(super) struct Frames {
    line: Line,
    begun: Begun,
}

/// What the bytes that are missing belong to.
#[derive(Debug)]
enum Begun {
    /// A call that has been answered, or nothing.
    Nobody,
    /// A frame, and what there is of its body, in front of its data and from there on; nothing of one that is too long.
    Frame { header: MessageHeader, head: Vec<u8>, body: Vec<u8>, call: Call },
}

/// What to do next.
enum Step {
    Take(MessageHeader),
    Begin(MessageHeader),
    Read,
}

fn length(header: &MessageHeader) -> usize {
    usize::try_from(header.length).unwrap_or(usize::MAX)
}

fn is_too_long(header: &MessageHeader) -> bool {
    length(header) > MESSAGE_LENGTH_MAX
}

impl Frames {
    pub(super) fn new(line: Line) -> Self {
        Self { line, begun: Begun::Nobody }
    }

    /// Passes over a request whose call has been noted. Only the first of a line can be one, if an earlier server died
    /// between noting it and taking it.
    pub(super) fn pass_over(&mut self, is_noted: impl FnOnce(u32) -> bool) {
        let waiting = self.line.waiting();
        let Some(header) = waiting.first_chunk::<MESSAGE_HEADER_LENGTH>().map(MessageHeader::from) else {
            return;
        };
        if is_noted(header.stream_id) {
            let all = length(&header).saturating_add(MESSAGE_HEADER_LENGTH);
            match all.checked_sub(waiting.len()).filter(|missing| *missing > 0) {
                Some(missing) => self.line.begin_body(u32::try_from(missing).unwrap_or(u32::MAX)),
                None => self.line.take(all),
            }
        }
    }

    /// The next frame and its call; `None` at the end, which is also where the peer breaks off within a frame.
    pub(super) async fn next(&mut self, socket: &Socket) -> io::Result<Option<(Frame, Call)>> {
        loop {
            if self.line.missing() > 0 {
                let Self { line, begun } = self;
                let read = socket.read(|fd| match begun {
                    Begun::Frame { header, body, .. } if !is_too_long(header) => {
                        line.receive_body(fd, Some(body))
                    }
                    _ => line.receive_body(fd, None),
                });
                if read.await? == 0 {
                    return Ok(None);
                }
                continue;
            }
            if let Begun::Frame { header, head, body, call } =
                std::mem::replace(&mut self.begun, Begun::Nobody)
            {
                call.received();
                let body = match head.is_empty() {
                    _ if is_too_long(&header) => Body::TooLong,
                    true => Body::Bytes(body),
                    false => Body::Write(head, body),
                };
                return Ok(Some((Frame { header, body }, call)));
            }
            match self.step() {
                Step::Take(header) => {
                    let (_, body, call) = self.note(&header, false);
                    self.line.take(length(&header).saturating_add(MESSAGE_HEADER_LENGTH));
                    return Ok(Some((Frame { header, body: Body::Bytes(body) }, call)));
                }
                Step::Begin(header) => {
                    let (head, body, call) = self.note(&header, true);
                    let missing = length(&header).saturating_sub(head.len()).saturating_sub(body.len());
                    self.line.begin_body(u32::try_from(missing).unwrap_or(u32::MAX));
                    self.begun = Begun::Frame { header, head, body, call };
                }
                Step::Read => {
                    let line = &mut self.line;
                    if socket.read(|fd| line.receive(fd)).await? == 0 {
                        return Ok(None);
                    }
                }
            }
        }
    }

    /// Looks at what has been read.
    fn step(&mut self) -> Step {
        let waiting = self.line.waiting();
        let Some(header) = waiting.first_chunk::<MESSAGE_HEADER_LENGTH>().map(MessageHeader::from) else {
            self.line.has_room_for(MESSAGE_HEADER_LENGTH);
            return Step::Read;
        };
        let have = waiting.len();
        let all = length(&header).saturating_add(MESSAGE_HEADER_LENGTH);
        if have >= all {
            return Step::Take(header);
        }
        // As much as is noted of a request has to be there before it is.
        let noted = Request::kept(length(&header)).saturating_add(MESSAGE_HEADER_LENGTH);
        if self.line.has_room_for(all) || have < noted && self.line.has_room_for(noted) {
            Step::Read
        } else {
            Step::Begin(header)
        }
    }

    /// Notes the request that waits, and copies what there is of its body: apart what is in front of data that goes on.
    fn note(&self, header: &MessageHeader, is_receiving: bool) -> (Vec<u8>, Vec<u8>, Call) {
        let waiting = self.line.waiting().get(MESSAGE_HEADER_LENGTH..).unwrap_or_default();
        let bytes = waiting.get(..length(header).min(waiting.len())).unwrap_or_default();
        let MessageHeader { length: len, stream_id: stream, type_: kind, .. } = *header;
        let call = self.line.open_call(Request { stream, kind, len, bytes, is_receiving });
        if is_too_long(header) {
            // It is not wanted.
            return (Vec::new(), bytes.to_vec(), call);
        }
        let start = if is_receiving { data_begins(bytes).unwrap_or(0) } else { 0 };
        let (head, bytes) = bytes.split_at_checked(start).unwrap_or((&[], bytes));
        // All of it at once.
        let mut body = Vec::with_capacity(length(header).saturating_sub(start));
        body.extend_from_slice(bytes);
        (head.to_vec(), body, call)
    }
}

/// A frame's header, in front of `body` bytes.
pub(super) fn push_header(buffer: &mut Vec<u8>, stream: u32, body: usize) {
    let header = MessageHeader::new_response(stream, u32::try_from(body).unwrap_or(u32::MAX));
    buffer.extend(Vec::from(header));
}
