//! The readers of frames and of requests, for a fuzzer.

use std::io::{self, Write as _};
use std::os::unix::net::UnixStream;

use protobuf::Message as _;
use tokio::task::yield_now;
use ttrpc::Request;
use ttrpc::proto::MessageHeader;

use super::around::{REQUEST_PAYLOAD, find, parse_around};
use super::frame::{Body, Frames};
use super::socket::Socket;
use crate::journal::{Journal, Line};

/// The frames that are read when `bytes` come in pieces of this size; a body that is too long is none. The bytes have
/// to fit into a socket's buffer.
pub(crate) fn read_frames(bytes: &[u8], piece: usize) -> io::Result<Vec<(MessageHeader, Option<Vec<u8>>)>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let (here, mut there) = UnixStream::pair()?;
        here.set_nonblocking(true)?;
        let socket = Socket::new(here.into())?;
        let give = async move {
            for piece in bytes.chunks(piece) {
                there.write_all(piece)?;
                yield_now().await;
            }
            io::Result::Ok(())
        };
        let take = async {
            let line = Line::open(&Journal::create()?)?;
            let (mut frames, mut all) = (Frames::new(line), Vec::new());
            while let Some((frame, _call)) = frames.next(&socket).await? {
                let body = match frame.body {
                    Body::Bytes(body) => Some(body),
                    Body::Write(head, rest) => Some([head, rest].concat()),
                    Body::TooLong => None,
                };
                all.push((frame.header, body));
            }
            Ok(all)
        };
        let (given, taken) = tokio::join!(give, take);
        given.and(taken)
    })
}

/// Takes the payload out of a request, and checks the rest against protobuf's own parser.
pub(crate) fn read_request(bytes: &[u8]) {
    let Some(payload) = find(bytes, REQUEST_PAYLOAD) else { return };
    let around = parse_around::<Request>(bytes, &payload);
    let whole = Request::parse_from_bytes(bytes);
    assert_eq!(around.is_ok(), whole.is_ok(), "{around:?}, {whole:?}");
    let (Ok(around), Ok(mut whole)) = (around, whole) else { return };
    let cut_out = bytes.get(payload.bytes_at(0)).unwrap_or_default();
    assert_eq!(std::mem::take(&mut whole.payload), cut_out);
    assert_eq!(around, whole);
}
