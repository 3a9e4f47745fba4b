//! Network cards of a container: what is wanted, and what is plugged in.
//!
//! A card is no guard: who has plugged it in may end before it is pulled, and writes it down. What is not written down
//! bears the container's name (`plug.rs`).

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use nakai_protocols::types::{ARPNeighbor, IPAddress, IPFamily, Interface, Route};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::function::Function;
use super::way::{plug_with_netdev, pull};
use super::{Cidr, Forward};
use crate::plug::{Machine, Pluggable, Plugged, Port};
use crate::qmp::{Qmp, QmpError};

/// A card that a container is to have.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct CardOrder {
    /// The field or flag that asks for it, for messages.
    pub field: String,
    /// The network's name.
    pub network: String,
    /// QEMU's way to the network; null if the card is a PCI function.
    pub netdev: Value,
    /// The request whose function is the card.
    pub pci_request: Option<String>,
    /// Its MAC address, if it is not to be made up.
    pub mac: Option<String>,
    /// Its addresses; none: the first free one of the first subnet.
    pub addresses: Vec<Cidr>,
    /// The network's subnets.
    pub subnets: Vec<Subnet>,
    /// 0: the kernel's.
    pub mtu: u64,
    /// Whom nobody has to look for.
    pub neighbors: Vec<Neighbor>,
    /// Ports of this host that lead to the card.
    pub forwards: Vec<Forward>,
}

/// A subnet, in Neutron's words.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the fields are Neutron's and are described there")]
pub struct Subnet {
    pub cidr: Cidr,
    #[serde(default)]
    pub gateway_ip: Option<IpAddr>,
    #[serde(default)]
    pub dns_nameservers: Vec<IpAddr>,
    #[serde(default)]
    pub host_routes: Vec<HostRoute>,
}

/// A route of a subnet.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the fields are Neutron's and are described there")]
pub struct HostRoute {
    pub destination: Cidr,
    pub nexthop: IpAddr,
}

/// An address whose card is known.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Neighbor {
    pub ip_address: IpAddr,
    pub mac_address: String,
}

impl Subnet {
    fn has(&self, address: IpAddr) -> bool {
        self.gateway_ip == Some(address)
            || self.dns_nameservers.contains(&address)
            || self.host_routes.iter().any(|route| route.nexthop == address)
    }
}

/// What other cards of the machine have already.
#[derive(Clone, Debug, Default)]
pub struct Others {
    /// The names of interfaces.
    pub names: Vec<String>,
    /// MAC addresses.
    pub macs: Vec<String>,
    /// Addresses with their networks.
    pub addresses: Vec<Cidr>,
}

/// A card in the machine.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Card {
    /// The field or flag that asked for it.
    pub field: String,
    /// Its network.
    pub network: String,
    /// The interface's name in the guest.
    pub name: String,
    /// Its MAC address.
    pub mac: String,
    /// Its addresses.
    pub addresses: Vec<Cidr>,
    /// The subnets that it is in.
    pub subnets: Vec<Subnet>,
    /// 0: the kernel's.
    pub mtu: u64,
    /// Whom nobody has to look for.
    pub neighbors: Vec<Neighbor>,
    /// Ports of this host that lead to it.
    pub forwards: Vec<Forward>,
    /// The device; what a function is plugged in as is its own affair.
    plugged: Plugged,
    netdev: Option<String>,
    qmp: PathBuf,
}

impl Others {
    /// With one more.
    pub fn add(&mut self, card: &Card) {
        self.names.push(card.name.clone());
        self.macs.push(card.mac.clone());
        self.addresses.extend(&card.addresses);
    }
}

impl Card {
    /// Plugs a card in for container `id`.
    ///
    /// # Errors
    ///
    /// No address or port is free, or QEMU refuses.
    pub async fn plug(
        machine: &Machine,
        id: &str,
        order: &CardOrder,
        others: &Others,
    ) -> Result<Self, String> {
        let mut card = Self::planned(id, order, others)?;
        let (mut netdev, mut problem) = (String::new(), None);
        let attempt = Attempt { card: &mut card, order, others, netdev: &mut netdev, problem: &mut problem };
        let plugged = machine.plug("card", id, attempt).await;
        card.plugged = plugged.map_err(|error| problem.unwrap_or_else(|| error.to_string()))?;
        (card.netdev, card.qmp) = (Some(netdev), machine.qmp.clone());
        Ok(card)
    }

    /// The card that a function will be; [`Card::is`] says which.
    ///
    /// # Errors
    ///
    /// No address is free, or another card has its MAC address.
    pub fn of_function(id: &str, order: &CardOrder, others: &Others) -> Result<Self, String> {
        let mut card = Self::planned(id, order, others)?;
        card.addresses = card.take_addresses(order, others)?;
        Ok(card)
    }

