//! Memory limits. The specification counts swap as v1 does, memory and swap together; v2 counts swap alone.
//!
//! v1 wants the limit of both together to be no lower than that of memory after every single write, so it depends
//! on what is in force which is written first.

use super::{Plan, bad, or_max};
use crate::cgroup::CgroupError;
use oci_spec::runtime::LinuxMemory;

const LIMIT: &str = "linux.resources.memory.limit";
const SWAP: &str = "linux.resources.memory.swap";
const RESERVATION: &str = "linux.resources.memory.reservation";
const SWAPPINESS: &str = "linux.resources.memory.swappiness";

const V1_LIMIT: &str = "memory.limit_in_bytes";
const V1_SWAP: &str = "memory.memsw.limit_in_bytes";
const V2_SWAP: &str = "memory.swap.max";

pub(super) fn v1(plan: &mut Plan<'_>, memory: &LinuxMemory) -> Result<(), CgroupError> {
    check_numbers(memory)?;
    let limit = memory.limit();
    let limit_now = number(plan, V1_LIMIT)?;
    let swap_now = number(plan, V1_SWAP)?;
    // Swap stays unlimited below an unlimited memory, or it would be a limit of memory.
    let implied = limit == Some(-1) && memory.swap().is_none();
    let swap = if implied { Some(-1) } else { memory.swap() };
    check_together(limit.or(limit_now), swap.or(swap_now), swap.is_some())?;
    let limit_first = swap.is_some_and(|swap| limit_now.is_some_and(|now| !is_at_least(swap, now)));
    if let Some(limit) = limit.filter(|_| limit_first) {
        plan.write(LIMIT, "memory", V1_LIMIT, limit);
    }
    if let Some(swap) = swap {
        // Without swap accounting nothing has to be written for no swap, as for a new container.
        let none = swap == -1 || Some(swap) == limit.or(limit_now);
        plan.write(SWAP, "memory", V1_SWAP, swap).optional(none);
    }
    if let Some(limit) = limit.filter(|_| !limit_first) {
        plan.write(LIMIT, "memory", V1_LIMIT, limit);
    }
    if let Some(reservation) = memory.reservation() {
        plan.write(RESERVATION, "memory", "memory.soft_limit_in_bytes", reservation);
    }
    if let Some(tcp) = memory.kernel_tcp() {
        plan.write("linux.resources.memory.kernelTCP", "memory", "memory.kmem.tcp.limit_in_bytes", tcp);
    }
    if let Some(swappiness) = memory.swappiness() {
        if swappiness > 100 {
            return Err(bad(SWAPPINESS, swappiness, "it is a percentage"));
        }
        plan.write(SWAPPINESS, "memory", "memory.swappiness", swappiness);
    }
    if memory.disable_oom_killer() == Some(true) {
        plan.write("linux.resources.memory.disableOOMKiller", "memory", "memory.oom_control", 1);
    }
    Ok(())
}

pub(super) fn v2(plan: &mut Plan<'_>, memory: &LinuxMemory) -> Result<(), CgroupError> {
    check_numbers(memory)?;
    let limit = match memory.limit() {
        Some(limit) => Some(limit),
        None => number(plan, "memory.max")?,
    };
    check_together(limit, memory.swap(), true)?;
    let swap = match memory.swap() {
        // As on v1.
        None => (memory.limit() == Some(-1)).then_some(-1),
        Some(-1) => Some(-1),
        Some(both) => Some(both.saturating_sub(limit.unwrap_or(0))),
    };
    if let Some(swap) = swap {
        // Without the file there is no swap in the kernel.
        plan.write(SWAP, "memory", V2_SWAP, or_max(swap)).optional(swap <= 0);
    }
    if let Some(limit) = memory.limit() {
        plan.write(LIMIT, "memory", "memory.max", or_max(limit));
    }
    if let Some(reservation) = memory.reservation() {
        plan.write(RESERVATION, "memory", "memory.low", or_max(reservation));
    }
    Ok(())
}

fn check_numbers(memory: &LinuxMemory) -> Result<(), CgroupError> {
    let numbers = [(LIMIT, memory.limit()), (SWAP, memory.swap()), (RESERVATION, memory.reservation())];
    match numbers.into_iter().find_map(|(field, value)| Some((field, value.filter(|value| *value < -1)?))) {
        Some((field, value)) => Err(bad(field, value, "below -1, which means no limit")),
        None => Ok(()),
    }
}

/// Memory and swap together can't be less than memory. `asked` tells who has to be different.
fn check_together(limit: Option<i64>, swap: Option<i64>, asked: bool) -> Result<(), CgroupError> {
    let (Some(limit), Some(swap)) = (limit, swap) else { return Ok(()) };
    if is_at_least(swap, limit) {
        return Ok(());
    }
    if asked {
        let limit = or_max(limit);
        return Err(bad(
            SWAP,
            swap,
            format!("memory and swap together, but less than the memory of {limit}"),
        ));
    }
    Err(bad(LIMIT, limit, format!("above the limit of memory and swap together, which stays {swap}")))
}

/// Whether `a` is as high a limit as `b`; -1 is the highest.
fn is_at_least(a: i64, b: i64) -> bool {
    a == -1 || (b != -1 && a >= b)
}

/// The limit in force, -1 for none: v1 says so by the highest number of bytes in whole pages.
fn number(plan: &Plan<'_>, file: &str) -> Result<Option<i64>, CgroupError> {
    const LARGEST_PAGE: i64 = 1 << 16;
    let text = plan.now("memory", file)?;
    Ok(text
        .and_then(|text| match text.trim() {
            "max" => Some(-1),
            number => number.parse().ok(),
        })
        .map(|number| if number >= i64::MAX.saturating_sub(LARGEST_PAGE) { -1 } else { number }))
}
