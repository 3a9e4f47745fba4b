//! The wire format of D-Bus, as far as a few calls of systemd need it (D-Bus Specification, "Message Protocol").
//!
//! Little-endian both ways: the peer is on the same machine, and answers in its own order. A message that makes no sense
//! is an error, never a panic; its size is bounded by whoever reads it.

/// The kinds of messages.
pub(super) const METHOD_CALL: u8 = 1;
pub(super) const METHOD_RETURN: u8 = 2;
pub(super) const ERROR: u8 = 3;
pub(super) const SIGNAL: u8 = 4;

/// What comes before the fields of a header: order, kind, flags, version, and three numbers, of which the last is the
/// length of the fields.
pub(super) const FIXED: usize = 16;

/// The fields of a header.
const PATH: u8 = 1;
const INTERFACE: u8 = 2;
const MEMBER: u8 = 3;
const ERROR_NAME: u8 = 4;
const REPLY_SERIAL: u8 = 5;
const DESTINATION: u8 = 6;
const SIGNATURE: u8 = 8;

/// A text that is no message.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// Values one after the other, each at a place that suits it.
#[derive(Debug, Default)]
pub(super) struct Writer(Vec<u8>);

impl Writer {
    #[cfg(test)]
    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    fn align(&mut self, to: usize) -> &mut Self {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
        self
    }

    pub(super) fn byte(&mut self, value: u8) -> &mut Self {
        self.0.push(value);
        self
    }

    pub(super) fn u32(&mut self, value: u32) -> &mut Self {
        self.align(4).0.extend(value.to_le_bytes());
        self
    }

    pub(super) fn u64(&mut self, value: u64) -> &mut Self {
        self.align(8).0.extend(value.to_le_bytes());
        self
    }

    pub(super) fn boolean(&mut self, value: bool) -> &mut Self {
        self.u32(u32::from(value))
    }

    /// A string, or the path of an object.
    pub(super) fn string(&mut self, text: &str) -> &mut Self {
        self.u32(length(text.len())).0.extend(text.as_bytes());
        self.byte(0)
    }

    pub(super) fn signature(&mut self, text: &str) -> &mut Self {
        self.byte(u8::try_from(text.len()).unwrap_or(u8::MAX)).0.extend(text.as_bytes());
        self.byte(0)
    }

    /// A list of what has to be at a multiple of `alignment`.
    pub(super) fn array(&mut self, alignment: usize, elements: impl FnOnce(&mut Self)) -> &mut Self {
        self.u32(0);
        let length_at = self.0.len().saturating_sub(4);
        self.align(alignment);
        let begin = self.0.len();
        elements(self);
        let bytes = length(self.0.len().saturating_sub(begin)).to_le_bytes();
        if let Some(place) = self.0.get_mut(length_at..length_at.saturating_add(4)) {
            place.copy_from_slice(&bytes);
        }
        self
    }

    /// What is in a struct begins here.
    pub(super) fn structure(&mut self) -> &mut Self {
        self.align(8)
    }
}

fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

/// A method of systemd's manager, to be called.
#[derive(Debug)]
pub(super) struct Call<'a> {
    pub(super) path: &'a str,
    pub(super) destination: &'a str,
    pub(super) interface: &'a str,
    pub(super) member: &'a str,
    pub(super) signature: &'a str,
    pub(super) body: Writer,
}

impl Call<'_> {
    pub(super) fn encode(&self, serial: u32) -> Vec<u8> {
        let mut message = Writer::default();
        message.byte(b'l').byte(METHOD_CALL).byte(0).byte(1).u32(length(self.body.0.len())).u32(serial);
        let fields = [
            (PATH, "o", self.path),
            (INTERFACE, "s", self.interface),
            (MEMBER, "s", self.member),
            (DESTINATION, "s", self.destination),
        ];
        message.array(8, |header| {
            for (code, kind, value) in fields {
                header.structure().byte(code).signature(kind).string(value);
            }
            header.structure().byte(SIGNATURE).signature("g").signature(self.signature);
        });
        message.align(8).0.extend(&self.body.0);
        message.0
    }
}

/// A message that has come.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) kind: u8,
    /// The call that it answers.
    pub(super) reply_to: u32,
    /// The signal's name.
    pub(super) member: String,
    /// The error's name.
    pub(super) error: String,
    pub(super) body: Vec<u8>,
}

