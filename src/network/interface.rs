//! UpdateInterface: a link becomes what the host wants it to be.
//!
//! The order: take it down if its name or MAC address changes, MAC address, name (another link that has the name gets
//! ours in exchange), MTU, ARP, up, addresses. A link is left up where nothing demands otherwise: taking it down costs
//! its routes and IPv6 addresses. Those are put back as far as they still make sense.
//!
//! Addresses are reconciled: what is not in the list goes, but for those that the kernel made. With the first IPv4
//! address of a network the kernel removes the others of it, and with the last one of a link all its IPv4 routes.
//! After any change, also one that failed, what was lost in this way is put back.

use slog::{Logger, info, warn};

use super::NetworkError;
use super::kernel::{Change, Kernel};
use super::link::{self, Address, Link};
use super::net::{self, Cidr, Mac};
use super::route::Entry;
use super::steps::Steps;
use crate::device::pci::PciPath;

/// What the host wants a link to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterfaceRequest {
    /// Its name, then. Empty: as it is.
    pub(super) name: String,
    /// Its MAC address, by which it is found.
    pub(super) mac: Option<Mac>,
    /// Where it is plugged in.
    pub(super) pci: Option<PciPath>,
    pub(super) addresses: Vec<Cidr>,
    /// None: as it is.
    pub(super) mtu: Option<u32>,
    pub(super) arp: bool,
}

/// An interface as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its MAC address; empty for one that has none.
    pub mac: String,
    /// Its MTU.
    pub mtu: u32,
    /// Flags of netdevice(7).
    pub flags: u32,
    /// The kernel's name for its kind; empty for hardware.
    pub kind: String,
    /// Its addresses.
    pub addresses: Vec<Cidr>,
}

/// All interfaces.
pub(super) fn list(kernel: &mut dyn Kernel) -> Result<Vec<Interface>, NetworkError> {
    let links = kernel.links()?;
    let addresses = kernel.addresses()?;
    Ok(links.into_iter().map(|link| with_addresses(link, &addresses)).collect())
}

fn with_addresses(link: Link, addresses: &[Address]) -> Interface {
    let of_link = addresses.iter().filter(|address| address.link == link.index);
    Interface {
        addresses: of_link.map(|address| address.cidr).collect(),
        mac: link.mac.map(|mac| mac.to_string()).unwrap_or_default(),
        name: link.name,
        mtu: link.mtu,
        flags: link.flags,
        kind: link.kind,
    }
}

/// Makes the link with that `index` what the host wants, and tells what became of it. On failure it is what it was.
pub(super) fn update(
    kernel: &mut dyn Kernel,
    index: u32,
    wanted: &InterfaceRequest,
    has_v6: &dyn Fn(&str) -> bool,
    log: &Logger,
) -> Result<Interface, NetworkError> {
    let before = Before { links: kernel.links()?, addresses: kernel.addresses()?, routes: kernel.routes()? };
    let ours = before.links.iter().find(|link| link.index == index);
    let ours = ours.ok_or(NetworkError::LinkGone { index })?.clone();
    let mut steps = Steps::new(kernel, before.links.clone(), log);
    let mut taken_down = Vec::new();
    let updated = configure(&mut steps, &before, &ours, wanted, &mut taken_down)
        .and_then(|()| reconcile(&mut steps, &ours, wanted, has_v6, log));
    if steps.has_changed() {
        let mut touched = taken_down;
        if updated.is_err() {
            steps.undo();
            touched.push(index);
        } else {
            // Its addresses are what the host wants already.
            touched.retain(|link| *link != index);
        }
        put_back(&mut steps, &before, &touched);
    }
    updated?;
    let after = kernel.links()?.into_iter().find(|link| link.index == index);
    let interface = with_addresses(after.ok_or(NetworkError::LinkGone { index })?, &kernel.addresses()?);
    info!(log, "interface updated"; "was" => &ours.name, "name" => &interface.name, "mtu" => interface.mtu,
        "addresses" => interface.addresses.len());
    Ok(interface)
}

/// What there was before the change.
struct Before {
    links: Vec<Link>,
    addresses: Vec<Address>,
    routes: Vec<Entry>,
}

