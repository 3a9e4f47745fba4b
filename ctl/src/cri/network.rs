//! What a container has of this host's networks and PCI functions: claimed, plugged in, and made known to the guest.
//!
//! All containers of a machine share its network, so a card is the machine's while its container is there: names,
//! addresses and the default route are given to one after the other ([`State::lock_network`]).

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use nakai_protocols::types::Route;
use ttrpc::Code;

use super::config::{KeyValue, NamespaceMode, PodSandboxConfig, Protocol};
use super::engine::Engine;
use super::{CriError, Order};
use crate::nets::card::Others;
use crate::nets::file::{Asked, HostNetworks};
use crate::nets::function::HostFunction;
use crate::nets::{Card, CardOrder, Cidr, Forward, Function, USER};
use crate::state::{Action, ContainerRecord, State};
use crate::sweep::sweep;

/// How long a guest may take until a card is there: the agent waits for a shorter time by itself.
const CARD_LIMIT: Duration = Duration::from_secs(60);

/// The name by which the pod's own cards are plugged in.
const POD: &str = "pod's network";

impl Engine {
    /// Refuses cards in a network namespace that is the container's own.
    pub(super) fn check_network(&self, order: &Order) -> Result<(), CriError> {
        let options = &order.config.linux.security_context.namespace_options;
        match order.extras.cards.first() {
            Some(card) if options.network == NamespaceMode::Container => {
                let reason = "a container with a network namespace of its own has no cards";
                Err(CriError::field(&card.field, reason))
            }
            _ => Ok(()),
        }
    }

    /// Refuses a host name that the sandbox, which is there already, does not have.
    pub(super) fn check_hostname(&self, order: &Order) -> Result<(), CriError> {
        let differs =
            self.state().has_sandbox() && self.state().hostname().as_deref() != Some(&*order.pod.hostname);
        if !order.extras.needs_hostname || !differs {
            return Ok(());
        }
        let reason = match self.state().hostname() {
            Some(name) => {
                format!("the sandbox is there already, and all its containers have its host name {name:?}")
            }
            None => "the sandbox is there already, and all its containers have its host name".to_owned(),
        };
        Err(CriError::field("hostname", reason))
    }

    pub(super) async fn need_named_sandbox(&self, order: &Order) -> Result<(), CriError> {
        self.need_sandbox(&order.pod).await?;
        self.check_hostname(order)
    }

    /// Name servers of the networks, where the order names none.
    pub(super) fn take_name_servers(&self, order: &mut Order) {
        let dns = &mut order.pod.dns_config.servers;
        if dns.is_empty() {
            let cards = order.extras.cards.iter().chain(&order.extras.pod_cards);
            let subnets = cards.flat_map(|card| &card.subnets);
            push_new(dns, subnets.flat_map(|subnet| &subnet.dns_nameservers).map(ToString::to_string));
        }
    }

    /// Claims the PCI functions: no container of this host has one that another has.
    pub(super) async fn claim(&self, record: &mut ContainerRecord) -> Result<(), CriError> {
        if record.order.extras.functions.is_empty() {
            return Ok(());
        }
        let (id, journal) = (record.id.clone(), self.state().journal());
        let claim = async {
            let failed = || CriError::io("lock of the PCI functions");
            let _turn = State::lock_claims().await.map_err(failed())?;
            // What machines had that were killed is free.
            tokio::task::spawn_blocking(sweep).await.map_err(|error| failed()(error.into()))?;
            let mut taken: BTreeSet<String> = self.state().claimed_functions();
            for order in &record.order.extras.functions {
                let free = |function: &&HostFunction| !taken.contains(&function.address);
                let wanted = usize::try_from(order.count).unwrap_or(usize::MAX);
                let free: Vec<_> = order.candidates.iter().filter(free).take(wanted).collect();
                if free.len() < wanted {
                    let (all, others) =
                        (order.candidates.len(), order.candidates.len().saturating_sub(free.len()));
                    let reason = format!(
                        "{wanted} wanted, and of the {all} that would do other containers have {others}"
                    );
                    return Err(CriError::field(&order.field, reason));
                }
                for function in free {
                    taken.insert(function.address.clone());
                    record.holdings.functions.push(Function::claimed(order, function));
                }
            }
            self.put(record)
        };
        journal.step(&id, Action::Claim, claim).await
    }

