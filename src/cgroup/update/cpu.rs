//! CPU time and CPU sets.

use super::{CgroupError, Plan};
use oci_spec::runtime::LinuxCpu;

const SHARES: &str = "linux.resources.cpu.shares";
const QUOTA: &str = "linux.resources.cpu.quota";
const PERIOD: &str = "linux.resources.cpu.period";
const REALTIME_RUNTIME: &str = "linux.resources.cpu.realtimeRuntime";
const REALTIME_PERIOD: &str = "linux.resources.cpu.realtimePeriod";

/// A quota may be too small for the old period, or the old quota too large a part of the new period for the cgroup
/// above: then the period waits for the quota.
pub(super) fn v1(plan: &mut Plan<'_>, cpu: &LinuxCpu) {
    if let Some(shares) = cpu.shares() {
        plan.write(SHARES, "cpu", "cpu.shares", shares);
    }
    if let Some(period) = cpu.period() {
        plan.write(PERIOD, "cpu", "cpu.cfs_period_us", period).retry(cpu.quota().is_some());
    }
    if let Some(quota) = cpu.quota() {
        plan.write(QUOTA, "cpu", "cpu.cfs_quota_us", quota.max(-1));
    }
    if let Some(period) = cpu.realtime_period() {
        plan.write(REALTIME_PERIOD, "cpu", "cpu.rt_period_us", period)
            .retry(cpu.realtime_runtime().is_some());
    }
    if let Some(runtime) = cpu.realtime_runtime() {
        plan.write(REALTIME_RUNTIME, "cpu", "cpu.rt_runtime_us", runtime);
    }
}

pub(super) fn v2(plan: &mut Plan<'_>, cpu: &LinuxCpu) -> Result<(), CgroupError> {
    if let Some(shares) = cpu.shares() {
        plan.write(SHARES, "cpu", "cpu.weight", weight(shares));
    }
    match (cpu.quota(), cpu.period()) {
        (None, None) => {}
        // The period in force stays.
        (Some(quota), None) => {
            plan.write(QUOTA, "cpu", "cpu.max", quota_word(quota));
        }
        (Some(quota), Some(period)) => {
            plan.write(QUOTA, "cpu", "cpu.max", format!("{} {period}", quota_word(quota)));
        }
        (None, Some(period)) => {
            let now = plan.now("cpu", "cpu.max")?.unwrap_or_default();
            let quota = now.split_whitespace().next().unwrap_or("max");
            plan.write(PERIOD, "cpu", "cpu.max", format!("{quota} {period}"));
        }
    }
    // v2 has no such controller; refused by name if more than nothing is asked for.
    if cpu.realtime_runtime().is_some_and(|runtime| runtime > 0) {
        plan.write(REALTIME_RUNTIME, "cpu", "cpu.rt_runtime_us", "");
    }
    if cpu.realtime_period().is_some_and(|period| period > 0) {
        plan.write(REALTIME_PERIOD, "cpu", "cpu.rt_period_us", "");
    }
    Ok(())
}

/// The same on both. The sets are the guest's: the caller has left out what is not online.
pub(super) fn set(plan: &mut Plan<'_>, cpu: &LinuxCpu) {
    for (field, file, set) in [
        ("linux.resources.cpu.cpus", "cpuset.cpus", cpu.cpus()),
        ("linux.resources.cpu.mems", "cpuset.mems", cpu.mems()),
    ] {
        if let Some(set) = set {
            plan.write(field, "cpuset", file, set);
        }
    }
}

fn quota_word(quota: i64) -> String {
    if quota > 0 { quota.to_string() } else { "max".to_owned() }
}

/// Shares (2 to 262144, usually 1024) as a weight (1 to 10000, usually 100), by the curve through these three points
/// that runc has since 1.3.2, and libcgroups for new containers.
fn weight(shares: u64) -> u64 {
    match shares {
        0..=2 => 1,
        262_144.. => 10_000,
        _ => curve(shares).clamp(1, 10_000),
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "both numbers are small and positive"
)]
fn curve(shares: u64) -> u64 {
    let log = (shares as f64).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    10f64.powf(exponent).ceil() as u64
}
