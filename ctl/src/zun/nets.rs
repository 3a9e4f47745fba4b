//! `nets` and `pci_requests` of a create request.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Deserialize;
use serde_json::Value;

use super::values::{Bool, Number};
use crate::cri::{CriError, Extras};
use crate::nets::HostNetworks;
use crate::nets::file::{Asked, AskedFunctions};

/// A network interface.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Net {
    network: Option<String>,
    port: Option<String>,
    #[serde(rename = "v4-fixed-ip")]
    v4: Option<String>,
    #[serde(rename = "v6-fixed-ip")]
    v6: Option<String>,
    mac_address: Option<String>,
    pci_request_id: Option<String>,
    /// Of the port, which is not this client's to delete.
    preserve_on_delete: Bool,
}

/// PCI functions.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub(super) struct PciRequest {
    request_id: Option<String>,
    alias_name: Option<String>,
    count: Number,
    /// One of which a function has to be.
    spec: Vec<BTreeMap<String, Value>>,
    /// Of the claim in Zun's database.
    is_new: Bool,
}

/// The keys of a function that a request may name.
const SPEC_KEYS: [&str; 4] = ["address", "physical_network", "product_id", "vendor_id"];

/// Adds what is asked for.
pub(super) fn apply(
    nets: &[Net],
    requests: &[PciRequest],
    host: &HostNetworks,
    extras: &mut Extras,
) -> Result<(), CriError> {
    for (number, request) in requests.iter().enumerate() {
        let field = format!("pci_requests[{number}]");
        let name = request.request_id.clone().unwrap_or_else(|| format!("pci{number}"));
        if extras.functions.iter().any(|other| other.request == name) {
            return Err(CriError::field(format!("{field}.request_id"), format!("{name:?} is there twice")));
        }
        let mut specs = Vec::new();
        for spec in &request.spec {
            let words = spec.iter().map(|(key, value)| match value {
                Value::String(text) if SPEC_KEYS.contains(&key.as_str()) => Ok((key.as_str(), text.as_str())),
                Value::String(_) => Err(CriError::field(
                    format!("{field}.spec"),
                    format!("{key:?} is none of {}", SPEC_KEYS.join(", ")),
                )),
                _ => Err(CriError::field(format!("{field}.spec.{key}"), "not a string")),
            });
            specs.push(words.collect::<Result<_, _>>()?);
        }
        let count = match request.count.count(&format!("{field}.count"))? {
            0 => 1,
            count => count,
        };
        let alias = request.alias_name.as_deref().unwrap_or_default();
        extras.functions.push(host.functions(&AskedFunctions {
            field: &field,
            request: &name,
            alias,
            count,
            specs,
        })?);
    }
    for (number, net) in nets.iter().enumerate() {
        let field = format!("nets[{number}]");
        let mut addresses: Vec<IpAddr> = Vec::new();
        for (name, text, is_v4) in [("v4-fixed-ip", &net.v4, true), ("v6-fixed-ip", &net.v6, false)] {
            let Some(text) = text.as_deref().filter(|text| !text.is_empty()) else { continue };
            let address = text.parse().ok().filter(|address: &IpAddr| address.is_ipv4() == is_v4);
            let wrong = || CriError::field(format!("{field}.{name}"), format!("{text:?} is no such address"));
            addresses.push(address.ok_or_else(wrong)?);
        }
        if let Some(request) = &net.pci_request_id
            && !extras.functions.iter().any(|function| function.request == *request)
        {
            let reason = format!("{request:?} is none of the pci_requests");
            return Err(CriError::field(format!("{field}.pci_request_id"), reason));
        }
        extras.cards.push(host.card(&Asked {
            field: &field,
            network: net.network.as_deref().filter(|name| !name.is_empty()),
            port: net.port.as_deref().filter(|name| !name.is_empty()),
            addresses,
            mac: net.mac_address.as_deref(),
            pci_request: net.pci_request_id.as_deref(),
        })?);
    }
    Ok(())
}
