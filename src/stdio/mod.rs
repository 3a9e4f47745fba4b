//! The standard streams of a process: pipes or a terminal, and how the host reads and writes them.
//!
//! **The kernel's pipe is the buffer of a stream.** The server does not read ahead into memory of its own,
//! because so
//! - a process that writes faster than the host reads waits, as it would at any other pipe;
//! - a stream that nobody reads costs no memory of the server, and the host can't make it grow;
//! - nothing need be lost when the server dies: whoever holds duplicates of the fds ([`Streams::fds`]) has all the
//!   bytes that nobody has taken yet, and can go on with [`Streams::from_fds`];
//! - a read is safe to cancel: bytes are taken by a read(2) right before they are returned, with no
//!   await in between.
//!
//! A reader that asks for more than a pipe holds, or finds it nearly full, gets a bigger pipe (see
//! [`OutputStream::take`]).
//!
//! Owns the server's ends of the streams; all of them are non-blocking and close-on-exec. A process that is
//! removed calls [`InputStream::abandon`] and drops its [`Streams`], and with it the fds. Failures are
//! values of [`StdioError`]. That a process has closed its end is not one for a reader (the stream has
//! ended), and [`StdioError::Closed`] for a writer. Called by the process actors of `sandbox`; `worker`
//! uses [`set_window_size`].

mod input;
mod link;
mod output;
pub mod ports;
mod source;
mod stage;
mod sys;
#[cfg(test)]
mod tests;

pub use input::InputStream;
pub use link::Link;
pub use output::{MAX_READ, OutputStream, Taken};
pub use sys::set_window_size;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use source::Source;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use tokio::io::Interest;

/// Which stream of a process; the names under which duplicates can be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StreamName {
    /// The writing end of the process's standard input.
    Stdin,
    /// The reading end of its standard output.
    Stdout,
    /// The reading end of its standard error.
    Stderr,
    /// The master of its terminal, in place of the other three.
    Terminal,
}

impl fmt::Display for StreamName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stdin => "stdin",
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
            Self::Terminal => "terminal",
        })
    }
}

/// What can go wrong with a stream.
#[derive(Debug, thiserror::Error)]
pub enum StdioError {
    /// No pipe to be had: the fds are used up.
    #[error("no pipe for {stream}: {source}")]
    Pipe {
        /// Which stream.
        stream: StreamName,
        /// What pipe2(2) said.
        source: Errno,
    },
    /// An fd that can't be made non-blocking.
    #[error("stream can't be made non-blocking: {source}")]
    Prepare {
        /// What fcntl(2) said.
        source: Errno,
    },
    /// A read of no bytes, which could not be told from the end of the stream.
    #[error("read of 0 bytes")]
    ZeroLength,
    /// A write to a stream that the host has closed or that the process reads no more.
    #[error("{stream} is closed")]
    Closed {
        /// Which stream.
        stream: StreamName,
    },
    /// A write behind too many others that wait for the process to read.
    #[error("{stream} has {waiting} bytes already that the process does not read")]
    Full {
        /// Which stream.
        stream: StreamName,
        /// How many wait.
        waiting: usize,
    },
    /// The kernel refused a read.
    #[error("reading {stream}: {source}")]
    Read {
        /// Which stream.
        stream: StreamName,
        /// What read(2) or the registration with epoll said.
        source: io::Error,
    },
    /// The kernel refused a write.
    #[error("writing {stream}: {source}")]
    Write {
        /// Which stream.
        stream: StreamName,
        /// What write(2) or the registration with epoll said.
        source: io::Error,
    },
    /// A window size for a process without a terminal.
    #[error("process has no terminal")]
    NotATerminal,
    /// The kernel refused a window size.
    #[error("terminal can't be resized to {rows} rows, {columns} columns: {source}")]
    Resize {
        /// Rows asked for.
        rows: u32,
        /// Columns asked for.
        columns: u32,
        /// What ioctl(2) said.
        source: Errno,
    },
}

/// The process's ends of its pipes: blocking, close-on-exec, to be put on its fds 0, 1 and 2.
#[derive(Debug)]
pub struct ChildEnds {
    /// To read from.
    pub stdin: OwnedFd,
    /// To write to.
    pub stdout: OwnedFd,
    /// To write to.
    pub stderr: OwnedFd,
}

/// Our ends of the streams of one process.
#[derive(Debug)]
pub struct Streams {
    /// What the host writes.
    pub stdin: InputStream,
    /// What the host reads.
    pub stdout: OutputStream,
    /// What the host reads; at its end from the start if the process has a terminal.
    pub stderr: OutputStream,
    terminal: Option<Arc<Source>>,
}

