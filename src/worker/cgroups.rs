//! The way of processes into a container's cgroups.
//!
//! On v1 the cgroups are made without libcontainer: see `spec::own_cgroups` for why. For a creation the worker makes
//! them, enters them, and leaves them when the container's init, which was born in them, is there. A further process
//! enters them by itself, before all else, through descriptors that the worker has opened: so the worker, which is no
//! part of the container, never counts as one of its processes. Who writes `0` into the file `tasks` moves itself
//! alone, for which the kernel takes no lock that waits for an RCU grace period (kernel/cgroup/cgroup.c,
//! `cgroup_procs_write_start`).
//!
//! On v2 the worker makes the cgroup, unless systemd has it: libcontainer, which would ask for each controller in each
//! cgroup above, only puts init there and writes the limits. A further process is born in it.
//!
//! At a creation libcontainer meanwhile sees another tree at `/sys/fs/cgroup`, in a mount namespace of the worker's
//! own: an empty v2, with which it has next to nothing to do.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns};
use nix::unistd::Pid;

use super::job::{CgroupTrees, ExecCgroups, Failure, FailureKind, UnifiedCgroup};
use super::sys;
use crate::guest::beneath::Root;
use crate::spec::CgroupMount;

/// Where libcontainer looks for cgroups.
const CGROUP_ROOT: &str = "/sys/fs/cgroup";
/// The controllers that the cgroups below have (v2).
const SUBTREE_CONTROL: &str = "cgroup.subtree_control";

/// Guard: the worker is in the container's cgroups until this is dropped.
#[derive(Debug)]
pub(super) struct Stay {
    /// The `tasks` of the trees' roots.
    back: Vec<File>,
    /// The container's own part of each tree, by the name of the tree, not mounted anywhere yet.
    parts: Vec<(String, OwnedFd)>,
}

impl Drop for Stay {
    fn drop(&mut self) {
        for tasks in &self.back {
            let _ = enter(tasks);
        }
    }
}

impl Stay {
    /// Makes the cgroups and enters them; if they are to be seen in the container (`mount`), gets hold of them for that.
    pub(super) fn begin(trees: &CgroupTrees, mount: Option<&CgroupMount>) -> Result<Self, Failure> {
        make_trees(trees)?;
        let mut stay = Self { back: Vec::new(), parts: Vec::new() };
        for root in &trees.roots {
            stay.back.push(open_tasks(root).map_err(|error| not_entered(root, &error))?);
        }
        enter_trees(trees)?;
        if let Some(mount) = mount {
            stay.parts = parts(trees, mount)?;
        }
        Ok(stay)
    }

    /// Mounts the container's part of each tree in the container of `init`, whose mount namespace the worker enters for
    /// good.
    pub(super) fn show(&mut self, init: Pid, pidfd: &OwnedFd, mount: &CgroupMount) -> Result<(), Failure> {
        let root = Root::open(Path::new(&format!("/proc/{init}/root")));
        let root = root.map_err(|error| not_shown(mount, &error))?;
        let place = place(&root, mount)?;
        setns(pidfd, CloneFlags::CLONE_NEWNS).map_err(|errno| not_shown(mount, &errno))?;
        show_parts(std::mem::take(&mut self.parts), &place, mount)
    }
}

/// Makes the cgroup in each tree.
pub(super) fn make_trees(trees: &CgroupTrees) -> Result<(), Failure> {
    for root in &trees.roots {
        let directory = root.join(&trees.path);
        fs::create_dir_all(&directory).and_then(|()| inherit_cpuset(root, &trees.path)).map_err(|error| {
            Failure::internal(format!("make the cgroup {}: {error}", directory.display()))
        })?;
    }
    Ok(())
}

/// Puts this process into the cgroup of each tree.
pub(super) fn enter_trees(trees: &CgroupTrees) -> Result<(), Failure> {
    for root in &trees.roots {
        let directory = root.join(&trees.path);
        open_tasks(&directory)
            .and_then(|tasks| enter(&tasks))
            .map_err(|error| not_entered(&directory, &error))?;
    }
    Ok(())
}

fn not_entered(directory: &Path, error: &io::Error) -> Failure {
    Failure::internal(format!("enter the cgroup {}: {error}", directory.display()))
}