    /// Plugs functions and cards in, and has the guest set the cards up; `order` is told what has come of it.
    pub(super) async fn plug(&self, record: &mut ContainerRecord, order: &mut Order) -> Result<(), CriError> {
        if order.extras.plugged_fields().next().is_none() {
            return Ok(());
        }
        let (id, journal) = (record.id.clone(), self.state().journal());
        journal.step(&id, Action::Network, self.plug_all(record, order)).await?;
        let functions = &record.holdings.functions;
        let variables: BTreeSet<&String> = functions.iter().map(|function| &function.variable).collect();
        for variable in variables {
            let addresses = functions.iter().filter(|function| function.variable == *variable);
            let value = addresses.map(|function| &*function.address).collect::<Vec<_>>().join(",");
            order.config.envs.push(KeyValue { key: variable.clone(), value });
        }
        Ok(())
    }

    /// Name servers that are known only now, where the order names none.
    pub(super) fn tell_name_servers(&self, order: &mut Order, cards: &[Card]) {
        let noted = self.state().pod_cards();
        let dns = &mut order.pod.dns_config.servers;
        if dns.is_empty() {
            push_new(dns, cards.iter().chain(&noted).flat_map(Card::name_servers).map(|dns| dns.to_string()));
        }
    }

    async fn plug_all(&self, record: &mut ContainerRecord, order: &Order) -> Result<(), CriError> {
        let _turn = self.state().lock_network().await.map_err(CriError::io("lock of the network"))?;
        let mut others = self.others().await?;
        let mut left: Vec<usize> = (0..record.holdings.functions.len()).collect();
        for asked in &order.extras.cards {
            let failed = |reason| CriError::field(&asked.field, reason);
            let card = match &asked.pci_request {
                None => {
                    let machine = self.machine(&asked.field)?;
                    Card::plug(machine, &record.id, asked, &others).await.map_err(failed)?
                }
                Some(request) => {
                    let functions = &record.holdings.functions;
                    let is_its =
                        |number: &usize| functions.get(*number).is_some_and(|it| it.request == *request);
                    let its = left.iter().position(is_its).map(|place| left.remove(place));
                    let its =
                        its.ok_or_else(|| failed("no function of pci_requests is left for it".to_owned()))?;
                    let mut card = Card::of_function(&record.id, asked, &others).map_err(failed)?;
                    card.is(self.plug_function(record, order, its, Some(&card.mac)).await?);
                    card
                }
            };
            others.add(&card);
            record.holdings.cards.push(card);
            self.put(record)?;
        }
        for number in left {
            self.plug_function(record, order, number, None).await?;
            self.put(record)?;
        }
        self.set_up(&record.holdings.cards).await
    }

