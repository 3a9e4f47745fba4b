//! Devices with a network behind them, as QEMU is told of them.

use std::path::Path;

use serde_json::{Value, json};

use crate::plug::Port;
use crate::qmp::{Qmp, QmpError};

/// A device with a network behind it, which goes when the device does not come.
pub(super) async fn plug_with_netdev(
    qmp: &mut Qmp,
    port: &Port,
    way: &Value,
    driver: &str,
    properties: &Value,
) -> Result<(), QmpError> {
    let name = json!({ "id": port.netdev });
    qmp.execute("netdev_add", laid_over(way.clone(), &name)).await?;
    let properties = laid_over(laid_over(properties.clone(), &port.place), &json!({ "netdev": port.netdev }));
    let plugged = qmp.plug(&port.device, driver, properties).await;
    if plugged.is_err() {
        let _ = qmp.execute("netdev_del", name).await;
    }
    plugged
}

/// One that is gone already is no failure, as with disks.
pub(super) async fn pull(qmp: &Path, device: &str, netdev: Option<&str>) -> Result<(), QmpError> {
    let mut qmp = Qmp::connect(qmp).await?;
    match qmp.unplug(device).await {
        Err(QmpError::Refused { class, .. }) if class == "DeviceNotFound" => {}
        pulled => pulled?,
    }
    if let Some(netdev) = netdev {
        match qmp.execute("netdev_del", json!({ "id": netdev })).await {
            Err(QmpError::Refused { class, .. }) if class == "DeviceNotFound" => {}
            // QEMU tells it by words alone.
            Err(QmpError::Refused { description, .. }) if description.contains("not found") => {}
            deleted => drop(deleted?),
        }
    }
    Ok(())
}

pub(super) fn laid_over(mut base: Value, over: &Value) -> Value {
    if let (Some(base), Some(over)) = (base.as_object_mut(), over.as_object()) {
        base.extend(over.iter().map(|(key, value)| (key.clone(), value.clone())));
    }
    base
}
