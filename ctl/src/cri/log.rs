//! A container's output as CRI keeps it: `<RFC3339Nano> <stdout|stderr> <P|F> <line>`.
//!
//! A line that is longer than [`LINE_LIMIT`] comes in parts that are tagged `P`; its last part, and every other line,
//! is `F`. What a stream has written after its last line's end is a line too once the stream has ended.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use crate::stdio::Output;
use crate::time::rfc3339;

/// The longest part of a line that is written as one: containerd's `max_container_log_line_size`.
pub const LINE_LIMIT: usize = 16 << 10;

/// Writes the lines of one stream; its clones for other streams share the file.
#[derive(Debug)]
pub struct LogStream<W: Write> {
    file: Arc<Mutex<W>>,
    name: &'static str,
    pending: Vec<u8>,
}

impl<W: Write> LogStream<W> {
    /// A stream of a log.
    pub fn new(file: Arc<Mutex<W>>, output: Output) -> Self {
        let name = if output == Output::Stdout { "stdout" } else { "stderr" };
        Self { file, name, pending: Vec::new() }
    }

    /// Takes the next bytes of the stream, all of them: a line that can't be written is lost, and the others are not.
    ///
    /// # Errors
    ///
    /// The file can't be written: the first reason.
    pub fn take(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        let mut written = Ok(());
        while !bytes.is_empty() {
            let room = LINE_LIMIT.saturating_sub(self.pending.len());
            let end = bytes.iter().take(room.saturating_add(1)).position(|&byte| byte == b'\n');
            match end {
                Some(end) => {
                    let (line, rest) = bytes.split_at_checked(end).unwrap_or((bytes, &[]));
                    self.pending.extend_from_slice(line);
                    written = written.and(self.write("F"));
                    bytes = rest.get(1..).unwrap_or_default();
                }
                None => {
                    let (part, rest) = bytes.split_at_checked(room).unwrap_or((bytes, &[]));
                    self.pending.extend_from_slice(part);
                    bytes = rest;
                    // Only what has more behind it is a part.
                    if self.pending.len() >= LINE_LIMIT && !bytes.is_empty() {
                        written = written.and(self.write("P"));
                    }
                }
            }
        }
        written
    }

    /// The stream has ended.
    ///
    /// # Errors
    ///
    /// The file can't be written.
    pub fn end(&mut self) -> io::Result<()> {
        if self.pending.is_empty() { Ok(()) } else { self.write("F") }
    }

    fn write(&mut self, tag: &str) -> io::Result<()> {
        let mut line = format!("{} {} {tag} ", rfc3339(SystemTime::now()), self.name).into_bytes();
        line.append(&mut self.pending);
        line.push(b'\n');
        // One write, so that the lines of two streams never mix.
        self.file.lock().unwrap_or_else(PoisonError::into_inner).write_all(&line)
    }
}

impl<W: Write> Drop for LogStream<W> {
    fn drop(&mut self) {
        if !self.pending.is_empty() {
            let _ = self.write("P");
        }
    }
}

/// An entry of a log.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Entry<'a> {
    /// When, as in the log.
    pub time: &'a [u8],
    /// Which stream.
    pub output: Output,
    /// The line goes on in the stream's next entry.
    pub partial: bool,
    /// The line or its part.
    pub text: &'a [u8],
}

/// Reads a line of a log, without its end; None if it is none.
pub fn parse(line: &[u8]) -> Option<Entry<'_>> {
    let mut parts = line.splitn(4, |&byte| byte == b' ');
    let time = parts.next()?;
    let output = match parts.next()? {
        b"stdout" => Output::Stdout,
        b"stderr" => Output::Stderr,
        _ => return None,
    };
    let tag = parts.next()?;
    Some(Entry { time, output, partial: tag.starts_with(b"P"), text: parts.next()? })
}

