//! Peers that ask for too much, or for nothing at all without end.

use std::sync::atomic::Ordering;

use nakai_protocols::agent::ReadStreamRequest;
use protobuf::Message as _;
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;
use ttrpc::Code;

use super::tests::{answer, connect, frame, read_request, run};

/// As far as everything gets that does not wait for the peer.
async fn settle() {
    for _ in 0..20_000 {
        tokio::task::yield_now().await;
    }
}

const READS: u32 = 64;

/// Requests for a mebibyte each.
fn reads(exec: &str) -> Vec<u8> {
    let read = ReadStreamRequest { exec_id: exec.to_owned(), ..read_request(1 << 20) };
    let read = read.write_to_bytes().unwrap();
    let frames =
        (0..READS).map(|number| frame(2 * number + 1, 1, "grpc.AgentService", "ReadStdout", read.clone()));
    frames.collect::<Vec<_>>().concat()
}

/// Takes all answers, which must be there.
async fn all_are_answered(stream: &mut UnixStream) {
    let mut seen = Vec::new();
    for _ in 0..READS {
        let (id, response) = answer(stream).await;
        assert_eq!(response.status.code, Code::OK.into());
        seen.push(id);
    }
    seen.sort_unstable();
    assert_eq!(seen, (0..READS).map(|number| 2 * number + 1).collect::<Vec<_>>());
}

#[test]
fn answers_that_are_not_taken_are_few_and_none_is_lost() {
    run(async {
        let (peer, mut stream) = connect();
        stream.write_all(&reads("")).await.unwrap();
        settle().await;
        let begun = peer.fake.reads.load(Ordering::SeqCst);
        assert!((1..=12).contains(&begun), "{begun} answers of a mebibyte are there");
        // Nobody else notices.
        let (_other, mut calm) = connect();
        calm.write_all(&frame(1, 1, "grpc.Health", "Check", Vec::new())).await.unwrap();
        assert_eq!(answer(&mut calm).await.1.status.code, Code::OK.into());
        all_are_answered(&mut stream).await;
    });
}

/// All of them have been read, and wait, before there is a first answer.
#[test]
fn reads_that_wait_already_take_no_more_than_the_peer_does() {
    run(async {
        let (peer, mut stream) = connect();
        stream.write_all(&reads("late")).await.unwrap();
        peer.fake.until_waiting(READS.try_into().unwrap()).await;
        peer.fake.written.notify_waiters();
        settle().await;
        let taken = peer.fake.reads.load(Ordering::SeqCst);
        assert!((1..=12).contains(&taken), "{taken} reads of a mebibyte have taken their data");
        all_are_answered(&mut stream).await;
    });
}

/// As many as a socket holds: all are there when the first is looked at.
#[test]
fn a_peer_of_nothing_but_senseless_frames_starves_no_other() {
    run(async {
        let (peer, mut stream) = connect();
        let read = |number| {
            let request = read_request(1).write_to_bytes().unwrap();
            frame(number, 1, "grpc.AgentService", "ReadStdout", request)
        };
        // Of a kind that is not known, which has no answer.
        let senseless = [0, 0, 0, 0, 0, 0, 0, 5, 9, 0].repeat(10_000);
        stream.write_all(&[read(1), senseless, read(3)].concat()).await.unwrap();
        let until = async |reads| {
            let mut turns = 0;
            while peer.fake.reads.load(Ordering::SeqCst) < reads {
                tokio::task::yield_now().await;
                turns += 1;
            }
            turns
        };
        until(1).await;
        let turns = until(2).await;
        assert!(turns > 20, "others had {turns} turns beside 10,000 frames");
    });
}

#[test]
fn calls_without_end_are_refused_and_what_ends_them_is_not() {
    const MOST: u32 = 16 << 10;
    run(async {
        let (peer, mut stream) = connect();
        let call = |number: u32, method| frame(2 * number + 1, 1, "grpc.AgentService", method, Vec::new());
        for number in 0..MOST {
            stream.write_all(&call(number, "WaitProcess")).await.unwrap();
        }
        peer.fake.until_waiting(MOST.try_into().unwrap()).await;
        let behind = ["WaitProcess", "SignalProcess", "StartContainer"];
        for (number, method) in (MOST..).zip(behind) {
            stream.write_all(&call(number, method)).await.unwrap();
            let (id, response) = answer(&mut stream).await;
            let expected = if method == "SignalProcess" { Code::OK } else { Code::RESOURCE_EXHAUSTED };
            assert_eq!((id, response.status.code), (2 * number + 1, expected.into()), "{method}");
        }
        // One that has ended makes room for another.
        peer.fake.go_on.notify_one();
        assert_eq!(answer(&mut stream).await.1.status.code, Code::OK.into());
        stream.write_all(&call(MOST + 9, "StartContainer")).await.unwrap();
        assert_eq!(answer(&mut stream).await.1.status.code, Code::OK.into());
    });
}
