//! A cgroup that is a unit of systemd's, too: see [`crate::systemd`]. For one that is none, all of this does nothing.
//!
//! On v1 systemd has only some of the trees (`Hierarchy::has_systemd`). In that of the devices it would write rules
//! of its own, by which less can be said than by a specification's. So it is told to allow nothing, and can't: the
//! kernel lets nobody change the rules as a whole of a cgroup with another one below, and one there is.

use std::path::PathBuf;

use super::{Cgroup, CgroupError};
use crate::systemd::{Limit, SystemdError, Unit};

/// The cgroup below one of the devices tree of v1 with which the rules of that stay as they are.
pub(super) const RULES_KEPT: &str = "rules-kept";

impl Cgroup {
    /// The same cgroup, which systemd knows as `unit`, or will.
    #[must_use]
    pub fn in_unit(self, unit: Option<Unit>) -> Self {
        Self { unit, ..self }
    }

    /// What systemd knows it as.
    pub fn unit(&self) -> Option<&Unit> {
        self.unit.as_ref()
    }

    /// The tree of v2 in which systemd has it besides, without controllers, where it has v1 for these only ("hybrid").
    pub fn tree_beside(&self) -> Option<PathBuf> {
        const UNIFIED: &str = "/sys/fs/cgroup/unified";
        (self.unit.is_some() && !self.hierarchy.is_v2()).then(|| UNIFIED.into())
    }

    /// Has systemd take it, with the processes that are in it and the limits that are in force.
    ///
    /// # Errors
    /// [`CgroupError::Systemd`], and what can't be read.
    pub fn start_unit(&self, description: &str) -> Result<(), CgroupError> {
        let Some(unit) = &self.unit else { return Ok(()) };
        let mut limits = self.limits()?;
        if let Some(devices) = self.open_v1("devices")? {
            devices.make_child(RULES_KEPT)?;
            limits.push(Limit::NO_DEVICES);
        }
        unit.start(description, &self.pids()?, &limits).map_err(|source| self.systemd(source))
    }

    /// Tells systemd of the limits that are in force.
    pub(super) fn tell_systemd(&self) -> Result<(), CgroupError> {
        let Some(unit) = &self.unit else { return Ok(()) };
        unit.set(&self.limits()?).map_err(|source| self.systemd(source))
    }

    /// Has systemd forget it, when it is empty.
    ///
    /// # Errors
    /// [`CgroupError::Systemd`].
    pub fn stop_unit(&self) -> Result<(), CgroupError> {
        let Some(unit) = &self.unit else { return Ok(()) };
        unit.stop().map_err(|source| self.systemd(source))
    }

    fn limits(&self) -> Result<Vec<Limit>, CgroupError> {
        let mut dirs = self.limit_dirs()?;
        if self.hierarchy.is_v2() {
            // They are all the same.
            dirs.truncate(1);
        } else {
            // Of these systemd knows on v2 only.
            dirs.retain(|(controller, _)| *controller != "cpuset");
        }
        // What can't be read has no limit that we have set.
        Ok(Limit::in_force(|file| dirs.iter().find_map(|(_, dir)| dir.read(file).ok().flatten())))
    }

    fn systemd(&self, source: SystemdError) -> CgroupError {
        CgroupError::Systemd { path: self.path.clone(), source }
    }
}
