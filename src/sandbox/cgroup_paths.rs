//! Which cgroups are containers', and which are above them.
//!
//! Invariants: no two containers have the same cgroup, and none has one beneath another's, as the kernel kills
//! whatever is in a cgroup or beneath it. A cgroup above is in the sandbox's record before it is made.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::error::SandboxError;
use super::lock;
use super::records::SandboxRecord;
use super::running::Running;
use super::undo::Undo;
use crate::ids::ContainerId;
use crate::records::Records;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct CgroupPaths {
    /// Of the containers, also of those that are being created.
    taken: Arc<Mutex<HashMap<ContainerId, PathBuf>>>,
    /// Above the containers': those of them that an agent has made go with the last container below.
    above: Mutex<BTreeSet<PathBuf>>,
    /// Whose turn it is to write the record: of two, the one with less in it must not come last.
    turn: tokio::sync::Mutex<()>,
}

impl CgroupPaths {
    /// Those `above` are known from an earlier server.
    pub(super) fn with_those_above(above: BTreeSet<PathBuf>) -> Self {
        Self { above: Mutex::new(above), ..Self::default() }
    }

    /// Has a cgroup be a container's, until `undo` has been run.
    pub(super) fn take(&self, id: &ContainerId, path: &Path, undo: &mut Undo) -> Result<(), SandboxError> {
        {
            let mut taken = lock(&self.taken);
            if taken.values().any(|other| other.starts_with(path) || path.starts_with(other)) {
                return Err(SandboxError::CgroupInUse { id: id.clone(), path: path.display().to_string() });
            }
            taken.insert(id.clone(), path.to_owned());
        }
        let (taken, id) = (self.taken.clone(), id.clone());
        undo.push_blocking("free the cgroup's path", move || {
            lock(&taken).remove(&id);
            Ok(())
        });
        Ok(())
    }

    /// Those above.
    pub(super) fn above(&self) -> BTreeSet<PathBuf> {
        lock(&self.above).clone()
    }

    /// Those above, which are the caller's now.
    pub(super) fn take_above(&self) -> BTreeSet<PathBuf> {
        std::mem::take(&mut *lock(&self.above))
    }
}

impl Running {
    /// Adds the cgroups above a container's that are still to be made to those that go with the sandbox.
    pub(super) async fn note_parents(
        &self,
        parents: Vec<PathBuf>,
        records: &Arc<Records>,
    ) -> Result<(), SandboxError> {
        // What another has added is in the record when its turn is over.
        let _turn = self.cgroups.turn.lock().await;
        let is_new = {
            let mut above = lock(&self.cgroups.above);
            let before = above.len();
            above.extend(parents);
            above.len() > before
        };
        if is_new { SandboxRecord::of(self).write(records).await } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::records::KINDS;
    use super::super::undo::Why;
    use super::*;

    #[tokio::test]
    async fn no_container_has_anothers_cgroup_nor_one_above_or_beneath() {
        let cgroups = CgroupPaths::default();
        let id = |name: &str| ContainerId::try_from(name).unwrap();
        let mut undo = Undo::default();
        let mut refused = Undo::default();
        cgroups.take(&id("a"), Path::new("pods/a"), &mut undo).unwrap();
        for path in ["pods/a", "pods", "pods/a/below"] {
            let outcome = cgroups.take(&id("b"), Path::new(path), &mut refused);
            assert!(matches!(outcome, Err(SandboxError::CgroupInUse { .. })), "{path}");
        }
        cgroups.take(&id("c"), Path::new("pods/ab"), &mut Undo::default()).unwrap();
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        refused.run(Why::Failed, &logger).await;
        cgroups.take(&id("b"), Path::new("pods/a"), &mut Undo::default()).unwrap_err();
        undo.run(Why::Removed, &logger).await;
        cgroups.take(&id("b"), Path::new("pods/a/below"), &mut Undo::default()).unwrap();
    }

    #[tokio::test]
    async fn the_record_has_the_cgroups_above_of_all_who_are_made_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let records = Arc::new(Records::new(directory.path().to_owned()));
        records.prepare(&KINDS).unwrap();
        let running = Arc::new(Running {
            id: "sandbox".to_owned(),
            uts: PathBuf::new(),
            ipc: PathBuf::new(),
            hooks: None,
            pid: Mutex::default(),
            pause: None,
            storages: Vec::new(),
            cgroups: CgroupPaths::default(),
            undo: Mutex::default(),
        });
        let mut all = tokio::task::JoinSet::new();
        for number in 0..40 {
            let (running, records) = (running.clone(), records.clone());
            all.spawn(
                async move { running.note_parents(vec![format!("pod{number}").into()], &records).await },
            );
        }
        all.join_all().await.into_iter().for_each(|noted| noted.unwrap());
        let record: SandboxRecord = records.read("sandbox".as_ref()).unwrap().unwrap();
        assert_eq!(record.cgroup_parents.len(), 40);
    }
}