    async fn plug_function<'a>(
        &self,
        record: &'a mut ContainerRecord,
        order: &Order,
        number: usize,
        mac: Option<&str>,
    ) -> Result<&'a Function, CriError> {
        let gone = || CriError::field("pci_requests", "a claim is gone");
        let function = record.holdings.functions.get_mut(number).ok_or_else(gone)?;
        let asked = order.extras.functions.iter().find(|asked| asked.request == function.request);
        let field = asked.map_or("pci_requests", |asked| &*asked.field);
        let plugged = function.plug(self.machine(field)?, &record.id, mac).await;
        plugged
            .map_err(|error| CriError::field(format!("{field}, {}", function.address), error.to_string()))?;
        Ok(function)
    }

    /// The pod's own cards: they come with its first container, and stay as long as the machine.
    pub(super) async fn need_pod_network(&self, order: &Order) -> Result<(), CriError> {
        let wanted = pod_orders(order)?;
        let Some(first) = wanted.first() else { return Ok(()) };
        let machine = self.machine(&first.field)?;
        let _turn = self.state().lock_network().await.map_err(CriError::io("lock of the network"))?;
        let mut cards = self.state().pod_cards();
        if !cards.is_empty() {
            return has_all(&cards, &wanted);
        }
        // A client that was killed may have left one.
        let swept = machine.sweep(POD).await;
        swept.map_err(|error| CriError::field(&first.field, error.to_string()))?;
        let plugged = async {
            let mut others = self.others().await?;
            for card in &wanted {
                let plugged = Card::plug(machine, POD, card, &others).await;
                let plugged = plugged.map_err(|reason| CriError::field(&card.field, reason))?;
                others.add(&plugged);
                cards.push(plugged);
            }
            self.set_up(&cards).await?;
            self.state().note_pod_cards(&cards).map_err(CriError::io("note of the pod's network"))
        };
        let plugged = self.state().journal().step(POD, Action::Network, plugged).await;
        if plugged.is_err() {
            // Why it is not made tells more than why something stays.
            let _ = machine.sweep(POD).await;
        }
        plugged
    }

    /// What the guest's cards have.
    async fn others(&self) -> Result<Others, CriError> {
        let mut others = Others::default();
        for interface in self.client().list_interfaces().await? {
            let addresses = interface.IPAddresses.iter();
            let cidrs = addresses.filter_map(|it| format!("{}/{}", it.address, it.mask).parse::<Cidr>().ok());
            others.addresses.extend(cidrs.filter(|cidr| !is_link_local(cidr)));
            others.names.push(interface.name);
            others.macs.push(interface.hwAddr.to_ascii_lowercase());
        }
        Ok(others)
    }

    /// As a shim does it: interfaces, then routes, then neighbours.
    async fn set_up(&self, cards: &[Card]) -> Result<(), CriError> {
        let client = self.client();
        let deadline = Instant::now() + CARD_LIMIT;
        for card in cards {
            loop {
                match client.update_interface(card.interface()).await {
                    Err(error) if error.code == Code::DEADLINE_EXCEEDED && Instant::now() < deadline => {}
                    updated => break drop(updated?),
                }
            }
        }
        let mut routes = client.list_routes().await?;
        let before = routes.len();
        for card in cards {
            let is_default = |route: &Route| route.dest.is_empty() || route.dest.ends_with("/0");
            let has = |v4: bool| {
                let mut defaults = routes.iter().filter(|route| is_default(route));
                defaults.any(|route| route.gateway.contains(':') != v4)
            };
            let more = card.routes(has);
            routes.extend(more);
        }
        if routes.len() > before {
            client.update_routes(routes).await?;
        }
        let neighbors: Vec<_> = cards.iter().flat_map(Card::neighbor_entries).collect();
        if !neighbors.is_empty() {
            client.add_arp_neighbors(neighbors).await?;
        }
        Ok(())
    }
}

/// The pod's cards that are asked for: by name, or by ports of this host.
fn pod_orders(order: &Order) -> Result<Vec<CardOrder>, CriError> {
    let forwards = forwards(&order.pod)?;
    let mut cards = order.extras.pod_cards.clone();
    let Some((field, _)) = forwards.first() else { return Ok(cards) };
    if cards.is_empty() {
        cards.push(HostNetworks::default().card(&Asked {
            field,
            network: Some(USER),
            ..Asked::default()
        })?);
    }
    let is_user = |card: &&mut CardOrder| card.netdev.get("type").is_some_and(|kind| kind == "user");
    let Some(card) = cards.iter_mut().find(is_user) else {
        return Err(CriError::field(
            field,
            "only a network of QEMU's type \"user\" leads ports of this host in",
        ));
    };
    card.forwards.extend(forwards.into_iter().map(|(_, forward)| forward));
    Ok(cards)
}

