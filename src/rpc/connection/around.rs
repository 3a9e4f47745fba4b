//! Messages with a large field of bytes, taken apart without a copy of it.
//!
//! protobuf's own parser gives each field of bytes a buffer of its own. Two messages one inside the other, as a request
//! is in ttrpc, are two copies of what a host writes to a process. Here the field is looked for first, the parser gets
//! what is around it, and the buffer that all of it came in becomes the field ([`cut`]).

use std::ops::Range;

use protobuf::Message;

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

/// Looks for the field of bytes with this `number`. `None` if the message has it not once, or is not well-formed.
pub(super) fn find(message: &[u8], number: u64) -> Option<Found> {
    let mut found = None;
    let mut at = 0;
    while at < message.len() {
        let tag = at;
        let key = varint(message, &mut at)?;
        let len = match key & 7 {
            VARINT => {
                varint(message, &mut at)?;
                0
            }
            LENGTH => usize::try_from(varint(message, &mut at)?).ok()?,
            EIGHT_BYTES => 8,
            FOUR_BYTES => 4,
            _ => return None,
        };
        let end = at.checked_add(len).filter(|end| *end <= message.len())?;
        if key >> 3 == number {
            if key & 7 != LENGTH || found.is_some() {
                return None;
            }
            found = Some(Found { whole: tag..end, bytes: at..end });
        }
        at = end;
    }
    found
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
    let mut parsed = M::parse_from_bytes(message.get(..field.whole.start).unwrap_or_default())?;
    parsed.merge_from_bytes(message.get(field.whole.end..).unwrap_or_default())?;
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
    use nakai_protocols::agent::WriteStreamRequest;
    use proptest::prelude::*;

    use super::*;

    const DATA: u64 = 3;

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
