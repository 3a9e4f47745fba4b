//! The files of a cgroup that has been asked what it used, open as long as that is asked often.
//!
//! Opening and closing a file costs more than reading it. [`KeptFiles`] has those of a few containers, the last asked
//! for, until they are forgotten one by one or all at once; a cgroup that is gone meanwhile is seen to be gone. A
//! file that was not there is not looked for again, until after some looks all are opened anew.

use super::{HugePages, v1, v2};
use crate::cgroup::tree::Dir;
use crate::cgroup::{Cgroup, CgroupError, Hierarchy};
use nakai_scan::Wire;
use nix::errno::Errno;
use rustix::buffer::spare_capacity;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// How many containers' files are kept: about twenty descriptors each.
const CONTAINERS: usize = 8;
/// After how many looks files are opened anew, to find those that were not there.
const LOOKS: u32 = 64;
/// Room for most files.
const ROOM: usize = 4 << 10;
/// More than any file of statistics has.
const LIMIT: usize = 1 << 20;

/// The files in one directory. They are read in the same order each time.
#[derive(Debug)]
pub(super) struct Files {
    dir: Dir,
    /// By name; none of those that are not there.
    files: Vec<(String, Option<OwnedFd>)>,
    /// Which is the next one to be read, most likely.
    next: usize,
    /// What the last one said.
    text: Vec<u8>,
}

impl Files {
    fn new(dir: Dir) -> Self {
        Self { dir, files: Vec::new(), next: 0, text: Vec::new() }
    }

    /// The directory itself.
    pub(super) fn dir(&self) -> &Dir {
        &self.dir
    }

    /// The text of the file that is called `start` and `end`. `None` if the kernel has no such file, does not support
    /// it here, or the cgroup is gone. The kernel makes these files in one go, so that a read which does not fill its
    /// buffer has met the end.
    pub(super) fn read(&mut self, start: &str, end: &str) -> Result<Option<&[u8]>, CgroupError> {
        let place = self.place(start, end)?;
        let Some((name, Some(file))) = self.files.get(place) else { return Ok(None) };
        self.text.clear();
        while self.text.len() < LIMIT {
            self.text.reserve(ROOM);
            let (offset, room) = (self.text.len(), self.text.capacity().saturating_sub(self.text.len()));
            let offset = u64::try_from(offset).unwrap_or(u64::MAX);
            match rustix::io::pread(file, spare_capacity(&mut self.text), offset) {
                Ok(read) if read < room => break,
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => match Errno::from_raw(errno.raw_os_error()) {
                    // A v1 controller says EOPNOTSUPP or EINVAL for what it was told not to account.
                    Errno::ENODEV | Errno::EOPNOTSUPP | Errno::EINVAL => return Ok(None),
                    source => return Err(self.dir.read_error(name, source)),
                },
            }
        }
        Ok(Some(&self.text))
    }

    /// Where the file is in the list, which it is put on if need be.
    fn place(&mut self, start: &str, end: &str) -> Result<usize, CgroupError> {
        let is_it = |(name, _): &(String, _)| name.strip_prefix(start) == Some(end);
        let place = match self.files.get(self.next) {
            Some(file) if is_it(file) => Some(self.next),
            _ => self.files.iter().position(is_it),
        };
        let place = match place {
            Some(place) => place,
            None => {
                let name = [start, end].concat();
                let file = self.dir.file(&name)?;
                self.files.push((name, file));
                self.files.len().saturating_sub(1)
            }
        };
        self.next = place.saturating_add(1);
        Ok(place)
    }
}

/// The files of one cgroup, by the controller that they belong to.
#[derive(Debug)]
pub(super) struct Opened {
    parts: Vec<(&'static str, Files)>,
    told: v2::Told,
    looks: u32,
}

impl Opened {
    /// Opens the directories; the files as they are asked for.
    pub(super) fn of(cgroup: &Cgroup) -> Result<Self, CgroupError> {
        let dirs = match &*cgroup.hierarchy {
            Hierarchy::V2 { mount_point } => vec![("", cgroup.open_at(mount_point)?)],
            Hierarchy::V1 { .. } => v1::CONTROLLERS
                .into_iter()
                .map(|controller| Ok((controller, cgroup.open_v1(controller)?)))
                .collect::<Result<_, CgroupError>>()?,
        };
        let parts = dirs.into_iter().filter_map(|(name, dir)| Some((name, Files::new(dir?)))).collect();
        Ok(Self { parts, told: v2::Told::default(), looks: 0 })
    }

    /// What the cgroup used, encoded; `None` if it is gone.
    pub(super) fn look(&mut self, huge_pages: &HugePages) -> Result<Option<Vec<u8>>, CgroupError> {
        self.looks = self.looks.saturating_add(1);
        let mut wire = Wire::with_room(ROOM);
        self.parts.iter_mut().for_each(|(_, files)| files.next = 0);
        match self.parts.as_mut_slice() {
            [("", files)] => v2::read(files, huge_pages, &mut self.told, &mut wire)?,
            parts => v1::read(parts, huge_pages, &mut wire)?,
        }
        // What vanished under our hands would look like a container that used nothing.
        let is_gone = self.parts.is_empty() || self.parts.iter().any(|(_, files)| files.dir.is_gone());
        Ok((!is_gone).then(|| wire.into_bytes()))
    }
}

/// The files of a few cgroups. See the module.
#[derive(Debug, Default)]
pub struct KeptFiles(Mutex<VecDeque<(PathBuf, Opened)>>);

impl KeptFiles {
    /// Those of a cgroup, which are not among them then.
    pub(super) fn take(&self, cgroup: &Cgroup) -> Option<Opened> {
        let mut kept = self.lock();
        let place = kept.iter().position(|(path, _)| *path == cgroup.path)?;
        kept.remove(place).map(|(_, opened)| opened)
    }

