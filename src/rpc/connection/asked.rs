//! What a request asks for, by its beginning.

/// Names, as far as they are there: protobuf has them in the order of their numbers, in front of all that is long.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) service: String,
    pub(super) method: String,
    /// Field 1 of the message, which is the container's id in all that name one.
    pub(super) container: String,
    /// Field 2, which is the process's.
    pub(super) exec: String,
    /// Field 3 if that is a number: the signal in those that have one.
    pub(super) signal: u64,
}

/// A field: its number and what it has.
enum Value<'a> {
    Number(u64),
    /// Of which not all need be there.
    Bytes(&'a [u8]),
}

impl Asked {
    /// Reads what there is of a request.
    pub(super) fn of(request: &[u8]) -> Self {
        let mut asked = Self::default();
        for (number, value) in Fields(request) {
            match (number, value) {
                (1, Value::Bytes(bytes)) => asked.service = text(bytes),
                (2, Value::Bytes(bytes)) => asked.method = text(bytes),
                (3, Value::Bytes(bytes)) => asked.read_payload(bytes),
                _ => {}
            }
        }
        asked
    }

    fn read_payload(&mut self, payload: &[u8]) {
        for (number, value) in Fields(payload) {
            match (number, value) {
                (1, Value::Bytes(bytes)) => self.container = text(bytes),
                (2, Value::Bytes(bytes)) => self.exec = text(bytes),
                (3, Value::Number(number)) => self.signal = number,
                _ => {}
            }
        }
    }

    /// What it is about, for people: the ids only if they are some, as other messages have other things there.
    pub(super) fn describe(&self) -> String {
        let is_id = |text: &str| {
            !text.is_empty()
                && text.len() <= 128
                && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        };
        let mut said = self.method.clone();
        if is_id(&self.container) {
            said.push_str(" of ");
            said.push_str(&self.container);
            if is_id(&self.exec) && self.exec != self.container {
                said.push('/');
                said.push_str(&self.exec);
            }
        }
        said
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The fields of a message, up to where it is cut off or makes no sense.
struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = (u64, Value<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let tag = varint(&mut self.0)?;
        let value = match tag & 7 {
            0 => Value::Number(varint(&mut self.0)?),
            2 => {
                let len = usize::try_from(varint(&mut self.0)?).ok()?.min(self.0.len());
                let (bytes, rest) = self.0.split_at_checked(len)?;
                self.0 = rest;
                Value::Bytes(bytes)
            }
            _ => return None,
        };
        Some((tag >> 3, value))
    }
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use nakai_protocols::agent::{CreateContainerRequest, SignalProcessRequest};
    use proptest::prelude::*;
    use protobuf::Message as _;

    use super::*;

    fn request(method: &str, payload: Vec<u8>) -> Vec<u8> {
        let request = ttrpc::Request {
            service: "grpc.AgentService".to_owned(),
            method: method.to_owned(),
            payload,
            timeout_nano: 7,
            ..Default::default()
        };
        request.write_to_bytes().unwrap()
    }

    #[test]
    fn a_request_is_known_by_its_beginning() {
        let mut create =
            CreateContainerRequest { container_id: "c1".into(), exec_id: "c1".into(), ..Default::default() };
        create.OCI.mut_or_insert_default().Hostname = "h".repeat(20_000);
        let whole = request("CreateContainer", create.write_to_bytes().unwrap());
        for len in [100, 472, whole.len()] {
            let asked = Asked::of(&whole[..len]);
            assert_eq!((asked.method.as_str(), asked.container.as_str()), ("CreateContainer", "c1"));
            assert_eq!(asked.describe(), "CreateContainer of c1");
        }
        let signal = SignalProcessRequest {
            container_id: "c".into(),
            exec_id: "x".into(),
            signal: 9,
            ..Default::default()
        };
        let asked = Asked::of(&request("SignalProcess", signal.write_to_bytes().unwrap()));
        assert_eq!((asked.signal, asked.describe().as_str()), (9, "SignalProcess of c/x"));
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_odd(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            Asked::of(&bytes).describe();
        }
    }
}
