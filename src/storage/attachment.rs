//! What attaching a storage changed in the guest, step by step, and the way back.
//!
//! Invariant: a step is on record before the next one is tried, so taking down what a driver left behind,
//! whether it finished or not, restores what was there before.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::libc;
use nix::sys::stat::fstat;
use serde::{Deserialize, Serialize};
use slog::Logger;

use super::StorageError;
use super::huge_pages::HugePagesError;
use super::ops::{MountOps, MountOrder, Target};
use super::ownership::{self, Giver};
use super::places::{Place, Places, fd_path};
use super::registry::OpenRecord;
use super::request::{BIND, StorageRequest};
use super::verity::Verity;
use super::watch::{Mirror, Watch};
use crate::guest::bulkhead::Bulkhead;
use crate::guest::tree;
use crate::ids::ContainerId;

#[derive(Debug)]
enum Step {
    /// What was made on the way to a place.
    Parents(Place),
    /// A directory. Nobody else should have put anything in it.
    Directory(Place),
    /// A directory of ours that goes with all that is in it.
    Tree(Place),
    /// An empty file to mount on.
    File(Place),
    Mount(Place),
    /// Pages in the kernel's pool: their size in KiB, and how many.
    HugePages(u64, u64),
    /// A device of the device mapper.
    Verity(String),
    /// A copy that is kept up to date.
    Watch(Watch),
}

/// The steps that were done for one storage.
#[derive(Debug, Default)]
pub(super) struct Attachment {
    steps: Vec<Step>,
}

/// A step as it is written down for the next server.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum StepRecord {
    /// With the directories above that were made.
    Parents(PathBuf, Vec<PathBuf>),
    Directory(PathBuf),
    Tree(PathBuf),
    File(PathBuf),
    Mount(PathBuf),
    HugePages(u64, u64),
    Verity(String),
    /// Of what, where, and by which directory; and whose it is.
    Watch([PathBuf; 3], Option<Giver>),
}

impl Attachment {
    /// What is to be written down.
    pub(super) fn record(&self) -> Vec<StepRecord> {
        let record = |step: &Step| match step {
            Step::Parents(place) => StepRecord::Parents(place.path(), place.made_parents()),
            Step::Directory(place) => StepRecord::Directory(place.path()),
            Step::Tree(place) => StepRecord::Tree(place.path()),
            Step::File(place) => StepRecord::File(place.path()),
            Step::Mount(place) => StepRecord::Mount(place.path()),
            Step::HugePages(size, count) => StepRecord::HugePages(*size, *count),
            Step::Verity(name) => StepRecord::Verity(name.clone()),
            Step::Watch(watch) => StepRecord::Watch(watch.places.clone(), watch.group),
        };
        self.steps.iter().map(record).collect()
    }

    /// The steps that an earlier server has written down. It may have died while it took them back: a mount that is
    /// not `mounted` any more is no step. A watch goes on, in a task of the current runtime.
    pub(super) fn recover(
        mut records: Vec<StepRecord>,
        places: &Places,
        mounted: impl Fn(&Path) -> bool,
        bulkhead: &Bulkhead,
        log: &Logger,
    ) -> Result<Self, StorageError> {
        records.retain(|record| !matches!(record, StepRecord::Mount(path) if !mounted(path)));
        let recover = |record| {
            Ok::<_, StorageError>(match record {
                StepRecord::Parents(path, made) => {
                    let place = places.locate(&path)?;
                    place.adopt_parents(made);
                    Step::Parents(place)
                }
                StepRecord::Directory(path) => Step::Directory(places.locate(&path)?),
                StepRecord::Tree(path) => Step::Tree(places.locate(&path)?),
                StepRecord::File(path) => Step::File(places.locate(&path)?),
                StepRecord::Mount(path) => Step::Mount(places.locate(&path)?),
                StepRecord::HugePages(size, count) => Step::HugePages(size, count),
                StepRecord::Verity(name) => Step::Verity(name),
                StepRecord::Watch([source, target, aside], group) => {
                    let [source, target, aside] = [source, target, aside].map(|path| places.locate(&path));
                    Step::Watch(Watch::start(
                        Mirror::new(source?, target?, aside?, group),
                        bulkhead.clone(),
                        log.clone(),
                    ))
                }
            })
        };
        let steps = records.into_iter().map(recover).collect::<Result<_, StorageError>>()?;
        Ok(Self { steps })
    }