/// All but the addresses.
fn configure(
    steps: &mut Steps<'_>,
    before: &Before,
    ours: &Link,
    wanted: &InterfaceRequest,
    taken_down: &mut Vec<u32>,
) -> Result<(), NetworkError> {
    let index = ours.index;
    let mac = wanted.mac.filter(|mac| ours.mac != Some(*mac));
    let is_renamed = !wanted.name.is_empty() && wanted.name != ours.name;
    if (mac.is_some() || is_renamed) && ours.is_up() {
        take_down(steps, ours, taken_down)?;
    }
    if let Some(mac) = mac {
        let back = ours.mac.unwrap_or(mac);
        steps.apply(Change::Mac { link: index, mac }, Change::Mac { link: index, mac: back })?;
    }
    if is_renamed {
        match before.links.iter().find(|link| link.name == wanted.name) {
            Some(other) => swap_names(steps, &before.links, ours, other, taken_down)?,
            None => rename(steps, index, &ours.name, &wanted.name)?,
        }
    }
    if let Some(mtu) = wanted.mtu.filter(|mtu| *mtu != ours.mtu) {
        steps.apply(Change::Mtu { link: index, mtu }, Change::Mtu { link: index, mtu: ours.mtu })?;
    }
    let has_arp = ours.flags & link::NO_ARP == 0;
    // The loopback has none.
    if wanted.arp != has_arp && ours.flags & link::LOOPBACK == 0 {
        let arp = |on| Change::Arp { link: index, on };
        steps.apply(arp(wanted.arp), arp(has_arp))?;
    }
    if !ours.is_up() || taken_down.contains(&index) {
        steps.apply(Change::Up(index), Change::Down(index))?;
    }
    Ok(())
}

fn take_down(steps: &mut Steps<'_>, link: &Link, taken_down: &mut Vec<u32>) -> Result<(), NetworkError> {
    taken_down.push(link.index);
    steps.apply(Change::Down(link.index), Change::Up(link.index))
}

fn rename(steps: &mut Steps<'_>, link: u32, from: &str, to: &str) -> Result<(), NetworkError> {
    let back = Change::Rename { link, name: from.to_owned() };
    steps.apply(Change::Rename { link, name: to.to_owned() }, back)
}

/// Gives two links each other's name, by way of a third one.
fn swap_names(
    steps: &mut Steps<'_>,
    links: &[Link],
    ours: &Link,
    other: &Link,
    taken_down: &mut Vec<u32>,
) -> Result<(), NetworkError> {
    // No more numbers than links can be taken.
    let names = (0..=links.len()).map(|number| format!("nk-{number}"));
    let is_free = |name: &String| links.iter().all(|link| link.name != *name);
    let passing = names.into_iter().find(is_free).unwrap_or_default();
    if other.is_up() {
        take_down(steps, other, taken_down)?;
    }
    rename(steps, other.index, &other.name, &passing)?;
    rename(steps, ours.index, &ours.name, &other.name)?;
    rename(steps, other.index, &passing, &ours.name)?;
    if other.is_up() {
        steps.apply(Change::Up(other.index), Change::Down(other.index))?;
    }
    Ok(())
}

/// Removes the addresses that the host does not want and adds those that are missing.
fn reconcile(
    steps: &mut Steps<'_>,
    ours: &Link,
    wanted: &InterfaceRequest,
    has_v6: &dyn Fn(&str) -> bool,
    log: &Logger,
) -> Result<(), NetworkError> {
    let name = if wanted.name.is_empty() { &ours.name } else { &wanted.name };
    let may_have_v6 = has_v6(name);
    let of_ours =
        |addresses: Vec<Address>| addresses.into_iter().filter(|address| address.link == ours.index);
    for address in of_ours(steps.kernel().addresses()?) {
        if !wanted.addresses.contains(&address.cidr) && !address.is_the_kernels() {
            steps.remove_address(address)?;
        }
    }
    // Without the first address of a network its others go, too.
    let mut there: Vec<Cidr> = of_ours(steps.kernel().addresses()?).map(|address| address.cidr).collect();
    for cidr in &wanted.addresses {
        if there.contains(cidr) {
            continue;
        }
        if cidr.ip.is_ipv6() && !may_have_v6 {
            warn!(log, "address left out: IPv6 is off"; "interface" => name, "address" => %cidr);
            continue;
        }
        let address = Address::new(ours.index, *cidr);
        steps.apply(Change::AddAddress(address), Change::RemoveAddress(address))?;
        there.push(*cidr);
    }
    Ok(())
}

