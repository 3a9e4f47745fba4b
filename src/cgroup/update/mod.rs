//! New limits for a container that exists: `UpdateContainer`.
//!
//! What is to be written is planned first, from the limits asked for and those in force ([`Plan`]); nonsense is
//! refused before anything is changed. If the kernel refuses a write, what was written before gets its old value
//! again: an update has its full effect, or none, as far as the files can be read back.
//!
//! **The files are written directly.** libcgroups' own update needs the complete resources (without the device
//! rules it resets those to its defaults), on v2 leaves swap unlimited where memory and swap together are limited
//! to as much as memory, computes block I/O weights in 16 bits, and lifts no rate. Where both write a file, the
//! value is the same, so that an update to what the container was created with changes nothing.
//!
//! As with `runc update`, not part of an update: the device rules, and the network class and priorities. What a
//! runtime on the kernel at hand has no use for is passed over: kernel memory (deprecated by the runtime
//! specification) everywhere; swappiness, the OOM killer's switch and kernel TCP memory on v2.

mod cpu;
mod io;
mod memory;
#[cfg(test)]
mod tests;

use super::parents::is_marked;
use super::tree::Dir;
use super::{Cgroup, CgroupError, Hierarchy};
use nix::errno::Errno;
use oci_spec::runtime::{LinuxHugepageLimit, LinuxResources};
use std::rc::Rc;

/// Controllers that have limits. On v1 each has its directory, on v2 all have the same.
const CONTROLLERS: [&str; 6] = ["memory", "cpu", "cpuset", "pids", "hugetlb", "blkio"];

/// One file to write.
#[derive(Debug, PartialEq, Eq)]
struct Write {
    /// Its name in the OCI specification, for messages.
    field: &'static str,
    /// Whose directory it is in.
    controller: &'static str,
    file: String,
    value: String,
    /// Whether the limit holds, too, if there is no such file.
    optional: bool,
    /// Whether it is tried again after the next one: the two are valid together only.
    retry: bool,
}

/// Reads a controller's file; nothing if there is no such file.
type Read<'a> = dyn Fn(&str, &str) -> Result<Option<String>, CgroupError> + 'a;

/// What to write, in order, and how to see what is in force.
struct Plan<'a> {
    v2: bool,
    read: &'a Read<'a>,
    writes: Vec<Write>,
}

