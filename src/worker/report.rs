//! Bringing the true cause of a failure back.
//!
//! libcontainer's forks send their parent one string without the cause; the cause is in what they log at
//! level ERROR. Both that log and the standard error of hooks go into one memory file that the worker and
//! its children share; when the job fails, the worker reads it. The executor, which knows exactly what is
//! wrong with a program, leaves a whole [`Failure`] there, marked by [`FAILURE_MARK`].

use std::fmt::Write as _;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use nix::sys::memfd::{MFdFlags, memfd_create};
use tracing_core::field::{Field, Visit};
use tracing_core::span::{Attributes, Id, Record};
use tracing_core::{Event, Interest, Level, LevelFilter, Metadata, Subscriber};

use super::guest_hooks::WARNING_MARK;
use super::job::{Failure, FailureKind};

/// Begins a line that holds a [`Failure`] as JSON.
const FAILURE_MARK: &str = "nakai-failure:";
/// How much of the file is looked at.
const MAX_REPORT: usize = 16 * 1024;
/// How much of it ends up in a message.
const MAX_DETAIL: usize = 600;

/// The memory file.
#[derive(Debug)]
pub(super) struct Report {
    file: OwnedFd,
    stand_in: Arc<OnceLock<PathBuf>>,
}

impl Report {
    /// Makes the file and sends libcontainer's errors there, for this process and its forks.
    pub(super) fn install() -> Result<Self, Failure> {
        let file = memfd_create("nakai-report", MFdFlags::MFD_CLOEXEC)
            .map_err(|errno| Failure::internal(format!("make the report file: {errno}")))?;
        // Every writer appends, whatever its own idea of the position.
        let append = nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_APPEND);
        let _ = nix::fcntl::fcntl(&file, append);
        let sink = file.try_clone().map_err(|e| Failure::internal(format!("copy the report file: {e}")))?;
        let stand_in = Arc::new(OnceLock::new());
        let log = ErrorLog { sink, worker: std::process::id(), stand_in: stand_in.clone() };
        let _ = tracing_core::dispatcher::set_global_default(tracing_core::Dispatch::new(log));
        Ok(Self { file, stand_in })
    }

    /// Another descriptor for the same file.
    pub(super) fn try_clone(&self) -> std::io::Result<OwnedFd> {
        self.file.try_clone()
    }

    /// Says what stands in for the container's cgroup. When its work fails, libcontainer logs that and then removes the
    /// cgroup: it shall find none, as it would try for a tenth of a second.
    pub(super) fn on_failure_remove(&self, stand_in: &Path) {
        let _ = self.stand_in.set(stand_in.to_owned());
    }

    /// The failure that the executor left, or one made of `message` and the first error that was logged.
    pub(super) fn failure(&self, kind: FailureKind, message: &str) -> Failure {
        let text = self.text();
        if let Some(failure) = text
            .lines()
            .filter_map(|line| line.strip_prefix(FAILURE_MARK))
            .find_map(|json| serde_json::from_str::<Failure>(json).ok())
        {
            return failure;
        }
        let is_error = |line: &&str| !line.trim().is_empty() && !line.starts_with(WARNING_MARK);
        let detail: String = text.lines().find(is_error).unwrap_or_default().into();
        let detail = detail.chars().take(MAX_DETAIL).collect::<String>();
        if detail.is_empty() || message.contains(&detail) {
            return Failure { kind, message: message.to_owned() };
        }
        Failure { kind, message: format!("{message}: {detail}") }
    }

    /// What has failed without failing the container.
    pub(super) fn warnings(&self) -> Vec<String> {
        let text = self.text();
        let marked = text.lines().filter_map(|line| line.strip_prefix(WARNING_MARK));
        marked.filter_map(|json| serde_json::from_str(json).ok()).collect()
    }

    fn text(&self) -> String {
        let mut bytes = vec![0; MAX_REPORT];
        let len = nix::sys::uio::pread(&self.file, &mut bytes, 0).unwrap_or(0);
        bytes.truncate(len);
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// Leaves `failure` in the report `file` for the worker to find.
pub(super) fn leave(file: &OwnedFd, failure: &Failure) {
    if let Ok(json) = serde_json::to_string(&failure.clone().brief()) {
        let _ = nix::unistd::write(file.as_fd(), format!("{FAILURE_MARK}{json}\n").as_bytes());
    }
}

/// A subscriber that keeps errors only, a line each.
struct ErrorLog {
    sink: OwnedFd,
    /// The process in which libcontainer cleans up.
    worker: u32,
    stand_in: Arc<OnceLock<PathBuf>>,
}

impl Subscriber for ErrorLog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() == Level::ERROR
    }

    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.enabled(metadata) { Interest::always() } else { Interest::never() }
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::ERROR)
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line::default();
        event.record(&mut line);
        let text = format!("{}{}\n", line.message, line.fields);
        let _ = nix::unistd::write(self.sink.as_fd(), text.as_bytes());
        if let Some(stand_in) = self.stand_in.get()
            && self.worker == std::process::id()
        {
            let _ = super::stand_in::remove(stand_in);
        }
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// The message of an event, and its fields behind it.
#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let value = format!("{value:?}").replace('\n', " ");
        if field.name() == "message" {
            self.message = value;
        } else {
            let _ = write!(self.fields, " {}={value}", field.name());
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }
}

impl AsRawFd for Report {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.file.as_raw_fd()
    }
}

impl AsFd for Report {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.file.as_fd()
    }
}
