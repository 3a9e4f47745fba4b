//! What is noted of one container, whichever front end it was made by.

use std::fmt;
use std::path::PathBuf;

use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize};

use crate::cri::{Holdings, Order};
use crate::time;

/// A container that this client has made.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct ContainerRecord {
    /// The agent's name for it.
    pub id: String,
    /// What was asked for.
    pub order: Order,
    /// The program and its arguments.
    pub args: Vec<String>,
    /// What the agent was given; none while it is on its way.
    pub spec: Option<Spec>,
    /// It is in the pod's PID namespace.
    pub shared_pid: bool,
    /// Which one of its name in its pod it is.
    pub attempt: u32,
    /// Seconds since the epoch; so are the other times.
    pub created: u64,
    /// When its program began to run.
    pub started: Option<u64>,
    /// When its program ended.
    pub finished: Option<u64>,
    /// What it has of this host.
    pub holdings: Holdings,
    /// What it does.
    pub state: ContainerState,
    /// The kernel has killed one of its processes for want of memory since it was started.
    pub oom_killed: bool,
    /// How often it has been started again.
    pub restarts: u32,
    /// The user has stopped it, so that it is not to be started again.
    pub stopped: bool,
    /// How its last health checks ended; none where nothing is checked.
    pub health: Option<Health>,
    /// Its output.
    pub log: Option<PathBuf>,
}

/// What a container does, as far as this client has been told.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(tag = "status", rename_all = "lowercase")]
pub enum ContainerState {
    /// On its way.
    #[default]
    Creating,
    /// Its program waits for the start.
    Created,
    /// Its program runs.
    Running,
    /// Its processes are frozen.
    Paused,
    /// Its program has ended.
    Stopped {
        /// The exit status, 128 + N after signal N.
        code: i32,
        /// Why: `completed`, `error`, or `oom`.
        reason: String,
    },
    /// A step of its life failed, and what was done before has been undone.
    Error {
        /// The step and its cause, for a person to act on.
        reason: String,
    },
}

/// How a container's health checks end.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// No check has ended well yet.
    Starting,
    /// The last check ended well, or not enough have failed since.
    Healthy,
    /// As many checks in a row as allowed have failed.
    Unhealthy,
}

impl ContainerRecord {
    /// A container that is about to be created.
    pub fn new(id: &str) -> Self {
        Self { id: id.to_owned(), created: time::seconds_now(), ..Self::default() }
    }

    /// Notes that its program runs.
    pub fn run(&mut self) {
        self.state = ContainerState::Running;
        (self.started, self.finished, self.oom_killed) = (Some(time::seconds_now()), None, false);
    }

    /// Notes that its program has ended.
    pub fn stop(&mut self, code: i32) {
        let reason = if self.oom_killed {
            "oom"
        } else if code == 0 {
            "completed"
        } else {
            "error"
        };
        self.state = ContainerState::Stopped { code, reason: reason.to_owned() };
        self.finished = Some(time::seconds_now());
    }

    /// Notes that a step failed.
    pub fn fail(&mut self, reason: impl fmt::Display) {
        self.state = ContainerState::Error { reason: reason.to_string() };
        self.finished = Some(time::seconds_now());
    }

    /// Whether its program has been started and has not ended.
    pub fn lives(&self) -> bool {
        matches!(self.state, ContainerState::Running | ContainerState::Paused)
    }
}

impl ContainerState {
    /// The state in a word.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped { .. } => "stopped",
            Self::Error { .. } => "error",
        }
    }
}

impl fmt::Display for ContainerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stopped { code, reason } => write!(f, "stopped ({code}, {reason})"),
            Self::Error { reason } => write!(f, "error ({reason})"),
            other => f.write_str(other.word()),
        }
    }
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        })
    }
}
