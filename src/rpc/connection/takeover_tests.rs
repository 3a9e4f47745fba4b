//! A connection whose server is killed: what it had is forgotten, and another goes on with what is in the journal.

use std::collections::{BTreeMap, HashMap};
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream as StdStream;
use std::time::Duration;

use nakai_protocols::agent::*;
use protobuf::Message as _;
use ttrpc::{Code, Response};

use super::tests::{Fake, frame, frame_with_limit, numbered, router};
use super::*;
use crate::journal::Line;

const AGENT: &str = "grpc.AgentService";

/// A peer, and the server of the moment.
struct Host {
    peer: StdStream,
    socket: OwnedFd,
    journal: Arc<Journal>,
    fake: Arc<Fake>,
    runtime: Option<tokio::runtime::Runtime>,
    seen: Vec<u8>,
}

impl Host {
    fn new() -> Self {
        let (peer, socket) = StdStream::pair().unwrap();
        peer.set_nonblocking(true).unwrap();
        socket.set_nonblocking(true).unwrap();
        let journal = Journal::create().unwrap();
        let line = LeftLine::new(Line::open(&journal).unwrap());
        let fake = Arc::new(Fake::default());
        let mut host = Self { peer, socket: socket.into(), journal, fake, runtime: None, seen: Vec::new() };
        host.serve(line, None);
        host
    }

    fn serve(&mut self, line: LeftLine, panic: Option<String>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (stop, stopped) = watch::channel(false);
        std::mem::forget(stop);
        let router = router(&self.fake, panic);
        runtime.spawn(serve(self.socket.try_clone().unwrap(), line, router, stopped));
        // Killed: nothing is dropped.
        std::mem::forget(self.runtime.replace(runtime));
    }

    /// The server dies, and the next one goes on.
    fn kill(&mut self) {
        let mut left = Journal::open(self.journal.duplicates().unwrap()).unwrap();
        left.journal.is_taken_over();
        let line = left.lines.remove(0);
        self.serve(line, left.panic);
        self.journal = left.journal;
    }

    /// Lets the server run for so many turns, and reads what it has sent.
    fn turns(&mut self, count: usize) {
        let yields = async {
            for _ in 0..count {
                tokio::task::yield_now().await;
            }
        };
        self.runtime.as_ref().unwrap().block_on(yields);
        let _ = self.peer.read_to_end(&mut self.seen);
    }

    /// Writes what there is room for.
    fn send(&mut self, bytes: &mut &[u8], most: usize) {
        let part = &bytes[..most.min(bytes.len())];
        let written = self.peer.write(part).unwrap_or(0);
        *bytes = &bytes[written..];
    }

    /// Answers that are there in whole, by their streams; none twice.
    fn answers(&self) -> BTreeMap<u32, Response> {
        let (mut rest, mut answers) = (self.seen.as_slice(), BTreeMap::new());
        while let Some(header) = rest.first_chunk::<10>() {
            let header = ttrpc::MessageHeader::from(header);
            let Some(body) = rest.get(10..10 + usize::try_from(header.length).unwrap()) else { break };
            let response = Response::parse_from_bytes(body).unwrap();
            assert!(answers.insert(header.stream_id, response).is_none(), "{} twice", header.stream_id);
            rest = &rest[10 + body.len()..];
        }
        answers
    }

    /// Runs until there are so many answers.
    fn until(&mut self, count: usize) -> BTreeMap<u32, Response> {
        for _ in 0..100_000 {
            self.turns(3);
            let answers = self.answers();
            if answers.len() >= count {
                return answers;
            }
        }
        panic!("{} answers of {count}", self.answers().len());
    }

    /// One request, and what becomes of it if the server dies while it waits.
    fn killed_at(&mut self, stream: u32, method: &str, payload: Vec<u8>) {
        let bytes = frame(stream, 1, AGENT, method, payload);
        self.send(&mut bytes.as_slice(), usize::MAX);
        self.turns(20);
    }
}

fn status(response: &Response) -> (Code, &str) {
    (response.status.code.enum_value().unwrap(), response.status.message.as_str())
}

#[test]
fn calls_that_wait_go_on_however_often_their_server_dies() {
    let mut host = Host::new();
    host.killed_at(1, "WaitProcess", Vec::new());
    host.killed_at(3, "WaitProcess", Vec::new());
    for _ in 0..5 {
        host.kill();
        host.turns(20);
        assert!(host.answers().is_empty());
    }
    host.fake.go_on.notify_waiters();
    let answers = host.until(2);
    for stream in [1, 3] {
        let answer = &answers[&stream];
        assert_eq!(status(answer).0, Code::OK);
        assert_eq!(WaitProcessResponse::parse_from_bytes(&answer.payload).unwrap().status, 7);
    }
    // And what comes next is served.
    host.killed_at(5, "StartContainer", Vec::new());
    assert_eq!(status(&host.until(3)[&5]).0, Code::OK);
}

#[test]
fn a_calls_time_goes_on_over_the_death_of_its_server() {
    const SHORT: Duration = Duration::from_millis(5);
    let mut host = Host::new();
    let wait = |stream, limit| frame_with_limit(stream, 1, (AGENT, "WaitProcess"), Vec::new(), limit);
    // It is up with the next server.
    host.send(&mut wait(1, SHORT).as_slice(), usize::MAX);
    host.turns(20);
    host.kill();
    assert_eq!(status(&host.until(1)[&1]).0, Code::DEADLINE_EXCEEDED);
    // Those that come then have nothing of it.
    host.send(&mut wait(3, Duration::ZERO).as_slice(), usize::MAX);
    host.send(&mut wait(5, SHORT * 100_000).as_slice(), usize::MAX);
    host.turns(20);
    host.kill();
    host.turns(20);
    host.kill();
    host.turns(20);
    assert_eq!(host.answers().len(), 1);
    host.fake.go_on.notify_waiters();
    let answers = host.until(3);
    assert_eq!((status(&answers[&3]).0, status(&answers[&5]).0), (Code::OK, Code::OK));
}

