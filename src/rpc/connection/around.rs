//! Messages with a large field of bytes, taken apart without a copy of it.
//!
//! protobuf's own parser gives each field of bytes a buffer of its own. Two messages one inside the other, as a request
//! is in ttrpc, are two copies of what a host writes to a process. Here the field is looked for first, the parser gets
//! what is around it, and the buffer that all of it came in becomes the field ([`cut`]).

use std::ops::Range;

use nakai_protocols::agent::WriteStreamRequest;
use protobuf::Message;
use ttrpc::Request;

/// The service whose reads and writes move bulk data.
pub(super) const AGENT_SERVICE: &str = "grpc.AgentService";
/// Its method for writing.
pub(super) const WRITE: &str = "WriteStdin";

/// Fields of ttrpc's request, and of the request to write.
const REQUEST_SERVICE: u64 = 1;
const REQUEST_METHOD: u64 = 2;
pub(super) const REQUEST_PAYLOAD: u64 = 3;
pub(super) const WRITE_DATA: u64 = 3;

/// How a field is encoded; the low three bits of what is in front of it.
const VARINT: u64 = 0;
const EIGHT_BYTES: u64 = 1;
const LENGTH: u64 = 2;
const FOUR_BYTES: u64 = 5;

/// Where a field lies in a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    /// Its tag and length, and itself.
    whole: Range<usize>,
    /// Itself.
    bytes: Range<usize>,
}

impl Found {
    /// Where its bytes are in a buffer in which the message begins at `start`.
    pub(super) fn bytes_at(&self, start: usize) -> Range<usize> {
        self.bytes.start.saturating_add(start)..self.bytes.end.saturating_add(start)
    }
}

/// The head of a field: its number and kind, and where it lies, which may be past the end of the message.
struct Field {
    number: u64,
    kind: u64,
    found: Found,
}

impl Field {
    /// The one that begins at `at`, which is moved behind it.
    fn next(message: &[u8], at: &mut usize) -> Option<Self> {
        let tag = *at;
        let key = varint(message, at)?;
        let len = match key & 7 {
            VARINT => {
                varint(message, at)?;
                0
            }
            LENGTH => usize::try_from(varint(message, at)?).ok()?,
            EIGHT_BYTES => 8,
            FOUR_BYTES => 4,
            _ => return None,
        };
        let end = at.checked_add(len)?;
        let found = Found { whole: tag..end, bytes: *at..end };
        *at = end;
        Some(Self { number: key >> 3, kind: key & 7, found })
    }
}

/// Looks for the field of bytes with this `number`. `None` if the message has it not once, or is not well-formed.
pub(super) fn find(message: &[u8], number: u64) -> Option<Found> {
    let mut found = None;
    let mut at = 0;
    while at < message.len() {
        let field = Field::next(message, &mut at).filter(|field| field.found.whole.end <= message.len())?;
        if field.number == number {
            if field.kind != LENGTH || found.is_some() {
                return None;
            }
            found = Some(field.found);
        }
    }
    found
}

/// The same by the beginning of a message, for a field that need not be there in whole; what is behind it is not
/// looked at.
fn find_begun(beginning: &[u8], number: u64) -> Option<Found> {
    let mut at = 0;
    while at < beginning.len() {
        let field = Field::next(beginning, &mut at)?;
        if field.number == number {
            return (field.kind == LENGTH).then_some(field.found);
        }
    }
    None
}

/// Whether a message has a field with this number, as far as it is well-formed.
fn has(message: &[u8], number: u64) -> bool {
    let mut at = 0;
    std::iter::from_fn(|| Field::next(message, &mut at)).any(|field| field.number == number)
}

/// Where the data of a request to write begins, by the beginning of that request. `None` if it is another's, or that
/// can't be told yet.
pub(super) fn data_begins(beginning: &[u8]) -> Option<usize> {
    let is = |number, text: &str| {
        let field = find_begun(beginning, number)?;
        (beginning.get(field.bytes)? == text.as_bytes()).then_some(())
    };
    is(REQUEST_SERVICE, AGENT_SERVICE)?;
    is(REQUEST_METHOD, WRITE)?;
    let payload = find_begun(beginning, REQUEST_PAYLOAD)?;
    let data = find_begun(beginning.get(payload.bytes.start..)?, WRITE_DATA)?;
    payload.bytes.start.checked_add(data.bytes.start).filter(|start| *start <= beginning.len())
}

