//! Streams as a process and a host see them. The process is a thread at the other end of a pipe or terminal.

use super::*;
use nix::fcntl::{FcntlArg, fcntl};
use nix::pty::openpty;
use proptest::prelude::*;
use std::fs::{File, OpenOptions};
use std::future::Future;
use std::io::{Read, Write};
use std::pin::pin;
use std::task::Poll;
use std::thread;
use std::time::Duration;
use tokio::sync::watch;

const QUIET: Duration = Duration::from_millis(20);

/// A sequence of numbers, so that any byte lost, doubled or out of its place shows.
fn numbered(len: usize) -> Vec<u8> {
    (0u32..).flat_map(u32::to_le_bytes).take(len).collect()
}

/// Pipes with the process's stdin and stdout; its stderr is closed.
fn process() -> (File, File, Streams) {
    let (ends, streams) = Streams::pipes(None).unwrap();
    (File::from(ends.stdin), File::from(ends.stdout), streams)
}

fn terminal() -> (File, Streams) {
    let pty = openpty(None, None).unwrap();
    let mut raw = nix::sys::termios::tcgetattr(&pty.slave).unwrap();
    nix::sys::termios::cfmakeraw(&mut raw);
    nix::sys::termios::tcsetattr(&pty.slave, nix::sys::termios::SetArg::TCSANOW, &raw).unwrap();
    (File::from(pty.slave), Streams::terminal(pty.master).unwrap())
}

async fn read_to_end(stream: &OutputStream, len: u32, exited: &watch::Receiver<Option<()>>) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        match stream.read(len, exited, QUIET).await.unwrap() {
            bytes if bytes.is_empty() => return all,
            bytes => all.extend(bytes),
        }
    }
}

/// Polls a future so many times at most, then drops it.
async fn poll_times<F: Future>(future: F, times: usize) -> Option<F::Output> {
    let mut future = pin!(future);
    for _ in 0..times {
        let poll = std::future::poll_fn(|context| Poll::Ready(future.as_mut().poll(context))).await;
        if let Poll::Ready(output) = poll {
            return Some(output);
        }
        tokio::task::yield_now().await;
    }
    None
}

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_byte_is_read_once_and_in_order(
        chunks in prop::collection::vec(1usize..200_000, 1..12),
        reads in prop::collection::vec(1u32..300_000, 1..8),
        cancels in prop::collection::vec(0usize..4, 1..8),
    ) {
        let (_, mut stdout, streams) = process();
        let sent = numbered(chunks.iter().sum());
        let expected = sent.clone();
        let writer = thread::spawn(move || {
            let mut rest = sent.as_slice();
            for len in chunks {
                let (chunk, tail) = rest.split_at(len);
                stdout.write_all(chunk).unwrap();
                rest = tail;
            }
        });
        let got = block_on(async {
            let (_exit, exited) = watch::channel(None::<()>);
            let mut got = Vec::new();
            let mut turns = reads.iter().cycle().zip(cancels.iter().cycle());
            loop {
                let (len, cancel) = turns.next().unwrap();
                let read = streams.stdout.read(*len, &exited, QUIET);
                // Some reads are given up after a few polls, the others waited for.
                let bytes = match cancel {
                    0 => Some(read.await),
                    polls => poll_times(read, *polls).await,
                };
                match bytes.transpose().unwrap() {
                    Some(bytes) if bytes.is_empty() => return got,
                    Some(bytes) => {
                        assert!(bytes.len() <= *len as usize);
                        got.extend(bytes);
                    }
                    None => {}
                }
            }
        });
        writer.join().unwrap();
        prop_assert!(got == expected, "{} of {} bytes, or in another order", got.len(), expected.len());
    }
}

#[tokio::test]
async fn output_waits_for_a_late_reader_and_the_end_is_final() {
    let (_, mut stdout, streams) = process();
    stdout.write_all(b"last words").unwrap();
    drop(stdout);
    let (_exit, exited) = watch::channel(Some(()));
    assert_eq!(streams.stdout.read(100, &exited, QUIET).await.unwrap(), b"last words");
    for _ in 0..3 {
        assert_eq!(streams.stdout.read(100, &exited, QUIET).await.unwrap(), b"");
    }
    assert_eq!(streams.stderr.read(100, &exited, QUIET).await.unwrap(), b"");
}

