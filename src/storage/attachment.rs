//! What attaching a storage changed in the guest, step by step, and the way back.
//!
//! Invariant: a step is on record before the next one is tried, so taking down what a driver left behind,
//! whether it finished or not, restores what was there before.

use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::libc;
use nix::sys::stat::fstat;

use super::StorageError;
use super::ops::{MountOps, MountOrder, Target};
use super::ownership;
use super::places::{Place, fd_path};
use super::request::StorageRequest;
use super::tree;
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
}

/// The steps that were done for one storage.
#[derive(Debug, Default)]
pub(super) struct Attachment {
    steps: Vec<Step>,
}

impl Attachment {
    /// Whether there is nothing to take down (any more).
    pub(super) fn is_empty(&self) -> bool {
        self.steps.is_empty()
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
        Step::Mount(_) => return Ok(()),
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
}

impl Work<'_> {
    /// Makes a directory, and those above it, if it is missing.
    pub(super) fn make_directory(&mut self, place: &Place) -> Result<OwnedFd, StorageError> {
        self.make(place, Step::Directory)
    }

    /// The same, but if it was missing it goes with all that is put in it.
    pub(super) fn make_owned_directory(&mut self, place: &Place) -> Result<OwnedFd, StorageError> {
        self.make(place, Step::Tree)
    }

    fn make(&mut self, place: &Place, step: fn(Place) -> Step) -> Result<OwnedFd, StorageError> {
        self.attachment.steps.push(Step::Parents(place.clone()));
        let made = place.make_directory();
        let (directory, made) = made.map_err(StorageError::at("making directory", place.path()))?;
        if made {
            self.attachment.steps.push(step(place.clone()));
        }
        Ok(directory)
    }

    /// Mounts the source on the mount point, which is made if missing.
    pub(super) fn mount(&mut self, fstype: &str, options: &[String]) -> Result<(), StorageError> {
        self.ops.load_filesystem(fstype).map_err(|cause| StorageError::Filesystem {
            fstype: fstype.to_owned(),
            mount_point: self.place.path(),
            cause,
        })?;
        self.make_directory(&self.place.clone())?;
        self.mount_from(self.source, fstype, options)
    }

    /// Makes what is open at `from` visible at the mount point too: on a directory, or on an empty file,
    /// after its kind.
    pub(super) fn bind(&mut self, from: &OwnedFd, options: &[String]) -> Result<(), StorageError> {
        let stat = fstat(from).map_err(StorageError::at("looking at", self.source))?;
        let place = self.place.clone();
        if tree::file_type(&stat) == libc::S_IFDIR {
            self.make_directory(&place)?;
        } else {
            self.attachment.steps.push(Step::Parents(place.clone()));
            if place.make_file().map_err(StorageError::at("making file", place.path()))? {
                self.attachment.steps.push(Step::File(place));
            }
        }
        self.mount_from(&fd_path(from).to_string_lossy(), "bind", options)
    }

    fn mount_from(&mut self, link: &str, fstype: &str, options: &[String]) -> Result<(), StorageError> {
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
