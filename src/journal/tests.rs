//! What is left in the file when a process is killed between any two instructions. The process is this one: what it
//! had is forgotten, and the file opened anew.

use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use super::layout::{self, call_field, halves, head, line_field};
use super::*;

const REQUEST: &[u8] = b"a request";

fn request(stream: u32) -> Request<'static> {
    Request { stream, kind: 1, len: 9, bytes: REQUEST, is_receiving: false }
}

fn sockets() -> (UnixStream, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    theirs.set_nonblocking(true).unwrap();
    (ours, theirs)
}

/// The next server.
fn reopened(journal: &Arc<Journal>) -> Left {
    Journal::open(journal.duplicates().unwrap()).unwrap()
}

fn bytes(data: &Data) -> &[u8] {
    match data {
        Data::Chunk(chunk) => chunk.data(),
        Data::Passage(_) => panic!("not in the file"),
    }
}

/// Forgets what the process had, as one does that is killed.
fn forget<T>(what: T) {
    std::mem::forget(what);
}

fn received(line: &mut Line, socket: &UnixStream) -> Vec<u8> {
    while line.receive(socket.as_fd()).is_ok_and(|(count, _)| count > 0) {}
    line.waiting().to_vec()
}

#[test]
fn calls_are_found_again_with_their_requests_and_ended_ones_are_not() {
    let journal = Journal::create().unwrap();
    let line = Line::open(&journal).unwrap();
    let calls: Vec<Call> = [5, 1, 3].map(|stream| line.open_call(request(stream))).into();
    let mut calls = calls.into_iter();
    drop(calls.nth(2));
    let long = vec![7; 10_000];
    forget(line.open_call(Request { stream: 9, kind: 1, len: 10_000, bytes: &long, is_receiving: true }));
    forget(line.open_call(Request { stream: 7, ..request(7) }));
    let left = reopened(&journal);
    assert_eq!(left.lines.len(), 1);
    let found: Vec<(u32, u32, bool, usize)> = left.lines[0]
        .calls
        .iter()
        .map(|call| (call.stream, call.len, call.is_receiving, call.request.len()))
        .collect();
    let kept = layout::REQUEST_MAX;
    assert_eq!(found, [(7, 9, false, 9), (9, 10_000, true, kept)]);
    assert_eq!((left.panic, left.lines[0].calls[0].request.as_slice()), (None, REQUEST));
    forget(line);
}

/// The time that the one call there still has.
fn limit_of_the_call(journal: &Arc<Journal>) -> Option<Duration> {
    let left = reopened(journal);
    left.journal.is_taken_over();
    let [call] = left.lines[0].calls.as_slice() else { panic!("{} calls", left.lines[0].calls.len()) };
    let limit = call.limit;
    forget(left);
    limit
}

#[test]
fn a_call_has_its_own_time_and_not_that_of_one_before_it_in_the_same_place() {
    const HOUR: Duration = Duration::from_secs(3600);
    let journal = Journal::create().unwrap();
    let line = Line::open(&journal).unwrap();
    let first = line.open_call(request(1));
    first.limit(HOUR);
    let number = first.0.number;
    // What it is told later, a server that begins it again for one, takes nothing away and adds nothing.
    first.limit(HOUR * 9);
    let left = limit_of_the_call(&journal).unwrap();
    assert!(left > HOUR / 2 && left <= HOUR, "{left:?}");
    drop(first);
    let unlimited = line.open_call(request(3));
    assert_eq!(unlimited.0.number, number, "in the same place");
    assert_eq!(limit_of_the_call(&journal), None);
    drop(unlimited);
    let longer = line.open_call(request(5));
    longer.limit(HOUR * 5);
    let left = limit_of_the_call(&journal).unwrap();
    assert!(left > HOUR * 4 && left <= HOUR * 5, "{left:?}");
    drop(longer);
    let late = line.open_call(request(7));
    late.limit(Duration::ZERO);
    assert_eq!(limit_of_the_call(&journal), Some(Duration::ZERO), "its time is up");
    forget((late, line));
}