/// Mounts the container's part of each tree on its `root`, by a process in its mount namespace.
pub(super) fn show_trees(root: &Root, trees: &CgroupTrees, mount: &CgroupMount) -> Result<(), Failure> {
    show_parts(parts(trees, mount)?, &place(root, mount)?, mount)
}

/// The container's part of each tree, by the name of the tree, not mounted anywhere yet.
fn parts(trees: &CgroupTrees, mount: &CgroupMount) -> Result<Vec<(String, OwnedFd)>, Failure> {
    let mut parts = Vec::new();
    for root in &trees.roots {
        let Some(name) = root.file_name() else { continue };
        let part = sys::open_tree(&root.join(&trees.path)).and_then(|part| {
            restrict(&part, mount.readonly)?;
            Ok(part)
        });
        let part = part.map_err(|errno| not_shown(mount, &errno))?;
        parts.push((name.to_string_lossy().into_owned(), part));
    }
    Ok(parts)
}

fn place(root: &Root, mount: &CgroupMount) -> Result<OwnedFd, Failure> {
    let directory = nix::fcntl::OFlag::O_DIRECTORY | nix::fcntl::OFlag::O_CLOEXEC;
    let place = root.open_path(&mount.destination, directory, nix::sys::stat::Mode::empty());
    place.map_err(|error| not_shown(mount, &error))
}

/// Leaves this process in the guest's `/`.
fn show_parts(parts: Vec<(String, OwnedFd)>, place: &OwnedFd, mount: &CgroupMount) -> Result<(), Failure> {
    nix::unistd::fchdir(place).map_err(|errno| not_shown(mount, &errno))?;
    for (name, part) in parts {
        fs::create_dir(&name).map_err(|error| not_shown(mount, &error))?;
        sys::move_mount(&part, Path::new(&name)).map_err(|errno| not_shown(mount, &errno))?;
        for alias in name.split(',').filter(|alias| *alias != name) {
            std::os::unix::fs::symlink(&name, alias).map_err(|error| not_shown(mount, &error))?;
        }
    }
    if mount.readonly {
        restrict(place, true).map_err(|errno| not_shown(mount, &errno))?;
    }
    nix::unistd::chdir("/").map_err(|errno| not_shown(mount, &errno))
}

fn not_shown(mount: &CgroupMount, cause: &dyn std::fmt::Display) -> Failure {
    Failure::internal(format!("mount the cgroups on {}: {cause}", mount.destination.display()))
}

/// Takes from a mount the rights to execute and to be a device, and if asked the one to be written.
fn restrict(mount: &OwnedFd, readonly: bool) -> nix::Result<()> {
    let readonly = if readonly { libc::MOUNT_ATTR_RDONLY } else { 0 };
    let set = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC | readonly;
    sys::set_mount_attributes(mount, set, 0, false)
}

/// Covers the guest's trees with an empty one of v2, in the mount namespace that the worker has for itself.
pub(super) fn hide() -> Result<(), Failure> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let none = None::<&str>;
    // Or the mount would be seen by those that have a copy of this one.
    mount(none, CGROUP_ROOT, none, MsFlags::MS_PRIVATE, none)
        .and_then(|()| mount(Some("cgroup2"), CGROUP_ROOT, Some("cgroup2"), flags, none))
        .map_err(|errno| Failure::internal(format!("cover {CGROUP_ROOT}: {errno}")))
}

/// Makes a container's cgroup on v2, with all controllers that libcontainer would ask for; returns its directory.
pub(super) fn make_unified(cgroup: &UnifiedCgroup) -> Result<PathBuf, Failure> {
    let directory = cgroup.root.join(&cgroup.path);
    let failed = |error| Failure::internal(format!("make the cgroup {}: {error}", directory.display()));
    enable_controllers(&cgroup.root, cgroup.path.parent().unwrap_or_else(|| Path::new("")))
        .map_err(failed)?;
    fs::create_dir_all(&directory).map_err(failed)?;
    Ok(directory)
}

