//! Block I/O limits of single devices, in the guest's numbers.

use oci_spec::runtime::{
    LinuxBlockIo, LinuxResources, LinuxThrottleDevice, LinuxThrottleDeviceBuilder, LinuxWeightDevice,
    LinuxWeightDeviceBuilder,
};

use super::devices::Renumbered;

/// Gives limits of the host's devices to what those are in the guest.
pub(super) fn renumber(resources: &mut LinuxResources, renumbered: &[Renumbered]) {
    let Some(mut io) = resources.block_io().clone().filter(|_| !renumbered.is_empty()) else { return };
    let weights = io.weight_device().iter().flatten().map(|device| weight(*device, renumbered)).collect();
    set(&mut io, LinuxBlockIo::weight_device, LinuxBlockIo::set_weight_device, weights);
    let rates = |list: &Option<Vec<LinuxThrottleDevice>>| {
        list.iter().flatten().map(|device| rate(*device, renumbered)).collect::<Vec<_>>()
    };
    let rewritten = rates(io.throttle_read_bps_device());
    set(
        &mut io,
        LinuxBlockIo::throttle_read_bps_device,
        LinuxBlockIo::set_throttle_read_bps_device,
        rewritten,
    );
    let rewritten = rates(io.throttle_write_bps_device());
    set(
        &mut io,
        LinuxBlockIo::throttle_write_bps_device,
        LinuxBlockIo::set_throttle_write_bps_device,
        rewritten,
    );
    let rewritten = rates(io.throttle_read_iops_device());
    set(
        &mut io,
        LinuxBlockIo::throttle_read_iops_device,
        LinuxBlockIo::set_throttle_read_iops_device,
        rewritten,
    );
    let rewritten = rates(io.throttle_write_iops_device());
    set(
        &mut io,
        LinuxBlockIo::throttle_write_iops_device,
        LinuxBlockIo::set_throttle_write_iops_device,
        rewritten,
    );
    resources.set_block_io(Some(io));
}

/// A list that is not there stays so.
fn set<T>(
    io: &mut LinuxBlockIo,
    get: fn(&LinuxBlockIo) -> &Option<Vec<T>>,
    set: fn(&mut LinuxBlockIo, Option<Vec<T>>) -> &mut LinuxBlockIo,
    list: Vec<T>,
) {
    if get(io).is_some() {
        set(io, Some(list));
    }
}

fn guest(major: i64, minor: i64, renumbered: &[Renumbered]) -> (i64, i64) {
    let is_it = |device: &&Renumbered| device.is_block(major, minor);
    renumbered.iter().find(is_it).map_or((major, minor), |device| (device.guest.1, device.guest.2))
}

fn rate(device: LinuxThrottleDevice, renumbered: &[Renumbered]) -> LinuxThrottleDevice {
    let (major, minor) = guest(device.major(), device.minor(), renumbered);
    let builder = LinuxThrottleDeviceBuilder::default().major(major).minor(minor);
    builder.rate(device.rate()).build().unwrap_or(device)
}

fn weight(device: LinuxWeightDevice, renumbered: &[Renumbered]) -> LinuxWeightDevice {
    let (major, minor) = guest(device.major(), device.minor(), renumbered);
    let mut builder = LinuxWeightDeviceBuilder::default().major(major).minor(minor);
    if let Some(weight) = device.weight() {
        builder = builder.weight(weight);
    }
    if let Some(weight) = device.leaf_weight() {
        builder = builder.leaf_weight(weight);
    }
    builder.build().unwrap_or(device)
}
