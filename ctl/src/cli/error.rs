//! This program's own failures, as one line for the user.

use nakai_ctl::CallError;
use nakai_ctl::connect::ConnectError;
use nakai_ctl::cri::CriError;
use nakai_ctl::image::ImageError;
use nakai_ctl::rootfs::RootfsError;
use nakai_ctl::stdio::StdioError;
use nakai_ctl::vm::VmError;
use nakai_ctl::vms::VmsError;
use ttrpc::Code;

/// The exit status when the program can't be run.
const NOT_EXECUTABLE: u8 = 126;
/// The exit status when there is no such program.
const NO_PROGRAM: u8 = 127;
/// The exit status when nobody reads the output any more: that of SIGPIPE.
const BROKEN_PIPE: u8 = 141;

/// Why a command failed; the library's errors name object and reason themselves.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Call(#[from] CallError),
    #[error(transparent)]
    Stdio(#[from] StdioError),
    #[error(transparent)]
    Vm(#[from] VmError),
    #[error(transparent)]
    Rootfs(#[from] RootfsError),
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error("no image: give --rootfs, --image, or a path in front of the program")]
    NoImage,
    #[error("{0} is no option of run: nakai-ctl run --help lists them")]
    NoOption(String),
    #[error(transparent)]
    Cri(#[from] CriError),
    #[error(transparent)]
    Vms(#[from] VmsError),
    #[error("{}", of_machine(name, problem))]
    Keeper { name: String, problem: String },
    #[error("no agent named: give --sandbox or --address (or NAKAI_ADDRESS)")]
    NoAddress,
    #[error("no agent named: give --sandbox or --address, or --kernel and --initrd for a VM of its own")]
    NoTarget,
    #[error("--kernel boots a VM of its own: not with --address or --sandbox")]
    TwoTargets,
    #[error("{what} needs an agent that stays: give --address instead of --kernel")]
    NeedsAddress { what: &'static str },
    #[error("{path}: the agent at {address} shares no known directory: give --share")]
    NoShare { path: String, address: String },
    #[error("kill --all {signal}: the protocol can only kill all processes with SIGKILL")]
    SignalAll { signal: i32 },
    #[error("-t: standard input is no terminal")]
    NoTerminal,
    #[error("output: {0}")]
    Output(std::io::Error),
    #[error("{what}: {source}")]
    Io { what: String, source: std::io::Error },
    #[error("interrupted")]
    Interrupted,
    #[error("ended by signal {0}")]
    Signal(i32),
    #[error("the VM ended by itself; last lines of its console:\n{tail}")]
    VmEnded { tail: String },
    #[error("demo: {0}")]
    Demo(String),
}

/// A problem that names its machine is not told whose it is.
fn of_machine(name: &str, problem: &str) -> String {
    let named = format!("VM {name}");
    if problem.starts_with(&named) { problem.to_owned() } else { format!("{named}: {problem}") }
}

impl CliError {
    /// The exit status that tells it: Docker's for a program that is not there or can't be run, else that of a failure
    /// which is not the container's.
    pub(crate) fn status(&self) -> u8 {
        if let Self::Signal(number) = self {
            return u8::try_from(number.saturating_add(128)).unwrap_or(super::OWN_FAILURE);
        }
        if self.is_readers_end() {
            return BROKEN_PIPE;
        }
        let (Self::Call(error) | Self::Cri(CriError::Call(error))) = self else { return super::OWN_FAILURE };
        let words = &error.message;
        if !words.contains("can't execute \"") && !words.contains("not found in $PATH") {
            return super::OWN_FAILURE;
        }
        if error.code == Code::NOT_FOUND { NO_PROGRAM } else { NOT_EXECUTABLE }
    }

    /// Whether nobody reads the output any more.
    fn is_readers_end(&self) -> bool {
        let source = match self {
            Self::Output(source) => source,
            Self::Stdio(StdioError::Local { source, .. })
            | Self::Cri(CriError::Stdio(StdioError::Local { source, .. })) => source,
            _ => return false,
        };
        source.kind() == std::io::ErrorKind::BrokenPipe
    }

    /// Whether there is something to be said of it: who has sent a signal, or has closed the output, knows.
    pub(crate) fn is_news(&self) -> bool {
        !matches!(self, Self::Signal(_)) && !self.is_readers_end()
    }

    /// Whether the agent was lost on the way: it may have acted, and may be there again.
    pub(crate) fn connection_lost(&self) -> bool {
        match self {
            Self::Call(error)
            | Self::Stdio(StdioError::Call(error))
            | Self::Cri(CriError::Call(error) | CriError::Stdio(StdioError::Call(error))) => {
                error.connection_lost
            }
            _ => false,
        }
    }

    /// Adds what was being done to a system's error.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_gone_or_has_sent_a_signal_is_told_nothing() {
        let local = |kind: std::io::ErrorKind| {
            CliError::Stdio(StdioError::Local { stream: "stdout", source: kind.into() })
        };
        let gone = local(std::io::ErrorKind::BrokenPipe);
        assert_eq!((gone.status(), gone.is_news()), (141, false));
        let full = local(std::io::ErrorKind::StorageFull);
        assert_eq!((full.status(), full.is_news()), (125, true));
        assert_eq!((CliError::Signal(2).status(), CliError::Signal(2).is_news()), (130, false));
    }

    #[test]
    fn a_machine_is_named_once() {
        let failed = |problem: &str| {
            CliError::Keeper { name: "one".to_owned(), problem: problem.to_owned() }.to_string()
        };
        assert_eq!(failed(&VmsError::Taken("one".to_owned()).to_string()), "VM one is there already");
        assert_eq!(failed("no kernel at /k"), "VM one: no kernel at /k");
    }
}