#[tokio::test]
async fn concurrent_readers_share_the_bytes_and_both_see_the_end() {
    let (_, mut stdout, streams) = process();
    let sent = numbered(1_000_000);
    let expected = sent.clone();
    let writer = thread::spawn(move || sent.chunks(4096).for_each(|chunk| stdout.write_all(chunk).unwrap()));
    let (_exit, exited) = watch::channel(None::<()>);
    let (one, other) = tokio::join!(
        read_to_end(&streams.stdout, 1000, &exited),
        read_to_end(&streams.stdout, 3000, &exited)
    );
    writer.join().unwrap();
    let count = |bytes: &[u8]| {
        bytes.iter().fold([0u32; 256], |mut counts, b| {
            counts[usize::from(*b)] += 1;
            counts
        })
    };
    assert_eq!(count(&[one, other].concat()), count(&expected));
}

#[tokio::test]
async fn a_silent_holder_ends_the_stream_only_after_the_exit() {
    let (_, mut background, streams) = process();
    let (exit, exited) = watch::channel(None::<()>);
    let waiting = tokio::time::timeout(QUIET * 3, streams.stdout.read(10, &exited, QUIET));
    assert!(waiting.await.is_err(), "ended although the process lives");

    exit.send(Some(())).unwrap();
    background.write_all(b"still here").unwrap();
    assert_eq!(read_to_end(&streams.stdout, 4, &exited).await, b"still here");

    background.write_all(b"too late").unwrap();
    assert_eq!(streams.stdout.read(10, &exited, QUIET).await.unwrap(), b"", "the end is final");
}

#[tokio::test]
async fn a_waiting_read_learns_of_the_exit_or_of_its_teller_going_away() {
    for tell in [true, false] {
        let (_stdin, _holder, streams) = process();
        let (exit, exited) = watch::channel(None::<()>);
        let mut read = pin!(streams.stdout.read(10, &exited, QUIET));
        assert!(poll_times(&mut read, 3).await.is_none());
        if tell {
            exit.send(Some(())).unwrap();
        }
        drop(exit);
        assert_eq!(read.await.unwrap(), b"");
    }
}

#[tokio::test]
async fn the_length_asked_for_is_a_limit_and_no_allocation() {
    let (_, mut stdout, streams) = process();
    let (_exit, exited) = watch::channel(None::<()>);
    stdout.write_all(b"0123456789").unwrap();
    let zero = streams.stdout.read(0, &exited, QUIET).await;
    assert!(matches!(zero, Err(StdioError::ZeroLength)), "{zero:?}");
    assert_eq!(streams.stdout.read(3, &exited, QUIET).await.unwrap(), b"012");
    let rest = streams.stdout.read(u32::MAX, &exited, QUIET).await.unwrap();
    assert_eq!(rest, b"3456789");
    assert!(rest.capacity() <= 4096, "{} bytes allocated for {}", rest.capacity(), rest.len());
}

#[tokio::test]
async fn a_big_reader_gets_a_big_pipe_and_one_big_answer() {
    let (_, mut stdout, streams) = process();
    let (_exit, exited) = watch::channel(None::<()>);
    stdout.write_all(b"x").unwrap();
    assert_eq!(streams.stdout.read(1 << 20, &exited, QUIET).await.unwrap(), b"x");
    let size = fcntl(&stdout, FcntlArg::F_GETPIPE_SZ).unwrap();
    assert_eq!(size, 1 << 20);
    let sent = numbered(1 << 20);
    stdout.write_all(&sent).unwrap();
    assert!(streams.stdout.read(1 << 20, &exited, QUIET).await.unwrap() == sent);
}