/// How long the data of a request to write is, by the beginning of that request.
pub(super) fn data_len(beginning: &[u8]) -> Option<usize> {
    let payload = find_begun(beginning, REQUEST_PAYLOAD)?;
    let data = find_begun(beginning.get(payload.bytes.start..)?, WRITE_DATA)?;
    Some(data.bytes.len())
}

/// A request to write of which `head` is what is in front of the data, and `rest` is the data and what is behind it.
/// `None` if one of the fields is there more than once, or `rest` is too short.
pub(super) fn parse_write(
    head: &[u8],
    rest: &mut Vec<u8>,
) -> Option<protobuf::Result<(Request, WriteStreamRequest)>> {
    let payload = find_begun(head, REQUEST_PAYLOAD)?;
    let message = head.get(payload.bytes.start..)?;
    let data = find_begun(message, WRITE_DATA)?;
    let len = data.bytes.len();
    let behind = rest.get(len..)?;
    let (inner, outer) =
        behind.split_at_checked(payload.bytes.end.checked_sub(head.len())?.checked_sub(len)?)?;
    if has(inner, WRITE_DATA) || has(outer, REQUEST_PAYLOAD) {
        return None;
    }
    let request = parse_parts(head.get(..payload.whole.start)?, outer);
    let write = parse_parts::<WriteStreamRequest>(message.get(..data.whole.start)?, inner);
    Some(request.and_then(|request| {
        let mut write = write?;
        rest.truncate(len);
        write.data = std::mem::take(rest);
        Ok((request, write))
    }))
}

