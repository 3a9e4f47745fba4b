//! The log: JSON lines with the fields that shims know.
//!
//! A caller formats its line and puts it in a bounded queue; one thread writes the queue out. So a log call
//! never waits for a console or for the host, whatever their speed. What doesn't fit is dropped, counted, and
//! told about in a line of its own as soon as there is room.
//!
//! Owns: the queue, the thread, the place that is written to. Starts a thread, so it belongs in the server,
//! after the fork from the supervisor.
//!
//! Each line has `msg`, `level` (slog's short names: CRIT, ERRO, WARN, INFO, DEBG, TRCE), `ts` (RFC 3339,
//! UTC, nanoseconds), `name`, `source`, `version`, `pid`, `subsystem`, and the key-value pairs of the call
//! and of its logger. If a key is there twice, the one closest to the call counts; a pair that takes the name
//! of one of the first seven gets an underscore at its end. `subsystem` is `agent` unless a logger says
//! otherwise.

mod line;
mod output;
mod queue;
mod timestamp;

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use slog::{Drain, Level, Logger, Never, OwnedKVList, Record, o};

use self::line::Line;
pub use self::output::Output;
use self::queue::Queue;

/// How long the end of the agent waits for its last lines to be written.
const FLUSH_TIME: Duration = Duration::from_secs(1);

/// The drain that formats records and queues them.
#[derive(Debug)]
struct Queued {
    queue: Arc<Queue>,
    level: Level,
}

impl Drain for Queued {
    type Ok = ();
    type Err = Never;

    fn log(&self, record: &Record<'_>, values: &OwnedKVList) -> Result<(), Never> {
        if self.is_enabled(record.level()) {
            self.queue.push(&Line::of_record(record, values));
        }
        Ok(())
    }

    fn is_enabled(&self, level: Level) -> bool {
        level.is_at_least(self.level)
    }
}

/// The log's other end: what the agent does to it, rather than says in it.
///
/// Dropping it writes out what is queued, waiting a second at most, and then the log takes nothing more.
#[derive(Debug)]
pub struct Log {
    queue: Arc<Queue>,
    /// Where to write, until there is a thread that does.
    unwritten: Mutex<Option<Output>>,
}

/// Makes the log: a logger to clone and hand on, and its [`Log`] to keep. What is logged is queued, and written from
/// [`Log::write`] on.
pub fn queued(output: Output, level: Level) -> (Logger, Log) {
    let queue = Arc::new(Queue::default());
    let drain = Queued { queue: Arc::clone(&queue), level };
    let log = Log { queue, unwritten: Mutex::new(Some(output)) };
    (Logger::root(drain.ignore_res(), o!()), log)
}

impl Log {
    /// Starts the thread that writes, if there is none.
    ///
    /// # Errors
    ///
    /// There can't be one.
    pub fn write(&self) -> io::Result<()> {
        let unwritten = self.unwritten.lock().unwrap_or_else(PoisonError::into_inner).take();
        unwritten.map_or(Ok(()), |output| queue::start_writer(Arc::clone(&self.queue), output))
    }

    /// Writes to another place from now on. Lines that are queued go there too.
    pub fn redirect(&self, output: Output) {
        self.queue.redirect(output);
    }

    /// Waits until everything logged so far is written, for `limit` at most. Says whether it was.
    pub fn flush(&self, limit: Duration) -> bool {
        self.write().is_ok() && self.queue.wait_empty(limit)
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.flush(FLUSH_TIME);
        self.queue.close();
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};

    use serde_json::Value;
    use slog::{debug, info, warn};

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn pipe() -> (BufReader<io::PipeReader>, Output) {
        let (reader, writer) = io::pipe().unwrap();
        (BufReader::new(reader), Output::Fd(writer.into()))
    }

    fn start(output: Output, level: Level) -> io::Result<(Logger, Log)> {
        let (logger, log) = queued(output, level);
        log.write()?;
        Ok((logger, log))
    }

    fn next(reader: &mut impl BufRead) -> Value {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }

    #[test]
    fn lines_carry_the_fields_that_shims_know() {
        let (mut reader, output) = pipe();
        let (logger, _log) = start(output, Level::Info).unwrap();
        info!(logger.new(o!("subsystem" => "storage")), "mounted {}", "\"it\"\n"; "n" => 7, "ok" => true);
        let line = next(&mut reader);
        assert_eq!(line["msg"], "mounted \"it\"\n");
        assert_eq!(line["level"], "INFO");
        assert_eq!((&line["name"], &line["source"]), (&"nakai".into(), &"agent".into()));
        assert_eq!(line["version"], env!("CARGO_PKG_VERSION"));
        assert_eq!(line["pid"], std::process::id().to_string());
        assert_eq!(line["subsystem"], "storage");
        assert_eq!((&line["n"], &line["ok"]), (&7.into(), &true.into()));
        assert!(line["ts"].as_str().unwrap().ends_with('Z'));
    }

    #[test]
    fn what_was_logged_before_it_is_written_comes_first_and_at_the_latest_at_the_end() {
        let (mut reader, output) = pipe();
        let (logger, log) = queued(output, Level::Info);
        info!(logger, "early");
        log.write().unwrap();
        info!(logger, "late");
        assert_eq!(next(&mut reader)["msg"], "early");
        assert_eq!(next(&mut reader)["msg"], "late");
        let (mut reader, output) = pipe();
        let (logger, log) = queued(output, Level::Info);
        info!(logger, "last words");
        drop(log);
        assert_eq!(next(&mut reader)["msg"], "last words");
    }

    #[test]
    fn what_is_below_the_level_is_not_logged() {
        let (mut reader, output) = pipe();
        let (logger, _log) = start(output, Level::Info).unwrap();
        debug!(logger, "unseen");
        info!(logger, "seen");
        assert_eq!(next(&mut reader)["msg"], "seen");
    }

    #[test]
    fn a_stuck_reader_holds_up_nobody_and_losses_are_told() {
        let (mut reader, output) = pipe();
        let (logger, log) = start(output, Level::Info).unwrap();
        let big = "x".repeat(4000);
        let sent: u64 = 1000;
        for _ in 0..sent {
            warn!(logger, "{}", big);
        }
        assert!(!log.flush(Duration::from_millis(1)), "nobody has read a thing");
        let mut told = 0;
        while told < sent {
            told += next(&mut reader)["dropped"].as_u64().unwrap_or(1);
        }
        assert_eq!(told, sent, "each line is written or counted as dropped");
        info!(logger, "after");
        assert_eq!(next(&mut reader)["msg"], "after");
        assert!(log.flush(LONG));
    }

    #[test]
    fn dropping_the_log_writes_what_is_queued() {
        let (mut reader, output) = pipe();
        let (logger, log) = start(output, Level::Info).unwrap();
        info!(logger, "last words");
        drop(log);
        info!(logger, "too late");
        assert_eq!(next(&mut reader)["msg"], "last words");
        assert_eq!(reader.read_line(&mut String::new()).unwrap(), 0, "the output is closed");
    }

    #[test]
    fn the_output_can_be_changed() {
        let (first, output) = pipe();
        let (logger, log) = start(output, Level::Info).unwrap();
        let (mut second, output) = pipe();
        log.redirect(output);
        info!(logger, "moved");
        assert_eq!(next(&mut second)["msg"], "moved");
        drop(first);
    }

    #[test]
    fn an_output_that_is_gone_is_not_waited_for() {
        let (reader, output) = pipe();
        let (logger, log) = start(output, Level::Info).unwrap();
        drop(reader);
        info!(logger, "to nobody");
        assert!(log.flush(LONG));
    }
}