#[tokio::test]
async fn a_pipe_that_fills_up_grows_and_one_that_does_not_stays() {
    let (_, mut stdout, streams) = process();
    let (_exit, exited) = watch::channel(None::<()>);
    let size = |stdout: &std::fs::File| fcntl(stdout, FcntlArg::F_GETPIPE_SZ).unwrap();
    for _ in 0..50 {
        stdout.write_all(&numbered(20_000)).unwrap();
        assert_eq!(streams.stdout.read(32 << 10, &exited, QUIET).await.unwrap().len(), 20_000);
    }
    assert_eq!(size(&stdout), 64 << 10);
    let sent = numbered(64 << 10);
    stdout.write_all(&sent).unwrap();
    assert!(streams.stdout.read(64 << 10, &exited, QUIET).await.unwrap() == sent);
    assert_eq!(size(&stdout), 256 << 10);
}

#[test]
fn pipes_take_a_size_hint_and_only_the_servers_ends_do_not_block() {
    let (ends, streams) = Streams::pipes(Some(256 << 10)).unwrap();
    assert_eq!(fcntl(&ends.stdout, FcntlArg::F_GETPIPE_SZ).unwrap(), 256 << 10);
    let ours = streams.fds();
    assert_eq!(
        ours.iter().map(|(name, _)| name.to_string()).collect::<Vec<_>>(),
        ["stdin", "stdout", "stderr"]
    );
    let children = [&ends.stdin, &ends.stdout, &ends.stderr];
    let expected = ours.iter().map(|(_, fd)| (&**fd, true)).chain(children.map(|fd| (fd, false)));
    for (fd, non_blocking) in expected {
        let flags = fcntl(fd, FcntlArg::F_GETFL).unwrap();
        assert_eq!(flags & OFlag::O_NONBLOCK.bits() != 0, non_blocking);
        assert_eq!(fcntl(fd, FcntlArg::F_GETFD).unwrap(), 1, "close-on-exec");
    }
}

#[tokio::test]
async fn a_terminal_ends_when_the_process_has_exited_and_all_was_read() {
    let (mut slave, streams) = terminal();
    let (exit, exited) = watch::channel(None::<()>);
    slave.write_all(b"bye").unwrap();
    drop(slave);
    assert_eq!(streams.stdout.read(10, &exited, QUIET).await.unwrap(), b"bye");
    exit.send(Some(())).unwrap();
    assert_eq!(streams.stdout.read(10, &exited, QUIET).await.unwrap(), b"");
    assert_eq!(streams.stderr.read(10, &exited, QUIET).await.unwrap(), b"");
}

#[tokio::test]
async fn a_terminal_that_is_closed_and_reopened_goes_on() {
    let (slave, streams) = terminal();
    let path = nix::unistd::ttyname(&slave).unwrap();
    let (exit, exited) = watch::channel(None::<()>);
    let mut read = pin!(streams.stdout.read(10, &exited, QUIET));
    assert!(poll_times(&mut read, 3).await.is_none());
    drop(slave);
    assert!(poll_times(&mut read, 50).await.is_none(), "ended although the process lives");

    let mut slave = OpenOptions::new().read(true).write(true).open(path).unwrap();
    slave.write_all(b"back").unwrap();
    assert_eq!(read.await.unwrap(), b"back");
    let mut read = pin!(streams.stdout.read(10, &exited, QUIET));
    assert!(poll_times(&mut read, 50).await.is_none());
    slave.write_all(b"again").unwrap();
    assert_eq!(read.await.unwrap(), b"again");
    drop(slave);
    exit.send(Some(())).unwrap();
    assert_eq!(streams.stdout.read(10, &exited, QUIET).await.unwrap(), b"");
}

#[tokio::test]
async fn a_terminal_takes_input_and_is_not_closed_by_the_host() {
    let (mut slave, streams) = terminal();
    assert_eq!(streams.stdin.write(Vec::new()).await.unwrap(), 0);
    streams.stdin.close();
    assert_eq!(streams.stdin.write(b"hello".to_vec()).await.unwrap(), 5);
    let mut got = [0; 5];
    slave.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"hello");
}

