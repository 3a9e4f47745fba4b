//! The cgroup of a container: where it is, what it used, and how to freeze, kill and remove it.
//!
//! The worker makes it (`worker::cgroups`); limits and device rules are written here before init is let go. Where
//! libcontainer makes init it does a part of both. From then on the cgroup is found by its path alone, in whichever
//! hierarchy the guest has (v1, v2, or v1 with an idle v2 beside it): the next server needs no more.
//!
//! **The files are read directly**, not through a crate. libcgroups gives no statistics at all if one file
//! is missing (`cpu.pressure` in a kernel booted with `psi=0`, `memory.swap.*` without swap accounting).
//! cgroups-rs from 0.4 on brings a D-Bus client with its executor; 0.3.4 brings regex and a second nix, takes
//! device numbers for 16 bits wide, and panics on what it does not expect to read. What is left to gain
//! from either is the names of thirty files.
//!
//! Invariants
//! - A [`Cgroup`] never is the root of a hierarchy nor outside of it, so nothing here can kill the guest.
//! - A file or controller that the kernel does not have is an absent value. A cgroup that is gone is
//!   empty, killed and removed; only what makes no sense without one says [`CgroupError::NotFound`].
//! - What a container can do inside its cgroup (thousands of sub-cgroups, forks while it is killed) costs
//!   time, never correctness: walks hold one fd for each level and stop at [`MAX_DEPTH`].
//!
//! Everything here blocks, but for [`Notices`] and [`Cgroup::stats`], which only reads what the kernel has in memory:
//! callers are on `spawn_blocking`.

mod control;
mod devices;
mod divided;
mod hierarchy;
mod notice;
mod oom;
#[cfg(test)]
mod oom_tests;
mod parents;
mod pidfd;
mod stats;
#[cfg(test)]
mod tests;
mod tree;
mod unit;
mod update;

pub use devices::{AttachError, ProgramError};
pub(crate) use divided::place_beside;
pub use hierarchy::Hierarchy;
pub use notice::Notices;
pub use oom::{OomKills, SliceKills};
pub use parents::remove_empty;
pub use stats::KeptFiles;
pub use tree::MAX_DEPTH;

use nix::errno::Errno;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tree::Dir;

use crate::systemd::{SystemdError, Unit};

