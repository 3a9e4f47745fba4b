//! The kernel as this room uses it: what is there, and single changes. A trait, so that tests need no privileges.

use nix::libc;

use super::NetworkError;
use super::link::{self, Address, Link, Neighbor};
use super::net::Mac;
use super::netlink::{Refused, Socket};
use super::route::Entry;

/// `NLM_F_REPLACE`, `NLM_F_EXCL` and `NLM_F_CREATE` of netlink(7).
const REPLACE: u16 = 0x100;
const EXCLUSIVE: u16 = 0x200;
const CREATE: u16 = 0x400;

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    Up(u32),
    /// Takes routes and IPv6 addresses of the link with it.
    Down(u32),
    Rename {
        link: u32,
        name: String,
    },
    Mac {
        link: u32,
        mac: Mac,
    },
    Mtu {
        link: u32,
        mtu: u32,
    },
    Arp {
        link: u32,
        on: bool,
    },
    AddAddress(Address),
    RemoveAddress(Address),
    AddRoute(Entry),
    /// Puts it in the place of the one to the same network with the same priority.
    ReplaceRoute(Entry),
    RemoveRoute(Entry),
    Neighbor(Neighbor),
}

impl Change {
    /// In words, with the names that the links had.
    pub(super) fn describe(&self, links: &[Link]) -> String {
        let name = |index: u32| match links.iter().find(|link| link.index == index) {
            Some(link) => link.name.clone(),
            None => format!("link {index}"),
        };
        let route = |what, entry: &Entry| {
            let via = entry.route.link.map(|link| format!(" on {}", name(link))).unwrap_or_default();
            format!("{what} the route {}{via}", entry.route)
        };
        match self {
            Self::Up(link) => format!("bring up {}", name(*link)),
            Self::Down(link) => format!("take down {}", name(*link)),
            Self::Rename { link, name: to } => format!("rename {} to {to}", name(*link)),
            Self::Mac { link, mac } => format!("give {} the address {mac}", name(*link)),
            Self::Mtu { link, mtu } => format!("set the MTU of {} to {mtu}", name(*link)),
            Self::Arp { link, on } => {
                format!("turn ARP of {} {}", name(*link), if *on { "on" } else { "off" })
            }
            Self::AddAddress(address) => format!("add {} to {}", address.cidr, name(address.link)),
            Self::RemoveAddress(address) => format!("remove {} from {}", address.cidr, name(address.link)),
            Self::AddRoute(entry) | Self::ReplaceRoute(entry) => route("add", entry),
            Self::RemoveRoute(entry) => route("remove", entry),
            Self::Neighbor(neighbor) => {
                format!("add the neighbor {} to {}", neighbor.ip, name(neighbor.link))
            }
        }
    }
}

/// What can be asked of the kernel.
pub(super) trait Kernel {
    fn links(&mut self) -> Result<Vec<Link>, NetworkError>;
    fn addresses(&mut self) -> Result<Vec<Address>, NetworkError>;
    /// Those of the main table.
    fn routes(&mut self) -> Result<Vec<Entry>, NetworkError>;
    fn apply(&mut self, change: &Change) -> Result<(), Refused>;
}

fn list(what: &'static str) -> impl FnOnce(Refused) -> NetworkError {
    move |source| NetworkError::List { what, source }
}

impl Kernel for Socket {
    fn links(&mut self) -> Result<Vec<Link>, NetworkError> {
        self.dump(&Link::all(), Link::parse).map_err(list("links"))
    }

    fn addresses(&mut self) -> Result<Vec<Address>, NetworkError> {
        self.dump(&Address::all(), Address::parse).map_err(list("addresses"))
    }

    fn routes(&mut self) -> Result<Vec<Entry>, NetworkError> {
        let mut routes = self.dump(&Entry::all(false), Entry::parse).map_err(list("routes"))?;
        // A kernel without IPv6 answers for all the families that it has.
        let v6 = self.dump(&Entry::all(true), Entry::parse).map_err(list("routes"))?;
        routes.extend(v6.into_iter().filter(|entry| entry.route.is_v6()));
        Ok(routes)
    }

    fn apply(&mut self, change: &Change) -> Result<(), Refused> {
        let request = match change {
            Change::Up(link) => Link::change(*link, link::UP, link::UP),
            Change::Down(link) => Link::change(*link, 0, link::UP),
            Change::Rename { link, name } => {
                let text = [name.as_bytes(), b"\0"].concat();
                Link::change(*link, 0, 0).attribute(libc::IFLA_IFNAME, &text)
            }
            Change::Mac { link, mac } => Link::change(*link, 0, 0).attribute(libc::IFLA_ADDRESS, &mac.0),
            Change::Mtu { link, mtu } => Link::change(*link, 0, 0).number(libc::IFLA_MTU, *mtu),
            Change::Arp { link, on } => Link::change(*link, if *on { 0 } else { link::NO_ARP }, link::NO_ARP),
            Change::AddAddress(address) => address.request(libc::RTM_NEWADDR, CREATE | EXCLUSIVE),
            Change::RemoveAddress(address) => address.request(libc::RTM_DELADDR, 0),
            Change::AddRoute(entry) => entry.request(libc::RTM_NEWROUTE, CREATE | EXCLUSIVE),
            Change::ReplaceRoute(entry) => entry.request(libc::RTM_NEWROUTE, CREATE | REPLACE),
            Change::RemoveRoute(entry) => entry.request(libc::RTM_DELROUTE, 0),
            Change::Neighbor(neighbor) => neighbor.request(CREATE | REPLACE),
        };
        self.change(&request)
    }
}