    /// Adds the steps that may have been done at `place` after the last record was written. `is_mounted` says whether
    /// the mount was made.
    pub(super) fn unfinished(mut self, place: Place, is_mounted: bool) -> Self {
        let goes = |step: &Step| matches!(step, Step::Tree(tree) if tree.path() == place.path());
        if !self.steps.iter().any(goes) {
            self.steps.extend([Step::Parents(place.clone()), Step::Directory(place.clone())]);
        }
        let is_known = matches!(self.steps.last(), Some(Step::Mount(_)));
        if is_mounted && !is_known {
            self.steps.push(Step::Mount(place));
        }
        self
    }

    /// Whether there is nothing to take down (any more).
    pub(super) fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Whether directories of ours go with all that is in them.
    pub(super) fn has_tree(&self) -> bool {
        self.steps.iter().any(|step| matches!(step, Step::Tree(_)))
    }

    /// Goes back, last step first. A mount that can't be taken down ends it there: what is left can be tried
    /// again. A directory that can't be removed is given up; the first such error is returned at the end.
    pub(super) fn take_down(&mut self, ops: &dyn MountOps) -> Result<(), StorageError> {
        let mut first_error = Ok(());
        while let Some(step) = self.steps.pop() {
            match step {
                Step::Mount(place) => {
                    if let Err(error) = unmount(&place, ops) {
                        self.steps.push(Step::Mount(place));
                        return Err(error);
                    }
                }
                Step::Verity(name) => {
                    let removed = ops.remove_verity(&name).map_err(|cause| StorageError::Verity { cause });
                    first_error = first_error.and(removed);
                }
                Step::HugePages(size, count) => {
                    let given = ops.give_back_huge_pages(size, count);
                    let given = given.map_err(|cause| StorageError::HugePages { cause });
                    first_error = first_error.and(given);
                }
                other => {
                    let removed = remove(other);
                    first_error = first_error.and(removed);
                }
            }
        }
        first_error
    }
}

fn unmount(place: &Place, ops: &dyn MountOps) -> Result<(), StorageError> {
    // Through the directory around it: a handle to the mount itself would keep it busy.
    let (parent, name) = place.parent().map_err(StorageError::at("opening", place.path()))?;
    ops.unmount(&Target { link: &fd_path(&parent).join(name), path: &place.path() })
        .map_err(|cause| StorageError::Unmount { cause })
}

fn remove(step: Step) -> Result<(), StorageError> {
    let (place, removed) = match step {
        Step::Mount(_) | Step::HugePages(..) | Step::Verity(_) => return Ok(()),
        Step::Watch(watch) => {
            drop(watch);
            return Ok(());
        }
        Step::Parents(place) => {
            place.remove_parents();
            return Ok(());
        }
        Step::Directory(place) => (place.path(), place.remove_directory()),
        Step::Tree(place) => (place.path(), place.remove_tree()),
        Step::File(place) => (place.path(), place.remove_file()),
    };
    match removed {
        // A share that the host made read-only meanwhile: it is the host's to clean.
        Err(Errno::EROFS) => Ok(()),
        other => other.map_err(StorageError::at("removing", place)),
    }
}

/// Mounts at a place that is there.
pub(super) fn mount_at(
    place: &Place,
    order: &MountOrder<'_>,
    ops: &dyn MountOps,
) -> Result<(), StorageError> {
    let (parent, name) = place.parent().map_err(StorageError::at("opening", place.path()))?;
    let target = Target { link: &fd_path(&parent).join(name), path: &place.path() };
    ops.mount(order, &target).map_err(|cause| StorageError::Mount { cause })
}

