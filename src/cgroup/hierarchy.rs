//! Where the guest has its cgroups: told from the text of `/proc/self/mountinfo` (proc(5)), nothing else.
//!
//! libcontainer goes by the file system at `/sys/fs/cgroup`; this comes to the same answer, or the two
//! would look for a container in different places.

use super::CgroupError;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

const CGROUP_ROOT: &str = "/sys/fs/cgroup";

/// The controllers of v1 (cgroups(7)). Other words among the mount options are flags.
const V1_CONTROLLERS: [&str; 14] = [
    "blkio",
    "cpu",
    "cpuacct",
    "cpuset",
    "devices",
    "freezer",
    "hugetlb",
    "memory",
    "misc",
    "net_cls",
    "net_prio",
    "perf_event",
    "pids",
    "rdma",
];

/// The cgroup file systems of the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hierarchy {
    /// One tree for all controllers.
    V2 {
        /// Where it is mounted.
        mount_point: PathBuf,
    },
    /// A tree for each controller, or for a few of them together.
    V1 {
        /// Where each is mounted, by controller. A tree without one, such as systemd's own, is here as
        /// `name=systemd`; a v2 tree mounted beside them is not, since it has no controllers then.
        controllers: BTreeMap<String, PathBuf>,
    },
}

impl Hierarchy {
    /// Tells the hierarchy from the text of `/proc/self/mountinfo`. Lines that make no sense are passed over.
    ///
    /// # Errors
    /// [`CgroupError::NoHierarchy`] if nothing of use is mounted.
    pub fn detect(mountinfo: &str) -> Result<Self, CgroupError> {
        let mut controllers = BTreeMap::new();
        let mut unified = None;
        for mount in mountinfo.lines().filter_map(Mount::parse) {
            match mount.file_system {
                "cgroup2" if mount.mount_point == Path::new(CGROUP_ROOT) => {
                    return Ok(Self::V2 { mount_point: mount.mount_point });
                }
                "cgroup2" => unified = unified.or(Some(mount.mount_point)),
                "cgroup" => {
                    for name in mount.options.split(',').filter(|name| is_hierarchy(name)) {
                        // The first mount is the guest's own; later ones are a container's.
                        controllers.entry(name.to_owned()).or_insert_with(|| mount.mount_point.clone());
                    }
                }
                _ => {}
            }
        }
        if controllers.keys().any(|name| !name.starts_with("name=")) {
            return Ok(Self::V1 { controllers });
        }
        unified.map(|mount_point| Self::V2 { mount_point }).ok_or(CgroupError::NoHierarchy)
    }

    /// Whether this is v2.
    pub fn is_v2(&self) -> bool {
        matches!(self, Self::V2 { .. })
    }

    /// Where a v1 controller is mounted.
    pub fn controller(&self, name: &str) -> Option<&Path> {
        match self {
            Self::V2 { .. } => None,
            Self::V1 { controllers } => controllers.get(name).map(PathBuf::as_path),
        }
    }

    /// Whether systemd, where it runs, has its own cgroups in the tree that is mounted there. On v1 it knows these
    /// controllers only, and a tree without one for the processes.
    pub(super) fn has_systemd(&self, mount_point: &Path) -> bool {
        const ITS_OWN: [&str; 7] = ["blkio", "cpu", "cpuacct", "devices", "memory", "name=systemd", "pids"];
        self.is_v2() || ITS_OWN.iter().any(|name| self.controller(name) == Some(mount_point))
    }

    /// Every tree once, the one to look for processes in first.
    pub(super) fn mount_points(&self) -> Vec<&Path> {
        match self {
            Self::V2 { mount_point } => vec![mount_point],
            Self::V1 { controllers } => {
                let mut all: Vec<&Path> = self.controller("freezer").into_iter().collect();
                for mount_point in controllers.values() {
                    if !all.contains(&mount_point.as_path()) {
                        all.push(mount_point);
                    }
                }
                all
            }
        }
    }
}

fn is_hierarchy(option: &str) -> bool {
    V1_CONTROLLERS.contains(&option) || option.starts_with("name=")
}

struct Mount<'a> {
    mount_point: PathBuf,
    file_system: &'a str,
    /// Of the file system, not of this mount.
    options: &'a str,
}

impl<'a> Mount<'a> {
    /// `36 35 98:0 /root /mount/point rw,noatime tags... - type source options`
    fn parse(line: &'a str) -> Option<Self> {
        let (mount, file_system) = line.split_once(" - ")?;
        let mount_point = unescape(mount.split(' ').nth(4)?);
        let mut fields = file_system.split(' ');
        let file_system = fields.next()?;
        let options = fields.nth(1).unwrap_or_default();
        Some(Self { mount_point, file_system, options })
    }
}

/// Blanks and backslashes are written as three octal digits.
fn unescape(field: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let code = match (first, tail) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..]) => {
                Some([a, b, c].iter().fold(0u8, |code, digit| (code << 3) | (**digit & 7)))
            }
            _ => None,
        };
        bytes.push(code.unwrap_or(*first));
        rest = if code.is_some() { tail.get(3..).unwrap_or_default() } else { tail };
    }
    PathBuf::from(OsString::from_vec(bytes))
}