/// A number in groups of seven bits, the lowest first; `at` is moved behind it.
fn varint(bytes: &[u8], at: &mut usize) -> Option<u64> {
    let mut value = 0;
    for shift in (0..u64::BITS).step_by(7) {
        let byte = *bytes.get(*at)?;
        *at = at.checked_add(1)?;
        let group = u64::from(byte & 0x7f);
        // The tenth has room for one bit.
        value |= group.checked_shl(shift).filter(|shifted| shifted >> shift == group)?;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

/// Parses what is around a field: in protobuf the parts of a message, one behind the other, are the message.
pub(super) fn parse_around<M: Message>(message: &[u8], field: &Found) -> protobuf::Result<M> {
    let (before, behind) = (message.get(..field.whole.start), message.get(field.whole.end..));
    parse_parts(before.unwrap_or_default(), behind.unwrap_or_default())
}

fn parse_parts<M: Message>(before: &[u8], behind: &[u8]) -> protobuf::Result<M> {
    let mut parsed = M::parse_from_bytes(before)?;
    if !behind.is_empty() {
        parsed.merge_from_bytes(behind)?;
    }
    Ok(parsed)
}

/// What is left of a buffer when nothing but `range` of it stays.
pub(super) fn cut(mut buffer: Vec<u8>, range: Range<usize>) -> Vec<u8> {
    buffer.truncate(range.end);
    buffer.drain(..range.start.min(range.end).min(buffer.len()));
    buffer
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DATA: u64 = WRITE_DATA;

    fn request(method: &str, data: usize) -> Vec<u8> {
        let (container_id, data) = ("c".to_owned(), vec![9; data]);
        let write = WriteStreamRequest { container_id, exec_id: "e".to_owned(), data, ..Default::default() };
        let request = Request {
            service: AGENT_SERVICE.to_owned(),
            method: method.to_owned(),
            payload: write.write_to_bytes().unwrap(),
            timeout_nano: 5,
            ..Default::default()
        };
        request.write_to_bytes().unwrap()
    }

    /// What is read of a request as it is when its data is read past what is in front of it.
    fn parse_apart(bytes: &[u8], seen: usize) -> Option<(Request, WriteStreamRequest)> {
        let start = data_begins(bytes.get(..seen)?)?;
        let (head, rest) = bytes.split_at(start);
        parse_write(head, &mut rest.to_vec())?.ok()
    }

    #[test]
    fn data_is_told_from_what_is_in_front_of_it_as_soon_as_that_is_there() {
        let bytes = request(WRITE, 300);
        let begins = bytes.iter().position(|byte| *byte == 9).unwrap();
        for seen in 0..bytes.len() {
            assert_eq!(data_begins(&bytes[..seen]), (seen >= begins).then_some(begins), "{seen}");
        }
        let (request, write) = parse_apart(&bytes, begins).unwrap();
        assert_eq!((request.method.as_str(), request.timeout_nano, request.payload.len()), (WRITE, 5, 0));
        assert_eq!((write.exec_id.as_str(), write.data), ("e", vec![9; 300]));
        assert_eq!(data_begins(&self::request("CopyFile", 300)), None);
        assert_eq!((data_len(&bytes[..begins]), data_len(&bytes)), (Some(300), Some(300)));
    }

    #[test]
    fn a_field_is_found_where_it_is_and_the_rest_is_parsed() {
        let request = WriteStreamRequest {
            container_id: "c".to_owned(),
            exec_id: "e".to_owned(),
            data: vec![9; 300],
            ..Default::default()
        };
        let bytes = request.write_to_bytes().unwrap();
        let found = find(&bytes, DATA).unwrap();
        let mut parsed: WriteStreamRequest = parse_around(&bytes, &found).unwrap();
        assert!(parsed.data.is_empty());
        parsed.data = cut(bytes, found.bytes_at(0));
        assert_eq!(parsed, request);
    }

    #[test]
    fn what_comes_behind_a_field_is_no_part_of_it() {
        let data = WriteStreamRequest { data: vec![9; 300], ..Default::default() };
        let rest = WriteStreamRequest { container_id: "c".to_owned(), ..Default::default() };
        let bytes = [data.write_to_bytes().unwrap(), rest.write_to_bytes().unwrap()].concat();
        let found = find(&bytes, DATA).unwrap();
        let parsed: WriteStreamRequest = parse_around(&bytes, &found).unwrap();
        assert_eq!(parsed, rest);
        assert_eq!(cut(bytes, found.bytes_at(0)), data.data);
    }

    #[test]
    fn what_is_not_there_once_is_not_found() {
        for (message, what) in [
            (&b""[..], "nothing"),
            (b"\x0a\x01c", "another field"),
            (b"\x1a\x01a\x1a\x01b", "twice"),
            (b"\x18\x01", "a number"),
            (b"\x1a\x05abc", "longer than the message"),
            (b"\x1a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "longer than memory"),
            (b"\x1a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", "a number without end"),
            (b"\x1a\x81\x80\x80\x80\x80\x80\x80\x80\x80\x02a", "a number of more than 64 bits"),
            (b"\x1b\x1c", "a group"),
        ] {
            assert_eq!(find(message, DATA), None, "{what}");
        }
    }

    proptest! {
        /// However a request is broken: it is the parser's own outcome, or left to the parser.
        #[test]
        fn what_is_parsed_apart_is_the_same(data in 0_usize..40, place in 0_usize..100, byte in any::<u8>(), seen in 0_usize..100) {
            let mut bytes = request(WRITE, data);
            let (len, seen) = (bytes.len(), seen % bytes.len());
            bytes[place % len] = byte;
            let Some((around, write)) = parse_apart(&bytes, seen) else { return Ok(()) };
            let mut whole = Request::parse_from_bytes(&bytes).unwrap();
            let payload = std::mem::take(&mut whole.payload);
            prop_assert_eq!(around, whole);
            prop_assert_eq!(write, WriteStreamRequest::parse_from_bytes(&payload).unwrap());
        }

        /// Whatever the bytes are: either all of it is left to the parser, or the outcome is the parser's own.
        #[test]
        fn the_outcome_is_the_parsers_own(bytes in proptest::collection::vec(any::<u8>(), 0..64), head in "[\\x08-\\x22]{0,6}") {
            let bytes = [head.as_bytes(), &bytes].concat();
            let Some(found) = find(&bytes, DATA) else { return Ok(()) };
            let around = parse_around::<WriteStreamRequest>(&bytes, &found);
            let whole = WriteStreamRequest::parse_from_bytes(&bytes);
            match (around, whole) {
                (Ok(mut around), Ok(whole)) => {
                    around.data = cut(bytes, found.bytes_at(0));
                    prop_assert_eq!(around, whole);
                }
                (around, whole) => prop_assert_eq!(around.is_ok(), whole.is_ok()),
            }
        }
    }
}
