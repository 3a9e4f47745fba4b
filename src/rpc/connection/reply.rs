//! Answers on their way out.

use std::sync::Arc;

use protobuf::Message as _;
use ttrpc::proto::{MESSAGE_HEADER_LENGTH, MESSAGE_LENGTH_MAX};
use ttrpc::{Code, Response, Status, get_status};

use super::frame::push_header;
use crate::journal::{Answer, Data, Journal};

/// What a call is answered with.
#[derive(Debug)]
pub(super) enum Reply {
    Message(Response),
    /// The answer is a message with one field, number 1, of these bytes: the data of a stream. They are sent from where
    /// they are, where a [`Response`] would take two copies of them.
    Data(Vec<u8>),
    /// The same, in the journal.
    Kept(Data),
}

/// The tags of fields of bytes: number and type in one, as protobuf has them on the wire.
const FIELD_1: u8 = 0x0a;
const FIELD_2: u8 = 0x12;

impl Reply {
    pub(super) fn refusal(code: Code, message: impl Into<String>) -> Self {
        Self::from(get_status(code, message.into()))
    }

    /// What an error says to the host: its status, or that it has none.
    pub(super) fn failure(error: ttrpc::Error) -> Self {
        match error {
            ttrpc::Error::RpcStatus(status) => status.into(),
            other => Self::refusal(Code::UNKNOWN, format!("{other:?}")),
        }
    }

    /// The frame on `stream`, in the journal if there is room.
    pub(super) fn into_answer(self, stream: u32, journal: &Arc<Journal>) -> Answer {
        let keep = |head, body| Answer::keep(journal, head, body);
        match self {
            Self::Kept(data) => {
                let len = data.len();
                let kept = data_head(stream, len).and_then(|head| data.into_answer(&head));
                kept.unwrap_or_else(|| keep(too_long(stream, len), Vec::new()))
            }
            Self::Data(data) if !data.is_empty() => match data_head(stream, data.len()) {
                Some(head) => keep(head, data),
                None => keep(too_long(stream, data.len()), Vec::new()),
            },
            Self::Data(_) => keep(message(stream, &status(get_status(Code::OK, ""))), Vec::new()),
            Self::Message(response) => keep(message(stream, &response), Vec::new()),
        }
    }

    /// The code of an answer, for whoever asked it.
    pub(super) fn code(&self) -> Code {
        match self {
            Self::Message(response) => response.status.code.enum_value_or(Code::UNKNOWN),
            Self::Data(_) | Self::Kept(_) => Code::OK,
        }
    }
}

impl From<Status> for Reply {
    fn from(status: Status) -> Self {
        Self::Message(self::status(status))
    }
}

fn status(status: Status) -> Response {
    Response { status: Some(status).into(), ..Default::default() }
}

fn message(stream: u32, response: &Response) -> Vec<u8> {
    let body = usize::try_from(response.compute_size()).unwrap_or(usize::MAX);
    if body > MESSAGE_LENGTH_MAX {
        return too_long(stream, body);
    }
    let mut frame = Vec::with_capacity(MESSAGE_HEADER_LENGTH.saturating_add(body));
    push_header(&mut frame, stream, body);
    // Writing to memory does not fail; a response has no required fields.
    let _ = response.write_to_vec(&mut frame);
    frame
}

fn too_long(stream: u32, body: usize) -> Vec<u8> {
    let text = format!("the answer has {body} bytes, a message may have {MESSAGE_LENGTH_MAX}");
    message(stream, &status(get_status(Code::INVALID_ARGUMENT, text)))
}

/// All of a frame that is in front of `len` bytes of data. `None` if they are too many.
fn data_head(stream: u32, len: usize) -> Option<Vec<u8>> {
    let mut field = vec![FIELD_1];
    push_varint(&mut field, len);
    let payload = field.len().checked_add(len)?;
    // Response: field 1 is the status, where OK is an empty message, field 2 the payload.
    let mut response = vec![FIELD_1, 0, FIELD_2];
    push_varint(&mut response, payload);
    let body = response.len().checked_add(payload).filter(|body| *body <= MESSAGE_LENGTH_MAX)?;
    let mut head = Vec::new();
    push_header(&mut head, stream, body);
    head.extend(response);
    head.extend(field);
    Some(head)
}

/// A number in groups of seven bits, the lowest first; all but the last are marked.
fn push_varint(buffer: &mut Vec<u8>, mut value: usize) {
    loop {
        let group = u8::try_from(value & 0x7f).unwrap_or(0);
        value >>= 7;
        if value == 0 {
            buffer.push(group);
            return;
        }
        buffer.push(group | 0x80);
    }
}