impl Plan<'_> {
    fn write(
        &mut self,
        field: &'static str,
        controller: &'static str,
        file: impl Into<String>,
        value: impl ToString,
    ) -> &mut Self {
        let (file, value) = (file.into(), value.to_string());
        self.writes.push(Write { field, controller, file, value, optional: false, retry: false });
        self
    }

    /// The last write's [`Write::optional`].
    fn optional(&mut self, optional: bool) {
        self.writes.last_mut().into_iter().for_each(|write| write.optional = optional);
    }

    /// The last write's [`Write::retry`].
    fn retry(&mut self, retry: bool) {
        self.writes.last_mut().into_iter().for_each(|write| write.retry = retry);
    }

    fn now(&self, controller: &str, file: &str) -> Result<Option<String>, CgroupError> {
        (self.read)(controller, file)
    }

    fn has(&self, controller: &str, file: &str) -> Result<bool, CgroupError> {
        self.now(controller, file).map(|text| text.is_some())
    }

    fn resources(&mut self, resources: &LinuxResources) -> Result<(), CgroupError> {
        if let Some(memory) = resources.memory() {
            if self.v2 { memory::v2(self, memory)? } else { memory::v1(self, memory)? }
        }
        if let Some(cpu) = resources.cpu() {
            if self.v2 {
                cpu::v2(self, cpu)?
            } else {
                cpu::v1(self, cpu)
            }
            cpu::set(self, cpu);
        }
        if let Some(pids) = resources.pids() {
            let limit = if pids.limit() > 0 { pids.limit().to_string() } else { "max".to_owned() };
            self.write("linux.resources.pids.limit", "pids", "pids.max", limit);
        }
        for limit in resources.hugepage_limits().iter().flatten() {
            self.huge_pages(limit)?;
        }
        if let Some(block_io) = resources.block_io() {
            if self.v2 { io::v2(self, block_io)? } else { io::v1(self, block_io)? }
        }
        Ok(())
    }

    /// Pages of a size that the guest does not have need no limit; hosts send one for each size of their own, which is 0
    /// where a container asks for none. Without the controller that says nothing about this guest, either.
    fn huge_pages(&mut self, limit: &LinuxHugepageLimit) -> Result<(), CgroupError> {
        const FIELD: &str = "linux.resources.hugepageLimits";
        let size = limit.page_size();
        // It becomes a part of a file's name.
        let number = size.strip_suffix('B').map(|size| size.trim_end_matches(['K', 'M', 'G']));
        let Some(number) = number else { return Err(bad(FIELD, size, "a page size ends with KB, MB or GB")) };
        if number.is_empty()
            || number.len().saturating_add(2) != size.len()
            || !number.bytes().all(|b| b.is_ascii_digit())
        {
            return Err(bad(FIELD, size, "a page size is a number with KB, MB or GB"));
        }
        let limits = if self.v2 { "max" } else { "limit_in_bytes" };
        let any = if self.v2 { "cgroup.controllers" } else { "cgroup.procs" };
        let text = self.now("hugetlb", any)?;
        if !text.is_some_and(|text| !self.v2 || text.split_whitespace().any(|name| name == "hugetlb")) {
            if limit.limit() == 0 {
                return Ok(());
            }
            return Err(CgroupError::NoSuchLimit { field: FIELD, file: format!("hugetlb.{size}.{limits}") });
        }
        let value = if self.v2 { or_max(limit.limit()) } else { limit.limit().to_string() };
        for part in ["", ".rsvd"] {
            let file = format!("hugetlb.{size}{part}.{limits}");
            self.write(FIELD, "hugetlb", file, &value).optional(true);
        }
        Ok(())
    }
}

/// v2's way to say -1.
fn or_max(limit: i64) -> String {
    if limit < 0 { "max".to_owned() } else { limit.to_string() }
}

/// What undoes a write, from what was in the file before. None for lists of which it can't be said.
fn way_back(write: &Write, old: String) -> Option<String> {
    let is_v1 = write.file.starts_with("blkio.throttle.");
    if !is_v1 && write.file != "io.max" {
        return (old.lines().count() <= 1).then_some(old);
    }
    // A line for each device that has a limit.
    let device = write.value.split(' ').next()?;
    let line = old.lines().find(|line| line.split(' ').next() == Some(device));
    let none = if is_v1 { "0" } else { "rbps=max wbps=max riops=max wiops=max" };
    Some(line.map_or_else(|| format!("{device} {none}"), str::to_owned))
}

fn bad(field: &'static str, value: impl ToString, reason: impl Into<String>) -> CgroupError {
    CgroupError::BadLimit { field, value: value.to_string(), reason: reason.into() }
}

impl Cgroup {
    /// Puts limits in force. What `resources` does not name stays as it is; -1 lifts a limit.
    ///
    /// # Errors
    /// [`CgroupError::NotFound`] if the cgroup is gone, [`CgroupError::BadLimit`], [`CgroupError::NoSuchLimit`], or
    /// [`CgroupError::Write`] with what the kernel says: `EBUSY` if more is in use (v1; on v2 the kernel
    /// reclaims, and kills when that is not enough).
    /// [`CgroupError::Systemd`]: the limits are in force, and systemd does not know of it.
    pub fn update(&self, resources: &LinuxResources) -> Result<(), CgroupError> {
        self.write_limits(resources)?;
        self.tell_systemd()
    }

