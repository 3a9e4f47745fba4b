//! What Docker's users and Zun ask for and CRI has no word for. It travels beside the CRI configuration.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::log_file::LogLimits;
use crate::image::Healthcheck;
use crate::nets::{CardOrder, FunctionOrder};

/// All of it; the default asks for nothing.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Extras {
    /// `user`, `uid`, `user:group` or `uid:gid`, in the place of the image's.
    pub user: Option<String>,
    /// Group names or numbers beside CRI's numbers.
    pub groups: Vec<String>,
    /// Filesystems in memory.
    pub tmpfs: Vec<Tmpfs>,
    /// Limits of the process, such as `RLIMIT_NOFILE`.
    pub ulimits: Vec<Ulimit>,
    /// How many processes there may be.
    pub pids_limit: Option<i64>,
    /// How much may be written to the root filesystem, in bytes.
    pub disk: Option<u64>,
    /// How the root filesystem comes to the agent.
    pub root: RootKind,
    /// Size of `/dev/shm`, which is the container's own then.
    pub shm_size: Option<u64>,
    /// Volumes to be waited for.
    pub volumes: Vec<Volume>,
    /// Whether it is started again when it ends.
    pub restart: RestartPolicy,
    /// It is removed when it has ended.
    pub auto_remove: bool,
    /// How it is found out whether it works.
    pub health: Option<HealthCheck>,
    /// The image's check counts where there is none of its own: Docker's way, not Kubernetes'.
    pub image_health: bool,
    /// Ports for the description.
    pub exposed_ports: Vec<String>,
    /// How large its log may get.
    pub log_limits: LogLimits,
    /// Its host name was asked for: the sandbox has to have it.
    pub needs_hostname: bool,
    /// Network cards that come and go with it.
    pub cards: Vec<CardOrder>,
    /// Network cards of its pod, which come with the pod's first container and stay.
    pub pod_cards: Vec<CardOrder>,
    /// PCI functions of this host's.
    pub functions: Vec<FunctionOrder>,
}

impl Extras {
    /// The fields that ask for what is plugged into the machine.
    pub fn plugged_fields(&self) -> impl Iterator<Item = &str> {
        let functions = self.functions.iter().map(|function| &*function.field);
        functions.chain(self.cards.iter().map(|card| &*card.field))
    }
}

/// How a root filesystem comes to the agent.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RootKind {
    /// The image's layers, with a writable one of the container's own above them.
    #[default]
    Image,
    /// The directory itself: what the container writes is written there.
    Itself,
    /// A disk of this size in bytes, or as large as needed and some room.
    Disk(Option<u64>),
    /// A read-only disk for each layer.
    Layers,
}

/// A filesystem in memory.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Tmpfs {
    /// Where.
    pub path: String,
    /// Options of mount(8).
    pub options: Vec<String>,
}

/// A limit as setrlimit(2) has it.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Ulimit {
    /// `RLIMIT_…`
    pub kind: String,
    /// The limit.
    pub soft: u64,
    /// How far it may be raised.
    pub hard: u64,
}

/// A volume that something else attaches to this host.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Volume {
    /// Its name, for messages.
    pub name: String,
    /// Where it appears.
    pub path: PathBuf,
    /// How long it may take.
    pub seconds: u64,
}

/// When a container is started again.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    /// Never.
    #[default]
    No,
    /// Always, unless the user has stopped it.
    Always,
    /// The same: they differ in what a daemon does when it starts, and there is none.
    UnlessStopped,
    /// When it has failed, at most so many times; 0 is no limit.
    OnFailure(u32),
}

/// The first pause before a restart; each is twice as long as the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest.
const LAST_PAUSE: Duration = Duration::from_secs(60);
/// What has run for so long has started well: the next pause is the first again.
const RUNS_WELL: Duration = Duration::from_secs(10);

impl RestartPolicy {
    /// `no`, `always`, `unless-stopped`, `on-failure` or `on-failure:N`.
    ///
    /// # Errors
    ///
    /// None of these; the text says what is accepted.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("{text:?} is none of no, always, unless-stopped, on-failure, on-failure:MAXIMUM");
        match text.split_once(':') {
            None => match text {
                "no" | "" => Ok(Self::No),
                "always" => Ok(Self::Always),
                "unless-stopped" => Ok(Self::UnlessStopped),
                "on-failure" => Ok(Self::OnFailure(0)),
                _ => Err(wrong()),
            },
            Some(("on-failure", count)) => count.parse().map(Self::OnFailure).map_err(|_| wrong()),
            Some(_) => Err(wrong()),
        }
    }

    /// Whether to start again after an end with `status`, having started again `restarts` times already.
    pub fn again(self, status: i32, restarts: u32, stopped: bool) -> bool {
        match self {
            _ if stopped => false,
            Self::No => false,
            Self::Always | Self::UnlessStopped => true,
            Self::OnFailure(limit) => status != 0 && (limit == 0 || restarts < limit),
        }
    }
}

