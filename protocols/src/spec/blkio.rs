//! Block I/O weights and limits. A weight of 0 is none; a rate of 0 is kept (it lifts a limit).

use oci_spec::runtime;

use super::SpecError;
use super::value::{each, items, list, narrow, number};
use crate::oci;

pub(super) fn from_wire(wire: &oci::LinuxBlockIO) -> Result<runtime::LinuxBlockIo, SpecError> {
    let mut blkio = runtime::LinuxBlockIo::default();
    blkio
        .set_weight(weight("linux.resources.blockIO.weight", wire.Weight)?)
        .set_leaf_weight(weight("linux.resources.blockIO.leafWeight", wire.LeafWeight)?)
        .set_weight_device(list(&wire.WeightDevice, weight_device_from_wire)?)
        .set_throttle_read_bps_device(list(&wire.ThrottleReadBpsDevice, throttle_from_wire)?)
        .set_throttle_write_bps_device(list(&wire.ThrottleWriteBpsDevice, throttle_from_wire)?)
        .set_throttle_read_iops_device(list(&wire.ThrottleReadIOPSDevice, throttle_from_wire)?)
        .set_throttle_write_iops_device(list(&wire.ThrottleWriteIOPSDevice, throttle_from_wire)?);
    Ok(blkio)
}

pub(super) fn to_wire(blkio: &runtime::LinuxBlockIo) -> Result<oci::LinuxBlockIO, SpecError> {
    Ok(oci::LinuxBlockIO {
        Weight: blkio.weight().unwrap_or_default().into(),
        LeafWeight: blkio.leaf_weight().unwrap_or_default().into(),
        WeightDevice: items(blkio.weight_device()).iter().map(weight_device_to_wire).collect(),
        ThrottleReadBpsDevice: each(items(blkio.throttle_read_bps_device()), throttle_to_wire)?,
        ThrottleWriteBpsDevice: each(items(blkio.throttle_write_bps_device()), throttle_to_wire)?,
        ThrottleReadIOPSDevice: each(items(blkio.throttle_read_iops_device()), throttle_to_wire)?,
        ThrottleWriteIOPSDevice: each(items(blkio.throttle_write_iops_device()), throttle_to_wire)?,
        ..Default::default()
    })
}

/// The wire has 32 bits for what the specification has 16 for.
fn weight(field: &'static str, value: u32) -> Result<Option<u16>, SpecError> {
    Ok(number(narrow(field, value)?))
}

fn weight_device_from_wire(wire: &oci::LinuxWeightDevice) -> Result<runtime::LinuxWeightDevice, SpecError> {
    let mut device = runtime::LinuxWeightDeviceBuilder::default().major(wire.Major).minor(wire.Minor);
    if let Some(weight) = weight("linux.resources.blockIO.weightDevice.weight", wire.Weight)? {
        device = device.weight(weight);
    }
    if let Some(weight) = weight("linux.resources.blockIO.weightDevice.leafWeight", wire.LeafWeight)? {
        device = device.leaf_weight(weight);
    }
    device.build().map_err(SpecError::model("linux.resources.blockIO.weightDevice"))
}

fn weight_device_to_wire(device: &runtime::LinuxWeightDevice) -> oci::LinuxWeightDevice {
    oci::LinuxWeightDevice {
        Major: device.major(),
        Minor: device.minor(),
        Weight: device.weight().unwrap_or_default().into(),
        LeafWeight: device.leaf_weight().unwrap_or_default().into(),
        ..Default::default()
    }
}

fn throttle_from_wire(wire: &oci::LinuxThrottleDevice) -> Result<runtime::LinuxThrottleDevice, SpecError> {
    runtime::LinuxThrottleDeviceBuilder::default()
        .major(wire.Major)
        .minor(wire.Minor)
        .rate(wire.Rate)
        .build()
        .map_err(SpecError::model("linux.resources.blockIO.throttle"))
}

fn throttle_to_wire(device: &runtime::LinuxThrottleDevice) -> Result<oci::LinuxThrottleDevice, SpecError> {
    Ok(oci::LinuxThrottleDevice {
        Major: device.major(),
        Minor: device.minor(),
        Rate: device.rate(),
        ..Default::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn throttle(rate: u64) -> Vec<oci::LinuxThrottleDevice> {
        vec![oci::LinuxThrottleDevice { Major: 8, Rate: rate, ..Default::default() }]
    }

    #[test]
    fn each_list_keeps_its_place() {
        let wire = oci::LinuxBlockIO {
            Weight: 500,
            LeafWeight: 10,
            WeightDevice: vec![oci::LinuxWeightDevice { Major: 8, Weight: 1000, ..Default::default() }],
            ThrottleReadBpsDevice: throttle(1),
            ThrottleWriteBpsDevice: throttle(2),
            ThrottleReadIOPSDevice: throttle(3),
            ThrottleWriteIOPSDevice: throttle(u64::MAX),
            ..Default::default()
        };
        let blkio = from_wire(&wire).unwrap();
        assert_eq!(blkio.throttle_write_bps_device().as_ref().unwrap()[0].rate(), 2);
        assert_eq!(blkio.throttle_read_iops_device().as_ref().unwrap()[0].rate(), 3);
        assert_eq!(to_wire(&blkio).unwrap(), wire);
    }

    #[test]
    fn a_weight_that_does_not_fit_is_refused() {
        let wire = oci::LinuxBlockIO { Weight: 65536, ..Default::default() };
        let message = from_wire(&wire).unwrap_err().to_string();
        assert_eq!(message, "linux.resources.blockIO.weight: 65536 is out of range");
    }
}
