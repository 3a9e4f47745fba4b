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
pub struct LogStream<W> {
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

    /// Takes the next bytes of the stream.
    ///
    /// # Errors
    ///
    /// The file can't be written.
    pub fn take(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let room = LINE_LIMIT.saturating_sub(self.pending.len());
            let end = bytes.iter().take(room.saturating_add(1)).position(|&byte| byte == b'\n');
            match end {
                Some(end) => {
                    let (line, rest) = bytes.split_at_checked(end).unwrap_or((bytes, &[]));
                    self.pending.extend_from_slice(line);
                    self.write("F")?;
                    bytes = rest.get(1..).unwrap_or_default();
                }
                None => {
                    let (part, rest) = bytes.split_at_checked(room).unwrap_or((bytes, &[]));
                    self.pending.extend_from_slice(part);
                    bytes = rest;
                    // Only what has more behind it is a part.
                    if self.pending.len() >= LINE_LIMIT && !bytes.is_empty() {
                        self.write("P")?;
                    }
                }
            }
        }
        Ok(())
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

/// An entry of a log.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Entry<'a> {
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
    parts.next()?;
    let output = match parts.next()? {
        b"stdout" => Output::Stdout,
        b"stderr" => Output::Stderr,
        _ => return None,
    };
    let tag = parts.next()?;
    Some(Entry { output, partial: tag.starts_with(b"P"), text: parts.next()? })
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
    fn long_lines_come_in_parts() {
        let exact = [vec![b'y'; LINE_LIMIT], b"\n".to_vec()].concat();
        assert_eq!(tags(&written(&[(Output::Stdout, &exact)])), ["Stdout F 16384"]);
        let long = vec![b'y'; LINE_LIMIT * 2 + 5];
        assert_eq!(
            tags(&written(&[(Output::Stdout, &long)])),
            ["Stdout P 16384", "Stdout P 16384", "Stdout F yyyyy"]
        );
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