/// The pause before the next restart: `last` was the one before, and it `ran` so long since then.
pub fn pause(last: Option<Duration>, ran: Duration) -> Duration {
    match last {
        Some(last) if ran < RUNS_WELL => last.saturating_mul(2).min(LAST_PAUSE),
        _ => FIRST_PAUSE,
    }
}

/// A command that tells whether a container works.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct HealthCheck {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// The pause before each run.
    pub interval: Duration,
    /// A run that takes longer has failed, and is killed.
    pub timeout: Duration,
    /// So many failures in a row make it unhealthy.
    pub retries: u32,
    /// Failures don't count for so long after the start, until a run has succeeded.
    #[serde(default)]
    pub start_period: Duration,
}

impl HealthCheck {
    /// Docker's defaults: each 30 s, for 30 s, three times.
    pub fn shell(command: &str) -> Self {
        let half_a_minute = Duration::from_secs(30);
        let command = ["/bin/sh", "-c", command].map(str::to_owned).to_vec();
        let start_period = Duration::ZERO;
        Self { command, interval: half_a_minute, timeout: half_a_minute, retries: 3, start_period }
    }

    /// What an image says; none where it says that there is no check.
    ///
    /// # Errors
    ///
    /// The kind of its command is not known.
    pub fn of_image(check: &Healthcheck) -> Result<Option<Self>, String> {
        let default = match check.test.split_first() {
            None => return Ok(None),
            Some((kind, _)) if kind == "NONE" => return Ok(None),
            Some((kind, command)) if kind == "CMD" => Self { command: command.to_vec(), ..Self::shell("") },
            Some((kind, command)) if kind == "CMD-SHELL" => Self::shell(&command.join(" ")),
            Some((kind, _)) => return Err(format!("{kind:?} is none of NONE, CMD, CMD-SHELL")),
        };
        let or = |given: Duration, usual: Duration| if given.is_zero() { usual } else { given };
        Ok(Some(Self {
            interval: or(check.interval, default.interval),
            timeout: or(check.timeout, default.timeout),
            retries: if check.retries == 0 { default.retries } else { check.retries },
            start_period: check.start_period,
            ..default
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_say_when_to_start_again() {
        let again =
            |text: &str, status, restarts| RestartPolicy::parse(text).unwrap().again(status, restarts, false);
        assert!(!again("no", 1, 0) && again("always", 0, 99) && again("unless-stopped", 0, 0));
        assert!(!again("on-failure", 0, 0) && again("on-failure", 1, 99));
        assert!(again("on-failure:2", 1, 1) && !again("on-failure:2", 1, 2));
        assert!(!RestartPolicy::Always.again(1, 0, true));
        for wrong in ["sometimes", "always:3", "on-failure:x"] {
            assert!(RestartPolicy::parse(wrong).unwrap_err().contains("unless-stopped"));
        }
    }

    #[test]
    fn an_images_check_has_dockers_defaults() {
        let of = |test: &[&str]| {
            let test = test.iter().map(|&word| word.to_owned()).collect();
            HealthCheck::of_image(&Healthcheck { test, retries: 7, ..Healthcheck::default() })
        };
        assert_eq!((of(&[]), of(&["NONE"])), (Ok(None), Ok(None)));
        let check = of(&["CMD-SHELL", "test -e /ok"]).unwrap().unwrap();
        assert_eq!((check.command.join(" "), check.retries), ("/bin/sh -c test -e /ok".into(), 7));
        assert_eq!((check.interval.as_secs(), check.timeout.as_secs()), (30, 30));
        assert_eq!(of(&["CMD", "/probe", "-x"]).unwrap().unwrap().command, ["/probe", "-x"]);
        assert!(of(&["EXEC", "x"]).unwrap_err().contains("CMD-SHELL"));
    }

    #[test]
    fn pauses_double_and_begin_anew_after_a_good_run() {
        let (short, long) = (Duration::from_secs(1), Duration::from_secs(10));
        let second = pause(Some(pause(None, short)), short);
        assert_eq!((pause(None, short), second), (FIRST_PAUSE, FIRST_PAUSE * 2));
        assert_eq!(pause(Some(Duration::from_secs(50)), short), LAST_PAUSE);
        assert_eq!(pause(Some(second), long), FIRST_PAUSE);
    }
}
