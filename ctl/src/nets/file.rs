//! What this host has for containers, as a file says it: networks and ports in Neutron's words, and PCI functions.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use super::card::{Neighbor, Subnet, mac};
use super::function::HostFunction;
use super::{CardOrder, Cidr, FunctionOrder, USER};
use crate::cri::CriError;

/// All of it; the default is nothing.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct HostNetworks {
    networks: BTreeMap<String, Network>,
    ports: BTreeMap<String, Port>,
    pci_devices: Vec<HostFunction>,
}

#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
struct Network {
    /// QEMU's arguments of `netdev_add`, without an id. None: its cards are PCI functions.
    #[serde(default)]
    netdev: Value,
    #[serde(default)]
    mtu: u64,
    #[serde(default)]
    subnets: Vec<Subnet>,
    #[serde(default)]
    neighbors: Vec<Neighbor>,
}

#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
struct Port {
    network_id: String,
    #[serde(default)]
    mac_address: Option<String>,
    #[serde(default)]
    fixed_ips: Vec<FixedIp>,
}

#[derive(Clone, Debug, Deserialize, PartialEq)]
struct FixedIp {
    ip_address: IpAddr,
}

/// A card as it is asked for: by its network or its port.
#[derive(Clone, Debug, Default)]
pub struct Asked<'a> {
    /// The field or flag, for messages.
    pub field: &'a str,
    /// The network.
    pub network: Option<&'a str>,
    /// A port of it, which is there already.
    pub port: Option<&'a str>,
    /// Addresses that it shall have.
    pub addresses: Vec<IpAddr>,
    /// Its MAC address.
    pub mac: Option<&'a str>,
    /// The request whose function it is.
    pub pci_request: Option<&'a str>,
}

/// Functions as they are asked for.
#[derive(Clone, Debug, Default)]
pub struct AskedFunctions<'a> {
    /// The field, for messages.
    pub field: &'a str,
    /// The request's name.
    pub request: &'a str,
    /// A shorter one, for the container.
    pub alias: &'a str,
    /// How many.
    pub count: u32,
    /// What one of which they have to be.
    pub specs: Vec<BTreeMap<&'a str, &'a str>>,
}

impl HostNetworks {
    /// Those of a file; without one, there is none but [`USER`].
    ///
    /// # Errors
    ///
    /// It can't be read, or as [`HostNetworks::read`].
    pub fn of(file: Option<&Path>) -> Result<Self, CriError> {
        let Some(file) = file else { return Ok(Self::default()) };
        let what = file.display().to_string();
        let text = std::fs::read_to_string(file).map_err(CriError::io(what.clone()))?;
        Self::read(&what, &text)
    }

    /// Reads a file's text; `what` names it in errors.
    ///
    /// # Errors
    ///
    /// It is no JSON, or a field is not known or wrong.
    pub fn read(what: &str, text: &str) -> Result<Self, CriError> {
        let json = |source| CriError::Json { what: what.to_owned(), source };
        let mut all: Self = serde_json::from_str(text).map_err(json)?;
        let field = |name: &str| format!("{what}: {name}");
        for (name, network) in &mut all.networks {
            let kind = network.netdev.get("type").and_then(Value::as_str);
            if !network.netdev.is_null() && kind.is_none() {
                let reason = "not the arguments of QEMU's netdev_add: they have a type";
                return Err(CriError::field(field(&format!("networks.{name}.netdev")), reason));
            }
            for neighbor in &mut network.neighbors {
                let wrong = |reason| {
                    CriError::field(field(&format!("networks.{name}.neighbors.mac_address")), reason)
                };
                neighbor.mac_address = mac(&neighbor.mac_address).map_err(wrong)?;
            }
        }
        for (name, port) in &mut all.ports {
            let wrong = |reason| CriError::field(field(&format!("ports.{name}.mac_address")), reason);
            port.mac_address = port.mac_address.as_deref().map(mac).transpose().map_err(wrong)?;
            if !all.networks.contains_key(&port.network_id) {
                let reason = format!("{:?} is none of the networks", port.network_id);
                return Err(CriError::field(field(&format!("ports.{name}.network_id")), reason));
            }
        }
        for (number, function) in all.pci_devices.iter().enumerate() {
            let driver = function.device.get("driver").and_then(Value::as_str);
            let reason = match driver {
                _ if !is_address(&function.address) => "address: not a PCI address such as 0000:3b:02.0",
                None if !function.device.is_null() => "device: not the arguments of QEMU's device_add",
                _ => continue,
            };
            return Err(CriError::field(field(&format!("pci_devices[{number}]")), reason));
        }
        Ok(all)
    }

