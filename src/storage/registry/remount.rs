//! Changing an `ephemeral` storage that is attached.
//!
//! A tmpfs takes another size. A hugetlbfs does not: Linux says yes to a remount of one, and changes nothing. So it is
//! refused, unless it asks for what the volume has.

use super::super::attachment::mount_at;
use super::super::driver::bytes;
use super::super::ops::MountOrder;
use super::{Phase, StorageError, StorageRequest, Storages};

impl Storages {
    /// Changes the options of an `ephemeral` storage that is attached, usually `remount,size=...`. Without
    /// options there is nothing to do. Flags that it was mounted with (`noexec`...) stay, unless the new
    /// options say otherwise.
    ///
    /// # Errors
    ///
    /// It is not ephemeral, not attached, or the kernel refuses the options.
    pub async fn remount_ephemeral(&self, request: StorageRequest) -> Result<(), StorageError> {
        let place = self.inner.places.locate(request.mount_point.as_path())?;
        if request.driver != "ephemeral" {
            return Err(request.refuse("driver", format!("{:?} is not ephemeral", request.driver)));
        }
        let new = request.options_without(|option| option == "remount" || option.starts_with("fsgid="));
        if new.is_empty() {
            return Ok(());
        }
        request.refuse_other_mounts(&request.fstype, &new)?;
        let held = StorageRequest { options: self.options_of(&request)?, ..request.clone() };
        // A tmpfs has no such option, and huge pages are not to be had without it.
        if held.option("pagesize").is_some() {
            return keeps(&new, &held);
        }
        if request.fstype == "hugetlbfs" {
            return Err(request.refuse("fstype", "what is attached there is a tmpfs"));
        }
        let flags = held.options.into_iter().filter(|option| !option.contains('=')).collect();
        let options = [vec!["remount".to_owned()], flags, new].concat();
        let ops = self.inner.ops.clone();
        let (touched, mount_point) = (request.target(), request.target());
        let remounted = self.inner.bulkhead.run(&touched, move || {
            let from = request.source.as_str();
            let order = MountOrder { from, link: from, fstype: "tmpfs", options: &options };
            mount_at(&place, &order, &*ops)
        });
        remounted.await.map_err(|error| StorageError::CutShort { mount_point, reason: error.to_string() })?
    }

    /// What a storage was asked for with.
    fn options_of(&self, request: &StorageRequest) -> Result<Vec<String>, StorageError> {
        let table = self.inner.table();
        let entry = table.entries.get(&request.mount_point);
        let entry = entry
            .filter(|entry| entry.driver == request.driver && matches!(*entry.phase.borrow(), Phase::Ready));
        let options = entry.map(|entry| entry.options.clone());
        options.ok_or_else(|| StorageError::NotAttached { mount_point: request.target() })
    }
}

/// Refuses to change a volume of huge pages.
fn keeps(new: &[String], held: &StorageRequest) -> Result<(), StorageError> {
    let has = |option: &String| {
        let (key, value) = option.split_once('=')?;
        let is = bytes(held.option(key)?).zip(bytes(value)).is_some_and(|(held, new)| held == new);
        is.then_some(())
    };
    match new.iter().find(|option| has(option).is_none()) {
        Some(option) => Err(held.unsupported(format!("{option}: a volume of huge pages keeps its size"))),
        None => Ok(()),
    }
}