    /// It is this function, which is plugged in.
    pub fn is(&mut self, function: &Function) {
        self.plugged.pci_path.clone_from(&function.plugged.pci_path);
    }

    /// All but its place and its addresses.
    fn planned(id: &str, order: &CardOrder, others: &Others) -> Result<Self, String> {
        let mac = match &order.mac {
            Some(mac) if others.macs.contains(mac) => {
                return Err(format!("another card of the machine has the MAC address {mac}"));
            }
            Some(mac) => mac.clone(),
            None => made_up_mac(id, &order.field, &others.macs),
        };
        let mut names = (0_u32..).map(|number| format!("eth{number}"));
        let name = names.find(|name| !others.names.contains(name)).unwrap_or_default();
        Ok(Self {
            field: order.field.clone(),
            network: order.network.clone(),
            name,
            mac,
            subnets: order.subnets.clone(),
            mtu: order.mtu,
            neighbors: order.neighbors.clone(),
            forwards: order.forwards.clone(),
            ..Self::default()
        })
    }

    fn take_addresses(&self, order: &CardOrder, others: &Others) -> Result<Vec<Cidr>, String> {
        let has = |address: IpAddr| others.addresses.iter().any(|other| other.address == address);
        if let Some(taken) = order.addresses.iter().find(|cidr| has(cidr.address)) {
            return Err(format!("another card of the machine has the address {}", taken.address));
        }
        if !order.addresses.is_empty() {
            return Ok(order.addresses.clone());
        }
        // A network without subnets is one of frames alone.
        let Some(subnet) = self.subnets.first() else { return Ok(Vec::new()) };
        let taken = |address: IpAddr| {
            has(address)
                || subnet.has(address)
                || self.neighbors.iter().any(|neighbor| neighbor.ip_address == address)
        };
        let free = subnet.cidr.free(taken).ok_or_else(|| format!("no address of {} is free", subnet.cidr))?;
        Ok(vec![Cidr { address: free, prefix: subnet.cidr.prefix }])
    }

    /// QEMU's user-mode network as the subnet says it is, with the ports that lead in.
    fn user_netdev(&self, netdev: &Value) -> Value {
        let mut netdev = netdev.clone();
        let Some(fields) = netdev.as_object_mut() else { return netdev };
        let v4 = self.subnets.iter().find(|subnet| subnet.cidr.address.is_ipv4());
        if let (Some(subnet), None) = (v4, fields.get("net")) {
            fields.insert("net".to_owned(), json!(subnet.cidr.base()));
            if let Some(gateway) = subnet.gateway_ip {
                fields.insert("host".to_owned(), json!(gateway));
            }
            if let Some(dns) = subnet.dns_nameservers.iter().find(|dns| subnet.cidr.contains(**dns)) {
                fields.insert("dns".to_owned(), json!(dns));
            }
        }
        let guest = self.addresses.iter().map(|cidr| cidr.address).find(IpAddr::is_ipv4);
        if let (Some(guest), false) = (guest, self.forwards.is_empty()) {
            let rules = self.forwards.iter().map(|forward| json!({ "str": forward.rule(guest) }));
            fields.insert("hostfwd".to_owned(), rules.collect());
        }
        netdev
    }

    /// Pulls it, when the guest has let go of it. One that is a function goes with that.
    ///
    /// # Errors
    ///
    /// The guest does not let go of it, or the machine is gone.
    pub async fn unplug(&self) -> Result<(), QmpError> {
        match &self.netdev {
            Some(netdev) => pull(&self.qmp, &self.plugged.device, Some(netdev)).await,
            None => Ok(()),
        }
    }

    /// What the guest is to make of it.
    pub fn interface(&self) -> Interface {
        Interface {
            device: self.name.clone(),
            name: self.name.clone(),
            IPAddresses: self.addresses.iter().map(|cidr| address(cidr.address, cidr.prefix)).collect(),
            mtu: self.mtu,
            hwAddr: self.mac.clone(),
            devicePath: self.plugged.pci_path.clone(),
            ..Default::default()
        }
    }

    /// The routes over it. A default route only where there is none: `has_default` says it for IPv4 and IPv6.
    pub fn routes(&self, has_default: impl Fn(bool) -> bool) -> Vec<Route> {
        let route = |dest: String, gateway: IpAddr| Route {
            dest,
            gateway: gateway.to_string(),
            device: self.name.clone(),
            family: family(gateway).into(),
            ..Default::default()
        };
        let reached = |subnet: &&Subnet| {
            self.addresses.iter().any(|cidr| cidr.address.is_ipv4() == subnet.cidr.address.is_ipv4())
        };
        let mut routes = Vec::new();
        for subnet in self.subnets.iter().filter(reached) {
            for HostRoute { destination, nexthop } in &subnet.host_routes {
                routes.push(route(destination.base().to_string(), *nexthop));
            }
            if let Some(gateway) = subnet.gateway_ip.filter(|gateway| !has_default(gateway.is_ipv4())) {
                routes.push(route(String::new(), gateway));
            }
        }
        routes
    }

