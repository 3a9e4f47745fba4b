//! Bounds on what an archive may cost, kept where its bytes come from.

use std::cell::{Cell, RefCell};
use std::io::{self, Read};

/// What an archive may cost.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Its entries.
    pub entries: u64,
    /// Its bytes when decompressed, and as many again where it is written with holes.
    pub bytes: u64,
    /// The bytes that one compressed byte may become, once [`Limits::RATIO_FROM`] have come of it.
    pub ratio: u64,
    /// The bytes of names and attributes that are kept in memory until its end.
    pub kept: u64,
}

impl Limits {
    /// No ratio is too high for less than this.
    pub const RATIO_FROM: u64 = 64 << 20;
}

impl Default for Limits {
    fn default() -> Self {
        // The most that gzip can do is 1:1032 (deflate's longest match for a bit): zeros only.
        Self { entries: 2_000_000, bytes: 64 << 30, ratio: 400, kept: 128 << 20 }
    }
}

/// The bytes that a name or an extended header may take: the archive's reader keeps those in memory.
pub(super) const HEADERS_MAX: u64 = 1 << 20;

/// What an archive has of the memory until its end.
pub(super) struct Kept {
    limits: Limits,
    entries: u64,
    bytes: u64,
}

impl Kept {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, entries: 0, bytes: 0 }
    }

    /// Counts an entry.
    pub(super) fn entry(&mut self) -> io::Result<()> {
        self.entries = self.entries.saturating_add(1);
        match self.limits.entries {
            most if self.entries > most => Err(exceeded(format!("more than {most} entries"))),
            _ => Ok(()),
        }
    }

    /// Counts what is kept of one.
    pub(super) fn keep(&mut self, bytes: usize) -> io::Result<()> {
        self.bytes = self.bytes.saturating_add(bytes as u64).saturating_add(KEPT_EACH);
        match self.limits.kept {
            most if self.bytes > most => {
                Err(exceeded(format!("more than {most} bytes of names and attributes to be kept")))
            }
            _ => Ok(()),
        }
    }
}

/// What is kept of an entry beside its text.
const KEPT_EACH: u64 = 64;

/// Counts what is read of a compressed stream.
pub(crate) struct Counter<'a, R> {
    pub(crate) inner: R,
    pub(crate) count: &'a Cell<u64>,
}

impl<R: Read> Read for Counter<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.count.set(self.count.get().saturating_add(count as u64));
        Ok(count)
    }
}

/// Counts what comes of it, and stops at a limit.
pub(super) struct Meter<'a, R> {
    inner: RefCell<R>,
    limits: Limits,
    compressed: &'a Cell<u64>,
    total: Cell<u64>,
    /// What may still be read before somebody asks anew.
    allowance: Cell<u64>,
}

impl<'a, R: Read> Meter<'a, R> {
    pub(super) fn new(inner: R, limits: Limits, compressed: &'a Cell<u64>) -> Self {
        Self { inner: RefCell::new(inner), limits, compressed, total: Cell::new(0), allowance: Cell::new(0) }
    }

    /// Allows to read that many bytes from here on.
    pub(super) fn allow(&self, bytes: u64) {
        self.allowance.set(bytes);
    }
}

/// The text of an error that tells of a limit.
fn exceeded(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::QuotaExceeded, what)
}

impl<R: Read> Read for &Meter<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.borrow_mut().read(buffer)?;
        let bytes = count as u64;
        let total = self.total.get().saturating_add(bytes);
        self.total.set(total);
        let Some(left) = self.allowance.get().checked_sub(bytes) else {
            return Err(exceeded(format!("more than {HEADERS_MAX} bytes of names and extended headers")));
        };
        self.allowance.set(left);
        let Limits { bytes: most, ratio, .. } = self.limits;
        if total > most {
            return Err(exceeded(format!("more than {most} bytes")));
        }
        if total > Limits::RATIO_FROM && total / ratio.max(1) > self.compressed.get() {
            return Err(exceeded(format!("more than {ratio} bytes for each compressed one")));
        }
        Ok(count)
    }
}
