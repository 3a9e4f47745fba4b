//! Compiled seccomp filters: each profile is compiled once, by a worker, for all processes that have it.
//!
//! Invariants: at most [`KEPT`] filters are kept, of profiles that are not longer than [`LONGEST`]; those that wait
//! for the same profile wait for one compilation; a profile that can't be compiled is not remembered.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use nix::sys::memfd::{MFdFlags, memfd_create};
use tokio::sync::OnceCell;

use crate::spec::SeccompProfile;
use crate::supervisor::client::{LaunchError, Launcher};
use crate::worker::job::{Job, Outcome};

/// A guest has few profiles, often one. More than this many make room for each other.
const KEPT: usize = 16;
/// A profile with all system calls by name has some ten thousand bytes. A longer one is compiled each time.
const LONGEST: usize = 256 << 10;

type Cell = Arc<OnceCell<CompiledFilter>>;

/// A filter, and how it is to be loaded.
#[derive(Debug, Clone)]
pub struct CompiledFilter {
    /// The program, `struct sock_filter`s.
    program: Arc<[u8]>,
    /// Flags for seccomp(2).
    pub flags: u32,
}

impl CompiledFilter {
    /// The program in a memory file, for a worker. Nothing of it stays open here.
    ///
    /// # Errors
    /// No descriptors or memory are left.
    pub fn file(&self) -> Result<OwnedFd, LaunchError> {
        let failed = |source| LaunchError::HandOver { step: "write the seccomp filter", source };
        let file = memfd_create("nakai-seccomp", MFdFlags::MFD_CLOEXEC).map_err(|e| failed(e.into()))?;
        let mut file = File::from(file);
        file.write_all(&self.program).map_err(failed)?;
        Ok(file.into())
    }
}

/// The filters, by their profiles. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Filters {
    compiled: Arc<Mutex<HashMap<SeccompProfile, Cell>>>,
}

impl Filters {
    /// The filter for `profile`, compiled now if it is new.
    ///
    /// # Errors
    /// The worker's, which says what of the profile can't be.
    pub async fn get(
        &self,
        launcher: &Launcher,
        profile: &SeccompProfile,
    ) -> Result<CompiledFilter, LaunchError> {
        let cell = self.cell(profile).unwrap_or_default();
        cell.get_or_try_init(|| compile(launcher, profile)).await.cloned()
    }

    /// Where the filter is, or is to be. `None` if it is not kept.
    fn cell(&self, profile: &SeccompProfile) -> Option<Cell> {
        if profile.len() > LONGEST {
            return None;
        }
        let mut compiled = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        if compiled.len() >= KEPT && !compiled.contains_key(profile) {
            compiled.clear();
        }
        Some(compiled.entry(profile.clone()).or_default().clone())
    }
}

async fn compile(launcher: &Launcher, profile: &SeccompProfile) -> Result<CompiledFilter, LaunchError> {
    let launched = launcher.launch(&Job::CompileFilter(profile.clone()), Vec::new()).await?;
    let (Outcome::Filter { flags }, Some(file)) = (launched.outcome, launched.fds.into_iter().next()) else {
        return Err(LaunchError::SupervisorGone);
    };
    let mut program = Vec::new();
    // The worker has written to this very file.
    let mut file = File::from(file);
    let read = file.rewind().and_then(|()| file.read_to_end(&mut program));
    read.map_err(|source| LaunchError::HandOver { step: "read the seccomp filter", source })?;
    Ok(CompiledFilter { program: program.into(), flags })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_profile_is_the_same_filter_and_what_is_kept_is_bounded() {
        let filters = Filters::default();
        let first = filters.cell(&"a".into()).unwrap();
        assert!(Arc::ptr_eq(&first, &filters.cell(&"a".into()).unwrap()));
        assert!(filters.cell(&"a".repeat(LONGEST + 1).as_str().into()).is_none());
        for i in 0..3 * KEPT {
            filters.cell(&i.to_string().as_str().into());
            assert!(filters.compiled.lock().unwrap().len() <= KEPT);
        }
    }
}
