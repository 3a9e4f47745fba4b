//! How much of a share is copied into the guest's memory.
//!
//! Counted is what a copy takes there: of a file whole pages, and of everything what the kernel and the watching keep of
//! it. A copy may take [`LEAST`], and where there is memory a quarter of that, up to [`MOST`]: while it is replaced there
//! are two. How many things there are does not matter.

use std::path::PathBuf;

use super::scan::{At, Kind, Seen, TOO_MUCH, Tree};

/// What any guest can spare. A ConfigMap or Secret of Kubernetes is below 1 MiB; a volume may be made of several.
const LEAST: u64 = 32 << 20;
const MOST: u64 = 256 << 20;
/// An inode, two names for it, and what was seen of it.
const OVERHEAD: u64 = 1 << 10;
const PAGE: u64 = 4096;

/// What a copy may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limit(u64);

impl Limit {
    /// With the memory that there is now, and what the copy has of it already.
    pub(super) fn now(copied: &Tree) -> Self {
        let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let copied: u64 = copied.values().map(cost).fold(0, u64::saturating_add);
        Self((available(&meminfo).saturating_add(copied) / 4).clamp(LEAST, MOST))
    }

    /// How many things there can be at all.
    pub(super) fn things(self) -> usize {
        usize::try_from(self.0 / OVERHEAD).unwrap_or(usize::MAX)
    }

    /// Refuses a tree that takes more, by the first path that is too much.
    pub(super) fn check(self, tree: &Tree) -> Result<(), At> {
        let mut left = self.0;
        for (path, seen) in tree {
            let fits = left.checked_sub(cost(seen));
            left = fits.ok_or_else(|| At { step: "copying", path: path.clone(), cause: TOO_MUCH })?;
        }
        Ok(())
    }

    /// Refuses a single file that takes more.
    pub(super) fn check_file(self, seen: &Seen) -> Result<(), At> {
        self.check(&Tree::from([(PathBuf::new(), seen.clone())]))
    }
}

fn cost(seen: &Seen) -> u64 {
    let pages = match &seen.kind {
        Kind::File(stamp) => stamp.size().checked_next_multiple_of(PAGE).unwrap_or(u64::MAX),
        Kind::Directory | Kind::Link(..) => 0,
    };
    pages.saturating_add(OVERHEAD)
}

/// `MemAvailable`, in bytes.
fn available(meminfo: &str) -> u64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kibibytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kibibytes.unwrap_or_default().saturating_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_part_of_what_is_available() {
        assert_eq!(available("MemTotal: 9 kB\nMemAvailable:    2048 kB\n"), 2 << 20);
        assert_eq!(available(""), 0);
        let Limit(now) = Limit::now(&Tree::new());
        assert!((LEAST..=MOST).contains(&now));
        assert_eq!(Limit(LEAST).things(), 32 << 10);
    }

    #[test]
    fn everything_takes_something() {
        let seen = Seen { kind: Kind::Directory, mode: 0o755, owner: (0, 0) };
        let tree: Tree = (0..3).map(|n| (PathBuf::from(n.to_string()), seen.clone())).collect();
        assert!(Limit(3 * OVERHEAD).check(&tree).is_ok());
        let error = Limit(3 * OVERHEAD - 1).check(&tree).unwrap_err();
        assert_eq!((error.path, error.cause), (PathBuf::from("2"), TOO_MUCH));
    }
}
