//! Runs a program of the guest to its end: input, output and error are memory files, which a worker connects.
//!
//! It may take [`TIME_LIMIT`] and write [`MAX_TEXT`] bytes, and is killed when it wants more, or when nobody waits for
//! it any longer.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, kill};

use super::NetworkError;
use crate::supervisor::ExitStatus;
use crate::supervisor::client::{LaunchError, Launcher, StartedProcess};
use crate::worker::job::{Job, ProgramJob};

/// The most that goes in or comes out. It has to fit into a message on the wire, which is 4 MiB at most.
pub(super) const MAX_TEXT: usize = 3 << 20;
/// How long it may take. Shims wait for a minute.
const TIME_LIMIT: Duration = Duration::from_secs(30);
/// How much of a program's complaint ends up in a message.
const MAX_WORDS: usize = 1000;

/// Kills the program, if it has not ended.
struct Running(StartedProcess);

impl Drop for Running {
    fn drop(&mut self) {
        // It has not been reported dead, so the pid is still its own.
        if self.0.exit.borrow().is_none() {
            let _ = kill(self.0.pid, Signal::SIGKILL);
        }
    }
}

/// Runs `program` with `input`, and takes what it writes to its standard output.
///
/// # Errors
///
/// It can't be run, takes too long, writes too much, or ends with another code than 0: with its own words.
pub(super) async fn run(
    launcher: &Launcher,
    program: &Path,
    args: &[&str],
    input: &[u8],
) -> Result<Vec<u8>, NetworkError> {
    let text = |source| NetworkError::Text { program: program.into(), source };
    let [stdin, stdout, stderr] =
        [file(input).map_err(text)?, file(b"").map_err(text)?, file(b"").map_err(text)?];
    let theirs = [stdin, stdout.try_clone().map_err(text)?, stderr.try_clone().map_err(text)?];
    let job = Job::RunProgram(ProgramJob {
        program: program.into(),
        args: args.iter().map(|&arg| arg.to_owned()).collect(),
        max_file: MAX_TEXT as u64,
    });
    let ended = tokio::time::timeout(TIME_LIMIT, end_of(launcher, &job, theirs.map(OwnedFd::from).into()));
    let status = match ended.await {
        Ok(status) => status.map_err(|source| NetworkError::Launch { program: program.into(), source })?,
        Err(_) => {
            let problem = format!("killed after {} s", TIME_LIMIT.as_secs());
            return Err(complaint(program, problem, &contents(&stderr).map_err(text)?));
        }
    };
    let (output, words) = (contents(&stdout).map_err(text)?, contents(&stderr).map_err(text)?);
    conclude(program, status, output, &words)
}

async fn end_of(launcher: &Launcher, job: &Job, files: Vec<OwnedFd>) -> Result<ExitStatus, LaunchError> {
    let process = launcher.launch(job, files).await?.process.ok_or(LaunchError::SupervisorGone)?;
    let mut running = Running(process);
    let status = running.0.exit.wait_for(Option::is_some).await.map_err(|_| LaunchError::SupervisorGone)?;
    status.ok_or(LaunchError::SupervisorGone)
}

/// A memory file, to be read or written from its beginning.
fn file(contents: &[u8]) -> io::Result<File> {
    let mut file = File::from(memfd_create("nakai-program", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(contents)?;
    file.rewind()?;
    Ok(file)
}

/// All of it, wherever the position is that the program has left.
fn contents(file: &File) -> io::Result<Vec<u8>> {
    let len = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX).min(MAX_TEXT);
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

fn conclude(
    program: &Path,
    status: ExitStatus,
    output: Vec<u8>,
    words: &[u8],
) -> Result<Vec<u8>, NetworkError> {
    match status {
        ExitStatus::Code(0) => Ok(output),
        ExitStatus::Signal(libc::SIGXFSZ) => {
            Err(complaint(program, format!("it writes more than {MAX_TEXT} bytes"), words))
        }
        other => Err(complaint(program, other.to_string(), words)),
    }
}

/// An error with the program's own words in one line.
fn complaint(program: &Path, problem: String, words: &[u8]) -> NetworkError {
    let words = String::from_utf8_lossy(words);
    let lines: Vec<_> = words.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let words = if lines.is_empty() { "without a word".to_owned() } else { lines.join("; ") };
    NetworkError::Program { program: program.into(), problem, words: words.chars().take(MAX_WORDS).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn concluded(status: ExitStatus, words: &[u8]) -> Result<Vec<u8>, String> {
        conclude(Path::new("/sbin/tool"), status, b"rules".into(), words).map_err(|error| error.to_string())
    }

    #[test]
    fn what_a_program_complains_of_comes_back_in_one_line() {
        assert_eq!(concluded(ExitStatus::Code(0), b"a warning").unwrap(), b"rules");
        assert_eq!(
            concluded(ExitStatus::Code(2), b"unknown option\n\nError occurred at line: 3\n").unwrap_err(),
            "/sbin/tool: exit code 2: unknown option; Error occurred at line: 3"
        );
        assert_eq!(
            concluded(ExitStatus::Signal(9), b"").unwrap_err(),
            "/sbin/tool: signal 9: without a word"
        );
        let too_much = concluded(ExitStatus::Signal(libc::SIGXFSZ), b"").unwrap_err();
        assert!(too_much.contains("more than 3145728 bytes"), "{too_much}");
        assert!(concluded(ExitStatus::Code(1), &[b'x'; 100_000]).unwrap_err().len() < 1100);
    }

    #[test]
    fn a_file_is_read_as_a_whole_and_never_beyond_the_limit() {
        let mut written = file(b"input").unwrap();
        assert_eq!(contents(&written).unwrap(), b"input");
        written.write_all(&vec![b'x'; MAX_TEXT + 1]).unwrap();
        assert_eq!(contents(&written).unwrap().len(), MAX_TEXT);
    }
}
