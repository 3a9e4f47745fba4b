//! Runs a tool of the guest to its end: input, output and error are memory files, which a worker connects.
//!
//! It may take as long as it is given and write [`MAX_TEXT`] bytes, and is killed when it wants more, or when nobody
//! waits for it any longer.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::{AccessFlags, access};

use super::ExitStatus;
use super::client::{LaunchError, Launcher, StartedProcess};
use crate::worker::job::{Job, ProgramJob};

/// The most that goes in or comes out. It has to fit into a message on the wire, which is 4 MiB at most.
pub const MAX_TEXT: usize = 3 << 20;
/// Where distributions have them.
const PLACES: [&str; 3] = ["/usr/sbin", "/sbin", "/usr/local/sbin"];
/// How much of a program's complaint ends up in a message.
const MAX_WORDS: usize = 1000;

/// Why a tool has not done its work.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// The guest's image lacks it.
    #[error("the guest has no {}: looked in {}", names.join(", no "), places.join(", "))]
    Absent {
        /// Its names.
        names: &'static [&'static str],
        /// The directories.
        places: &'static [&'static str],
    },
    /// It could not be run.
    #[error("run {}: {source}", program.display())]
    Launch {
        /// The program.
        program: PathBuf,
        /// Why.
        source: LaunchError,
    },
    /// It did not do what it should.
    #[error("{}: {problem}: {words}", program.display())]
    Failed {
        /// The program.
        program: PathBuf,
        /// How it ended.
        problem: String,
        /// What it wrote to its standard error.
        words: String,
    },
    /// Handing text to it, or taking it back.
    #[error("text for {}: {source}", program.display())]
    Text {
        /// The program.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The look for it was not taken to its end.
    #[error("looking for a program ended unexpectedly")]
    Task,
}

/// Kills the program, if it has not ended.
struct Running(StartedProcess);

impl Drop for Running {
    fn drop(&mut self) {
        // It has not been reported dead, so the pid is still its own.
        if self.0.exit.borrow().is_none() {
            // With what it has started: it leads a session, once it is so far.
            let _ = killpg(self.0.pid, Signal::SIGKILL);
            let _ = kill(self.0.pid, Signal::SIGKILL);
        }
    }
}

/// Looks for a program: the first name of all that is somewhere, and there in the first place.
///
/// # Errors
///
/// [`ToolError::Absent`].
pub async fn find(names: &'static [&'static str]) -> Result<PathBuf, ToolError> {
    let found = tokio::task::spawn_blocking(move || first(names, &PLACES));
    found.await.map_err(|_| ToolError::Task)?.ok_or(ToolError::Absent { names, places: &PLACES })
}

fn first(names: &[&str], places: &[&str]) -> Option<PathBuf> {
    let is_program = |path: &PathBuf| path.is_file() && access(path, AccessFlags::X_OK).is_ok();
    let paths = names.iter().flat_map(|name| places.iter().map(move |place| Path::new(place).join(name)));
    paths.into_iter().find(is_program)
}

/// Runs `program` with `input`, and takes what it writes to its standard output.
///
/// # Errors
///
/// It can't be run, takes too long, writes too much, or ends with another code than 0: with its own words.
pub async fn run(
    launcher: &Launcher,
    program: &Path,
    args: &[&str],
    input: &[u8],
    limit: Duration,
) -> Result<Vec<u8>, ToolError> {
    let text = |source| ToolError::Text { program: program.into(), source };
    let [stdin, stdout, stderr] =
        [file(input).map_err(text)?, file(b"").map_err(text)?, file(b"").map_err(text)?];
    let theirs = [stdin, stdout.try_clone().map_err(text)?, stderr.try_clone().map_err(text)?];
    let job = Job::RunProgram(ProgramJob {
        program: program.into(),
        args: args.iter().map(|&arg| arg.to_owned()).collect(),
        max_file: MAX_TEXT as u64,
    });
    let ended = tokio::time::timeout(limit, end_of(launcher, &job, theirs.map(OwnedFd::from).into()));
    let status = match ended.await {
        Ok(status) => status.map_err(|source| ToolError::Launch { program: program.into(), source })?,
        Err(_) => {
            let problem = format!("killed after {} s", limit.as_secs());
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

fn conclude(program: &Path, status: ExitStatus, output: Vec<u8>, words: &[u8]) -> Result<Vec<u8>, ToolError> {
    match status {
        ExitStatus::Code(0) => Ok(output),
        ExitStatus::Signal(libc::SIGXFSZ) => {
            Err(complaint(program, format!("it writes more than {MAX_TEXT} bytes"), words))
        }
        other => Err(complaint(program, other.to_string(), words)),
    }
}

/// An error with the program's own words in one line.
fn complaint(program: &Path, problem: String, words: &[u8]) -> ToolError {
    let words = String::from_utf8_lossy(words);
    let lines: Vec<_> = words.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let words = if lines.is_empty() { "without a word".to_owned() } else { lines.join("; ") };
    ToolError::Failed { program: program.into(), problem, words: words.chars().take(MAX_WORDS).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn concluded(status: ExitStatus, words: &[u8]) -> Result<Vec<u8>, String> {
        conclude(Path::new("/sbin/tool"), status, b"rules".into(), words).map_err(|error| error.to_string())
    }

    #[test]
    fn a_name_comes_before_a_place_and_a_file_is_no_program() {
        use std::os::unix::fs::PermissionsExt;
        let root = tempfile::tempdir().unwrap();
        let places = ["usr", "local"].map(|place| root.path().join(place));
        for place in &places {
            std::fs::create_dir(place).unwrap();
        }
        let place_names = places.each_ref().map(|place| place.to_str().unwrap());
        let found = || first(&["save", "nft-save", "legacy-save"], &place_names);
        let script = |path: &Path, mode| {
            std::fs::write(path, "#!/bin/sh\n").unwrap();
            std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
        };
        script(&places[0].join("another-save"), 0o755);
        assert_eq!(found(), None);
        let legacy = places[0].join("legacy-save");
        script(&legacy, 0o755);
        assert_eq!(found(), Some(legacy));
        let nft = places[1].join("nft-save");
        script(&nft, 0o755);
        assert_eq!(found(), Some(nft.clone()));
        script(&places[0].join("save"), 0o644);
        assert_eq!(found(), Some(nft), "a file that can't be executed is no program");
        let plain = places[1].join("save");
        script(&plain, 0o755);
        assert_eq!(found(), Some(plain));
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