#[test]
fn a_write_that_waits_goes_on_with_what_is_left_however_often_its_server_dies() {
    let mut host = Host::new();
    let write =
        WriteStreamRequest { container_id: "stuck".into(), data: numbered(300), ..Default::default() };
    host.killed_at(1, "WriteStdin", write.write_to_bytes().unwrap());
    for _ in 0..5 {
        host.kill();
        host.turns(20);
        assert!(host.answers().is_empty());
    }
    host.fake.go_on.notify_waiters();
    let answer = &host.until(1)[&1];
    assert_eq!(status(answer).0, Code::OK);
    // To its caller it is one write.
    assert_eq!(WriteStreamResponse::parse_from_bytes(&answer.payload).unwrap().len, 300);
}

#[test]
fn what_changes_something_is_answered_by_what_is_there() {
    let mut host = Host::new();
    let create = |id: &str| CreateContainerRequest { container_id: id.to_owned(), ..Default::default() };
    host.killed_at(1, "CreateContainer", create("made").write_to_bytes().unwrap());
    host.killed_at(3, "CreateContainer", create("undone").write_to_bytes().unwrap());
    let write = WriteStreamRequest { container_id: "c".into(), data: vec![1; 10], ..Default::default() };
    host.killed_at(5, "AddSwap", write.write_to_bytes().unwrap());
    // Half of a long one has come.
    let write = WriteStreamRequest { container_id: "c".into(), data: vec![1; 50_000], ..Default::default() };
    let bytes = frame(7, 1, AGENT, "WriteStdin", write.write_to_bytes().unwrap());
    let mut rest = bytes.as_slice();
    host.send(&mut rest, 20_000);
    host.turns(20);
    host.kill();
    let answers = host.until(4);
    assert_eq!(status(&answers[&1]), (Code::OK, ""));
    let (code, text) = status(&answers[&3]);
    assert!(code == Code::UNAVAILABLE && text.contains("CreateContainer of undone"), "{text}");
    let (code, text) = status(&answers[&5]);
    assert!(code == Code::UNAVAILABLE && text.contains("it may have been done"), "{text}");
    let (code, text) = status(&answers[&7]);
    assert!(code == Code::UNAVAILABLE && text.contains("nothing was done"), "{text}");
    // The rest of it is passed over.
    host.send(&mut rest, usize::MAX);
    host.killed_at(9, "StartContainer", Vec::new());
    assert_eq!(status(&host.until(5)[&9]).0, Code::OK);
}

#[test]
fn what_is_asked_again_and_ends_the_server_again_is_refused() {
    let mut host = Host::new();
    host.killed_at(1, "StatsContainer", Vec::new());
    host.kill();
    host.turns(20);
    assert!(host.answers().is_empty(), "it is asked again");
    host.kill();
    let answers = host.until(1);
    let (code, text) = status(&answers[&1]);
    assert!(code == Code::INTERNAL && text.contains("StatsContainer"), "{text}");
}

/// Numbers that look random and are the same each time (xorshift64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0).unwrap() % limit
    }
}

#[test]
fn at_whatever_moment_servers_die_each_request_has_one_answer() {
    for seed in 1..=40 {
        let mut dice = Dice(seed * 0x9e37_79b9);
        let mut host = Host::new();
        let (mut bytes, mut expected) = (Vec::new(), HashMap::new());
        for stream in (1..80).step_by(2) {
            let len = [0, 10, 300, 5000, 70_000, 600_000][dice.below(6)];
            if dice.below(2) == 0 {
                let read = ReadStreamRequest { len, ..Default::default() };
                bytes.extend(frame(stream, 1, AGENT, "ReadStdout", read.write_to_bytes().unwrap()));
                expected.insert(stream, Some(usize::try_from(len).unwrap()));
            } else {
                let data = numbered(usize::try_from(len).unwrap() % 100_000);
                let write = WriteStreamRequest { data, ..Default::default() };
                bytes.extend(frame(stream, 1, AGENT, "WriteStdin", write.write_to_bytes().unwrap()));
                expected.insert(stream, None);
            }
        }
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            host.send(&mut rest, [3, 100, 9000, 200_000][dice.below(4)]);
            host.turns(dice.below(4));
            if dice.below(5) == 0 {
                host.kill();
            }
        }
        let answers = host.until(expected.len());
        assert_eq!(answers.len(), expected.len());
        for (stream, len) in expected {
            let answer = &answers[&stream];
            match (len, status(answer).0) {
                (Some(len), Code::OK) => {
                    let read = ReadStreamResponse::parse_from_bytes(&answer.payload).unwrap();
                    assert!(read.data == numbered(len), "seed {seed}, stream {stream}");
                }
                (None, Code::OK) => {}
                // Of one that was half there.
                (None, code) => assert_eq!(code, Code::UNAVAILABLE, "seed {seed}, stream {stream}"),
                (Some(_), code) => panic!("seed {seed}, stream {stream}: {code:?}"),
            }
        }
    }
}