    /// Keeps those of a cgroup, in the place of the ones that were not asked for the longest.
    pub(super) fn put(&self, cgroup: &Cgroup, opened: Opened) {
        if opened.looks < LOOKS {
            let mut kept = self.lock();
            kept.truncate(CONTAINERS.saturating_sub(1));
            kept.push_front((cgroup.path.clone(), opened));
        }
    }

    /// Closes those of a cgroup.
    pub fn forget(&self, cgroup: &Cgroup) {
        self.take(cgroup);
    }

    /// Closes all.
    pub fn clear(&self) {
        *self.lock() = VecDeque::new();
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(PathBuf, Opened)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::tests::{Fixture, decoded};

    fn usage(cgroup: &Cgroup, kept: &KeptFiles) -> u64 {
        decoded(cgroup, kept).unwrap().pids_stats.current
    }

    #[test]
    fn kept_files_tell_what_is_now() {
        let fixture = Fixture::v1(&[("pids/pids.current", "1\n")]);
        let kept = KeptFiles::default();
        let file = fixture.root.path().join("pids/pod/one/pids.current");
        assert_eq!(usage(&fixture.cgroup, &kept), 1);
        std::fs::write(&file, "2\n").unwrap();
        assert_eq!(usage(&fixture.cgroup, &kept), 2);
        // They are the same ones: another file of that name is not seen.
        std::fs::remove_file(&file).unwrap();
        std::fs::write(&file, "3\n").unwrap();
        assert_eq!(usage(&fixture.cgroup, &kept), 2);
        kept.forget(&fixture.cgroup);
        assert_eq!(usage(&fixture.cgroup, &kept), 3);
        kept.clear();
        assert!(kept.lock().is_empty());
    }

    #[test]
    fn statistics_of_memory_are_what_the_file_says_now() {
        let fixture = Fixture::v2(&[("memory.stat", "anon 1\nfile 2\nkernel 3\n")]);
        let kept = KeptFiles::default();
        let look = || {
            let memory = decoded(&fixture.cgroup, &kept).unwrap().memory_stats.unwrap();
            let of = |key: &str| memory.stats.get(key).copied();
            (memory.cache, memory.kernel_usage.usage, of("anon"), of("rss"), of("total_cache"))
        };
        let first = (2, 3, Some(1), Some(1), Some(2));
        assert_eq!((look(), look()), (first, first));
        let file = fixture.root.path().join("pod/one/memory.stat");
        std::fs::write(&file, "anon 1\nfile 5\nkernel 3\n").unwrap();
        assert_eq!(look(), (5, 3, Some(1), Some(1), Some(5)));
        std::fs::write(&file, "file 5\n").unwrap();
        assert_eq!(look(), (5, 0, None, None, Some(5)));
    }

    #[test]
    fn a_file_that_was_not_there_is_found_after_a_while() {
        let fixture = Fixture::v1(&[("cpu/cpu.stat", "")]);
        let kept = KeptFiles::default();
        assert!(decoded(&fixture.cgroup, &kept).unwrap().pids_stats.is_none());
        let pids = fixture.root.path().join("pids/pod/one");
        std::fs::create_dir_all(&pids).unwrap();
        std::fs::write(pids.join("cgroup.procs"), "").unwrap();
        std::fs::write(pids.join("pids.current"), "5\n").unwrap();
        assert!((0..=LOOKS).any(|_| usage(&fixture.cgroup, &kept) == 5));
    }

    #[test]
    fn a_cgroup_that_goes_is_gone_and_one_in_its_place_is_another() {
        let fixture = Fixture::v1(&[("pids/pids.current", "1\n")]);
        let kept = KeptFiles::default();
        assert_eq!(usage(&fixture.cgroup, &kept), 1);
        let directory = fixture.root.path().join("pids/pod/one");
        std::fs::remove_dir_all(&directory).unwrap();
        assert!(matches!(fixture.cgroup.stats(&kept), Err(CgroupError::NotFound { .. })));
        assert!(kept.lock().is_empty());
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("cgroup.procs"), "").unwrap();
        std::fs::write(directory.join("pids.current"), "9\n").unwrap();
        assert_eq!(usage(&fixture.cgroup, &kept), 9);
    }

    #[test]
    fn no_more_than_a_few_are_kept() {
        let fixture = Fixture::v1(&[("pids/pids.current", "1\n")]);
        let kept = KeptFiles::default();
        for _ in 0..100 {
            let opened = Opened::of(&fixture.cgroup).unwrap();
            kept.put(&fixture.cgroup, opened);
        }
        assert_eq!(kept.lock().len(), CONTAINERS);
    }
}
