//! The sandbox's records: what of it the next server has to know, and how it becomes ours again.
//!
//! | record | written before | removed when |
//! |---|---|---|
//! | `sandbox` | CreateSandbox begins; anew when it is answered, and when a cgroup above the containers' is made | it is destroyed |
//! | `containers/<id>` | the creation begins; anew before its cgroup is made, and when it is answered | it is gone |
//! | `asked/<id>` | UpdateContainer is answered | it is gone |
//! | `started/<id>` | init is let go | it is gone |
//! | `oom/<id>` | the host is told of an OOM kill | it is gone |
//! | `execs/<container>/<number>` | ExecProcess is answered | the process is forgotten |
//! | `storages/<number>` | its mount is made (`storage`) | its mount is gone |
//! | `used/<number>` | its first user lets go of a storage that outlives its users | its mount is gone |
//!
//! Descriptors, and the ends of processes, are the supervisor's to keep; a record has the number under which.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use oci_spec::runtime::{Hook, Hooks};
use serde::{Deserialize, Serialize};

use super::container::Description;
use super::create::blocking;
use super::error::SandboxError;
use super::hotplug::Asked;
use super::running::Running;
use crate::cgroup::Cgroup;
use crate::ids::ContainerId;
use crate::records::Records;
use crate::spec::ExecFacts;
use crate::systemd::Unit;

/// Where there is a note for each container with OOM kills.
pub(super) const OOM: &str = "oom";

/// The directories of records.
pub(super) const KINDS: [&str; 7] = ["containers", "asked", "started", OOM, "execs", "storages", "used"];

/// What is known of the sandbox.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SandboxRecord {
    pub(super) id: String,
    pub(super) uts: PathBuf,
    pub(super) ipc: PathBuf,
    pub(super) hooks: Option<Hooks>,
    /// The pause process.
    pub(super) pause: Option<u64>,
    /// Mount points.
    pub(super) storages: Vec<String>,
    pub(super) cgroup_parents: BTreeSet<PathBuf>,
    /// Whether its creation has succeeded.
    pub(super) is_made: bool,
}

impl SandboxRecord {
    /// The one that has been made.
    pub(super) fn of(running: &Running) -> Self {
        Self {
            id: running.id.clone(),
            uts: running.uts.clone(),
            ipc: running.ipc.clone(),
            hooks: running.hooks.clone(),
            pause: running.pause,
            storages: running.storages.clone(),
            cgroup_parents: running.cgroups.above(),
            is_made: true,
        }
    }

    pub(super) async fn write(self, records: &Arc<Records>) -> Result<(), SandboxError> {
        let records = records.clone();
        blocking(move || Ok(records.write(Path::new("sandbox"), &self)?)).await
    }
}

/// What is known of a container.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ContainerRecord {
    pub(super) id: String,
    pub(super) bundle: PathBuf,
    /// Whether it was not there before.
    #[serde(default)]
    pub(super) owns_bundle: bool,
    pub(super) state_root: PathBuf,
    /// Mount points, in the order in which they are attached.
    pub(super) storages: Vec<String>,
    /// Once it may be there.
    pub(super) cgroup: Option<PathBuf>,
    /// What systemd knows it as.
    #[serde(default)]
    pub(super) unit: Option<Unit>,
    /// OOM kills in the cgroup before its time.
    pub(super) killed_before: u64,
    /// Once its creation has succeeded.
    pub(super) made: Option<Box<MadeRecord>>,
}

/// What is known of a container that has been created.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct MadeRecord {
    /// Its init.
    pub(super) init: ProcessRecord,
    pub(super) exec: ExecFacts,
    pub(super) poststart: Vec<Hook>,
    pub(super) poststop: Vec<Hook>,
    pub(super) annotations: HashMap<String, String>,
    pub(super) termination_log: Option<PathBuf>,
    pub(super) own_network: bool,
    pub(super) asked: Asked,
}

/// A process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct ProcessRecord {
    /// Empty for init.
    pub(super) exec_id: String,
    /// What the supervisor holds of it.
    pub(super) key: u64,
    pub(super) terminal: bool,
}

impl ContainerRecord {
    /// Where it is.
    pub(super) fn name(id: &str) -> PathBuf {
        Path::new("containers").join(id)
    }

    /// Writes it; blocks.
    pub(super) fn write(&self, records: &Records) -> Result<(), SandboxError> {
        Ok(records.write(&Self::name(&self.id), self)?)
    }