/// Has the cgroups from the root to `path`, made if they are missing, hand down the controllers. One that the guest
/// refuses is not missed before a limit needs it.
fn enable_controllers(root: &Path, path: &Path) -> io::Result<()> {
    const ASKED: [&str; 6] = ["cpu", "cpuset", "hugetlb", "io", "memory", "pids"];
    let text = fs::read_to_string(root.join("cgroup.controllers"))?;
    let available = || text.split_whitespace().filter(|name| ASKED.contains(name));
    let lowest = root.join(path);
    if let Ok(enabled) = fs::read_to_string(lowest.join(SUBTREE_CONTROL))
        && available().all(|wanted| enabled.split_whitespace().any(|name| name == wanted))
    {
        return Ok(());
    }
    fs::create_dir_all(&lowest)?;
    let mut directory = root.to_owned();
    for name in std::iter::once(Path::new("")).chain(path.iter().map(Path::new)) {
        directory.push(name);
        for controller in available() {
            let _ = fs::write(directory.join(SUBTREE_CONTROL), format!("+{controller}"));
        }
    }
    Ok(())
}

/// A cgroup on v2, for a process to be born in.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    open: File,
}

impl Directory {
    pub(super) fn open(path: PathBuf) -> Result<Self, Failure> {
        open_directory(&path).map(|open| Self { path, open })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl AsFd for Directory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.open.as_fd()
    }
}

/// The way of a further process into its container's cgroups.
#[derive(Debug, Default)]
pub(super) struct Way {
    /// To be born in.
    directory: Option<File>,
    /// To be entered.
    tasks: Vec<File>,
    /// How many processes there are, and may be, where they are to be entered.
    pids: Option<(File, File)>,
}

impl Way {
    pub(super) fn open(cgroups: &ExecCgroups) -> Result<Self, Failure> {
        let mut way = Self::default();
        let directories = match cgroups {
            ExecCgroups::V1(directories) => directories,
            ExecCgroups::V2 { root, path, .. } => {
                way.directory = Some(open_directory(&root.join(path))?);
                return Ok(way);
            }
        };
        let mut last = None;
        for directory in directories {
            match open_tasks(directory) {
                Ok(tasks) => way.tasks.push(tasks),
                // libcontainer does not make them in all trees, and systemd not everywhere has one of v2 beside them.
                Err(error) if error.kind() == io::ErrorKind::NotFound => last = Some((directory, error)),
                Err(error) => return Err(not_opened(directory, &error)),
            }
            let pids = (File::open(directory.join("pids.current")), File::open(directory.join("pids.max")));
            if let (Ok(current), Ok(max)) = pids {
                way.pids = Some((current, max));
            }
        }
        match last {
            Some((directory, error)) if way.tasks.is_empty() => Err(not_opened(directory, &error)),
            _ => Ok(way),
        }
    }

    /// Where the process is to be born.
    pub(super) fn directory(&self) -> Option<BorrowedFd<'_>> {
        self.directory.as_ref().map(AsFd::as_fd)
    }

    /// Enters what it has not been born in, unless there are as many processes already as may be.
    pub(super) fn take(&self) -> Result<(), Failure> {
        for tasks in &self.tasks {
            enter(tasks)
                .map_err(|error| Failure::internal(format!("enter the container's cgroup: {error}")))?;
        }
        // The kernel limits forks, not who comes from elsewhere.
        if let Some((current, max)) = &self.pids
            && let (Some(current), Some(max)) = (number(current), number(max))
            && current > max
        {
            let message = format!("no more processes are allowed (pids limit): the container may have {max}");
            return Err(Failure { kind: FailureKind::Exhausted, message });
        }
        Ok(())
    }
}

/// The cgroup of init, if the container has divided its own: nobody may be in that itself then.
pub(super) fn open_beside_init(cgroups: &ExecCgroups) -> Result<Option<File>, Failure> {
    let ExecCgroups::V2 { root, path, init } = cgroups else { return Ok(None) };
    let Some(place) = crate::cgroup::place_beside(Pid::from_raw(*init), path) else { return Ok(None) };
    let directory = root.join(path).join(place);
    match File::open(&directory) {
        // Init has left it since.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some).map_err(|error| not_opened(&directory, &error)),
    }
}

fn open_directory(directory: &Path) -> Result<File, Failure> {
    File::open(directory).map_err(|error| not_opened(directory, &error))
}

fn not_opened(directory: &Path, error: &io::Error) -> Failure {
    Failure::internal(format!("open the cgroup {}: {error}", directory.display()))
}