#[tokio::test]
async fn a_terminal_passes_more_than_it_holds_both_ways() {
    let (mut slave, streams) = terminal();
    let sent = numbered(300_000);
    let expected = sent.clone();
    let echo = thread::spawn(move || {
        let (mut got, mut buffer) = (0, [0; 1000]);
        while got < 300_000 {
            let n = slave.read(&mut buffer).unwrap();
            slave.write_all(&buffer[..n]).unwrap();
            got += n;
        }
    });
    let (exit, exited) = watch::channel(None::<()>);
    let read = async {
        let mut got = Vec::new();
        while got.len() < expected.len() {
            got.extend(streams.stdout.read(8192, &exited, QUIET).await.unwrap());
        }
        got
    };
    let (written, got) = tokio::join!(streams.stdin.write(sent), read);
    assert_eq!(written.unwrap(), 300_000);
    assert!(got == expected);
    echo.join().unwrap();
    exit.send(Some(())).unwrap();
    assert_eq!(streams.stdout.read(10, &exited, QUIET).await.unwrap(), b"");
}

#[test]
fn windows_are_resized_within_what_the_kernel_can_hold() {
    let (slave, streams) = terminal();
    streams.resize(24, 80).unwrap();
    assert_eq!(sys::window_size(&slave), (24, 80));
    streams.resize(70_000, u32::MAX).unwrap();
    assert_eq!(sys::window_size(&slave), (u16::MAX, u16::MAX));
    let (_, _, pipes) = process();
    assert!(matches!(pipes.resize(24, 80), Err(StdioError::NotATerminal)));
}

#[tokio::test]
async fn writes_are_whole_and_in_order_though_their_callers_go_away() {
    let (mut stdin, _stdout, streams) = process();
    let blocks: Vec<Vec<u8>> = (0u8..4).map(|n| vec![n; 300_000]).collect();
    // The first is under way, the second accepted, the third still waits its turn when it is dropped.
    for (block, polls) in blocks.iter().zip([5, 3, 3]) {
        assert!(poll_times(streams.stdin.write(block.clone()), polls).await.is_none());
    }
    let reader = thread::spawn(move || {
        let mut all = Vec::new();
        stdin.read_to_end(&mut all).map(|_| all).unwrap()
    });
    assert_eq!(streams.stdin.write(blocks[3].clone()).await.unwrap(), 300_000);
    assert_eq!(streams.stdin.write(Vec::new()).await.unwrap(), 0);
    let got = tokio::task::spawn_blocking(|| reader.join().unwrap()).await.unwrap();
    assert!(got == [&*blocks[0], &blocks[1], &blocks[3]].concat(), "{} bytes", got.len());
}

#[tokio::test]
async fn more_than_some_mebibytes_do_not_wait_for_a_process_to_read() {
    let (mut stdin, _stdout, streams) = process();
    let mut waiting: Vec<_> = (0..20).map(|_| Box::pin(streams.stdin.write(vec![1; 4 << 20]))).collect();
    let mut refused = 0;
    for write in &mut waiting {
        match poll_times(write, 3).await {
            Some(Err(StdioError::Full { .. })) => refused += 1,
            Some(other) => panic!("{other:?}"),
            None => {}
        }
    }
    assert_eq!(refused, 16, "of twenty writes of 4 MiB each");
    waiting.truncate(4);
    // Who is too many now may come again.
    let reader = thread::spawn(move || std::io::copy(&mut stdin, &mut std::io::sink()).unwrap());
    for write in waiting {
        assert_eq!(write.await.unwrap(), 4 << 20);
    }
    assert_eq!(streams.stdin.write(vec![1; 1000]).await.unwrap(), 1000);
    streams.stdin.close();
    let read = tokio::task::spawn_blocking(|| reader.join().unwrap()).await.unwrap();
    assert_eq!(read, (16 << 20) + 1000);
}

#[tokio::test]
async fn close_comes_after_what_was_written_and_is_final() {
    let (mut stdin, _stdout, streams) = process();
    assert!(poll_times(streams.stdin.write(numbered(200_000)), 3).await.is_none());
    streams.stdin.close();
    streams.stdin.close();
    let late = streams.stdin.write(b"late".to_vec()).await;
    assert!(matches!(late, Err(StdioError::Closed { stream: StreamName::Stdin })), "{late:?}");
    let reader = thread::spawn(move || {
        let mut all = Vec::new();
        stdin.read_to_end(&mut all).map(|_| all).unwrap()
    });
    let got = tokio::task::spawn_blocking(|| reader.join().unwrap()).await.unwrap();
    assert!(got == numbered(200_000), "{} bytes", got.len());
}