#[test]
fn bytes_that_the_kernel_has_put_there_are_known_before_they_are_noted() {
    let journal = Journal::create().unwrap();
    let (mut peer, socket) = sockets();
    let mut line = Line::open(&journal).unwrap();
    peer.write_all(b"first").unwrap();
    assert_eq!(received(&mut line, &socket), b"first");
    line.take(2);
    peer.write_all(b"second").unwrap();
    // Killed right behind the system call.
    let field = |field: usize| layout::line(0) + field;
    let at = field(line_field::AREA) + 5;
    journal.memory.receive(socket.as_fd(), field(line_field::AHEAD_MESSAGE), at, 100).unwrap();
    forget(line);
    let mut left = reopened(&journal);
    assert_eq!(left.lines[0].line.waiting(), b"rstsecond");
    // The same for a body.
    let line = &mut left.lines[0].line;
    line.take(9);
    line.begin_body(1000);
    peer.write_all(&[1; 300]).unwrap();
    let mut body = Vec::new();
    journal.memory.receive_into(socket.as_fd(), field(line_field::BODY_MESSAGE), &mut body, 1000).unwrap();
    assert_eq!(body, [1; 300]);
    forget(left);
    assert_eq!(reopened(&journal).lines[0].line.missing(), 700);
}

#[test]
fn a_body_that_had_just_begun_is_not_read_twice() {
    let journal = Journal::create().unwrap();
    let (mut peer, socket) = sockets();
    let mut line = Line::open(&journal).unwrap();
    peer.write_all(b"beginning").unwrap();
    assert_eq!(received(&mut line, &socket), b"beginning");
    // Killed between the two stores of begin_body.
    journal.memory.store(layout::line(0) + line_field::BODY, layout::pair(u32::MAX, 50));
    forget(line);
    let left = reopened(&journal);
    assert_eq!((left.lines[0].line.waiting(), left.lines[0].line.missing()), (b"".as_slice(), 50));
}

#[test]
fn the_area_is_filled_again_and_again_without_loss() {
    let journal = Journal::create().unwrap();
    let (mut peer, socket) = sockets();
    let mut line = Line::open(&journal).unwrap();
    let bytes: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    let (mut sent, mut seen) = (bytes.as_slice(), Vec::<u8>::new());
    let mut step = 1;
    while seen.len() < bytes.len() {
        let count = sent.len().min(step * 37);
        peer.write_all(&sent[..count]).unwrap();
        sent = &sent[count..];
        if line.has_room_for(step % 3000) {
            let _ = line.receive(socket.as_fd());
        }
        let taken = line.waiting().len().min(step % 2500 + 1);
        seen.extend(&line.waiting()[..taken]);
        line.take(taken);
        step += 1;
    }
    assert!(seen == bytes);
    line.take(0);
}

#[test]
fn an_answer_goes_on_where_the_kernel_has_stopped() {
    let journal = Journal::create().unwrap();
    let (mut peer, socket) = sockets();
    let line = Line::open(&journal).unwrap();
    let call = line.open_call(request(1));
    let bytes: Vec<u8> = (0..=250).cycle().take(2 << 20).collect();
    let answer = Answer::keep(&journal, bytes[..10].to_vec(), bytes[10..].to_vec());
    call.answered(&answer);
    let sender = line.sender();
    sender.begin(&call);
    assert!(!sender.send(socket.as_fd(), &answer, usize::MAX).unwrap());
    let mut seen = Vec::new();
    let read = |seen: &mut Vec<u8>, mut peer: &UnixStream| drop(peer.read_to_end(seen));
    read(&mut seen, &peer);
    // Another part, and killed right behind the system call.
    let (at, len) = answer.range().unwrap();
    let message = layout::line(0) + line_field::SENT_MESSAGE;
    let sent = sender.sent();
    journal.memory.send(socket.as_fd(), message, at + sent, len - sent).unwrap();
    assert!(sender.sent() > sent);
    forget((line, call, answer));
    for _ in 0..3 {
        read(&mut seen, &peer);
        let mut left = reopened(&journal);
        let line = left.lines.remove(0);
        let (call, answer) = line.sending.as_ref().unwrap();
        let _ = line.line.sender().send(socket.as_fd(), answer, usize::MAX);
        journal.is_taken_over();
        forget((call, &line.line));
        forget(line);
    }
    let mut left = reopened(&journal);
    let line = left.lines.remove(0);
    let (call, answer) = line.sending.unwrap();
    let sender = line.line.sender();
    loop {
        read(&mut seen, &peer);
        match sender.send(socket.as_fd(), &answer, usize::MAX) {
            Ok(true) => break,
            Ok(false) | Err(nix::errno::Errno::EAGAIN) => {}
            Err(errno) => panic!("{errno}"),
        }
    }
    read(&mut seen, &peer);
    assert!(seen == bytes, "{} of {}", seen.len(), bytes.len());
    // All is sent, and killed before that is noted.
    forget((call, answer, line.line));
    let left = reopened(&journal);
    assert!(left.lines[0].sending.is_none() && left.lines[0].calls.is_empty());
    let _ = peer.write_all(b"");
}