    /// A card that is asked for.
    ///
    /// # Errors
    ///
    /// There is no such network or port, or it has no such address; the field says which.
    pub fn card(&self, asked: &Asked<'_>) -> Result<CardOrder, CriError> {
        // A flag is named as it is.
        let refuse = |name: &str, reason: String| {
            let name = if asked.field.starts_with('-') { "" } else { name };
            Err(CriError::field(format!("{}{name}", asked.field), reason))
        };
        let port = match asked.port.map(|name| (name, self.ports.get(name))) {
            None => None,
            Some((_, Some(port))) => Some(port),
            Some((name, None)) => return refuse(".port", self.unknown("port", name, self.ports.keys())),
        };
        let name = match (asked.network, port) {
            (Some(name), Some(port)) if name != port.network_id => {
                return refuse(".port", format!("it is in network {:?}, not in {name:?}", port.network_id));
            }
            (Some(name), _) => name,
            (None, Some(port)) => &port.network_id,
            (None, None) => return refuse("", "neither a network nor a port is named".to_owned()),
        };
        let builtin;
        let network = match self.networks.get(name) {
            Some(network) => network,
            None if name == USER => {
                builtin = Network::user();
                &builtin
            }
            None => return refuse(".network", self.unknown("network", name, self.networks.keys())),
        };
        if network.netdev.is_null() && asked.pci_request.is_none() {
            let reason = format!("network {name:?} has no netdev: its cards are functions of a pci_request");
            return refuse(".network", reason);
        }
        let fixed = port.into_iter().flat_map(|port| port.fixed_ips.iter().map(|fixed| fixed.ip_address));
        let wanted = if asked.addresses.is_empty() { fixed.collect() } else { asked.addresses.clone() };
        let mut addresses = Vec::new();
        for address in wanted {
            match network.subnets.iter().find(|subnet| subnet.cidr.contains(address)) {
                Some(subnet) => addresses.push(Cidr { address, prefix: subnet.cidr.prefix }),
                None => return refuse("", format!("{address} is in no subnet of network {name:?}")),
            }
        }
        let mac = match asked.mac.map(mac).transpose() {
            Ok(mac) => mac.or_else(|| port.and_then(|port| port.mac_address.clone())),
            Err(reason) => return refuse("", reason),
        };
        Ok(CardOrder {
            field: asked.field.to_owned(),
            network: name.to_owned(),
            netdev: if asked.pci_request.is_some() { Value::Null } else { network.netdev.clone() },
            pci_request: asked.pci_request.map(str::to_owned),
            mac,
            addresses,
            subnets: network.subnets.clone(),
            mtu: network.mtu,
            neighbors: network.neighbors.clone(),
            forwards: Vec::new(),
        })
    }

    fn unknown<'a>(&self, what: &str, name: &str, known: impl Iterator<Item = &'a String>) -> String {
        let mut known: Vec<&str> = known.map(String::as_str).collect();
        if what == "network" && !known.contains(&USER) {
            known.push(USER);
        }
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        format!("no {what} {name:?} on this host (there are: {known}); --networks FILE says which there are")
    }

    /// Functions that are asked for.
    ///
    /// # Errors
    ///
    /// This host has not so many, claimed or not.
    pub fn functions(&self, asked: &AskedFunctions<'_>) -> Result<FunctionOrder, CriError> {
        let fits = |function: &HostFunction| {
            let has = |(key, value): (&&str, &&str)| match *key {
                "vendor_id" => function.vendor_id == *value,
                "product_id" => function.product_id == *value,
                "physical_network" => function.physical_network == *value,
                "address" => function.address == *value,
                _ => false,
            };
            asked.specs.is_empty() || asked.specs.iter().any(|spec| spec.iter().all(has))
        };
        let candidates: Vec<_> = self.pci_devices.iter().filter(|function| fits(function)).cloned().collect();
        let count = usize::try_from(asked.count).unwrap_or(usize::MAX);
        if candidates.len() < count {
            let reason = format!(
                "{count} wanted, and {} of the {} PCI functions of this host are such; --networks FILE says which there are",
                candidates.len(),
                self.pci_devices.len(),
            );
            return Err(CriError::field(asked.field, reason));
        }
        let name = if asked.alias.is_empty() { asked.request } else { asked.alias };
        let letter = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
        Ok(FunctionOrder {
            field: asked.field.to_owned(),
            request: asked.request.to_owned(),
            variable: format!("PCIDEVICE_{}", name.chars().map(letter).collect::<String>()),
            count: asked.count,
            candidates,
        })
    }
}

impl Network {
    fn user() -> Self {
        let netdev = json!({ "type": "user" });
        Self { netdev, mtu: 0, subnets: Vec::new(), neighbors: Vec::new() }
    }
}

