//! systemd's part in cgroups, where the agent is a service of it.
//!
//! Cgroups below systemd's are systemd's to give away: it takes a cgroup that nobody has told it of for a mistake of its
//! own making, and switches controllers off that none of its units needs. So a container whose `linux.cgroupsPath` is
//! `slice:prefix:name` becomes a unit, a scope in that slice, of which systemd hands the cgroup over (`Delegate`).
//! The cgroup is made as any other, on the path that the scope will have; then systemd is told of the scope and of the
//! processes in it, while the container's init waits for its start. Everything else (statistics, freezing, killing,
//! further processes) is done on the files, as ever.
//!
//! So also where systemd runs v1, by itself or with v2 beside it for its processes ("hybrid"). There it has some of the
//! trees only, and its properties have other names (`limit`); see `cgroup::unit` for the device rules.
//!
//! D-Bus is spoken over systemd's own socket, by a few hundred lines (`wire`, `bus`) instead of a library of ten
//! thousand. Blocks: callers are where that is allowed.

mod bus;
mod limit;
#[cfg(test)]
mod tests;
mod unit;
mod wire;

use std::io;
use std::path::{Path, PathBuf};

pub use limit::Limit;
pub use unit::{BadUnit, Unit};

/// Whether systemd runs (sd_booted(3)).
pub fn is_running() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// What systemd did not do.
#[derive(Debug, thiserror::Error)]
pub enum SystemdError {
    /// Nobody is there, or does not let us in.
    #[error("connect to systemd at {}: {source}", path.display())]
    Socket {
        /// Where.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// No answer has come.
    #[error("systemd's {member}: {source}")]
    Call {
        /// What was asked for.
        member: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It said no.
    #[error("systemd's {member}: {text} ({name})")]
    Refused {
        /// What was asked for.
        member: &'static str,
        /// The error's name.
        name: String,
        /// In words.
        text: String,
    },
    /// What it began did not end well.
    #[error("systemd's {member}: the job ended as {result:?}")]
    Job {
        /// What was asked for.
        member: &'static str,
        /// How.
        result: String,
    },
}