#[test]
fn a_call_that_had_just_ended_is_not_taken_for_the_next_of_its_number() {
    let journal = Journal::create().unwrap();
    let line = Line::open(&journal).unwrap();
    let call = line.open_call(request(1));
    line.sender().begin(&call);
    // Killed between the two stores of `end`.
    call.0.close();
    forget((call, line));
    let left = reopened(&journal);
    assert!(left.lines[0].sending.is_none() && left.lines[0].calls.is_empty());
    forget(left.lines[0].line.open_call(request(3)));
    forget(left);
    let left = reopened(&journal);
    assert_eq!((left.lines.len(), left.lines[0].calls[0].stream), (1, 3));
}

#[test]
fn what_was_taken_from_a_pipe_is_its_calls() {
    let journal = Journal::create().unwrap();
    let line = Line::open(&journal).unwrap();
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_NONBLOCK).unwrap();
    for (stream, limit) in [(1, 100), (3, 1 << 20)] {
        nix::unistd::write(&writer, b"bytes").unwrap();
        let call = line.open_call(request(stream));
        let mut taken = Box::pin(call.run(async {
            let mut chunk = chunk_of_current_call(limit).unwrap();
            chunk.fill(reader.as_fd(), limit).unwrap();
            forget(chunk);
            std::future::pending::<()>().await;
        }));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(taken.as_mut().poll(&mut context).is_pending());
        forget(taken);
        forget(call);
    }
    // One that found nothing.
    forget(line.open_call(request(5)));
    assert!(chunk_of_current_call(1).is_none(), "no call is worked at");
    let mut left = reopened(&journal);
    let calls = &mut left.lines[0].calls;
    let data: Vec<Option<&[u8]>> = calls.iter().map(|call| call.data.as_ref().map(bytes)).collect();
    assert_eq!(data, [Some(b"bytes".as_slice()), Some(b"bytes"), None]);
    assert_eq!(calls[0].strikes, 0);
    forget(line);
    let answer = calls[0].data.take().unwrap().into_answer(b"head:").unwrap();
    calls[0].call.answered(&answer);
    forget((answer, left));
    let mut left = reopened(&journal);
    let answer = left.lines[0].calls[0].answer.take().unwrap();
    let (at, len) = answer.range().unwrap();
    assert_eq!(journal.memory.bytes(at, len), b"head:bytes");
}

#[test]
fn a_panic_is_told_with_its_call() {
    let journal = Journal::create().unwrap();
    let line = Line::open(&journal).unwrap();
    forget(line.open_call(request(1)));
    let call = line.open_call(request(3));
    let mut body = Box::pin(call.run(async {
        // What the hook does.
        journal.note_panic(call::current_number(), "panicked at here:\n too bad");
        // And so is the process that is killed at that moment.
        panic!("not caught by an agent");
    }));
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    let current = journal.memory.load(head::CURRENT);
    let caught = catch_unwind(AssertUnwindSafe(|| body.as_mut().poll(&mut context)));
    assert!(caught.is_err() && current == 0);
    forget(body);
    forget(line);
    let left = reopened(&journal);
    let calls: Vec<(u32, bool)> =
        left.lines[0].calls.iter().map(|call| (call.stream, call.has_panicked)).collect();
    assert_eq!(
        (calls.as_slice(), left.panic.as_deref()),
        ([(1, false), (3, true)].as_slice(), Some("panicked at here: too bad"))
    );
    forget(left);
    assert_eq!(reopened(&journal).panic, None, "it is told once");
}