/// The entries of the `last` lines of a log, or of all, that begin at `since` or later. A line that came in parts is one
/// line, and is there as a whole or not at all.
pub fn select<'a>(log: &'a [u8], last: Option<usize>, since: &str) -> Vec<Entry<'a>> {
    let mut lines = 0_usize;
    // What the next entry of a stream goes on with: a line's number, or none if that is not wanted.
    let (mut stdout, mut stderr) = (None, None);
    let mut numbered = Vec::new();
    for entry in log.split(|&byte| byte == b'\n').filter_map(parse) {
        let goes_on = if entry.output == Output::Stdout { &mut stdout } else { &mut stderr };
        let line = goes_on.take().unwrap_or_else(|| {
            let wanted = entry.time >= since.as_bytes();
            lines = lines.saturating_add(usize::from(wanted));
            wanted.then_some(lines)
        });
        if entry.partial {
            *goes_on = Some(line);
        }
        numbered.push((line, entry));
    }
    let before = lines.saturating_sub(last.unwrap_or(lines));
    let wanted = |line: Option<usize>| line.is_some_and(|line| line > before);
    numbered.into_iter().filter(|(line, _)| wanted(*line)).map(|(_, entry)| entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn written(chunks: &[(Output, &[u8])]) -> Vec<u8> {
        let file = Arc::new(Mutex::new(Vec::new()));
        let mut streams = [Output::Stdout, Output::Stderr].map(|output| LogStream::new(file.clone(), output));
        for (output, bytes) in chunks {
            streams[usize::from(*output == Output::Stderr)].take(bytes).unwrap();
        }
        streams.iter_mut().for_each(|stream| stream.end().unwrap());
        drop(streams);
        Arc::into_inner(file).unwrap().into_inner().unwrap()
    }

    fn tags(log: &[u8]) -> Vec<String> {
        let lines = log.split_inclusive(|&byte| byte == b'\n');
        lines
            .map(|line| {
                let entry = parse(line.strip_suffix(b"\n").unwrap()).unwrap();
                let text = String::from_utf8_lossy(entry.text).into_owned();
                let text = if text.len() > 9 { text.len().to_string() } else { text };
                format!("{:?} {} {text}", entry.output, if entry.partial { "P" } else { "F" })
            })
            .collect()
    }

    #[test]
    fn lines_have_time_stream_and_tag() {
        let log = written(&[(Output::Stdout, b"a\nb"), (Output::Stderr, b"x\n\n"), (Output::Stdout, b"c")]);
        assert_eq!(tags(&log), ["Stdout F a", "Stderr F x", "Stderr F ", "Stdout F bc"]);
        let first = String::from_utf8(log).unwrap();
        let stamp = first.split(' ').next().unwrap();
        assert_eq!((stamp.len(), &stamp[10..11], &stamp[19..20], &stamp[29..]), (30, "T", ".", "Z"));
    }

    #[test]
    fn what_was_read_is_written_when_the_reader_gives_up() {
        let file = Arc::new(Mutex::new(Vec::new()));
        for (text, end) in [(&b"a\nb"[..], false), (b"c", true)] {
            let mut stream = LogStream::new(file.clone(), Output::Stdout);
            stream.take(text).unwrap();
            if end {
                stream.end().unwrap();
            }
        }
        let log = Arc::into_inner(file).unwrap().into_inner().unwrap();
        assert_eq!(tags(&log), ["Stdout F a", "Stdout P b", "Stdout F c"]);
    }

    /// A file on a disk that has no room for so many writes.
    struct Full {
        refuses: u32,
        text: Vec<u8>,
    }

    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            match self.refuses.checked_sub(1) {
                Some(left) => {
                    self.refuses = left;
                    Err(io::ErrorKind::StorageFull.into())
                }
                None => self.text.write(bytes),
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_there_is_no_room_for_is_lost_and_nothing_else() {
        let file = Arc::new(Mutex::new(Full { refuses: 2, text: Vec::new() }));
        let mut stream = LogStream::new(file.clone(), Output::Stdout);
        assert_eq!(stream.take(b"a\nb\nc\nd").unwrap_err().kind(), io::ErrorKind::StorageFull);
        stream.take(b"e\n").unwrap();
        drop(stream);
        let log = Arc::into_inner(file).unwrap().into_inner().unwrap().text;
        assert_eq!(tags(&log), ["Stdout F c", "Stdout F de"]);
    }

    #[test]
    fn long_lines_come_in_parts() {
        let exact = [vec![b'y'; LINE_LIMIT], b"\n".to_vec()].concat();
        assert_eq!(tags(&written(&[(Output::Stdout, &exact)])), ["Stdout F 16384"]);
        let long = vec![b'y'; LINE_LIMIT * 2 + 5];
        assert_eq!(
            tags(&written(&[(Output::Stdout, &long)])),
            ["Stdout P 16384", "Stdout P 16384", "Stdout F yyyyy"]
        );
    }

    #[test]
    fn the_last_lines_are_whole() {
        // Two lines that come in parts at the same time, with others between.
        let log = b"1 stdout F one\n2 stdout P tw\n3 stderr P er\n4 stdout F o\n5 stderr F r\n6 stdout F three\nnone\n";
        let seen = |last, since| {
            let texts = select(log, last, since).into_iter().map(|entry| String::from_utf8_lossy(entry.text));
            texts.collect::<Vec<_>>().join(" ")
        };
        for (last, since, expected) in [
            (None, "", "one tw er o r three"),
            (Some(9), "", "one tw er o r three"),
            (Some(3), "", "tw er o r three"),
            (Some(2), "", "er r three"),
            (Some(1), "", "three"),
            (Some(0), "", ""),
            (None, "2", "tw er o r three"),
            (None, "2x", "er r three"),
            (Some(1), "7", ""),
        ] {
            assert_eq!(seen(last, since), expected, "{last:?} {since}");
        }
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out(lines in prop::collection::vec(0_usize..40_000, 1..6), cut in 1_usize..20_000) {
            let mut text = Vec::new();
            for length in lines {
                text.extend(std::iter::repeat_n(b'z', length));
                text.push(b'\n');
            }
            let chunks: Vec<_> = text.chunks(cut).map(|chunk| (Output::Stdout, chunk)).collect();
            let mut back = Vec::new();
            for line in written(&chunks).split_inclusive(|&byte| byte == b'\n') {
                let entry = parse(line.strip_suffix(b"\n").unwrap()).unwrap();
                prop_assert!(entry.text.len() <= LINE_LIMIT);
                back.extend_from_slice(entry.text);
                if !entry.partial {
                    back.push(b'\n');
                }
            }
            prop_assert_eq!(back, text);
        }
    }
}
