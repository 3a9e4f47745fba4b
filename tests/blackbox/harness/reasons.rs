//! Why trials failed: told at once, and again at the end of the run, where whoever sees only its last lines finds it.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "whoever runs the tests reads it")]

use std::sync::{Arc, Mutex, PoisonError};

use libtest_mimic::{Failed, Trial};

/// What a failure's own reason stands behind; before it is the agent's log.
const BECAUSE: &str = "--- it failed because:\n";

/// How many characters of a reason are repeated, from its begin and from its end.
const SHOWN: (usize, usize) = (500, 200);

/// A failure, with the last words of the agent before it.
pub(super) fn failed(error: &dyn std::fmt::Display, log: &str) -> Failed {
    let lines: Vec<&str> = log.lines().collect();
    let tail = lines[lines.len().saturating_sub(25)..].join("\n");
    format!("--- the agent's last words:\n{tail}\n{BECAUSE}{error}").into()
}

/// The reasons so far.
#[derive(Clone, Default)]
pub(crate) struct Reasons(Arc<Mutex<Vec<String>>>);

impl Reasons {
    /// A trial whose failure is kept.
    pub(crate) fn trial(
        &self,
        name: String,
        run: impl FnOnce() -> Result<(), Failed> + Send + 'static,
    ) -> Trial {
        let (reasons, of) = (self.clone(), name.clone());
        Trial::test(name, move || run().inspect_err(|failed| reasons.note(&of, failed)))
    }

    fn note(&self, name: &str, failed: &Failed) {
        let line = format!("{name}: {}", brief(failed.message().unwrap_or_default()));
        eprintln!("FAILED {line}");
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    }

    /// Says all of them, if there are any.
    pub(crate) fn repeat(&self) {
        let reasons = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !reasons.is_empty() {
            println!("reasons:\n    {}\n", reasons.join("\n    "));
        }
    }
}

/// A message's reason in one line that is not too long.
fn brief(message: &str) -> String {
    let reason = message.rsplit_once(BECAUSE).map_or(message, |(_, reason)| reason);
    let line: Vec<char> = reason.trim().replace('\n', " / ").chars().collect();
    let (begin, end) = SHOWN;
    if line.len() <= begin + end {
        return line.into_iter().collect();
    }
    let text = |part: &[char]| part.iter().collect::<String>();
    format!("{} ... {}", text(&line[..begin]), text(&line[line.len() - end..]))
}