#[test]
fn who_dies_at_a_call_is_counted() {
    let journal = Journal::create().unwrap();
    let line = Line::open(&journal).unwrap();
    forget(line.open_call(request(1)));
    forget(line.open_call(request(3)));
    forget(line);
    for strikes in 1..=3 {
        // As it is while the second one is polled.
        journal.memory.store(head::CURRENT, layout::reference(Some(1)));
        let left = reopened(&journal);
        left.journal.is_taken_over();
        let calls = &left.lines[0].calls;
        calls[1].call.begun_again();
        assert_eq!((calls[0].strikes, calls[1].strikes, calls[1].runs), (0, strikes, strikes - 1));
        forget(left);
    }
}

#[test]
fn a_line_with_a_call_that_is_not_there_is_closed() {
    let journal = Journal::create().unwrap();
    let line = Line::open(&journal).unwrap();
    let whole = Line::open(&journal).unwrap();
    let call = line.open_call(request(1));
    call.answered(&Answer::Own(vec![1], vec![2]));
    let numbers = |left: &Left| left.lines.iter().map(|left| left.line.number()).collect::<Vec<_>>();
    let left = reopened(&journal);
    assert_eq!(numbers(&left), [whole.number()]);
    forget(left);
    drop(call);
    // The record that was dropped is free for another line; nothing is left of the first.
    forget((line, whole));
}

#[test]
fn a_full_journal_keeps_no_call_from_being_served() {
    let journal = Journal::create().unwrap();
    let lines: Vec<Line> = (0..layout::LINES + 1).map(|_| Line::open(&journal).unwrap()).collect();
    assert!(!Arc::ptr_eq(lines.last().unwrap().journal(), &journal), "it has one of its own");
    let calls: Vec<Call> =
        (1..).step_by(2).take(layout::CALLS + 1).map(|stream| lines[0].open_call(request(stream))).collect();
    assert!(!lines[0].is_whole());
    drop(calls);
    assert!(lines[0].is_whole());
    let answers: Vec<Answer> =
        (0..=layout::LARGE_CHUNKS).map(|_| Answer::keep(&journal, vec![1], vec![2; 5000])).collect();
    assert!(matches!(answers.last(), Some(Answer::Own(..))));
    drop(answers);
    assert!(matches!(Answer::keep(&journal, vec![1], vec![2; 4 << 20]), Answer::Kept { .. }));
}

#[test]
fn memory_is_given_back_and_what_is_used_stays() {
    let journal = Journal::create().unwrap();
    let size = || nix::sys::stat::fstat(journal.file()).unwrap().st_blocks * 512;
    let line = Line::open(&journal).unwrap();
    let call = line.open_call(request(1));
    let stays = Answer::keep(&journal, b"stays".to_vec(), vec![3; 100]);
    call.answered(&stays);
    let before = size();
    drop(Answer::keep(&journal, vec![1], vec![2; 3 << 20]));
    assert!(size() > before + (3 << 20) - 1);
    journal.trim();
    // But for the page in which it was noted.
    assert!(size() <= before + 4096, "{} after {before}", size());
    let (at, _) = stays.range().unwrap();
    assert_eq!(journal.memory.bytes(at, 5), b"stays");
    assert_ne!(journal.memory.load(layout::call(0) + call_field::STATE), 0);
    assert_eq!(halves(journal.memory.load(layout::call(0) + call_field::HEADER)), (1, 9));
}

