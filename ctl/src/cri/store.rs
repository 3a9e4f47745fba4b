//! What this client remembers of the containers it has made, since the protocol has no list of them.
//!
//! ```text
//! <directory>/containers/<id>.json
//! <directory>/attempts.json            the last attempt of each pod's container names
//! ```
//!
//! A notebook, not the truth: the agent has that.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use oci_spec::runtime;
use serde::{Deserialize, Serialize};

use super::config::{ContainerConfig, PodSandboxConfig};
use super::{CriError, Extras, ImageConfig};

/// What a user asks for.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Order {
    /// The pod.
    pub pod: PodSandboxConfig,
    /// The container.
    pub config: ContainerConfig,
    /// What CRI has no word for.
    pub extras: Extras,
    /// What the image says.
    pub image: ImageConfig,
    /// The container's name at the agent, if it is not to be made up.
    pub id: Option<String>,
}

/// How far a container has come.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It waits for its start.
    Created,
    /// Its program runs.
    Running,
    /// Its program has ended.
    Exited(i32),
    /// It could not be made or started again.
    Error(String),
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Created => f.write_str("created"),
            Self::Running => f.write_str("running"),
            Self::Exited(status) => write!(f, "exited ({status})"),
            Self::Error(reason) => write!(f, "error ({reason})"),
        }
    }
}

/// Whether a container works, as its check says.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// There is no check.
    #[default]
    None,
    /// No run has succeeded yet.
    Starting,
    /// The last run has succeeded, or not enough have failed since.
    Healthy,
    /// Too many runs in a row have failed.
    Unhealthy,
}

/// A container.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Record {
    /// Its name at the agent.
    pub id: String,
    /// What was asked for.
    pub order: Order,
    /// What the agent was given.
    pub spec: runtime::Spec,
    /// It is in the pod's PID namespace.
    pub shared_pid: bool,
    /// Which one of its name it is.
    pub attempt: u32,
    /// How far it has come.
    pub state: State,
    /// How often it was started again by its restart policy.
    pub restarts: u32,
    /// The user has stopped it, so that it is not to be started again.
    pub stopped: bool,
    /// What its check says.
    pub health: Health,
    /// Its output.
    pub log: Option<PathBuf>,
    /// Its root filesystem is in the shared directory.
    pub shared: bool,
    /// When it was made.
    pub created: String,
}

/// The notebook.
#[derive(Clone, Debug)]
pub struct Store {
    directory: PathBuf,
}

impl Store {
    /// The notebook in `directory`.
    pub fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// A place of its own for something of the container.
    pub(super) fn place(&self, kind: &str, id: &str) -> PathBuf {
        self.directory.join(kind).join(id)
    }

    /// The container of that name.
    ///
    /// # Errors
    ///
    /// There is none.
    pub fn get(&self, id: &str) -> Result<Record, CriError> {
        let unknown = || CriError::Unknown(id.to_owned());
        if id.contains('/') {
            return Err(unknown());
        }
        read(&self.file(id)).ok_or_else(unknown)
    }

    /// All containers, the oldest first. What can't be read is left out.
    pub fn all(&self) -> Vec<Record> {
        let entries = fs::read_dir(self.directory.join("containers")).into_iter().flatten().flatten();
        let mut records: Vec<Record> = entries.filter_map(|entry| read(&entry.path())).collect();
        records.sort_by(|a, b| (&a.created, &a.id).cmp(&(&b.created, &b.id)));
        records
    }

    /// Notes a container.
    ///
    /// # Errors
    ///
    /// The file can't be written.
    pub fn put(&self, record: &Record) -> Result<(), CriError> {
        write(&self.file(&record.id), record)
            .map_err(CriError::io(format!("note of container {}", record.id)))
    }

    /// Forgets a container; its attempt stays known.
    pub fn forget(&self, id: &str) {
        let _ = fs::remove_file(self.file(id));
    }

    /// The attempt that comes after the last one: 0 for a new name.
    ///
    /// # Errors
    ///
    /// The file can't be written.
    pub fn next_attempt(&self, pod: &str, name: &str, least: u32) -> Result<u32, CriError> {
        let file = self.directory.join("attempts.json");
        let mut attempts: BTreeMap<String, u32> = read(&file).unwrap_or_default();
        let key = format!("{pod}/{name}");
        let next = attempts.get(&key).map_or(0, |last| last.saturating_add(1)).max(least);
        attempts.insert(key, next);
        write(&file, &attempts).map_err(CriError::io("note of the attempts"))?;
        Ok(next)
    }

    fn file(&self, id: &str) -> PathBuf {
        self.directory.join("containers").join(format!("{id}.json"))
    }
}

fn read<T: for<'a> Deserialize<'a>>(path: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// Writes by renaming, so that no reader sees half a record.
fn write<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let new = path.with_extension(format!("new-{}", std::process::id()));
    fs::write(&new, serde_json::to_vec(value)?)?;
    fs::rename(new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_are_counted_by_pod_and_name() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path().to_owned());
        let next = |pod, name, least| store.next_attempt(pod, name, least).unwrap();
        assert_eq!((next("p", "a", 0), next("p", "a", 0), next("p", "b", 0)), (0, 1, 0));
        assert_eq!((next("p", "a", 7), next("p", "a", 0), next("q", "a", 0)), (7, 8, 0));
        assert!(matches!(store.get("a"), Err(CriError::Unknown(_))));
        assert!(store.all().is_empty());
    }
}
