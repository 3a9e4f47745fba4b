//! `watchable-bind`: a directory or file of a share of which the container is to see the changes that the host
//! makes. It gets a copy in memory, which is [kept up to date](super::super::watch). What is too large for that is bound.
//!
//! The share may be read-only to the guest, so the directory in which the host wants such mount points gets a tmpfs
//! of its own first. That one stays as long as the sandbox.

use std::path::Path;

use nix::libc;
use nix::sys::stat::fstat;
use slog::warn;

use super::super::ownership::Giver;
use super::super::watch::{Mirror, Watch, can_not_be_copied};
use super::{Driver, Places, StorageError, Work};
use crate::guest::tree::file_type;
use crate::ids::GuestPath;
use crate::storage::StorageRequest;

/// The name of the directory that such mount points are in.
const PARENT: &str = "watchable";

#[derive(Debug)]
pub(super) struct Watchable;

impl Driver for Watchable {
    fn needs(&self, request: &StorageRequest) -> Result<Option<StorageRequest>, StorageError> {
        let parent = request.mount_point.as_path().parent();
        let parent = parent.filter(|parent| parent.ends_with(PARENT)).and_then(Path::to_str);
        let Some(parent) = parent.and_then(|parent| GuestPath::try_from(parent).ok()) else {
            return Err(request.refuse("mount_point", format!("it is not in a directory {PARENT}")));
        };
        // The number of files is counted by ourselves.
        let options = ["nodev", "nosuid", "mode=0755", "nr_inodes=0"].map(str::to_owned);
        Ok(Some(StorageRequest {
            driver: "ephemeral".to_owned(),
            driver_options: Vec::new(),
            source: PARENT.to_owned(),
            fstype: "tmpfs".to_owned(),
            options: options.to_vec(),
            mount_point: parent,
            fs_group: None,
            shared: false,
        }))
    }

    fn attach(&self, work: &mut Work<'_>, places: &Places) -> Result<(), StorageError> {
        let source = places.locate(Path::new(work.source))?;
        let opened = source.handle().map_err(StorageError::at("opening", work.source))?;
        let stat = fstat(&opened).map_err(StorageError::at("looking at", work.source))?;
        let place = work.place.clone();
        if file_type(&stat) == libc::S_IFDIR {
            work.make_owned_directory(&place)?;
        } else {
            work.make_file(&place)?;
        }
        let aside = place.beside(".next-");
        work.make_owned_directory(&aside)?;
        let group = work.request.fs_group.map(|group| Giver::new(group, work.request.read_only()));
        let mut mirror = Mirror::new(source, place, aside, group);
        match mirror.update() {
            // Then the container has what virtio-fs shows.
            Err(error) if can_not_be_copied(&error) => {
                warn!(work.log, "a watched volume is bound, for want of room for a copy";
                    "mount_point" => %work.request.mount_point, "source" => work.source, "cause" => %error);
                work.bind(&opened, &["bind".to_owned()])?;
                return work.give_to_group();
            }
            outcome => outcome?,
        };
        let (bulkhead, log) = (work.bulkhead.clone(), work.log.clone());
        work.keep(Watch::start(mirror, bulkhead, log));
        Ok(())
    }
}