#[test]
fn what_is_no_journal_or_ends_each_server_is_refused() {
    let empty = nix::sys::memfd::memfd_create("empty", nix::sys::memfd::MFdFlags::empty()).unwrap();
    assert!(Journal::open(vec![empty]).is_err());
    let journal = Journal::create().unwrap();
    for _ in 0..3 {
        forget(reopened(&journal));
    }
    assert!(Journal::open(journal.duplicates().unwrap()).is_err());
    journal.is_taken_over();
    forget(reopened(&journal));
}

proptest::proptest! {
    /// Whatever is in the records, reading them ends, and what is found can be used.
    #[test]
    fn no_words_are_too_odd(words in proptest::collection::vec(proptest::prelude::any::<u64>(), 40)) {
        let journal = Journal::create().unwrap();
        let memory = &journal.memory;
        memory.store(head::LINES_END, 2);
        memory.store(head::CALLS_END, 3);
        let places = (0..32).map(|word| layout::line(0) + 8 * word)
            .chain((0..5).map(|word| layout::call(0) + 8 * word))
            .chain([head::CURRENT, head::PANICKED, head::TEXT_LEN]);
        for (place, word) in places.zip(&words) {
            memory.store(place, *word);
        }
        memory.store(layout::line(0), 1);
        let state = memory.load(layout::call(0)) & 0xffff_ffff_ff00 | 1;
        memory.store(layout::call(0), state);
        let left = reopened(&journal);
        for left in &left.lines {
            let _ = (left.line.waiting().len(), left.line.missing());
        }
    }
}

/// What the next server would find that is left of the only call's write.
fn rest_of(journal: &Arc<Journal>) -> Option<Vec<u8>> {
    let left = reopened(journal);
    left.journal.is_taken_over();
    let rest = left.lines[0].calls[0].rest.as_ref().map(|rest| rest.data().to_vec());
    forget(left);
    rest
}

#[tokio::test]
async fn what_a_process_has_not_read_is_found_again_unless_it_is_being_written() {
    let journal = Journal::create().unwrap();
    let line = Line::open(&journal).unwrap();
    let call = line.open_call(request(1));
    let keeper = call.run(async { Keeper::of_current_call() }).await;
    assert!(!keeper.is_again());
    call.begun_again();
    assert!(keeper.is_again());
    assert_eq!(rest_of(&journal), None);
    let data: Vec<u8> = (0..=250).cycle().take(10_000).collect();
    let mut rest = keeper.keep(&data).unwrap();
    assert_eq!(rest_of(&journal).as_deref(), Some(&data[..]));
    let during = |result| {
        assert_eq!(rest_of(&journal), None);
        result
    };
    assert_eq!(rest.advance(|_| during(Ok(3000))).unwrap(), 3000);
    rest.advance(|_| during(Err(std::io::ErrorKind::WouldBlock.into()))).unwrap_err();
    assert_eq!((rest.data(), rest_of(&journal).as_deref()), (&data[3000..], Some(&data[3000..])));
    drop(rest);
    assert_eq!(rest_of(&journal), None, "it is written, or given up");
    // Who is gone has nothing kept, and another may have the call's place.
    let mut rest = keeper.keep(&data).unwrap();
    drop(call);
    let other = line.open_call(request(3));
    rest.advance(|_| Ok(1)).unwrap();
    assert!(rest_of(&journal).is_none() && keeper.keep(&data).is_none());
    drop(other);
}

#[tokio::test]
async fn what_processes_do_not_read_leaves_room_for_answers() {
    let journal = Journal::create().unwrap();
    let line = Line::open(&journal).unwrap();
    let call = line.open_call(request(1));
    let keeper = call.run(async { Keeper::of_current_call() }).await;
    let keep = |len: usize| keeper.keep(&vec![1; len]);
    let mut rests: Vec<Rest> = std::iter::from_fn(|| keep(5000)).take(layout::LARGE_CHUNKS).collect();
    assert_eq!(rests.len(), layout::LARGE_RESTS);
    assert!(matches!(Answer::keep(&journal, vec![1], vec![2; 5000]), Answer::Kept { .. }));
    assert!(keep(100).is_some(), "a short one takes no large chunk");
    rests.pop();
    assert!(keep(4 << 20).is_some(), "one has been read");
}