/// A driver's hands: the request, the source as it was found, and the record of what is done.
pub(super) struct Work<'a> {
    pub(super) request: &'a StorageRequest,
    /// The request's source, or the device node that was found for it.
    pub(super) source: &'a str,
    pub(super) container: Option<&'a ContainerId>,
    pub(super) place: &'a Place,
    pub(super) ops: &'a dyn MountOps,
    pub(super) attachment: &'a mut Attachment,
    pub(super) record: &'a OpenRecord,
    /// For what goes on after the attaching.
    pub(super) bulkhead: &'a Bulkhead,
    pub(super) log: &'a Logger,
}

impl Work<'_> {
    /// Has a step on record before more is done: if the server dies then, the next one would not find it by looking at
    /// the mount point.
    fn note(&mut self, step: Step) -> Result<(), StorageError> {
        self.attachment.steps.push(step);
        self.record.begun(self.attachment)
    }

    /// Makes a directory, and those above it, if it is missing.
    pub(super) fn make_directory(&mut self, place: &Place) -> Result<OwnedFd, StorageError> {
        self.make(place, Step::Directory)
    }

    /// The same, but if it was missing it goes with all that is put in it.
    pub(super) fn make_owned_directory(&mut self, place: &Place) -> Result<OwnedFd, StorageError> {
        self.make(place, Step::Tree)
    }

    /// Makes an empty file, and the directories above it, if it is missing.
    pub(super) fn make_file(&mut self, place: &Place) -> Result<(), StorageError> {
        self.attachment.steps.push(Step::Parents(place.clone()));
        if place.make_file().map_err(StorageError::at("making file", place.path()))? {
            self.attachment.steps.push(Step::File(place.clone()));
        }
        Ok(())
    }

    /// Takes huge pages of `size` KiB into the kernel's pool, for as long as the storage is there.
    pub(super) fn reserve_huge_pages(&mut self, size: u64, count: u64) -> Result<(), StorageError> {
        let reserved = self.ops.reserve_huge_pages(size, count);
        reserved.map_err(|cause| match cause.downcast_ref() {
            Some(HugePagesError::Size { .. }) => self.request.refuse("options", cause.to_string()),
            Some(HugePagesError::TooFew { .. }) => StorageError::TooFewPages { cause },
            _ => StorageError::HugePages { cause },
        })?;
        // Not before: pages that were never taken would be taken from others.
        self.note(Step::HugePages(size, count))
    }

    /// Records that somebody else (the confidential data hub) is going to fill the mount point, so that it is removed
    /// with the storage, however far that comes. What is there already stays if it comes to nothing.
    pub(super) fn expect_tree(&mut self) -> Result<(), StorageError> {
        self.attachment.steps.push(Step::Parents(self.place.clone()));
        let around = self.place.make_around();
        around.map_err(StorageError::at("making the directory of", self.place.path()))?;
        match self.place.handle() {
            Ok(_) => {}
            Err(Errno::ENOENT) => self.attachment.steps.push(Step::Tree(self.place.clone())),
            // There may be something, which is not ours to remove.
            Err(errno) => return Err(StorageError::at("looking at", self.place.path())(errno)),
        }
        self.record.begun(self.attachment)
    }

    /// Somebody else is going to mount on the mount point, which is made if missing.
    pub(super) fn expect_mount(&mut self) -> Result<(), StorageError> {
        self.make_owned_directory(&self.place.clone()).map(drop)
    }

    /// Takes over what somebody else has made at the mount point: it goes with the storage.
    pub(super) fn adopt(&mut self) -> Result<(), StorageError> {
        let path = self.place.path();
        self.place.handle().map_err(StorageError::at("opening", &path))?;
        if !matches!(self.attachment.steps.last(), Some(Step::Tree(_))) {
            self.attachment.steps.push(Step::Tree(self.place.clone()));
        }
        self.adopt_mount().map(drop)
    }

    /// The same for the mount there. Says whether there is one.
    pub(super) fn adopt_mount(&mut self) -> Result<bool, StorageError> {
        let path = self.place.path();
        let mounted = self.ops.is_mount_point(&path);
        let mounted = mounted.map_err(|cause| StorageError::Mounts { mount_point: path, cause })?;
        if mounted {
            self.attachment.steps.push(Step::Mount(self.place.clone()));
        }
        Ok(mounted)
    }

    /// Gives the mount that is there these options.
    pub(super) fn change_mount(&self, fstype: &str, mut options: Vec<String>) -> Result<(), StorageError> {
        self.request.refuse_other_mounts(fstype, &options)?;
        options.insert(0, "remount".to_owned());
        let order = MountOrder { from: self.source, link: self.source, fstype, options: &options };
        mount_at(self.place, &order, self.ops)
    }

    /// Goes on with the copy for as long as the storage is there.
    pub(super) fn keep(&mut self, watch: Watch) {
        self.attachment.steps.push(Step::Watch(watch));
    }

    fn make(&mut self, place: &Place, step: fn(Place) -> Step) -> Result<OwnedFd, StorageError> {
        self.attachment.steps.push(Step::Parents(place.clone()));
        let made = place.make_directory();
        let (directory, made) = made.map_err(StorageError::at("making directory", place.path()))?;
        if made {
            match step(place.clone()) {
                // An empty directory is found at the mount point, or does no harm.
                step @ Step::Directory(_) => self.attachment.steps.push(step),
                step => self.note(step)?,
            }
        }
        Ok(directory)
    }

    /// Mounts the source on the mount point, which is made if missing.
    pub(super) fn mount(&mut self, fstype: &str, options: &[String]) -> Result<(), StorageError> {
        self.load(fstype)?;
        self.mount_source(self.source, fstype, options)
    }

    /// Makes a device that checks what is read from the source. Returns its node.
    pub(super) fn verify(&mut self, verity: &Verity) -> Result<PathBuf, StorageError> {
        let failed = |cause| StorageError::Verity { cause };
        let name = self.ops.new_verity_name().map_err(failed)?;
        self.note(Step::Verity(name.clone()))?;
        self.ops.add_verity(&name, self.source, verity).map_err(failed)
    }

    /// Mounts the block device `node` on the mount point, which is made if missing. A filesystem without a device takes
    /// what it shows from somewhere else: it is refused.
    pub(super) fn mount_node(
        &mut self,
        node: &str,
        fstype: &str,
        options: &[String],
    ) -> Result<(), StorageError> {
        self.load(fstype)?;
        if self.ops.is_without_device(fstype) {
            return Err(self.request.refuse("fstype", format!("{fstype:?} is on no block device")));
        }
        self.mount_source(node, fstype, options)
    }

    fn load(&self, fstype: &str) -> Result<(), StorageError> {
        self.ops.load_filesystem(fstype).map_err(|cause| StorageError::Filesystem {
            fstype: fstype.to_owned(),
            mount_point: self.place.path(),
            cause,
        })
    }

    fn mount_source(&mut self, link: &str, fstype: &str, options: &[String]) -> Result<(), StorageError> {
        self.make_directory(&self.place.clone())?;
        self.mount_from(link, fstype, options)
    }

    /// Makes what is open at `from` visible at the mount point too: on a directory, or on an empty file,
    /// after its kind.
    pub(super) fn bind(&mut self, from: &OwnedFd, options: &[String]) -> Result<(), StorageError> {
        let stat = fstat(from).map_err(StorageError::at("looking at", self.source))?;
        let place = self.place.clone();
        if tree::file_type(&stat) == libc::S_IFDIR {
            self.make_directory(&place)?;
        } else {
            self.make_file(&place)?;
        }
        self.mount_from(&fd_path(from).to_string_lossy(), BIND, options)
    }

    fn mount_from(&mut self, link: &str, fstype: &str, options: &[String]) -> Result<(), StorageError> {
        self.request.refuse_other_mounts(fstype, options)?;
        let order = MountOrder { from: self.source, link, fstype, options };
        mount_at(self.place, &order, self.ops)?;
        self.attachment.steps.push(Step::Mount(self.place.clone()));
        Ok(())
    }

    /// Gives what is mounted to the group that the request names, if it names one.
    pub(super) fn give_to_group(&self) -> Result<(), StorageError> {
        match self.request.fs_group {
            Some(group) => ownership::apply(self.place, group, self.request.read_only()),
            None => Ok(()),
        }
    }
}
