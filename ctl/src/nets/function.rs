//! PCI functions of this host's that a container has: claimed first, plugged in later.
//!
//! A claim is the note in the container's record; whoever claims looks at all of them. As a card, a function is no guard.

use std::path::PathBuf;

use nakai_protocols::agent::Device;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::way::{laid_over, plug_with_netdev, pull};
use crate::plug::{Machine, PlugError, Pluggable, Plugged, Port};
use crate::qmp::{Qmp, QmpError};

/// PCI functions that a container is to have.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct FunctionOrder {
    /// The field that asks for them, for messages.
    pub field: String,
    /// The request's name.
    pub request: String,
    /// The variable that tells the container where they are.
    pub variable: String,
    /// How many.
    pub count: u32,
    /// The functions of this host that would do.
    pub candidates: Vec<HostFunction>,
}

/// A PCI function of this host's.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "the fields are those of Zun's list of PCI devices")]
pub struct HostFunction {
    pub address: String,
    pub vendor_id: String,
    pub product_id: String,
    pub physical_network: String,
    /// The arguments of QEMU's `device_add`; null: the host's function itself, by vfio-pci.
    pub device: Value,
}

/// A function that is a container's.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Function {
    /// The request that it is for.
    pub request: String,
    /// Its address on this host.
    pub address: String,
    /// The variable that tells where it is.
    pub variable: String,
    device: Value,
    pub(super) plugged: Plugged,
    netdev: Option<String>,
    qmp: PathBuf,
}

impl Function {
    /// One that is claimed.
    pub fn claimed(order: &FunctionOrder, function: &HostFunction) -> Self {
        let device = match &function.device {
            Value::Null => json!({ "driver": "vfio-pci", "host": function.address }),
            device => device.clone(),
        };
        let (request, variable) = (order.request.clone(), order.variable.clone());
        Self { request, variable, address: function.address.clone(), device, ..Self::default() }
    }

    /// Plugs it in for container `id`, with this MAC address if it is a card that is told one.
    ///
    /// # Errors
    ///
    /// No port is free, or QEMU refuses.
    pub async fn plug(&mut self, machine: &Machine, id: &str, mac: Option<&str>) -> Result<(), PlugError> {
        let mut fields = self.device.as_object().cloned().unwrap_or_default();
        let driver = fields.remove("driver").and_then(|driver| Some(driver.as_str()?.to_owned()));
        let driver = driver.unwrap_or_else(|| "vfio-pci".to_owned());
        let way = fields.remove("netdev");
        if let (Some(_), Some(mac)) = (&way, mac) {
            fields.insert("mac".to_owned(), json!(mac));
        }
        let netdev = way.is_some();
        let properties = Value::Object(fields);
        let mut attempt = Attempt { driver, properties, way, netdev: String::new() };
        self.plugged = machine.plug("pci", id, &mut attempt).await?;
        (self.netdev, self.qmp) = (netdev.then_some(attempt.netdev), machine.qmp.clone());
        Ok(())
    }

    /// Pulls it, if it is plugged in.
    ///
    /// # Errors
    ///
    /// The guest does not let go of it, or the machine is gone.
    pub async fn unplug(&self) -> Result<(), QmpError> {
        if self.plugged.device.is_empty() {
            return Ok(());
        }
        pull(&self.qmp, &self.plugged.device, self.netdev.as_deref()).await
    }

    /// As the agent is told of it: the guest's own driver has it.
    pub fn wire(&self) -> Device {
        Device {
            type_: "vfio-pci-gk".to_owned(),
            id: self.request.clone(),
            options: vec![format!("{}={}", self.address, self.plugged.pci_path)],
            ..Default::default()
        }
    }
}

/// A function on its way.
struct Attempt {
    driver: String,
    properties: Value,
    way: Option<Value>,
    netdev: String,
}

impl Pluggable for &mut Attempt {
    async fn plug_at(&mut self, qmp: &mut Qmp, port: &Port) -> Result<(), QmpError> {
        self.netdev.clone_from(&port.netdev);
        match &self.way {
            Some(way) => plug_with_netdev(qmp, port, way, &self.driver, &self.properties).await,
            None => {
                let properties = laid_over(self.properties.clone(), &port.place);
                qmp.plug(&port.device, &self.driver, properties).await
            }
        }
    }
}
