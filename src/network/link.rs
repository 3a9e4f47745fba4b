//! A link, which is what the kernel calls a network interface, and the addresses on it.

use std::net::IpAddr;

use nix::libc;

use super::net::{self, Cidr, Mac};
use super::netlink::{Attributes, Fields, Request};

/// `IFF_UP` of netdevice(7).
pub(super) const UP: u32 = 1;
/// `IFF_LOOPBACK`.
pub(super) const LOOPBACK: u32 = 8;
/// `IFF_NOARP`.
pub(super) const NO_ARP: u32 = 0x80;

/// `IFA_F_PERMANENT` of rtnetlink(7).
const PERMANENT: u8 = 0x80;
/// An address that is valid on its link only, and made by the kernel for most.
const SCOPE_LINK: u8 = 253;
/// An address that is valid on this host only.
const SCOPE_HOST: u8 = 254;

/// A link as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    /// None: it has none, or one of another length.
    pub(super) mac: Option<Mac>,
    pub(super) mtu: u32,
    pub(super) flags: u32,
    /// `veth`, `dummy`...; empty for hardware.
    pub(super) kind: String,
}

impl Link {
    pub(super) fn is_up(&self) -> bool {
        self.flags & UP != 0
    }

    /// Reads the body of an `RTM_NEWLINK`.
    pub(super) fn parse(body: &[u8]) -> Option<Self> {
        let mut fields = Fields(body);
        let (_family, _pad, _type) = (fields.u8()?, fields.u8()?, fields.u16()?);
        let index = u32::try_from(fields.i32()?).ok()?;
        let (flags, _change) = (fields.u32()?, fields.u32()?);
        let mut link = Self { index, name: String::new(), mac: None, mtu: 0, flags, kind: String::new() };
        for (kind, value) in fields.attributes() {
            match kind {
                libc::IFLA_IFNAME => link.name = text(value),
                libc::IFLA_ADDRESS => link.mac = value.try_into().ok().map(Mac),
                libc::IFLA_MTU => link.mtu = Fields(value).u32()?,
                libc::IFLA_LINKINFO => {
                    let info = Attributes(value).find(|(kind, _)| *kind == libc::IFLA_INFO_KIND);
                    link.kind = info.map(|(_, value)| text(value)).unwrap_or_default();
                }
                _ => {}
            }
        }
        Some(link)
    }

    /// Asks for all of them.
    pub(super) fn all() -> Request {
        Request::new(libc::RTM_GETLINK, 0, &structure(0, 0, 0))
    }

    /// Begins a change of a link, with the flags to set and those of them that count.
    pub(super) fn change(index: u32, flags: u32, mask: u32) -> Request {
        Request::new(libc::RTM_NEWLINK, 0, &structure(index, flags, mask))
    }
}

/// `struct ifinfomsg` of rtnetlink(7).
fn structure(index: u32, flags: u32, mask: u32) -> Vec<u8> {
    [0, index, flags, mask].map(u32::to_ne_bytes).concat()
}

fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value).trim_end_matches('\0').to_owned()
}

/// An address of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) link: u32,
    pub(super) cidr: Cidr,
    pub(super) scope: u8,
    /// It has no end. Those that a router's advertisement has brought do.
    pub(super) is_lasting: bool,
}

impl Address {
    /// One that the host wants.
    pub(super) fn new(link: u32, cidr: Cidr) -> Self {
        let scope = if cidr.ip.is_loopback() { SCOPE_HOST } else { 0 };
        Self { link, cidr, scope, is_lasting: true }
    }

    /// Whether it is there without anybody having asked for it: the loopback's, IPv6 link-local ones, and those that a
    /// router has advertised.
    pub(super) fn is_the_kernels(&self) -> bool {
        let is_by_itself = self.scope == SCOPE_LINK || !self.is_lasting;
        self.scope == SCOPE_HOST || (is_by_itself && self.cidr.ip.is_ipv6())
    }

    /// Reads the body of an `RTM_NEWADDR`.
    pub(super) fn parse(body: &[u8]) -> Option<Self> {
        let mut fields = Fields(body);
        let (_family, prefix, flags, scope) = (fields.u8()?, fields.u8()?, fields.u8()?, fields.u8()?);
        let link = fields.u32()?;
        let (mut local, mut address) = (None, None);
        for (kind, value) in fields.attributes() {
            match kind {
                libc::IFA_LOCAL => local = net::from_octets(value),
                libc::IFA_ADDRESS => address = net::from_octets(value),
                _ => {}
            }
        }
        // On a point-to-point link IFA_ADDRESS is the peer's and IFA_LOCAL ours; IPv6 mostly has IFA_ADDRESS only.
        let is_lasting = flags & PERMANENT != 0;
        Some(Self { link, cidr: Cidr { ip: local.or(address)?, prefix }, scope, is_lasting })
    }

    /// Asks for all of them.
    pub(super) fn all() -> Request {
        Request::new(libc::RTM_GETADDR, 0, &[0; 8])
    }

    /// A message that adds or removes it.
    pub(super) fn request(&self, kind: u16, flags: u16) -> Request {
        let Cidr { ip, prefix } = self.cidr;
        let mut structure = vec![net::family(ip.is_ipv6()), prefix, 0, self.scope];
        structure.extend(self.link.to_ne_bytes());
        let octets = net::octets(&ip);
        let request = Request::new(kind, flags, &structure)
            .attribute(libc::IFA_LOCAL, &octets)
            .attribute(libc::IFA_ADDRESS, &octets);
        match self.cidr.broadcast() {
            Some(broadcast) => request.attribute(libc::IFA_BROADCAST, &broadcast.octets()),
            // The host has seen to it that nobody else has it: the guest need not look for a second.
            None if ip.is_ipv6() => request.number(libc::IFA_FLAGS, libc::IFA_F_NODAD),
            None => request,
        }
    }
}

/// An entry of the neighbour table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Neighbor {
    pub(super) link: u32,
    pub(super) ip: IpAddr,
    pub(super) mac: Option<Mac>,
    pub(super) state: u16,
    pub(super) flags: u8,
}

impl Neighbor {
    /// A message that puts it into the table, whatever is there.
    pub(super) fn request(&self, flags: u16) -> Request {
        // `struct ndmsg` of rtnetlink(7).
        let mut structure = vec![net::family(self.ip.is_ipv6()), 0, 0, 0];
        structure.extend(self.link.to_ne_bytes());
        structure.extend(self.state.to_ne_bytes());
        structure.extend([self.flags, 0]);
        Request::new(libc::RTM_NEWNEIGH, flags, &structure)
            .attribute(libc::NDA_DST, &net::octets(&self.ip))
            .maybe(libc::NDA_LLADDR, self.mac.as_ref().map(|mac| mac.0.as_slice()))
    }
}