fn forwards(pod: &PodSandboxConfig) -> Result<Vec<(String, Forward)>, CriError> {
    let mut forwards = Vec::new();
    for (number, mapping) in pod.port_mappings.iter().enumerate().filter(|(_, port)| port.host_port != 0) {
        let field = format!("port_mappings[{number}]");
        let port = |name: &str, port: i32| {
            let port = u16::try_from(port).ok().filter(|&port| port > 0);
            port.ok_or_else(|| CriError::field(format!("{field}.{name}"), "not a port"))
        };
        let protocol = match mapping.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => {
                let reason = "SCTP: QEMU's user-mode network leads in TCP and UDP only";
                return Err(CriError::field(format!("{field}.protocol"), reason));
            }
        };
        let host_address = match &*mapping.host_ip {
            "" => None,
            text => Some(text.parse().map_err(|_| {
                CriError::field(format!("{field}.host_ip"), format!("{text:?} is no IPv4 address"))
            })?),
        };
        let forward = Forward {
            protocol: protocol.to_owned(),
            host_address,
            host_port: port("host_port", mapping.host_port)?,
            port: port("container_port", mapping.container_port)?,
        };
        forwards.push((format!("{field}.host_port"), forward));
    }
    Ok(forwards)
}

/// The pod's network, which is there, has all that is asked for.
fn has_all(cards: &[Card], wanted: &[CardOrder]) -> Result<(), CriError> {
    for order in wanted {
        let of_network = || cards.iter().filter(|card| card.network == order.network);
        let missing = order
            .forwards
            .iter()
            .find(|forward| !of_network().any(|card| card.forwards.contains(forward)))
            .map(|forward| format!("port {forward}"));
        let missing = match of_network().next() {
            None => Some(format!("network {:?}", order.network)),
            Some(_) => missing,
        };
        if let Some(missing) = missing {
            let reason = format!("the pod's network was made with its first container, without {missing}");
            return Err(CriError::field(&order.field, reason));
        }
    }
    Ok(())
}

fn is_link_local(cidr: &Cidr) -> bool {
    matches!(cidr.address, std::net::IpAddr::V6(address) if address.is_unicast_link_local())
}

fn push_new(list: &mut Vec<String>, more: impl Iterator<Item = String>) {
    for text in more {
        if !list.contains(&text) {
            list.push(text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cri::config::PortMapping;

    fn mapping(edit: impl FnOnce(&mut PortMapping)) -> Order {
        let mut mapping = PortMapping { container_port: 80, host_port: 8080, ..PortMapping::default() };
        edit(&mut mapping);
        let mut order = Order::default();
        order.pod.port_mappings = vec![PortMapping::default(), mapping];
        order
    }

    #[test]
    fn host_ports_need_a_card_that_leads_them_in() {
        let cards = pod_orders(&mapping(|port| port.host_ip = "127.0.0.1".to_owned())).unwrap();
        assert_eq!((cards.len(), &*cards[0].network), (1, USER));
        assert_eq!(cards[0].forwards[0].to_string(), "127.0.0.1:8080:80/tcp");
        assert!(pod_orders(&Order::default()).unwrap().is_empty());
        let mut other = mapping(|_| ());
        other
            .extras
            .pod_cards
            .push(CardOrder { netdev: serde_json::json!({"type": "tap"}), ..CardOrder::default() });
        for (order, words) in [
            (mapping(|port| port.host_port = 70_000), "port_mappings[1].host_port: not a port"),
            (mapping(|port| port.container_port = 0), "port_mappings[1].container_port: not a port"),
            (mapping(|port| port.host_ip = "::1".to_owned()), "port_mappings[1].host_ip: \"::1\""),
            (mapping(|port| port.protocol = Protocol::Sctp), "port_mappings[1].protocol: SCTP"),
            (other, "port_mappings[1].host_port: only a network of QEMU's type"),
        ] {
            let error = pod_orders(&order).unwrap_err().to_string();
            assert!(error.starts_with(words), "{error}");
        }
    }

    #[test]
    fn a_pods_network_is_made_once() {
        let wanted = pod_orders(&mapping(|_| ())).unwrap();
        let card = |network: &str, ports: &[&str]| {
            let mut card = Card::default();
            network.clone_into(&mut card.network);
            card.forwards.extend(ports.iter().map(|port| Forward::parse(port).unwrap()));
            card
        };
        has_all(&[card(USER, &["8080:80"])], &wanted).unwrap();
        let error = |card: Card| has_all(&[card], &wanted).unwrap_err().to_string();
        assert!(error(card(USER, &["8081:80"])).ends_with("without port 8080:80/tcp"));
        assert!(error(card("other", &["8080:80"])).ends_with("without network \"user\""));
    }
}
