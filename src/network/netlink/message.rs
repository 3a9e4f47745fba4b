//! Messages of netlink(7): a header, a fixed structure, and attributes that may hold attributes. Everything is in the
//! machine's byte order and padded to multiples of four bytes.

const HEADER: usize = 16;
const ATTRIBUTE_HEADER: usize = 4;

/// The bits of an attribute's type that are flags (`NLA_F_NESTED`, `NLA_F_NET_BYTEORDER`).
const TYPE_MASK: u16 = 0x3fff;

fn padded(len: usize) -> usize {
    len.next_multiple_of(4)
}

/// A request that is being put together.
#[derive(Debug, Clone)]
pub(in crate::network) struct Request {
    kind: u16,
    flags: u16,
    body: Vec<u8>,
}

impl Request {
    /// A request with the fixed structure of its kind.
    pub(in crate::network) fn new(kind: u16, flags: u16, structure: &[u8]) -> Self {
        let mut body = structure.to_vec();
        body.resize(padded(body.len()), 0);
        Self { kind, flags, body }
    }

    /// Adds an attribute. One that is too long to be said (64 KiB) is left out, and the kernel misses it.
    #[must_use]
    pub(in crate::network) fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        push(&mut self.body, kind, value);
        self
    }

    /// Adds a number of 32 bits.
    #[must_use]
    pub(in crate::network) fn number(self, kind: u16, value: u32) -> Self {
        self.attribute(kind, &value.to_ne_bytes())
    }

    /// Adds an attribute if there is something to say.
    #[must_use]
    pub(in crate::network) fn maybe(self, kind: u16, value: Option<&[u8]>) -> Self {
        match value {
            Some(value) => self.attribute(kind, value),
            None => self,
        }
    }

    /// Adds an attribute that holds another one.
    #[must_use]
    pub(in crate::network) fn nested(self, kind: u16, inner: u16, value: &[u8]) -> Self {
        let mut nest = Vec::new();
        push(&mut nest, inner, value);
        self.attribute(kind, &nest)
    }

    /// What is behind the header.
    pub(in crate::network) fn into_body(self) -> Vec<u8> {
        self.body
    }

    /// The whole message, numbered.
    pub(super) fn encode(&self, flags: u16, sequence: u32) -> Vec<u8> {
        let len = u32::try_from(HEADER.saturating_add(self.body.len())).unwrap_or(u32::MAX);
        let mut bytes = len.to_ne_bytes().to_vec();
        bytes.extend(self.kind.to_ne_bytes());
        bytes.extend((self.flags | flags).to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        // The sender's port: the kernel knows it.
        bytes.extend(0_u32.to_ne_bytes());
        bytes.extend(&self.body);
        bytes
    }
}

fn push(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let Ok(len) = u16::try_from(value.len().saturating_add(ATTRIBUTE_HEADER)) else { return };
    body.extend(len.to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
    body.resize(padded(body.len()), 0);
}

/// Takes fixed fields from the front of some bytes. What is not there is `None`.
#[derive(Debug, Clone, Copy)]
pub(in crate::network) struct Fields<'a>(pub(in crate::network) &'a [u8]);

impl<'a> Fields<'a> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*first)
    }

    pub(in crate::network) fn u8(&mut self) -> Option<u8> {
        self.take::<1>().map(|[byte]| byte)
    }

    pub(in crate::network) fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_ne_bytes)
    }

    pub(in crate::network) fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_ne_bytes)
    }

    pub(in crate::network) fn i32(&mut self) -> Option<i32> {
        self.take().map(i32::from_ne_bytes)
    }

    /// What is left, as attributes.
    pub(in crate::network) fn attributes(self) -> Attributes<'a> {
        Attributes(self.0)
    }
}

/// Attributes one after the other: their type without flags, and their value. Ends at the first that is not whole.
#[derive(Debug, Clone, Copy)]
pub(in crate::network) struct Attributes<'a>(pub(in crate::network) &'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let mut fields = Fields(self.0);
        let (len, kind) = (usize::from(fields.u16()?), fields.u16()?);
        let value = self.0.get(ATTRIBUTE_HEADER..len)?;
        self.0 = self.0.get(padded(len)..).unwrap_or_default();
        Some((kind & TYPE_MASK, value))
    }
}

/// A message that came.
#[derive(Debug, Clone, Copy)]
pub(super) struct Message<'a> {
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(super) sequence: u32,
    pub(super) body: &'a [u8],
}

/// The messages in what one recv(2) gave. Ends at the first that is not whole.
#[derive(Debug, Clone, Copy)]
pub(super) struct Messages<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut fields = Fields(self.0);
        let len = usize::try_from(fields.u32()?).ok()?;
        let (kind, flags, sequence) = (fields.u16()?, fields.u16()?, fields.u32()?);
        let body = self.0.get(HEADER..len)?;
        self.0 = self.0.get(padded(len)..).unwrap_or_default();
        Some(Message { kind, flags, sequence, body })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_built_is_read_back() {
        let request = Request::new(16, 1, &[7; 6]).attribute(3, b"eth0\0").number(4, 1500);
        let bytes = request.nested(8, 2, &[1]).maybe(9, None).encode(4, 77);
        assert_eq!(bytes.len() % 4, 0);
        let messages: Vec<_> = Messages(&bytes).collect();
        let [message] = messages.as_slice() else { panic!("{messages:?}") };
        assert_eq!((message.kind, message.flags, message.sequence), (16, 5, 77));
        let (structure, attributes) = message.body.split_at(8);
        assert_eq!(structure, [7, 7, 7, 7, 7, 7, 0, 0]);
        let attributes: Vec<_> = Attributes(attributes).collect();
        let number = 1500_u32.to_ne_bytes();
        assert_eq!(attributes.len(), 3);
        assert_eq!(attributes[..2], [(3, &b"eth0\0"[..]), (4, &number[..])]);
        assert_eq!(Attributes(attributes[2].1).collect::<Vec<_>>(), [(2, &[1][..])]);
    }

    #[test]
    fn flags_of_a_type_are_not_part_of_it() {
        let mut bytes = Vec::new();
        push(&mut bytes, 8 | 0x8000, &[]);
        assert_eq!(Attributes(&bytes).collect::<Vec<_>>(), [(8, &[][..])]);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_or_run_for_ever(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(Messages(&bytes).count() <= bytes.len());
            prop_assert!(Attributes(&bytes).count() <= bytes.len());
        }
    }
}
