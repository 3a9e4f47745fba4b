//! The client against a systemd that is played by a thread.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;

use super::bus::Bus;
use super::wire::{self, FIXED, Message, Reader, Writer};
use super::*;

/// A message of systemd's: kind, the call that it answers, a name in the header and the body.
fn message(kind: u8, reply_to: u32, name: (u8, &str), body: &[u8]) -> Vec<u8> {
    let mut header = Writer::default();
    header.byte(b'l').byte(kind).byte(1).byte(1).u32(u32::try_from(body.len()).unwrap()).u32(99);
    header.array(8, |fields| {
        fields.structure().byte(5).signature("u").u32(reply_to);
        fields.structure().byte(name.0).signature("s").string(name.1);
    });
    header.structure();
    let mut bytes = header.into_bytes();
    bytes.extend(body);
    bytes
}

fn body(write: impl FnOnce(&mut Writer)) -> Vec<u8> {
    let mut writer = Writer::default();
    write(&mut writer);
    writer.into_bytes()
}

fn job_removed(job: &str, result: &str) -> Vec<u8> {
    let body = body(|body| {
        body.u32(1).string(job).string("a.scope").string(result);
    });
    message(wire::SIGNAL, 0, (3, "JobRemoved"), &body)
}

/// Greets a client, and gives `answers` to its one call.
fn systemd(answers: Vec<Vec<u8>>) -> (Bus, JoinHandle<Message>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let thread = std::thread::spawn(move || {
        let mut stream = BufReader::new(theirs);
        let mut line = Vec::new();
        stream.read_until(b'\n', &mut line).unwrap();
        assert!(line.starts_with(b"\0AUTH EXTERNAL 3"), "{line:?}");
        line.clear();
        stream.read_until(b'\n', &mut line).unwrap();
        assert_eq!(line, b"BEGIN\r\n");
        // A call that was there already would be lost.
        assert!(stream.buffer().is_empty());
        stream.get_mut().write_all(b"OK 1234\r\n").unwrap();
        let mut bytes = vec![0; FIXED];
        stream.read_exact(&mut bytes).unwrap();
        let rest = wire::rest(bytes.first_chunk().unwrap()).unwrap();
        bytes.resize(FIXED + rest, 0);
        stream.read_exact(&mut bytes[FIXED..]).unwrap();
        for answer in answers {
            stream.get_mut().write_all(&answer).unwrap();
        }
        wire::decode(&bytes).unwrap()
    });
    (Bus::over(ours).unwrap(), thread)
}

fn answered(job: &str) -> Vec<u8> {
    let body = body(|body| {
        body.string(job);
    });
    message(wire::METHOD_RETURN, 1, (6, "us"), &body)
}

fn unit() -> Unit {
    Unit::parse("pods.slice:cri:a").unwrap().unwrap()
}

#[test]
fn a_start_waits_for_its_job() {
    let others = job_removed("/job/1", "failed");
    let answers = vec![others.clone(), answered("/job/2"), others, job_removed("/job/2", "done")];
    let (mut bus, thread) = systemd(answers);
    let limits = Limit::in_force(|file| (file == "pids.max").then(|| "7\n".to_owned()));
    unit().start_over(&mut bus, "container a", &[4711], &limits).unwrap();
    let call = thread.join().unwrap();
    assert_eq!(call.member, "StartTransientUnit");
    let mut reader = Reader::new(&call.body);
    assert_eq!((reader.string().unwrap(), reader.string().unwrap()), ("cri-a.scope".into(), "fail".into()));
    let text = String::from_utf8_lossy(&call.body).into_owned();
    for property in ["pods.slice", "Delegate", "PIDs", "TasksMax", "container a"] {
        assert!(text.contains(property), "{property}: {text:?}");
    }
    assert!(call.body.windows(4).any(|bytes| bytes == 4711_u32.to_le_bytes()));
}

#[test]
fn a_job_that_ends_before_its_answer_is_known_and_failures_are_told() {
    let (mut bus, thread) = systemd(vec![job_removed("/job/2", "timeout"), answered("/job/2")]);
    let error = unit().start_over(&mut bus, "", &[], &[]).unwrap_err().to_string();
    assert_eq!(error, "systemd's StartTransientUnit: the job ended as \"timeout\"");
    thread.join().unwrap();

    let words = body(|body| {
        body.string("no such slice");
    });
    let (mut bus, thread) = systemd(vec![message(wire::ERROR, 1, (4, "org.example.No"), &words)]);
    let error = unit().set_over(&mut bus, &[]).unwrap_err().to_string();
    assert_eq!(error, "systemd's SetUnitProperties: no such slice (org.example.No)");
    thread.join().unwrap();
}

#[test]
fn a_unit_that_is_gone_is_stopped() {
    let name = "org.freedesktop.systemd1.NoSuchUnit";
    let (mut bus, thread) = systemd(vec![message(wire::ERROR, 1, (4, name), &[])]);
    unit().stop_over(&mut bus).unwrap();
    assert_eq!(thread.join().unwrap().member, "StopUnit");
}

#[test]
fn a_systemd_that_hangs_up_is_an_error() {
    let (mut bus, thread) = systemd(Vec::new());
    let error = unit().stop_over(&mut bus).unwrap_err().to_string();
    assert!(error.starts_with("systemd's StopUnit: "), "{error}");
    thread.join().unwrap();
}
