//! A watch over calls: how long they took, and a word in the log about one that takes long. As it may be waiting for a
//! thread that the kernel does not give, the spare one is asked for help.

use std::time::{Duration, Instant};

use slog::{Logger, info, warn};

use super::Answer;
use crate::guest::spare_thread::SpareThread;

/// From when on a call is said to take long.
const LONG: Duration = Duration::from_secs(1);

/// Calls that wait for a process or an event, for as long as it likes.
const WAITING: [&str; 5] = ["WaitProcess", "ReadStdout", "ReadStderr", "WriteStdin", "GetOOMEvent"];

/// Whether a call may wait by its nature.
pub(super) fn waits(name: &str) -> bool {
    WAITING.contains(&name)
}

/// Runs the body of a call, and says so when it takes long, and when it then ends or is given up.
pub(super) async fn watch<T>(
    logger: &Logger,
    spare: &SpareThread,
    (name, object): (&'static str, &str),
    body: impl Future<Output = Answer<T>>,
) -> Answer<T> {
    let mut body = std::pin::pin!(body);
    let begun = Instant::now();
    tokio::select! {
        biased;
        result = &mut body => return result,
        // The threshold itself; the body's end is the event.
        () = tokio::time::sleep(LONG) => {}
    }
    warn!(logger, "call takes long"; "call" => name, "object" => object);
    let mut end = End { logger, name, object, begun, how: "given up" };
    let result = loop {
        spare.help();
        tokio::select! {
            biased;
            result = &mut body => break result,
            // It may be waiting for the next thread by now.
            () = tokio::time::sleep(LONG) => {}
        }
    };
    end.how = if result.is_ok() { "done" } else { "refused" };
    result
}

/// Tells the end of a long call, also if nobody waits for it any more.
struct End<'a> {
    logger: &'a Logger,
    name: &'static str,
    object: &'a str,
    begun: Instant,
    how: &'static str,
}

impl Drop for End<'_> {
    fn drop(&mut self) {
        let millis = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        info!(self.logger, "long call ended";
            "call" => self.name, "object" => self.object, "how" => self.how, "ms" => millis);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// Keeps what is logged.
    #[derive(Clone, Default)]
    struct Said(Arc<Mutex<Vec<String>>>);

    impl slog::Drain for Said {
        type Ok = ();
        type Err = slog::Never;

        fn log(&self, record: &slog::Record<'_>, _: &slog::OwnedKVList) -> Result<(), slog::Never> {
            self.0.lock().unwrap().push(record.msg().to_string());
            Ok(())
        }
    }

    fn run<T>(body: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        runtime.unwrap().block_on(body)
    }

    #[test]
    fn a_call_that_takes_long_is_told_of_and_so_is_its_end() {
        let said = Said::default();
        let logger = Logger::root(said.clone(), slog::o!());
        let spare = SpareThread::default();
        run(async {
            watch(&logger, &spare, ("Quick", ""), async { Ok(()) }).await.unwrap();
            assert!(said.0.lock().unwrap().is_empty());
            let (release, released) = tokio::sync::oneshot::channel::<()>();
            let call = watch(&logger, &spare, ("Slow", "c1"), async {
                let _ = released.await;
                Ok(())
            });
            let release = async {
                while said.0.lock().unwrap().is_empty() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                drop(release);
            };
            tokio::join!(call, release).0.unwrap();
        });
        assert_eq!(*said.0.lock().unwrap(), ["call takes long", "long call ended"]);
        assert!(waits("WaitProcess") && !waits("ExecProcess"));
    }
}