    /// As [`Cgroup::update`], before systemd knows of the cgroup.
    ///
    /// # Errors
    /// The same.
    pub fn write_limits(&self, resources: &LinuxResources) -> Result<(), CgroupError> {
        let dirs = self.limit_dirs()?;
        let dir = |controller: &str| dirs.iter().find(|(name, _)| *name == controller).map(|(_, dir)| &**dir);
        let read = |controller: &str, file: &str| match dir(controller) {
            Some(dir) => dir.read(file),
            None => Ok(None),
        };
        let mut plan = Plan { v2: self.hierarchy.is_v2(), read: &read, writes: Vec::new() };
        plan.resources(resources)?;
        let mut undo = Vec::new();
        let mut retry = None;
        for write in &plan.writes {
            let result = match (self.set(dir(write.controller), write, &mut undo), retry.take()) {
                (Err(CgroupError::Write { source: Errno::EINVAL, .. }), None) if write.retry => {
                    retry = Some(write);
                    Ok(())
                }
                (Ok(()), Some(earlier)) => self.set(dir(earlier.controller), earlier, &mut undo),
                (result, _) => result,
            };
            if let Err(error) = result {
                for (dir, file, old) in undo.iter().rev() {
                    // The first error is the one to tell.
                    let _ = Dir::set(dir, file, old);
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// The directories that there are, by controller.
    pub(super) fn limit_dirs(&self) -> Result<Vec<(&'static str, Rc<Dir>)>, CgroupError> {
        let mut dirs = Vec::new();
        match &*self.hierarchy {
            Hierarchy::V2 { mount_point } => {
                let dir = Rc::new(self.open_at(mount_point)?.ok_or_else(|| self.not_found())?);
                dirs.extend(CONTROLLERS.map(|controller| (controller, dir.clone())));
            }
            Hierarchy::V1 { .. } => {
                for controller in CONTROLLERS {
                    dirs.extend(self.open_v1(controller)?.map(|dir| (controller, Rc::new(dir))));
                }
            }
        }
        if dirs.is_empty() { Err(self.not_found()) } else { Ok(dirs) }
    }

    /// Writes one file, and notes how to take that back.
    fn set<'a>(
        &self,
        dir: Option<&'a Dir>,
        write: &'a Write,
        undo: &mut Vec<(&'a Dir, &'a str, String)>,
    ) -> Result<(), CgroupError> {
        let missing = || match write.optional {
            true => Ok(()),
            false => Err(CgroupError::NoSuchLimit { field: write.field, file: write.file.clone() }),
        };
        let Some(dir) = dir else { return missing() };
        let old = dir.read(&write.file)?;
        let written = match dir.set(&write.file, &write.value) {
            // v1's way to say that a cgroup above lacks some of the CPUs: they came after it was made.
            Err(Errno::EACCES) if write.controller == "cpuset" && !self.hierarchy.is_v2() => {
                self.widen_ancestors(&write.file).and_then(|()| dir.set(&write.file, &write.value))
            }
            written => written,
        };
        match written {
            Ok(()) => {
                let back = old.and_then(|old| way_back(write, old));
                undo.extend(back.map(|back| (dir, write.file.as_str(), back)));
                Ok(())
            }
            Err(Errno::ENOENT) => missing(),
            Err(Errno::ENODEV) if dir.is_gone() => Err(self.not_found()),
            Err(source) => {
                let (path, file, value) = (dir.path().clone(), write.file.clone(), write.value.clone());
                Err(CgroupError::Write { path, file, value, source })
            }
        }
    }

    /// Gives the cgroups above what the guest has. They limit nothing: they are there for the path only. Those that no
    /// agent has made are not its to widen.
    fn widen_ancestors(&self, file: &str) -> Result<(), Errno> {
        let root = self.hierarchy.controller("cpuset").ok_or(Errno::EACCES)?;
        let open = |path| Dir::open(path).ok().flatten().ok_or(Errno::EACCES);
        let all = open(root.to_owned())?.read(file).ok().flatten().ok_or(Errno::EACCES)?;
        let mut above: Vec<_> = self.path.ancestors().skip(1).filter(|p| !p.as_os_str().is_empty()).collect();
        above.reverse();
        let made = above.into_iter().map(|path| root.join(path)).filter(|path| is_marked(path));
        made.into_iter().try_for_each(|path| open(path)?.set(file, all.trim()))
    }
}