/// What can go wrong with a cgroup.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// Neither v1 controllers nor v2 are mounted.
    #[error("no cgroup hierarchy is mounted")]
    NoHierarchy,
    /// A path that names a hierarchy's root, or that climbs.
    #[error("cgroup path {path:?} must lie below the root of its hierarchy, without '..'")]
    BadPath {
        /// What was given.
        path: PathBuf,
    },
    /// The cgroup is gone, or never was.
    #[error("cgroup {path:?} does not exist")]
    NotFound {
        /// Below the hierarchy's root.
        path: PathBuf,
    },
    /// A v1 controller that is needed and not mounted.
    #[error("cgroup controller {controller} is not mounted")]
    NoController {
        /// Its name.
        controller: &'static str,
    },
    /// A directory that can't be opened or listed.
    #[error("opening cgroup {path:?}: {source}")]
    Open {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        source: Errno,
    },
    /// A file that can't be read.
    #[error("reading {file} of cgroup {path:?}: {source}")]
    Read {
        /// The directory.
        path: PathBuf,
        /// The file in it.
        file: String,
        /// What the kernel said.
        source: Errno,
    },
    /// A file that can't be written.
    #[error("writing {value:?} to {file} of cgroup {path:?}: {source}")]
    Write {
        /// The directory.
        path: PathBuf,
        /// The file in it.
        file: String,
        /// What was to be written.
        value: String,
        /// What the kernel said.
        source: Errno,
    },
    /// The count of OOM kills can't be read.
    #[error("reading the count of OOM kills: {source}")]
    OomEvents {
        /// What the kernel said.
        source: Errno,
    },
    /// There is no way to be told of OOM kills.
    #[error("making an eventfd for the OOM kills of cgroup {path:?}: {source}")]
    OomNotice {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        source: Errno,
    },
    /// A limit that makes no sense, by itself or with those in force.
    #[error("{field} of {value}: {reason}")]
    BadLimit {
        /// Its name in the OCI specification.
        field: &'static str,
        /// What was asked for.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A limit that the guest's kernel does not know.
    #[error("{field}: the guest's cgroups have no {file}")]
    NoSuchLimit {
        /// Its name in the OCI specification.
        field: &'static str,
        /// The file that it is written to.
        file: String,
    },
    /// A directory that can't be removed, for another reason than [`CgroupError::Busy`].
    #[error("removing cgroup {path:?}: {source}")]
    Remove {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        source: Errno,
    },
    /// A process that can't be sent SIGKILL.
    #[error("killing process {pid} of cgroup {path:?}: {source}")]
    Kill {
        /// The directory.
        path: PathBuf,
        /// The process.
        pid: i32,
        /// What `pidfd_open(2)` or `pidfd_send_signal(2)` said.
        source: Errno,
    },
    /// Processes are left in a cgroup that had to be empty.
    #[error("cgroup {path:?} still has processes {pids:?}")]
    Busy {
        /// Below the hierarchy's root.
        path: PathBuf,
        /// Those left. May be empty: a process that is about to end is listed no more.
        pids: Vec<i32>,
    },
    /// The freezer did not reach the state asked for.
    #[error("cgroup {path:?} is not {wanted} after {} ms", waited.as_millis())]
    Freezer {
        /// Below the hierarchy's root.
        path: PathBuf,
        /// `frozen` or `thawed`.
        wanted: &'static str,
        /// How long it was given.
        waited: Duration,
    },
    /// Device rules that can't be said in a program.
    #[error("cgroup {path:?}: {source}")]
    DeviceRules {
        /// Below the hierarchy's root.
        path: PathBuf,
        /// Why not.
        source: ProgramError,
    },
    /// Device rules that are not enforced.
    #[error("cgroup {path:?}: {source}")]
    DeviceProgram {
        /// Below the hierarchy's root.
        path: PathBuf,
        /// Why not.
        source: AttachError,
    },
    /// systemd does not have the cgroup as it is to be.
    #[error("cgroup {path:?}: {source}")]
    Systemd {
        /// Below the hierarchy's root.
        path: PathBuf,
        /// What it said.
        source: SystemdError,
    },
    /// More than [`MAX_DEPTH`] levels of sub-cgroups.
    #[error("cgroup {path:?} has more than {MAX_DEPTH} levels of sub-cgroups")]
    TooDeep {
        /// Where it was given up.
        path: PathBuf,
    },
}

/// The cgroup of a container, on the same path in every hierarchy. Owns nothing: it is a name.
#[derive(Debug, Clone)]
pub struct Cgroup {
    hierarchy: Arc<Hierarchy>,
    path: PathBuf,
    huge_pages: stats::HugePages,
    /// What systemd knows it as, if it does.
    unit: Option<Unit>,
}

impl Cgroup {
    /// The cgroup at `path` below the root of the hierarchy; a leading `/` means nothing, as it does to
    /// libcontainer. Whether it exists is not looked at.
    ///
    /// # Errors
    /// [`CgroupError::BadPath`] if that is the root itself or outside of it.
    pub fn new(hierarchy: Arc<Hierarchy>, path: PathBuf) -> Result<Self, CgroupError> {
        let mut below = PathBuf::new();
        for component in path.components() {
            match component {
                Component::Normal(name) => below.push(name),
                Component::RootDir | Component::CurDir => {}
                Component::ParentDir | Component::Prefix(_) => return Err(CgroupError::BadPath { path }),
            }
        }
        if below.as_os_str().is_empty() {
            return Err(CgroupError::BadPath { path });
        }
        Ok(Self { hierarchy, path: below, huge_pages: stats::HugePages::default(), unit: None })
    }

    /// The path below the root of the hierarchy.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The hierarchy that the path is in.
    pub fn hierarchy(&self) -> &Arc<Hierarchy> {
        &self.hierarchy
    }

    /// Where the trees are mounted that it is in, each once.
    pub fn roots(&self) -> Vec<PathBuf> {
        self.hierarchy.mount_points().into_iter().map(Path::to_owned).collect()
    }

    fn open_at(&self, mount_point: &Path) -> Result<Option<Dir>, CgroupError> {
        Dir::open(mount_point.join(&self.path))
    }

    /// The directory of a v1 controller, if that is mounted and has this cgroup.
    fn open_v1(&self, controller: &str) -> Result<Option<Dir>, CgroupError> {
        match self.hierarchy.controller(controller) {
            Some(mount_point) => self.open_at(mount_point),
            None => Ok(None),
        }
    }

    fn not_found(&self) -> CgroupError {
        CgroupError::NotFound { path: self.path.clone() }
    }
}
