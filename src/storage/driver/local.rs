//! `local`: a plain directory for the sandbox, with the permissions and the group that the options name.

use std::os::fd::AsFd;

use nix::libc;
use nix::sys::stat::fstat;

use super::super::ownership;
use super::{Driver, Places, StorageError, Work};

#[derive(Debug)]
pub(super) struct Local;

impl Driver for Local {
    fn attach(&self, work: &mut Work<'_>, _places: &Places) -> Result<(), StorageError> {
        let (mode, gid) = (work.request.mode()?, work.request.fsgid()?);
        let place = work.place.clone();
        let directory = work.make_owned_directory(&place)?;
        let at = |cause| StorageError::Path { step: "setting owner and mode of", path: place.path(), cause };
        let setgid = if gid.is_some() { libc::S_ISGID } else { 0 };
        if let Some(gid) = gid {
            ownership::give(directory.as_fd(), gid, setgid).map_err(at)?;
        }
        if let Some(mode) = mode {
            let now = fstat(&directory).map_err(at)?.st_mode & 0o7777;
            if now != mode | setgid {
                ownership::set_mode(directory.as_fd(), mode | setgid).map_err(at)?;
            }
        }
        work.give_to_group()
    }

    fn outlives_users(&self) -> bool {
        true
    }
}