/// Puts back the addresses that the `touched` links lost, and the routes that were lost with any address.
fn put_back(steps: &mut Steps<'_>, before: &Before, touched: &[u32]) {
    for link in touched {
        let Ok(there) = steps.kernel().addresses() else { return };
        put_addresses_back(steps, &of_link(&before.addresses, *link), &of_link(&there, *link));
    }
    let Ok(routes) = steps.kernel().routes() else { return };
    let mut lost: Vec<_> = before.routes.iter().filter(|entry| !entry.is_the_kernels()).collect();
    lost.retain(|entry| !routes.iter().any(|there| there.route == entry.route));
    // A gateway has to be reachable first.
    lost.sort_by_key(|entry| entry.route.gateway.is_some());
    for entry in lost {
        // With its address a network has got the kernel's own route again, which had given way before.
        let is_taken = |there: &Entry| there.is_the_kernels() && there.route.key() == entry.route.key();
        let entry = entry.clone();
        let is_taken = routes.iter().any(is_taken);
        steps.try_to(&if is_taken { Change::ReplaceRoute(entry) } else { Change::AddRoute(entry) });
    }
}

/// The addresses of a link that somebody has asked for.
fn of_link(addresses: &[Address], link: u32) -> Vec<Address> {
    let asked_for = |address: &&Address| address.link == link && !address.is_the_kernels();
    addresses.iter().filter(asked_for).copied().collect()
}

/// In their order, which tells the kernel what to send from: the first one of each network counts.
fn put_addresses_back(steps: &mut Steps<'_>, before: &[Address], there: &[Address]) {
    let is_v4 = |address: &&Address| address.cidr.ip.is_ipv4();
    let (was, is) = (before.iter().filter(is_v4), there.iter().filter(is_v4));
    let same = was.clone().zip(is.clone()).take_while(|(was, is)| was == is).count();
    for surplus in is.skip(same) {
        steps.try_to(&Change::RemoveAddress(*surplus));
    }
    let v6 = before.iter().filter(|address| !is_v4(address) && !there.contains(address));
    for lost in was.skip(same).chain(v6) {
        steps.try_to(&Change::AddAddress(*lost));
    }
}

/// Finds a link by what the host says of it.
pub(super) fn find<'a>(links: &'a [Link], wanted: &InterfaceRequest) -> Option<&'a Link> {
    match wanted.mac {
        Some(mac) => links.iter().find(|link| link.mac == Some(mac)),
        None => links.iter().find(|link| link.name == wanted.name),
    }
}

impl InterfaceRequest {
    /// The error for a link that is not there, in the words that shims look for.
    pub(super) fn not_found(&self) -> NetworkError {
        match self.mac {
            Some(mac) => NetworkError::NoLinkWithMac { mac: mac.to_string() },
            None => NetworkError::NoLinkNamed { name: self.name.clone() },
        }
    }
}

impl TryFrom<&nakai_protocols::types::Interface> for InterfaceRequest {
    type Error = NetworkError;

    fn try_from(wire: &nakai_protocols::types::Interface) -> Result<Self, NetworkError> {
        if wire.name.is_empty() && wire.hwAddr.is_empty() && wire.devicePath.is_empty() {
            return Err(NetworkError::NamesNothing);
        }
        if !wire.name.is_empty() {
            net::check_name(&wire.name)?;
        }
        let object = || format!("interface {:?}", wire.name);
        let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let field =
            |field, given: String, reason| NetworkError::Field { object: object(), field, given, reason };
        let mtu =
            u32::try_from(wire.mtu).map_err(|_| field("mtu", wire.mtu.to_string(), "it is above 32 bits"))?;
        let pci = given(&wire.devicePath).map(|path| path.parse()).transpose();
        Ok(Self {
            name: wire.name.clone(),
            mac: given(&wire.hwAddr).map(|mac| Mac::parse(&mac)).transpose()?,
            pci: pci.map_err(crate::device::DeviceError::from)?,
            addresses: wire
                .IPAddresses
                .iter()
                .map(|address| {
                    parse_address(address).ok_or_else(|| {
                        let text = format!("{}/{}", address.address, address.mask);
                        field("IPAddresses", text, "it is not an address with the length of its prefix")
                    })
                })
                .collect::<Result<_, _>>()?,
            mtu: (mtu > 0).then_some(mtu),
            arp: wire.raw_flags & link::NO_ARP == 0,
        })
    }
}

fn parse_address(wire: &nakai_protocols::types::IPAddress) -> Option<Cidr> {
    let ip = wire.address.parse().ok()?;
    let prefix = net::decimal(&wire.mask).filter(|prefix| *prefix <= net::bits(&ip))?;
    Some(Cidr { ip, prefix })
}