/// How many bytes follow the [`FIXED`] ones.
pub(super) fn rest(fixed: &[u8; FIXED]) -> Result<usize, Malformed> {
    let mut reader = Reader::new(fixed);
    if reader.byte()? != b'l' {
        return Err(Malformed);
    }
    reader.skip(3)?;
    let body = reader.size()?;
    reader.u32()?;
    let fields = reader.size()?;
    let end = FIXED.saturating_add(fields).next_multiple_of(8);
    Ok(end.saturating_sub(FIXED).saturating_add(body))
}

/// Takes a whole message apart.
pub(super) fn decode(bytes: &[u8]) -> Result<Message, Malformed> {
    let mut reader = Reader::new(bytes);
    let mut message = Message::default();
    reader.byte()?;
    message.kind = reader.byte()?;
    reader.skip(2)?;
    let body = reader.size()?;
    reader.u32()?;
    let end = reader.size()?.checked_add(FIXED).ok_or(Malformed)?;
    while reader.at < end {
        reader.align(8)?;
        let code = reader.byte()?;
        match (code, reader.signature()?.as_str()) {
            (REPLY_SERIAL, "u") => message.reply_to = reader.u32()?,
            (MEMBER, "s") => message.member = reader.string()?,
            (ERROR_NAME, "s") => message.error = reader.string()?,
            (_, "s" | "o") => {
                reader.string()?;
            }
            (_, "g") => {
                reader.signature()?;
            }
            (_, "u") => {
                reader.u32()?;
            }
            _ => return Err(Malformed),
        }
    }
    reader.align(8)?;
    message.body = reader.take(body)?.to_vec();
    Ok(message)
}

/// Reads values one after the other.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let end = self.at.checked_add(count).ok_or(Malformed)?;
        let taken = self.bytes.get(self.at..end).ok_or(Malformed)?;
        self.at = end;
        Ok(taken)
    }

    fn skip(&mut self, count: usize) -> Result<(), Malformed> {
        self.take(count).map(drop)
    }

    fn align(&mut self, to: usize) -> Result<(), Malformed> {
        let padding = self.at.next_multiple_of(to).saturating_sub(self.at);
        self.skip(padding)
    }

    fn byte(&mut self) -> Result<u8, Malformed> {
        self.take(1)?.first().copied().ok_or(Malformed)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Malformed> {
        self.align(4)?;
        let bytes = self.take(4)?.first_chunk().ok_or(Malformed)?;
        Ok(u32::from_le_bytes(*bytes))
    }

    fn size(&mut self) -> Result<usize, Malformed> {
        usize::try_from(self.u32()?).map_err(|_| Malformed)
    }

    pub(super) fn string(&mut self) -> Result<String, Malformed> {
        let length = self.size()?;
        self.text(length)
    }

    fn signature(&mut self) -> Result<String, Malformed> {
        let length = self.byte()?;
        self.text(usize::from(length))
    }

    /// The text, and the zero behind it.
    fn text(&mut self, length: usize) -> Result<String, Malformed> {
        let text = self.take(length)?.to_vec();
        self.skip(1)?;
        String::from_utf8(text).map_err(|_| Malformed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_at_their_places() {
        let mut writer = Writer::default();
        writer.boolean(true).array(8, |list| {
            list.structure().string("ab").u64(7);
            list.structure().byte(9);
        });
        // The length counts from the first element on, which begins at a multiple of eight.
        let expected = [1, 0, 0, 0, 17, 0, 0, 0, 2, 0, 0, 0, b'a', b'b', 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 9];
        assert_eq!(writer.0, expected);
    }

    #[test]
    fn a_message_is_read_as_it_was_written() {
        let mut body = Writer::default();
        body.string("a.scope").u32(5);
        let call = Call { path: "/p", destination: "d", interface: "i", member: "m", signature: "su", body };
        let bytes = call.encode(3);
        let fixed = bytes.first_chunk().unwrap();
        assert_eq!(rest(fixed).unwrap() + FIXED, bytes.len());
        let message = decode(&bytes).unwrap();
        assert_eq!((message.kind, message.member.as_str()), (METHOD_CALL, "m"));
        let mut reader = Reader::new(&message.body);
        assert_eq!(
            (reader.string(), reader.u32(), reader.u32()),
            (Ok("a.scope".into()), Ok(5), Err(Malformed))
        );
    }

    #[test]
    fn no_bytes_make_it_panic() {
        let mut body = Writer::default();
        body.string("text");
        let call = Call { path: "/p", destination: "d", interface: "i", member: "m", signature: "s", body };
        let good = call.encode(1);
        for place in 0..good.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut bad = good.clone();
                bad[place] = value;
                let _ = decode(&bad);
                let _ = rest(bad.first_chunk().unwrap());
            }
            let _ = decode(&good[..place]);
        }
    }
}
