//! Data on its way through the pipe.

use std::io::Read as _;
use std::mem::forget;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::task::{Context, Waker};

use super::*;

fn reopened(journal: &Arc<Journal>) -> Left {
    let left = Journal::open(journal.duplicates().unwrap()).unwrap();
    left.journal.is_taken_over();
    left
}

fn sockets() -> (UnixStream, UnixStream) {
    let (peer, socket) = UnixStream::pair().unwrap();
    peer.set_nonblocking(true).unwrap();
    (peer, socket)
}

fn poll_once(body: impl Future<Output = ()>) {
    let mut body = Box::pin(body);
    let _ = body.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    forget(body);
}

fn request(stream: u32) -> Request<'static> {
    Request { stream, kind: 1, len: 9, bytes: b"a request", is_receiving: false }
}

#[test]
fn data_on_its_way_outlives_servers_and_arrives_once() {
    let journal = Journal::create().unwrap();
    let (mut peer, socket) = sockets();
    let (reader, writer) = nix::unistd::pipe().unwrap();
    nix::unistd::write(&writer, b"some data").unwrap();
    let line = Line::open(&journal).unwrap();
    let call = line.open_call(request(1));
    poll_once(call.run(async {
        assert!(passage_of_current_call().is_none(), "what takes no pages gets copies");
        line.takes_pages();
        let mut passage = passage_of_current_call().unwrap();
        assert!(passage_of_current_call().is_none(), "there is one");
        assert_eq!(passage.fill(reader.as_fd(), 100), Ok(9));
        // Killed right behind the system call.
        forget(passage);
    }));
    forget((call, line));
    let mut left = reopened(&journal);
    let mut found = left.lines[0].calls.remove(0);
    let data = found.data.take().unwrap();
    assert!(matches!(&data, Data::Passage(passage) if passage.len() == 9));
    let answer = data.into_answer(b"head:").unwrap();
    assert_eq!(answer.len(), 14);
    found.call.answered(&answer);
    forget((found, answer, left));
    let mut left = reopened(&journal);
    let found = left.lines[0].calls.remove(0);
    let answer = found.answer.as_ref().unwrap();
    let sender = left.lines[0].line.sender();
    sender.begin(&found.call);
    // No more than so much at a time, and killed each time.
    assert_eq!(sender.send(socket.as_fd(), answer, 3), Ok(false));
    forget((found, sender, left));
    for _ in 0..3 {
        let left = reopened(&journal);
        let (_, answer) = left.lines[0].sending.as_ref().unwrap();
        let sent = left.lines[0].line.sender().send(socket.as_fd(), answer, 3).unwrap();
        assert!(!sent || answer.is_sent(5));
        forget(left);
    }
    let left = reopened(&journal);
    assert!(left.lines[0].sending.is_none() && left.lines[0].calls.is_empty(), "it is sent");
    let mut seen = Vec::new();
    let _ = peer.read_to_end(&mut seen);
    assert_eq!(seen, b"head:some data");
}

#[test]
fn data_of_a_call_that_is_no_more_is_nobodys() {
    let journal = Journal::create().unwrap();
    let (reader, writer) = nix::unistd::pipe().unwrap();
    let line = Line::open(&journal).unwrap();
    line.takes_pages();
    let passage = |stream| {
        let call = line.open_call(request(stream));
        let mut taken = None;
        poll_once(call.run(async { taken = passage_of_current_call() }));
        (call, taken.unwrap())
    };
    // Dropped, and killed.
    for stream in [1, 3] {
        nix::unistd::write(&writer, b"lost").unwrap();
        let (call, mut passage) = passage(stream);
        passage.fill(reader.as_fd(), 100).unwrap();
        drop(call);
        if stream == 1 {
            drop(passage);
        } else {
            forget(passage);
        }
    }
    let left = reopened(&journal);
    let line = &left.lines[0].line;
    line.takes_pages();
    nix::unistd::write(&writer, b"kept").unwrap();
    let call = line.open_call(request(5));
    poll_once(call.run(async {
        let mut passage = passage_of_current_call().unwrap();
        passage.fill(reader.as_fd(), 100).unwrap();
        assert_eq!(Data::Passage(passage).into_bytes(), b"kept");
    }));
}