    /// Its neighbours' entries.
    pub fn neighbor_entries(&self) -> Vec<ARPNeighbor> {
        let entry = |neighbor: &Neighbor| ARPNeighbor {
            toIPAddress: Some(address(
                neighbor.ip_address,
                if neighbor.ip_address.is_ipv4() { 32 } else { 128 },
            ))
            .into(),
            device: self.name.clone(),
            lladdr: neighbor.mac_address.clone(),
            ..Default::default()
        };
        self.neighbors.iter().map(entry).collect()
    }

    /// The name servers of its subnets.
    pub fn name_servers(&self) -> impl Iterator<Item = IpAddr> {
        self.subnets.iter().flat_map(|subnet| subnet.dns_nameservers.iter().copied())
    }
}

/// A card on its way.
struct Attempt<'a> {
    card: &'a mut Card,
    order: &'a CardOrder,
    others: &'a Others,
    /// What is behind it.
    netdev: &'a mut String,
    /// Why it can't be, where that is not QEMU's to say.
    problem: &'a mut Option<String>,
}

impl Pluggable for Attempt<'_> {
    async fn plug_at(&mut self, qmp: &mut Qmp, port: &Port) -> Result<(), QmpError> {
        let Self { card, order, others, .. } = self;
        let is_user = order.netdev.get("type").and_then(Value::as_str) == Some("user");
        if is_user && order.subnets.is_empty() {
            card.subnets = vec![user_subnet(port.number, others)];
        }
        card.addresses = match card.take_addresses(order, others) {
            Ok(addresses) => addresses,
            Err(problem) => {
                *self.problem = Some(problem.clone());
                return Err(QmpError::Answer { command: "netdev_add".to_owned(), answer: problem });
            }
        };
        let way = if is_user { card.user_netdev(&order.netdev) } else { order.netdev.clone() };
        let properties = json!({ "mac": card.mac });
        plug_with_netdev(qmp, port, &way, "virtio-net-pci", &properties).await?;
        self.netdev.clone_from(&port.netdev);
        Ok(())
    }
}

/// The subnet of a card in the network `user`: another for each, or answers would leave by a wrong card.
fn user_subnet(port: u8, others: &Others) -> Subnet {
    let subnets = (2..=254_u8).cycle().skip(port.into()).take(253);
    let mut cidrs = subnets.map(|third| Cidr { address: Ipv4Addr::new(10, 0, third, 0).into(), prefix: 24 });
    let is_free = |cidr: &Cidr| others.addresses.iter().all(|other| !other.overlaps(*cidr));
    let cidr = cidrs.find(is_free).unwrap_or(Cidr { address: Ipv4Addr::new(10, 0, 2, 0).into(), prefix: 24 });
    Subnet {
        cidr,
        gateway_ip: cidr.host(2),
        dns_nameservers: cidr.host(3).into_iter().collect(),
        host_routes: Vec::new(),
    }
}

fn address(address: IpAddr, prefix: u8) -> IPAddress {
    IPAddress {
        family: family(address).into(),
        address: address.to_string(),
        mask: prefix.to_string(),
        ..Default::default()
    }
}

fn family(address: IpAddr) -> IPFamily {
    if address.is_ipv4() { IPFamily::v4 } else { IPFamily::v6 }
}

/// A MAC address as Linux writes it.
///
/// # Errors
///
/// It is none, or one of many cards.
pub fn mac(text: &str) -> Result<String, String> {
    let wrong = || format!("{text:?} is no MAC address of a card");
    let parts: Vec<&str> = text.split(':').collect();
    let is_byte = |part: &&str| part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
    let first = parts.first().and_then(|part| u8::from_str_radix(part, 16).ok()).ok_or_else(wrong)?;
    if parts.len() == 6 && parts.iter().all(is_byte) && first & 1 == 0 && text != "00:00:00:00:00:00" {
        Ok(text.to_ascii_lowercase())
    } else {
        Err(wrong())
    }
}

/// One that no other card of this host is likely to have.
fn made_up_mac(id: &str, field: &str, taken: &[String]) -> String {
    let seed = format!("{} {} {id} {field}", std::process::id(), crate::time::now());
    let macs = (0_u32..).map(|number| {
        let digest = crate::image::Digest::of(format!("{seed} {number}").as_bytes());
        let digits: Vec<char> = digest.hex().chars().take(10).collect();
        digits
            .chunks(2)
            .fold("02".to_owned(), |mac, byte| format!("{mac}:{}", byte.iter().collect::<String>()))
    });
    macs.take(100).find(|mac| !taken.contains(mac)).unwrap_or_default()
}

#[cfg(test)]
mod tests;
