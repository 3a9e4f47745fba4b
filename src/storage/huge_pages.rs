//! The kernel's pool of huge pages, from which volumes of them are made (admin-guide/mm/hugetlbpage).
//!
//! Invariant: what a volume adds to the pool is what it takes out again; pages that were there before, and those
//! of other volumes, stay.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Where the kernel has a directory for each size of page.
const POOLS: &str = "/sys/kernel/mm/hugepages";

/// One change at a time: a change is a read and a write.
static TURN: Mutex<()> = Mutex::new(());

/// Why there are no such pages.
#[derive(Debug, thiserror::Error)]
pub(super) enum HugePagesError {
    /// The kernel has none of that size.
    #[error("no huge pages of {size} kB, the sizes are: {}", known.join(" "))]
    Size {
        /// What was asked for, in KiB.
        size: u64,
        /// What there is.
        known: Vec<String>,
    },
    /// The pool can't be read or changed.
    #[error("{path}: {source}", path = path.display())]
    Pool {
        /// Its file.
        path: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
    /// There is not enough memory in one piece.
    #[error("only {got} of {wanted} huge pages of {size} kB could be had")]
    TooFew {
        /// Their size in KiB.
        size: u64,
        /// How many were asked for.
        wanted: u64,
        /// How many were free to be had.
        got: u64,
    },
}

/// Adds pages of `size` KiB to the pool.
pub(super) fn reserve(size: u64, count: u64) -> Result<(), HugePagesError> {
    reserve_in(Path::new(POOLS), size, count)
}

/// Takes pages out of the pool again.
pub(super) fn give_back(size: u64, count: u64) -> Result<(), HugePagesError> {
    give_back_in(Path::new(POOLS), size, count)
}

fn reserve_in(pools: &Path, size: u64, count: u64) -> Result<(), HugePagesError> {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let pool = pool(pools, size)?;
    let before = read(&pool)?;
    let wanted = before.saturating_add(count);
    write(&pool, wanted)?;
    // The kernel takes what it can get, and says so only here.
    let now = read(&pool)?;
    if now >= wanted {
        return Ok(());
    }
    write(&pool, before)?;
    Err(HugePagesError::TooFew { size, wanted: count, got: now.saturating_sub(before) })
}

fn give_back_in(pools: &Path, size: u64, count: u64) -> Result<(), HugePagesError> {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let pool = pool(pools, size)?;
    write(&pool, read(&pool)?.saturating_sub(count))
}

fn pool(pools: &Path, size: u64) -> Result<PathBuf, HugePagesError> {
    let directory = pools.join(format!("hugepages-{size}kB"));
    if directory.is_dir() {
        return Ok(directory.join("nr_hugepages"));
    }
    let entries = fs::read_dir(pools).into_iter().flatten().flatten();
    let name = |entry: fs::DirEntry| Some(entry.file_name().to_str()?.strip_prefix("hugepages-")?.to_owned());
    Err(HugePagesError::Size { size, known: entries.filter_map(name).collect() })
}

fn read(pool: &Path) -> Result<u64, HugePagesError> {
    let failed = |source| HugePagesError::Pool { path: pool.to_owned(), source };
    let text = fs::read_to_string(pool).map_err(failed)?;
    text.trim().parse().map_err(|_| failed(io::Error::other(format!("{text:?} is no number"))))
}

fn write(pool: &Path, count: u64) -> Result<(), HugePagesError> {
    fs::write(pool, count.to_string())
        .map_err(|source| HugePagesError::Pool { path: pool.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_adds_its_pages_and_takes_them_out() {
        let pools = tempfile::tempdir().unwrap();
        let pool = pools.path().join("hugepages-2048kB");
        fs::create_dir(&pool).unwrap();
        fs::write(pool.join("nr_hugepages"), "3\n").unwrap();
        reserve_in(pools.path(), 2048, 4).unwrap();
        reserve_in(pools.path(), 2048, 1).unwrap();
        assert_eq!(fs::read_to_string(pool.join("nr_hugepages")).unwrap(), "8");
        give_back_in(pools.path(), 2048, 4).unwrap();
        assert_eq!(fs::read_to_string(pool.join("nr_hugepages")).unwrap(), "4");
        let error = reserve_in(pools.path(), 4, 1).unwrap_err().to_string();
        assert_eq!(error, "no huge pages of 4 kB, the sizes are: 2048kB");
    }
}
