//! A cgroup that is a unit of systemd's, too: see [`crate::systemd`]. For one that is none, all of this does nothing.

use super::{Cgroup, CgroupError, Hierarchy};
use crate::systemd::{Limit, SystemdError, Unit};

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

    /// Has systemd take it, with the processes that are in it and the limits that are in force.
    ///
    /// # Errors
    /// [`CgroupError::Systemd`], and what can't be read.
    pub fn start_unit(&self, description: &str) -> Result<(), CgroupError> {
        let (Some(unit), Hierarchy::V2 { mount_point }) = (&self.unit, &*self.hierarchy) else {
            return Ok(());
        };
        let pids = self.open_at(mount_point)?.ok_or_else(|| self.not_found())?.pids()?;
        unit.start(description, &pids, &self.limits()?).map_err(|source| self.systemd(source))
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
        let Hierarchy::V2 { mount_point } = &*self.hierarchy else { return Ok(Vec::new()) };
        let dir = self.open_at(mount_point)?.ok_or_else(|| self.not_found())?;
        // What can't be read has no limit that we have set.
        Ok(Limit::in_force(|file| dir.read(file).ok().flatten()))
    }

    fn systemd(&self, source: SystemdError) -> CgroupError {
        CgroupError::Systemd { path: self.path.clone(), source }
    }
}
