//! A client that reads and writes streams and costs next to nothing itself: a connection of its own, requests that are
//! encoded once, one buffer for all answers. What is measured with it is the agent and the kernel.

use nakai_ctl::Address;
use nakai_ctl::connect::{CONNECT_TIMEOUT, Stream, connect};
use nakai_protocols::agent::{CloseStdinRequest, ReadStreamRequest, WriteStreamRequest};
use protobuf::Message;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::Fallible;

/// ttrpc's header: length, number of the request, kind and flags.
const HEADER: usize = 10;
const REQUEST: u8 = 1;

/// A connection for the streams of one process.
pub(crate) struct Streams {
    connection: Box<dyn Stream>,
    next: u32,
    body: Vec<u8>,
}

/// A frame with a request. Its number is set when it is sent.
struct Request(Vec<u8>);

impl Request {
    fn new(method: &str, message: &impl Message) -> Fallible<Self> {
        let request = ttrpc::Request {
            service: "grpc.AgentService".to_owned(),
            method: method.to_owned(),
            payload: message.write_to_bytes()?,
            ..Default::default()
        };
        let body = request.write_to_bytes()?;
        let mut frame = u32::try_from(body.len())?.to_be_bytes().to_vec();
        frame.extend([0, 0, 0, 0, REQUEST, 0]);
        frame.extend(body);
        Ok(Self(frame))
    }

    fn read(container: &str, exec: &str, len: u32) -> Fallible<Self> {
        let (container_id, exec_id) = (container.to_owned(), exec.to_owned());
        Self::new("ReadStdout", &ReadStreamRequest { container_id, exec_id, len, ..Default::default() })
    }
}

impl Streams {
    pub(crate) async fn of(address: &Address) -> Fallible<Self> {
        let connection = connect(address, CONNECT_TIMEOUT).await?;
        Ok(Self { connection, next: 1, body: Vec::new() })
    }

    /// Reads standard output until `most` bytes or its end have come. `seen` learns of each answer's length.
    pub(crate) async fn read(
        &mut self,
        (container, exec): (&str, &str),
        len: u32,
        most: usize,
        mut seen: impl FnMut(usize),
    ) -> Fallible<()> {
        let mut request = Request::read(container, exec, len)?;
        let mut sum = 0;
        while sum < most {
            self.send(&mut request).await?;
            match self.answer().await?.1? {
                0 => break,
                data => {
                    seen(data);
                    sum += data;
                }
            }
        }
        Ok(())
    }

    /// Writes `bytes`, `piece` by piece, and reads meanwhile what comes back. Returns how much that was.
    pub(crate) async fn echo(
        &mut self,
        (container, exec): (&str, &str),
        bytes: usize,
        piece: usize,
    ) -> Fallible<usize> {
        let (container_id, exec_id) = (container.to_owned(), exec.to_owned());
        let close = CloseStdinRequest { container_id, exec_id, ..Default::default() };
        let (container_id, exec_id) = (container.to_owned(), exec.to_owned());
        let write = WriteStreamRequest { container_id, exec_id, data: vec![7; piece], ..Default::default() };
        let mut close = Some(Request::new("CloseStdin", &close)?);
        let mut write = Request::new("WriteStdin", &write)?;
        let mut read = Request::read(container, exec, 1 << 20)?;
        let mut reading = self.send(&mut read).await?;
        self.send(&mut write).await?;
        let (mut written, mut seen) = (piece, 0);
        loop {
            let (number, data) = self.answer().await?;
            if number == reading {
                match data {
                    // Some agents say the end of a stream by an error.
                    Ok(0) | Err(_) => return Ok(seen),
                    Ok(data) => seen += data,
                }
                reading = self.send(&mut read).await?;
            } else {
                data?;
                if written < bytes {
                    self.send(&mut write).await?;
                    written += piece;
                } else if let Some(mut close) = close.take() {
                    self.send(&mut close).await?;
                }
            }
        }
    }

    async fn send(&mut self, request: &mut Request) -> Fallible<u32> {
        let number = self.next;
        self.next += 2;
        request.0.iter_mut().skip(4).zip(number.to_be_bytes()).for_each(|(place, byte)| *place = byte);
        self.connection.write_all(&request.0).await?;
        Ok(number)
    }

    /// The next answer: to which request, and how many bytes of data it has, or why it has none.
    async fn answer(&mut self) -> Fallible<(u32, Fallible<usize>)> {
        let mut header = [0; HEADER];
        self.connection.read_exact(&mut header).await?;
        let [a, b, c, d, e, f, g, h, ..] = header;
        let len = usize::try_from(u32::from_be_bytes([a, b, c, d]))?;
        if self.body.len() < len {
            self.body.resize(len, 0);
        }
        let body = self.body.get_mut(..len).unwrap_or_default();
        self.connection.read_exact(body).await?;
        Ok((u32::from_be_bytes([e, f, g, h]), data(body)))
    }
}

/// A response has a status, which is empty where all is well, and a payload; that has the data as its first field.
fn data(response: &[u8]) -> Fallible<usize> {
    let mut payload: &[u8] = &[];
    for (tag, field) in Fields(response) {
        match tag {
            FIELD_1 if field.is_empty() => {}
            FIELD_1 => return Err(ttrpc::Status::parse_from_bytes(field)?.message.into()),
            FIELD_2 => payload = field,
            _ => {}
        }
    }
    Ok(Fields(payload).find(|(tag, _)| *tag == FIELD_1).map_or(0, |(_, field)| field.len()))
}

const FIELD_1: u64 = 0x0a;
const FIELD_2: u64 = 0x12;

/// The fields of bytes of a message, up to the first of another kind.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..63).step_by(7) {
            let (byte, rest) = self.0.split_first()?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if *byte < 0x80 {
                return Some(value);
            }
        }
        None
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = (u64, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let tag = self.varint().filter(|tag| tag & 7 == 2)?;
        let len = usize::try_from(self.varint()?).ok()?;
        let (field, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some((tag, field))
    }
}
