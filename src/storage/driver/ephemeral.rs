//! `ephemeral`: memory as a volume. A tmpfs with exactly the options that were asked for, its size among
//! them.

use std::os::fd::AsFd;

use nix::libc;

use super::super::ownership;
use super::{Driver, Places, StorageError, Work};

#[derive(Debug)]
pub(super) struct Ephemeral;

impl Driver for Ephemeral {
    fn attach(&self, work: &mut Work<'_>, _places: &Places) -> Result<(), StorageError> {
        match work.request.fstype.as_str() {
            "tmpfs" => {}
            "hugetlbfs" => return Err(work.request.unsupported("huge pages")),
            other => return Err(work.request.refuse("fstype", format!("{other:?} is not tmpfs"))),
        }
        let gid = work.request.fsgid()?;
        let options = work.request.options_without(|option| option.starts_with("fsgid="));
        work.mount("tmpfs", &options)?;
        if let Some(gid) = gid {
            let at =
                |cause| StorageError::Path { step: "giving to its group", path: work.place.path(), cause };
            let root = work.place.handle().map_err(at)?;
            ownership::give(root.as_fd(), gid, libc::S_ISGID).map_err(at)?;
        }
        Ok(())
    }

    fn outlives_users(&self) -> bool {
        true
    }
}
