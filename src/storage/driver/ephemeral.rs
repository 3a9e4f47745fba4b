//! `ephemeral`: memory as a volume. A tmpfs with exactly the options that were asked for, its size among
//! them; or huge pages, which are taken into the kernel's pool for it and go with it.

use std::os::fd::AsFd;

use nix::libc;

use super::super::ownership;
use super::{Driver, Places, StorageError, Work};
use crate::storage::StorageRequest;

#[derive(Debug)]
pub(super) struct Ephemeral;

impl Driver for Ephemeral {
    fn attach(&self, work: &mut Work<'_>, _places: &Places) -> Result<(), StorageError> {
        let gid = work.request.fsgid()?;
        let fstype = work.request.fstype.clone();
        match fstype.as_str() {
            "tmpfs" => {}
            "hugetlbfs" => {
                if let Some((size, count)) = pages(work.request)? {
                    work.reserve_huge_pages(size, count)?;
                }
            }
            other => {
                return Err(work
                    .request
                    .refuse("fstype", format!("{other:?} is neither tmpfs nor hugetlbfs")));
            }
        }
        let options = work.request.options_without(|option| option.starts_with("fsgid="));
        work.mount(&fstype, &options)?;
        if let Some(gid) = gid {
            let at =
                |cause| StorageError::Path { step: "giving to its group", path: work.place.path(), cause };
            let root = work.place.handle().map_err(at)?;
            ownership::give(root.as_fd(), gid, libc::S_ISGID).map_err(at)?;
        }
        work.give_to_group()
    }

    fn outlives_users(&self) -> bool {
        true
    }
}

/// Which huge pages the volume needs: their size in KiB, and how many. None without a size: then it has those
/// that others have left in the pool.
fn pages(request: &StorageRequest) -> Result<Option<(u64, u64)>, StorageError> {
    let number = |key: &str| {
        let Some(text) = request.option(key) else { return Ok(None) };
        let number = bytes(text).filter(|number| *number > 0);
        let refuse = || request.refuse("options", format!("{key}={text:?} is no number of bytes"));
        number.map(Some).ok_or_else(refuse)
    };
    let page = number("pagesize")?.ok_or_else(|| request.refuse("options", "pagesize is missing"))?;
    if page % 1024 != 0 {
        return Err(request.refuse("options", format!("pagesize={page} is no size of pages")));
    }
    Ok(number("size")?.map(|size| (page / 1024, size.div_ceil(page))))
}

/// A number of bytes as the kernel reads it (memparse): with K, M, G or T behind it, or plain.
pub(in super::super) fn bytes(text: &str) -> Option<u64> {
    let (digits, shift) = match text.as_bytes().split_last()? {
        (b'k' | b'K', digits) => (digits, 10),
        (b'm' | b'M', digits) => (digits, 20),
        (b'g' | b'G', digits) => (digits, 30),
        (b't' | b'T', digits) => (digits, 40),
        _ => (text.as_bytes(), 0),
    };
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    number.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn sizes_are_read_as_the_kernel_does() {
        assert_eq!(["2097152", "2M", "1g", "3T"].map(bytes), [2 << 20, 2 << 20, 1 << 30, 3 << 40].map(Some));
        for bad in ["", "M", "50%", "-1", "+1", "2MB", "99999999999G"] {
            assert_eq!(bytes(bad), None, "{bad}");
        }
    }
}
