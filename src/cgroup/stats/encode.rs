//! Statistics as they go over the wire: messages of the protocol, encoded while the files are read.
//!
//! Most of them is `memory.stat`, fifty keys with a number each, which the protocol has as a map. Messages and a map
//! that are made only to be encoded take ten times the instructions of numbers that go to their places one by one.

use nakai_scan::Wire;

/// Numbers of fields.
pub(super) mod field {
    /// `CgroupStats`.
    pub(in super::super) const CPU: u8 = 1;
    pub(in super::super) const MEMORY: u8 = 2;
    pub(in super::super) const PIDS: u8 = 3;
    pub(in super::super) const BLOCK: u8 = 4;
    pub(in super::super) const HUGE_PAGES: u8 = 5;

    /// `CpuStats`.
    pub(in super::super) const USAGE: u8 = 1;
    pub(in super::super) const THROTTLING: u8 = 2;

    /// `CpuUsage`.
    pub(in super::super) const TOTAL: u8 = 1;
    pub(in super::super) const PER_CPU: u8 = 2;
    pub(in super::super) const KERNEL_MODE: u8 = 3;
    pub(in super::super) const USER_MODE: u8 = 4;

    /// `MemoryStats`.
    pub(in super::super) const CACHE: u8 = 1;
    pub(in super::super) const MEMORY_USAGE: u8 = 2;
    pub(in super::super) const SWAP_USAGE: u8 = 3;
    pub(in super::super) const KERNEL_USAGE: u8 = 4;
    pub(in super::super) const USE_HIERARCHY: u8 = 5;
    pub(in super::super) const STATS: u8 = 6;

    /// An entry of `hugetlb_stats`.
    pub(in super::super) const SIZE: u8 = 1;
    pub(in super::super) const USED: u8 = 2;

    /// `BlkioStats`.
    pub(in super::super) const BYTES: u8 = 1;
    pub(in super::super) const OPERATIONS: u8 = 2;
    pub(in super::super) const QUEUED: u8 = 3;
    pub(in super::super) const SERVICE_TIME: u8 = 4;
    pub(in super::super) const WAIT_TIME: u8 = 5;
    pub(in super::super) const MERGED: u8 = 6;
    pub(in super::super) const TIME: u8 = 7;
    pub(in super::super) const SECTORS: u8 = 8;
}

/// An entry of `BlkioStats`.
pub(super) fn block_entry(wire: &mut Wire, field: u8, (major, minor): (u64, u64), op: &str, value: u64) {
    let message = wire.begin(field);
    wire.number(1, major);
    wire.number(2, minor);
    wire.text(3, op.as_bytes());
    wire.number(4, value);
    wire.end(message);
}
