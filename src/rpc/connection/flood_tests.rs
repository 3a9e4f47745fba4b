//! Peers that ask for too much, or for nothing at all without end.

use std::sync::atomic::Ordering;

use protobuf::Message as _;
use tokio::io::AsyncWriteExt as _;
use ttrpc::Code;

use super::tests::{answer, connect, frame, read_request, run};

/// As far as everything gets that does not wait for the peer.
async fn settle() {
    for _ in 0..20_000 {
        tokio::task::yield_now().await;
    }
}

#[test]
fn answers_that_are_not_taken_are_few_and_none_is_lost() {
    const READS: u32 = 64;
    run(async {
        let (peer, mut stream) = connect();
        let read = read_request(1 << 20).write_to_bytes().unwrap();
        for number in 0..READS {
            let request = frame(2 * number + 1, 1, "grpc.AgentService", "ReadStdout", read.clone());
            stream.write_all(&request).await.unwrap();
        }
        settle().await;
        let begun = peer.fake.reads.load(Ordering::SeqCst);
        assert!((1..=12).contains(&begun), "{begun} answers of a mebibyte are there");
        // Nobody else notices.
        let (_other, mut calm) = connect();
        calm.write_all(&frame(1, 1, "grpc.Health", "Check", Vec::new())).await.unwrap();
        assert_eq!(answer(&mut calm).await.1.status.code, Code::OK.into());
        let mut seen = Vec::new();
        for _ in 0..READS {
            let (id, response) = answer(&mut stream).await;
            assert_eq!(response.status.code, Code::OK.into());
            seen.push(id);
        }
        seen.sort_unstable();
        assert_eq!(seen, (0..READS).map(|number| 2 * number + 1).collect::<Vec<_>>());
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
