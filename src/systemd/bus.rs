//! A connection to systemd's own socket, which speaks D-Bus without a bus and lets only root in.
//!
//! Blocks, with a limit on each read and write. One call at a time; signals in between are looked at for the end of a
//! job and else passed over.

use std::collections::HashMap;
use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use super::SystemdError;
use super::wire::{self, Call, FIXED, Malformed, Message, Reader, Writer};

const PATH: &str = "/org/freedesktop/systemd1";
const SERVICE: &str = "org.freedesktop.systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";

/// How long an answer, or the end of a job, may take.
const LIMIT: Duration = Duration::from_secs(30);
/// More than any message of interest has.
const MAX_MESSAGE: usize = 1 << 20;
/// More than a line of the greeting has.
const MAX_LINE: usize = 512;

/// See the module.
#[derive(Debug)]
pub(super) struct Bus {
    stream: UnixStream,
    serial: u32,
    /// Jobs that have ended, by their path, and how.
    ended: HashMap<String, String>,
}

impl Bus {
    pub(super) fn connect(socket: &Path) -> Result<Self, SystemdError> {
        let failed = |source| SystemdError::Socket { path: socket.to_owned(), source };
        let stream = UnixStream::connect(socket).map_err(failed)?;
        Self::over(stream).map_err(failed)
    }

    /// Says who we are, and that no more is to be said ("Authentication Protocol", EXTERNAL). In one piece, as systemd's
    /// own programs do: what comes together with `BEGIN` is read with it, and if that is a whole call, systemd does not
    /// look at it before more comes.
    pub(super) fn over(stream: UnixStream) -> io::Result<Self> {
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        let mut bus = Self { stream, serial: 0, ended: HashMap::new() };
        let user: String =
            nix::unistd::geteuid().to_string().bytes().map(|digit| format!("{digit:02x}")).collect();
        bus.stream.write_all(format!("\0AUTH EXTERNAL {user}\r\nBEGIN\r\n").as_bytes())?;
        let answer = bus.line()?;
        if !answer.starts_with("OK ") {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, answer));
        }
        Ok(bus)
    }

    /// A byte at a time: what is behind the line is not ours to take.
    fn line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            if line.len() == MAX_LINE {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let mut byte = [0];
            self.stream.read_exact(&mut byte)?;
            line.extend(byte);
        }
        Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
    }

    /// Calls a method of the manager; returns the body of the answer.
    pub(super) fn call(
        &mut self,
        member: &'static str,
        signature: &str,
        body: Writer,
    ) -> Result<Vec<u8>, SystemdError> {
        self.serial = self.serial.wrapping_add(1);
        let call = Call { path: PATH, destination: SERVICE, interface: MANAGER, member, signature, body };
        let failed = |source| SystemdError::Call { member, source };
        self.stream.write_all(&call.encode(self.serial)).map_err(failed)?;
        let begun = Instant::now();
        loop {
            let message = self.receive().map_err(failed)?;
            match message.kind {
                wire::METHOD_RETURN if message.reply_to == self.serial => return Ok(message.body),
                wire::ERROR if message.reply_to == self.serial => {
                    let text = Reader::new(&message.body).string().unwrap_or_default();
                    return Err(SystemdError::Refused { member, name: message.error, text });
                }
                _ => self.note(&message),
            }
            if begun.elapsed() > LIMIT {
                return Err(failed(io::ErrorKind::TimedOut.into()));
            }
        }
    }

    /// Calls a method that begins a job, and waits for the job's end.
    pub(super) fn job(
        &mut self,
        member: &'static str,
        signature: &str,
        body: Writer,
    ) -> Result<(), SystemdError> {
        let answer = self.call(member, signature, body)?;
        let failed = |source| SystemdError::Call { member, source };
        let job = Reader::new(&answer).string().map_err(|Malformed| failed(malformed()))?;
        let begun = Instant::now();
        let result = loop {
            if let Some(result) = self.ended.remove(&job) {
                break result;
            }
            if begun.elapsed() > LIMIT {
                return Err(failed(io::ErrorKind::TimedOut.into()));
            }
            let message = self.receive().map_err(failed)?;
            self.note(&message);
        };
        if result == "done" { Ok(()) } else { Err(SystemdError::Job { member, result }) }
    }

    fn note(&mut self, message: &Message) {
        if message.kind != wire::SIGNAL || message.member != "JobRemoved" {
            return;
        }
        // Number, path, unit and result.
        let mut reader = Reader::new(&message.body);
        if let (Ok(_), Ok(job), Ok(_), Ok(result)) =
            (reader.u32(), reader.string(), reader.string(), reader.string())
        {
            self.ended.insert(job, result);
        }
    }

    fn receive(&mut self) -> io::Result<Message> {
        let mut fixed = [0; FIXED];
        self.stream.read_exact(&mut fixed)?;
        let rest = wire::rest(&fixed).map_err(|Malformed| malformed())?;
        if rest > MAX_MESSAGE {
            return Err(malformed());
        }
        let mut bytes = vec![0; FIXED.saturating_add(rest)];
        let (head, tail) = bytes.split_at_mut(FIXED);
        head.copy_from_slice(&fixed);
        self.stream.read_exact(tail)?;
        wire::decode(&bytes).map_err(|Malformed| malformed())
    }
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "a message that makes no sense")
}
