//! Programs of the host, run to their end. The only place that starts any.
#![expect(clippy::disallowed_methods, reason = "the rule is for the guest: no supervisor reaps on the host")]

use std::io;
use std::process::{Command, ExitStatus, Output, Stdio};
use std::time::Duration;

/// Between the tries of a download.
pub const PAUSES: [Duration; 3] = [Duration::from_secs(5), Duration::from_secs(20), Duration::from_secs(60)];

/// How many of a failed program's last lines an error carries.
const LINES_KEPT: usize = 5;

/// A program that could not be started or did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The program is not there or can't be executed.
    #[error("{program} can't be started (is it installed? see scripts/install-deps): {source}")]
    Start {
        /// The program as it was asked for.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// The program ended with a failure.
    #[error("`{command}` ended with {status}: {output}")]
    Exit {
        /// The program with its arguments.
        command: String,
        /// Its exit status, or the signal that ended it.
        status: ExitStatus,
        /// The last lines it wrote to its standard error, or else to its standard output.
        output: String,
    },
}

/// A command in the plain locale, whose messages are safe to read, and without a terminal to ask on.
pub fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env("LC_ALL", "C").env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null());
    command
}

/// Runs a command to its end and returns its standard output.
pub fn run(command: &mut Command) -> Result<String, CommandError> {
    run_bytes(command).map(|stdout| String::from_utf8_lossy(&stdout).into_owned())
}

/// Tries what needs a network, given the number of the try, again after each of `pauses`: a mirror's hiccup is over a
/// little later. A program that isn't there will not be there later.
pub fn retry<T>(
    pauses: &[Duration],
    mut attempt: impl FnMut(usize) -> Result<T, CommandError>,
) -> Result<T, CommandError> {
    for (number, pause) in pauses.iter().enumerate() {
        match attempt(number) {
            Err(error @ CommandError::Exit { .. }) => {
                eprintln!("{error}; once more in {} s", pause.as_secs());
                std::thread::sleep(*pause);
            }
            other => return other,
        }
    }
    attempt(pauses.len())
}

/// Like [`run`], for output that is not text.
pub fn run_bytes(command: &mut Command) -> Result<Vec<u8>, CommandError> {
    let output = command.output().map_err(|source| CommandError::Start {
        program: command.get_program().to_string_lossy().into_owned(),
        source,
    })?;
    if output.status.success() { Ok(output.stdout) } else { Err(exit_error(command, &output)) }
}

fn exit_error(command: &Command, output: &Output) -> CommandError {
    let mut words = vec![command.get_program().to_string_lossy()];
    words.extend(command.get_args().map(|argument| argument.to_string_lossy()));
    let said = if output.stderr.is_empty() { &output.stdout } else { &output.stderr };
    CommandError::Exit { command: words.join(" "), status: output.status, output: last_lines(said) }
}

/// The last non-empty lines as one line.
fn last_lines(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(LINES_KEPT)..].join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_returned() {
        assert_eq!(run(command("echo").arg("a b")).unwrap(), "a b\n");
    }

    #[test]
    fn a_failure_names_the_command_its_status_and_its_last_words() {
        let script = "for i in 1 2 3 4 5 6 7; do echo line $i >&2; done; exit 3";
        let error = run(command("sh").args(["-c", script])).unwrap_err().to_string();
        assert!(error.starts_with("`sh -c for i"), "{error}");
        assert!(error.ends_with("exit status: 3: line 3; line 4; line 5; line 6; line 7"), "{error}");
    }

    #[test]
    fn standard_output_is_quoted_where_standard_error_is_silent() {
        let error = run(command("sh").args(["-c", "echo E: no mirror; exit 1"])).unwrap_err().to_string();
        assert!(error.ends_with(": E: no mirror"), "{error}");
    }

    #[test]
    fn a_download_is_tried_again() {
        let pauses = [Duration::ZERO; 2];
        let script =
            |number| run(command("sh").args(["-c", &format!("echo {number}; exit $((2 - {number}))")]));
        assert_eq!(retry(&pauses, script).unwrap(), "2\n");
        assert!(retry(&pauses[..1], script).is_err(), "two tries are not three");
        let mut tries = 0;
        let missing = retry(&pauses, |_| {
            tries += 1;
            run(&mut command("/no/such/program"))
        });
        assert!(missing.is_err() && tries == 1, "a missing program was tried {tries} times");
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = run(&mut command("/no/such/program")).unwrap_err().to_string();
        assert!(error.starts_with("/no/such/program can't be started"), "{error}");
    }
}
