//! Block I/O weights and rates. The device numbers are the guest's. A rate of 0 lifts a limit.

use super::{CgroupError, Plan, bad};
use oci_spec::runtime::{LinuxBlockIo, LinuxThrottleDevice};

const WEIGHT: &str = "linux.resources.blockIO.weight";
const LEAF_WEIGHT: &str = "linux.resources.blockIO.leafWeight";
const WEIGHT_DEVICE: &str = "linux.resources.blockIO.weightDevice";

/// Either list of rates, with its name, its file on v1, and its key in v2's `io.max`.
type Rates<'a> = [(&'static str, &'static str, &'static str, &'a Option<Vec<LinuxThrottleDevice>>); 4];

fn rates(io: &LinuxBlockIo) -> Rates<'_> {
    [
        (
            "linux.resources.blockIO.throttleReadBpsDevice",
            "blkio.throttle.read_bps_device",
            "rbps",
            io.throttle_read_bps_device(),
        ),
        (
            "linux.resources.blockIO.throttleWriteBpsDevice",
            "blkio.throttle.write_bps_device",
            "wbps",
            io.throttle_write_bps_device(),
        ),
        (
            "linux.resources.blockIO.throttleReadIOPSDevice",
            "blkio.throttle.read_iops_device",
            "riops",
            io.throttle_read_iops_device(),
        ),
        (
            "linux.resources.blockIO.throttleWriteIOPSDevice",
            "blkio.throttle.write_iops_device",
            "wiops",
            io.throttle_write_iops_device(),
        ),
    ]
}

pub(super) fn v1(plan: &mut Plan<'_>, io: &LinuxBlockIo) -> Result<(), CgroupError> {
    // Whichever scheduler the kernel has.
    let prefix = if plan.has("blkio", "blkio.weight")? { "blkio" } else { "blkio.bfq" };
    if let Some(weight) = io.weight() {
        plan.write(WEIGHT, "blkio", format!("{prefix}.weight"), check(WEIGHT, weight)?);
    }
    if let Some(weight) = io.leaf_weight() {
        plan.write(LEAF_WEIGHT, "blkio", "blkio.leaf_weight", check(LEAF_WEIGHT, weight)?);
    }
    for device in io.weight_device().iter().flatten() {
        let (major, minor) = (device.major(), device.minor());
        if let Some(weight) = device.weight() {
            let value = format!("{major}:{minor} {}", check(WEIGHT_DEVICE, weight)?);
            plan.write(WEIGHT_DEVICE, "blkio", format!("{prefix}.weight_device"), value);
        }
        if let Some(weight) = device.leaf_weight() {
            let value = format!("{major}:{minor} {}", check(WEIGHT_DEVICE, weight)?);
            plan.write(WEIGHT_DEVICE, "blkio", "blkio.leaf_weight_device", value);
        }
    }
    for (field, file, _, devices) in rates(io) {
        for device in devices.iter().flatten() {
            let value = format!("{}:{} {}", device.major(), device.minor(), device.rate());
            plan.write(field, "blkio", file, value);
        }
    }
    Ok(())
}

pub(super) fn v2(plan: &mut Plan<'_>, io: &LinuxBlockIo) -> Result<(), CgroupError> {
    let bfq = plan.has("blkio", "io.bfq.weight")?;
    let file = if bfq { "io.bfq.weight" } else { "io.weight" };
    // BFQ has the specification's range; the other one is ten times as wide.
    let scale = |weight: u16| {
        if bfq { weight.into() } else { u32::from(weight).saturating_sub(10).saturating_mul(9999) / 990 + 1 }
    };
    if let Some(weight) = io.weight() {
        plan.write(WEIGHT, "blkio", file, scale(check(WEIGHT, weight)?));
    }
    if io.leaf_weight().is_some() {
        return Err(CgroupError::NoSuchLimit { field: LEAF_WEIGHT, file: "blkio.leaf_weight".to_owned() });
    }
    for device in io.weight_device().iter().flatten() {
        if let Some(weight) = device.weight() {
            let weight = scale(check(WEIGHT_DEVICE, weight)?);
            plan.write(
                WEIGHT_DEVICE,
                "blkio",
                file,
                format!("{}:{} {weight}", device.major(), device.minor()),
            );
        }
        if device.leaf_weight().is_some() {
            let file = "blkio.leaf_weight_device".to_owned();
            return Err(CgroupError::NoSuchLimit { field: WEIGHT_DEVICE, file });
        }
    }
    for (field, _, key, devices) in rates(io) {
        for device in devices.iter().flatten() {
            let rate = if device.rate() == 0 { "max".to_owned() } else { device.rate().to_string() };
            plan.write(
                field,
                "blkio",
                "io.max",
                format!("{}:{} {key}={rate}", device.major(), device.minor()),
            );
        }
    }
    Ok(())
}

fn check(field: &'static str, weight: u16) -> Result<u16, CgroupError> {
    if (10..=1000).contains(&weight) { Ok(weight) } else { Err(bad(field, weight, "a weight is 10 to 1000")) }
}