/// A number, or nothing for `max`.
fn number(file: &File) -> Option<u64> {
    let mut bytes = [0; 32];
    let len = file.read_at(&mut bytes, 0).ok()?;
    std::str::from_utf8(bytes.get(..len)?).ok()?.trim().parse().ok()
}

/// On v2 it has another name, and a process of one thread is one as well.
fn open_tasks(directory: &Path) -> io::Result<File> {
    let open = |name| OpenOptions::new().write(true).open(directory.join(name));
    open("tasks").or_else(|_| open("cgroup.procs"))
}

fn enter(mut tasks: &File) -> io::Result<()> {
    tasks.write_all(b"0")
}

/// A cgroup with a cpuset takes nobody in before it has CPUs and memory nodes: those of the one above.
fn inherit_cpuset(root: &Path, path: &Path) -> io::Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let mut directory = root.to_owned();
        let mut above = match fs::read_to_string(directory.join(file)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        for name in path {
            directory.push(name);
            let own = directory.join(file);
            let text = fs::read_to_string(&own)?;
            if text.trim().is_empty() {
                fs::write(&own, above.trim())?;
            } else {
                above = text;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_without_the_cgroup_is_passed_over_but_not_all() {
        let root = tempfile::tempdir().unwrap();
        let (there, not_there) = (root.path().join("memory/c"), root.path().join("systemd/c"));
        fs::create_dir_all(&there).unwrap();
        fs::write(there.join("tasks"), "").unwrap();
        let way = Way::open(&ExecCgroups::V1(vec![not_there.clone(), there.clone()])).unwrap();
        way.take().unwrap();
        assert_eq!(fs::read_to_string(there.join("tasks")).unwrap(), "0");
        let failure = Way::open(&ExecCgroups::V1(vec![not_there])).unwrap_err();
        assert!(failure.message.contains("systemd/c"), "{failure}");
    }

    #[test]
    fn controllers_are_asked_for_where_they_are_missing() {
        let root = tempfile::tempdir().unwrap();
        let cgroup = UnifiedCgroup { root: root.path().to_owned(), path: "a/b".into() };
        fs::create_dir(root.path().join("a")).unwrap();
        fs::write(root.path().join("cgroup.controllers"), "cpu rdma pids\n").unwrap();
        let enabled = root.path().join("a").join(SUBTREE_CONTROL);
        fs::write(&enabled, "pids cpu\n").unwrap();
        assert_eq!(make_unified(&cgroup).unwrap(), root.path().join("a/b"));
        assert!(!root.path().join(SUBTREE_CONTROL).exists(), "nothing is missing");
        fs::write(&enabled, "cpu\n").unwrap();
        make_unified(&cgroup).unwrap();
        for file in [root.path().join(SUBTREE_CONTROL), enabled] {
            assert_eq!(fs::read_to_string(file).unwrap(), "+pids", "the last of those asked for");
        }
    }

    #[test]
    fn more_processes_than_may_be_are_refused() {
        let root = tempfile::tempdir().unwrap();
        for (file, text) in [("tasks", ""), ("pids.current", "3\n"), ("pids.max", "2\n")] {
            fs::write(root.path().join(file), text).unwrap();
        }
        let way = Way::open(&ExecCgroups::V1(vec![root.path().to_owned()])).unwrap();
        assert_eq!(way.take().unwrap_err().kind, FailureKind::Exhausted);
        fs::write(root.path().join("pids.max"), "max\n").unwrap();
        way.take().unwrap();
    }

    #[test]
    fn cpus_come_from_above_where_there_are_none() {
        let root = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("cpuset.cpus", "0-3\n");
        write("a/cpuset.cpus", "1-2\n");
        write("a/b/cpuset.cpus", "\n");
        for mems in ["cpuset.mems", "a/cpuset.mems", "a/b/cpuset.mems"] {
            write(mems, "0\n");
        }
        inherit_cpuset(root.path(), Path::new("a/b")).unwrap();
        assert_eq!(fs::read_to_string(root.path().join("a/b/cpuset.cpus")).unwrap(), "1-2");
        let none = tempfile::tempdir().unwrap();
        inherit_cpuset(none.path(), Path::new("a")).unwrap();
    }
}
