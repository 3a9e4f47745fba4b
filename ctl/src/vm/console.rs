//! The guest's serial console: QEMU's standard output, read to its end by a thread of its own.
//!
//! Everything goes to a file, which begins anew when the guest has filled it; the last lines are kept for error messages.
//! Two events can be waited
//! for: the agent's line that it serves, and the end of the output, which is the end of QEMU.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read, Seek as _, Write as _};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

/// The agent prints this, and its port, once calls are answered.
const SERVING: &[u8] = b"nakai: serving on vsock://";

/// The lines kept for error messages, and the bytes kept of each.
const TAIL_LINES: usize = 40;
const LINE_MAX: u64 = 4096;

/// How large the file may become: it is on the host's disk, and the guest says how much comes.
const FILE_MAX: u64 = 64 << 20;

/// What has been seen on the console.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Seen {
    /// The agent's line.
    pub(crate) serving: bool,
    /// The end.
    pub(crate) ended: bool,
}

/// The console of a running QEMU.
#[derive(Debug)]
pub(crate) struct Console {
    tail: Arc<Mutex<VecDeque<String>>>,
    seen: watch::Receiver<Seen>,
}

/// Called with each line of the console.
pub(crate) type OnLine = Box<dyn FnMut(&str) + Send>;

impl Console {
    /// Reads `source` to its end, into `file`.
    pub(crate) fn read(source: impl Read + Send + 'static, file: &Path, on_line: OnLine) -> io::Result<Self> {
        let file = File::create(file)?;
        let tail = Arc::new(Mutex::new(VecDeque::with_capacity(TAIL_LINES)));
        let (sender, seen) = watch::channel(Seen::default());
        let lines = Arc::clone(&tail);
        std::thread::Builder::new().name("vm-console".to_owned()).spawn(move || {
            follow(
                BufReader::new(source),
                &mut Bounded { file, written: 0, most: FILE_MAX },
                &lines,
                &sender,
                on_line,
            );
            sender.send_modify(|seen| seen.ended = true);
        })?;
        Ok(Self { tail, seen })
    }

    /// The last lines, each indented, for the end of an error message.
    pub(crate) fn tail(&self) -> String {
        let tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        if tail.is_empty() {
            return "  (nothing)".to_owned();
        }
        let lines: Vec<String> = tail.iter().map(|line| format!("  {line}")).collect();
        lines.join("\n")
    }

    /// Waits until `wanted` holds, or the output ends; gives back what has been seen.
    pub(crate) async fn wait(&self, wanted: impl Fn(Seen) -> bool) -> Seen {
        let mut seen = self.seen.clone();
        let last = seen.wait_for(|&seen| seen.ended || wanted(seen)).await.map(|seen| *seen);
        // The sender is gone only after it said that the output ended.
        last.unwrap_or(Seen { ended: true, ..Seen::default() })
    }
}

/// The file.
struct Bounded {
    file: File,
    written: u64,
    most: u64,
}

impl Bounded {
    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        self.written = self.written.saturating_add(line.len() as u64);
        if self.written > self.most {
            self.written = line.len() as u64;
            // What is no regular file, a pipe for one, needs no bound.
            if self.file.set_len(0).is_ok() {
                self.file.rewind()?;
                self.file.write_all(b"(what was here before was too much)\n")?;
            }
        }
        self.file.write_all(line)
    }
}

fn follow(
    mut source: impl io::BufRead,
    file: &mut Bounded,
    tail: &Mutex<VecDeque<String>>,
    seen: &watch::Sender<Seen>,
    mut on_line: OnLine,
) {
    let mut line = Vec::new();
    loop {
        line.clear();
        // A line without an end must not fill the memory: it is cut.
        match source.by_ref().take(LINE_MAX).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        // A full disk costs the log, not the guest's output.
        let _ = file.write(&line);
        let serving = line.windows(SERVING.len()).any(|window| window == SERVING);
        let text = String::from_utf8_lossy(&line);
        let text: String = text.trim_end().chars().filter(|c| !c.is_control() || *c == '\t').collect();
        on_line(&text);
        {
            let mut tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
            if tail.len() == TAIL_LINES {
                tail.pop_front();
            }
            tail.push_back(text);
        }
        seen.send_modify(|seen| {
            seen.serving |= serving;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn console(text: &'static [u8]) -> (Console, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let console = Console::read(text, &dir.path().join("console"), Box::new(|_| {})).unwrap();
        (console, dir)
    }

    #[tokio::test]
    async fn serving_line_is_seen_and_all_is_kept() {
        let text = b"[ 0.1] kernel\r\nnakai: serving on vsock://-1:1024\r\nlast";
        let (console, dir) = console(text);
        let seen = console.wait(|seen| seen.serving).await;
        assert!(seen.serving);
        assert!(console.wait(|_| false).await.ended);
        assert_eq!(console.tail(), "  [ 0.1] kernel\n  nakai: serving on vsock://-1:1024\n  last");
        assert_eq!(std::fs::read(dir.path().join("console")).unwrap(), text);
    }

    #[test]
    fn the_file_begins_anew_when_it_is_full() {
        let mut file = Bounded { file: tempfile::tempfile().unwrap(), written: 0, most: 20 };
        for line in [&b"first line\n"[..], b"second line\n", b"third\n"] {
            file.write(line).unwrap();
        }
        file.file.rewind().unwrap();
        let mut text = String::new();
        file.file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "(what was here before was too much)\nsecond line\nthird\n");
    }

    #[tokio::test]
    async fn end_without_the_line_is_told() {
        let (console, _dir) = console(b"Kernel panic\n");
        let seen = console.wait(|seen| seen.serving).await;
        assert!(seen.ended && !seen.serving);
    }

    #[tokio::test]
    async fn only_the_last_lines_stay_in_memory() {
        let text: String = (0..1000).map(|n| format!("line {n}\n")).collect();
        let (console, _dir) = console(String::leak(text).as_bytes());
        console.wait(|_| false).await;
        let tail = console.tail();
        assert_eq!(tail.lines().count(), TAIL_LINES);
        assert!(tail.ends_with("line 999"));
    }
}