impl Streams {
    /// Three pipes. `size_hint` asks for larger ones for stdout and stderr, in bytes, up to 1 MiB.
    ///
    /// # Errors
    /// [`StdioError::Pipe`] if the fds are used up.
    pub fn pipes(size_hint: Option<usize>) -> Result<(ChildEnds, Self), StdioError> {
        let pipe = |stream| pipe2(OFlag::O_CLOEXEC).map_err(|source| StdioError::Pipe { stream, source });
        let (stdin, our_stdin) = pipe(StreamName::Stdin)?;
        let (our_stdout, stdout) = pipe(StreamName::Stdout)?;
        let (our_stderr, stderr) = pipe(StreamName::Stderr)?;
        for end in [&our_stdout, &our_stderr] {
            output::enlarge_pipe(end, size_hint.unwrap_or(0));
        }
        let streams = Self::from_fds([
            (StreamName::Stdin, our_stdin),
            (StreamName::Stdout, our_stdout),
            (StreamName::Stderr, our_stderr),
        ])?;
        Ok((ChildEnds { stdin, stdout, stderr }, streams))
    }

    /// A terminal, given by its master.
    ///
    /// # Errors
    /// [`StdioError::Prepare`] if the fd can't be made non-blocking.
    pub fn terminal(master: OwnedFd) -> Result<Self, StdioError> {
        Self::from_fds([(StreamName::Terminal, master)])
    }

    /// The streams whose fds were kept by another. What is missing counts as closed (stdin) or as ended.
    ///
    /// # Errors
    /// [`StdioError::Prepare`] if an fd can't be made non-blocking.
    pub fn from_fds(fds: impl IntoIterator<Item = (StreamName, OwnedFd)>) -> Result<Self, StdioError> {
        let (mut stdin, mut stdout, mut stderr, mut terminal) = (None, None, None, None);
        for (name, fd) in fds {
            let (place, interest) = match name {
                StreamName::Stdin => (&mut stdin, Interest::WRITABLE),
                StreamName::Stdout => (&mut stdout, Interest::READABLE),
                StreamName::Stderr => (&mut stderr, Interest::READABLE),
                StreamName::Terminal => (&mut terminal, Interest::READABLE | Interest::WRITABLE),
            };
            *place = Some(Arc::new(Source::new(fd, interest)?));
        }
        let (input, output) = match &terminal {
            Some(master) => {
                stdin = Some(master.clone());
                stdout = Some(master.clone());
                (StreamName::Terminal, StreamName::Terminal)
            }
            None => (StreamName::Stdin, StreamName::Stdout),
        };
        Ok(Self {
            stdin: InputStream::new(input, stdin),
            stdout: OutputStream::new(output, stdout),
            stderr: OutputStream::new(StreamName::Stderr, stderr),
            terminal,
        })
    }

    /// What somebody has to hold a duplicate of, so that [`Streams::from_fds`] can take over. Drop it
    /// soon: it keeps the streams open.
    pub fn fds(&self) -> Vec<(StreamName, Arc<OwnedFd>)> {
        if let Some(master) = &self.terminal {
            return vec![(StreamName::Terminal, master.fd().clone())];
        }
        let stdin = self.stdin.source().map(|source| (StreamName::Stdin, source.fd().clone()));
        let outputs = [(StreamName::Stdout, &self.stdout), (StreamName::Stderr, &self.stderr)];
        let outputs =
            outputs.into_iter().filter_map(|(name, stream)| Some((name, stream.source()?.fd().clone())));
        stdin.into_iter().chain(outputs).collect()
    }

    /// Whether the ends of both outputs have been reported: nobody has anything left to read.
    pub fn is_drained(&self) -> bool {
        self.stdout.is_ended() && self.stderr.is_ended()
    }

    /// Whether the process has a terminal.
    pub fn is_terminal(&self) -> bool {
        self.terminal.is_some()
    }

    /// Sets the size of the terminal, in characters; saturates at 65535.
    ///
    /// # Errors
    /// [`StdioError::NotATerminal`] if there is none.
    pub fn resize(&self, rows: u32, columns: u32) -> Result<(), StdioError> {
        let master = self.terminal.as_ref().ok_or(StdioError::NotATerminal)?;
        set_window_size(master.fd(), rows, columns).map_err(|source| StdioError::Resize {
            rows,
            columns,
            source,
        })
    }
}