/// `0000:3b:02.0`
fn is_address(text: &str) -> bool {
    let shape = "dddd:dd:dd.d";
    text.len() == shape.len()
        && text.bytes().zip(shape.bytes()).all(|(byte, shape)| match shape {
            b'd' => byte.is_ascii_hexdigit(),
            mark => byte == mark,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"{
        "networks": {
            "private": {
                "netdev": {"type": "socket", "connect": "127.0.0.1:1"}, "mtu": 1400,
                "subnets": [{"cidr": "10.9.0.0/24", "gateway_ip": "10.9.0.1", "dns_nameservers": ["10.9.0.53"],
                    "host_routes": [{"destination": "10.7.0.0/16", "nexthop": "10.9.0.1"}]}, {"cidr": "fd09::/64"}],
                "neighbors": [{"ip_address": "10.9.0.1", "mac_address": "02:00:5E:00:53:01"}]
            },
            "physical": {}
        },
        "ports": {"p": {"network_id": "private", "mac_address": "02:00:00:00:00:0A",
            "fixed_ips": [{"ip_address": "10.9.0.9", "subnet_id": "s"}, {"ip_address": "fd09::9"}]}},
        "pci_devices": [{"address": "0000:3b:02.0", "vendor_id": "8086"},
            {"address": "0000:3b:02.1", "vendor_id": "1af4", "device": {"driver": "virtio-rng-pci"}}]
    }"#;

    fn file() -> HostNetworks {
        HostNetworks::read("file", FILE).unwrap()
    }

    #[test]
    fn a_port_says_all_of_a_card() {
        let asked = Asked { field: "nets[0]", port: Some("p"), ..Asked::default() };
        let card = file().card(&asked).unwrap();
        assert_eq!((&*card.network, card.mac.as_deref()), ("private", Some("02:00:00:00:00:0a")));
        let addresses: Vec<_> = card.addresses.iter().map(ToString::to_string).collect();
        assert_eq!(addresses, ["10.9.0.9/24", "fd09::9/64"]);
        assert_eq!((card.mtu, &*card.neighbors[0].mac_address), (1400, "02:00:5e:00:53:01"));
        let user = file().card(&Asked { network: Some("user"), ..Asked::default() }).unwrap();
        assert_eq!(user.netdev, json!({"type": "user"}));
    }

    #[test]
    fn what_is_not_there_is_named() {
        let address = |text: &str| vec![text.parse().unwrap()];
        let base = || Asked { field: "nets[0]", ..Asked::default() };
        for (asked, words) in [
            (base(), "nets[0]: neither a network nor a port"),
            (
                Asked { network: Some("n"), ..base() },
                "nets[0].network: no network \"n\" on this host (there are: phys",
            ),
            (Asked { port: Some("q"), ..base() }, "nets[0].port: no port \"q\" on this host (there are: p)"),
            (
                Asked { port: Some("p"), network: Some("user"), ..base() },
                "nets[0].port: it is in network \"private\"",
            ),
            (
                Asked { network: Some("private"), addresses: address("10.8.0.1"), ..base() },
                "10.8.0.1 is in no subnet",
            ),
            (
                Asked { network: Some("user"), addresses: address("10.0.2.5"), ..base() },
                "10.0.2.5 is in no subnet",
            ),
            (Asked { network: Some("private"), mac: Some("01:00:00:00:00:00"), ..base() }, "no MAC address"),
            (Asked { network: Some("physical"), ..base() }, "has no netdev"),
        ] {
            let error = file().card(&asked).unwrap_err().to_string();
            assert!(error.contains(words), "{words}: {error}");
        }
        for (text, words) in [
            (r#"{"networks": {"n": {"netdev": {}}}}"#, "file: networks.n.netdev"),
            (
                r#"{"networks": {"n": {"subnets": [{"cidr": "10.0.0.1"}]}}}"#,
                "\"10.0.0.1\" is no address with a prefix",
            ),
            (r#"{"ports": {"p": {"network_id": "n"}}}"#, "file: ports.p.network_id: \"n\""),
            (r#"{"pci_devices": [{"address": "3b:02.0"}]}"#, "file: pci_devices[0]: address"),
            (r#"{"pci_devices": [{"address": "0000:3b:02.0", "device": {}}]}"#, "pci_devices[0]: device"),
            (r#"{"nets": {}}"#, "nets"),
        ] {
            let error = HostNetworks::read("file", text).unwrap_err().to_string();
            assert!(error.contains(words), "{words}: {error}");
        }
    }

    #[test]
    fn functions_fit_one_of_the_specs() {
        let spec = |key, value| BTreeMap::from([(key, value)]);
        let asked = |count, specs| AskedFunctions {
            field: "pci_requests[0]",
            request: "r-1",
            count,
            specs,
            ..Default::default()
        };
        let order =
            file().functions(&asked(1, vec![spec("vendor_id", "1af4"), spec("vendor_id", "x")])).unwrap();
        assert_eq!((order.candidates.len(), &*order.candidates[0].address), (1, "0000:3b:02.1"));
        assert_eq!(order.variable, "PCIDEVICE_R_1");
        assert_eq!(file().functions(&asked(2, Vec::new())).unwrap().candidates.len(), 2);
        let error = file().functions(&asked(2, vec![spec("vendor_id", "1af4")])).unwrap_err().to_string();
        assert!(error.starts_with("pci_requests[0]: 2 wanted, and 1 of the 2"), "{error}");
    }
}