#[tokio::test]
async fn a_stdin_that_was_never_written_closes_at_once() {
    let (mut stdin, _stdout, streams) = process();
    streams.stdin.close();
    assert_eq!(stdin.read(&mut [0; 10]).unwrap(), 0);
}

#[tokio::test]
async fn a_process_that_reads_no_more_is_a_typed_error() {
    let (stdin, _stdout, streams) = process();
    let mut stuck = pin!(streams.stdin.write(vec![0; 200_000]));
    assert!(poll_times(&mut stuck, 5).await.is_none());
    drop(stdin);
    for result in [stuck.await, streams.stdin.write(b"more".to_vec()).await] {
        assert!(matches!(result, Err(StdioError::Closed { .. })), "{result:?}");
    }
}

#[tokio::test]
async fn a_stuck_write_does_not_hold_up_a_read_and_ends_when_abandoned() {
    let (mut stdin, mut stdout, streams) = process();
    let (_exit, exited) = watch::channel(None::<()>);
    assert!(poll_times(streams.stdin.write(vec![7; 200_000]), 5).await.is_none());
    stdout.write_all(b"alive").unwrap();
    assert_eq!(streams.stdout.read(10, &exited, QUIET).await.unwrap(), b"alive");

    let mut waiting = pin!(streams.stdin.write(b"never".to_vec()));
    assert!(poll_times(&mut waiting, 3).await.is_none());
    streams.stdin.abandon();
    let ended = waiting.await;
    assert!(matches!(ended, Err(StdioError::Closed { .. })), "{ended:?}");
    let reader = thread::spawn(move || stdin.read_to_end(&mut Vec::new()).unwrap());
    let got = tokio::task::spawn_blocking(|| reader.join().unwrap()).await.unwrap();
    assert!(got < 200_000, "the write went on");
}

#[tokio::test]
async fn a_terminal_nobody_reads_lets_its_writer_go_when_abandoned() {
    let (slave, streams) = terminal();
    let mut stuck = pin!(streams.stdin.write(vec![7; 200_000]));
    assert!(poll_times(&mut stuck, 10).await.is_none());
    drop(slave);
    assert!(poll_times(&mut stuck, 10).await.is_none());
    streams.stdin.abandon();
    let ended = stuck.await;
    assert!(matches!(ended, Err(StdioError::Closed { stream: StreamName::Terminal })), "{ended:?}");
}

#[tokio::test]
async fn another_server_takes_over_without_loss() {
    let (mut stdin, mut stdout, first) = process();
    let (_exit, exited) = watch::channel(None::<()>);
    first.stdin.write(b"one,".to_vec()).await.unwrap();
    stdout.write_all(b"abcdef").unwrap();
    assert_eq!(first.stdout.read(3, &exited, QUIET).await.unwrap(), b"abc");
    let held: Vec<_> = first.fds().into_iter().map(|(name, fd)| (name, fd.try_clone().unwrap())).collect();
    drop(first);
    let second = Streams::from_fds(held).unwrap();
    stdout.write_all(b"ghi").unwrap();
    drop(stdout);
    assert_eq!(read_to_end(&second.stdout, 100, &exited).await, b"defghi");
    second.stdin.write(b"two".to_vec()).await.unwrap();
    second.stdin.close();
    tokio::task::yield_now().await;
    let mut got = String::new();
    stdin.read_to_string(&mut got).unwrap();
    assert_eq!(got, "one,two");
    assert_eq!(
        second.fds().iter().map(|(name, _)| *name).collect::<Vec<_>>(),
        [StreamName::Stdout, StreamName::Stderr]
    );

    let none = Streams::from_fds([]).unwrap();
    assert!(matches!(none.stdin.write(b"x".to_vec()).await, Err(StdioError::Closed { .. })));
    assert_eq!(none.stdout.read(10, &exited, QUIET).await.unwrap(), b"");
}