    /// The container that it is about, which has been created.
    pub(super) fn describe(self, id: ContainerId, cgroup: Cgroup, made: MadeRecord) -> (Description, Asked) {
        let description = Description {
            id,
            bundle: self.bundle,
            state_root: self.state_root,
            cgroup,
            exec: made.exec,
            poststart: made.poststart,
            poststop: made.poststop,
            annotations: made.annotations,
            termination_log: made.termination_log,
            own_network: made.own_network,
        };
        (description, made.asked)
    }
}

/// Removes all that is known of a container; blocks.
pub(super) fn forget_container(records: &Records, id: &str) -> Result<(), SandboxError> {
    records.remove_all(&Path::new("execs").join(id))?;
    for kind in ["asked", "started"] {
        records.remove(&Path::new(kind).join(id))?;
    }
    records.remove(&ContainerRecord::name(id))?;
    // Behind it: see there.
    note_oom(records, id, 0, 0);
    Ok(())
}

/// Notes OOM kills of a container that have been found, and of which the host has been told; blocks. The container may
/// be gone, or go now: either its removal comes later, or its record is missing here. Then there is only left what the
/// host is still to be told.
pub(super) fn note_oom(records: &Records, id: &str, found: u64, told: u64) {
    /// Two hosts may be told at once.
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = super::lock(&TURN);
    let name = oom_name(id);
    let OomRecord { told: before, untold } = read_oom(records, id);
    let is_there = records.has(&ContainerRecord::name(id));
    let told_of = if is_there { before.saturating_add(told) } else { 0 };
    let untold = untold.saturating_add(found).saturating_sub(told);
    // What can't be noted is told once more, should this server die.
    let _ = match (told_of, untold) {
        (0, 0) => records.remove(&name),
        (told, untold) => records.write(&name, &OomRecord { told, untold }),
    };
}

/// Nobody is to be told of the kills of a container any more, should it be gone; blocks.
pub(super) fn forget_oom(records: &Records, id: &str) {
    if !records.has(&ContainerRecord::name(id)) {
        let _ = records.remove(&oom_name(id));
    }
}

/// Of how many OOM kills of a container is known.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct OomRecord {
    /// To the host, too.
    pub(super) told: u64,
    /// Here alone. An earlier container of the same id may have had them.
    pub(super) untold: u64,
}

/// Reads it; blocks.
pub(super) fn read_oom(records: &Records, id: &str) -> OomRecord {
    records.read(&oom_name(id)).ok().flatten().unwrap_or_default()
}

impl OomRecord {
    pub(super) fn known(self) -> u64 {
        self.told.saturating_add(self.untold)
    }
}

/// Where the records of a container's exec'd processes are.
pub(super) fn execs_name(container: &str) -> PathBuf {
    Path::new("execs").join(container)
}

/// Where the record of one of them is: under the supervisor's number, as an exec id may be used again.
pub(super) fn exec_name(container: &str, key: u64) -> PathBuf {
    execs_name(container).join(key.to_string())
}

/// Where it is noted which CPUs and memory nodes it was last asked to have.
pub(super) fn asked_name(id: &str) -> PathBuf {
    Path::new("asked").join(id)
}

/// Where it is noted that init has been let go.
pub(super) fn started_name(id: &str) -> PathBuf {
    Path::new("started").join(id)
}

/// Where it is noted of how many OOM kills is known.
fn oom_name(id: &str) -> PathBuf {
    Path::new(OOM).join(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records() -> (tempfile::TempDir, Records) {
        let directory = tempfile::tempdir().unwrap();
        let records = Records::new(directory.path().to_owned());
        records.prepare(&KINDS).unwrap();
        records.write(&ContainerRecord::name("c"), &1).unwrap();
        (directory, records)
    }

    #[test]
    fn kills_that_are_found_and_told_at_once_are_all_counted() {
        let (_directory, records) = records();
        note_oom(&records, "c", 200, 0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..50).for_each(|_| note_oom(&records, "c", 0, 1)));
                scope.spawn(|| (0..50).for_each(|_| note_oom(&records, "c", 2, 0)));
            }
        });
        assert_eq!(read_oom(&records, "c"), OomRecord { told: 200, untold: 400 });
    }

    #[test]
    fn a_container_leaves_what_is_still_to_be_told_and_nothing_then() {
        let (_directory, records) = records();
        note_oom(&records, "c", 3, 0);
        note_oom(&records, "c", 0, 1);
        assert_eq!(read_oom(&records, "c"), OomRecord { told: 1, untold: 2 });
        forget_container(&records, "c").unwrap();
        assert_eq!(read_oom(&records, "c"), OomRecord { told: 0, untold: 2 });
        note_oom(&records, "c", 0, 1);
        note_oom(&records, "c", 0, 1);
        assert!(records.read_all::<OomRecord>(Path::new(OOM)).unwrap().is_empty());
    }
}
