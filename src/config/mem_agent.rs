//! The settings of the memory agent, which the host can change later.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What the memory agent starts with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemAgentConfig {
    /// Whether there is one.
    pub enable: bool,
    /// For ageing and reclaiming.
    pub memcg: MemcgSettings,
    /// For compaction.
    pub compact: CompactSettings,
}

/// For ageing and reclaiming.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemcgSettings {
    /// Whether it rests.
    pub disabled: bool,
    /// Whether anonymous pages go to swap, too.
    pub swap: bool,
    /// As memory.swappiness, 0 to 200.
    pub swappiness_max: u8,
    /// From run to run.
    pub period: Duration,
    /// Above this pressure, in per cent of time stalled, no run begins.
    pub period_psi_percent_limit: u8,
    /// Above this pressure a run ends.
    pub eviction_psi_percent_limit: u8,
    /// How many times pages must have aged before they may go.
    pub eviction_run_aging_count_min: u64,
}

/// For compaction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompactSettings {
    /// Whether it rests.
    pub disabled: bool,
    /// From run to run.
    pub period: Duration,
    /// Above this pressure, in per cent of time stalled, no run begins.
    pub period_psi_percent_limit: u8,
    /// Above this pressure a run ends.
    pub psi_percent_limit: u8,
    /// The longest run.
    pub longest: Duration,
    /// Order of the free blocks that are worth having.
    pub order: u32,
    /// Free pages in smaller blocks, beyond those after the last run, from which on a run is worth it.
    pub threshold: u64,
    /// After so many runs left out one is made all the same.
    pub force_times: u64,
}

/// The most per cent.
pub const PERCENT: u8 = 100;
/// The most swappiness.
pub const SWAPPINESS: u8 = 200;
/// Orders of free blocks are below this (`MAX_ORDER` of the kernel).
pub const ORDERS: u32 = 11;

impl MemAgentConfig {
    /// Placeholders: the table of options sets each of them.
    pub(super) fn unset() -> Self {
        let memcg = MemcgSettings {
            disabled: false,
            swap: false,
            swappiness_max: 0,
            period: Duration::ZERO,
            period_psi_percent_limit: 0,
            eviction_psi_percent_limit: 0,
            eviction_run_aging_count_min: 0,
        };
        let compact = CompactSettings {
            disabled: false,
            period: Duration::ZERO,
            period_psi_percent_limit: 0,
            psi_percent_limit: 0,
            longest: Duration::ZERO,
            order: 0,
            threshold: 0,
            force_times: 0,
        };
        Self { enable: false, memcg, compact }
    }
}
