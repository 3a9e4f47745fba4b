//! A route of the main table.

use std::fmt;
use std::net::IpAddr;

use nix::libc;

use super::net::{self, Cidr};
use super::netlink::{Attributes, Fields, Request};

/// `RTNH_F_PERVASIVE` and `RTNH_F_ONLINK`: the flags that somebody sets. The others tell a state.
const LASTING_FLAGS: u32 = 2 | 4;
/// `RTAX_MTU` of linux/rtnetlink.h.
const METRIC_MTU: u16 = 2;
/// `RTPROT_RA`: from a router's advertisement.
const ADVERTISED: u8 = 9;
/// What IPv6 takes for a priority of 0 (`IP6_RT_PRIO_USER`).
const DEFAULT_PRIORITY_V6: u32 = 1024;
/// Where the flags are in `struct rtmsg`, and its length.
const FLAGS_AT: usize = 8;
const STRUCTURE: usize = 12;

/// The flags that somebody has set.
pub(super) fn lasting(flags: u32) -> u32 {
    flags & LASTING_FLAGS
}

/// What makes a route: where to, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) to: Cidr,
    pub(super) gateway: Option<IpAddr>,
    /// None for one with several next hops.
    pub(super) link: Option<u32>,
    pub(super) source: Option<IpAddr>,
    /// 0 with IPv6, which has no scopes of routes.
    pub(super) scope: u8,
    pub(super) flags: u32,
    pub(super) mtu: Option<u32>,
    /// Among routes to the same network the lowest counts.
    pub(super) priority: u32,
}

impl Route {
    pub(super) fn is_v6(&self) -> bool {
        self.to.ip.is_ipv6()
    }

    /// The priority of the n-th route to the same network.
    pub(super) fn nth_priority(is_v6: bool, n: usize) -> u32 {
        let base = if is_v6 { DEFAULT_PRIORITY_V6 } else { 0 };
        base.saturating_add(u32::try_from(n).unwrap_or(u32::MAX))
    }

    /// What the kernel tells one route from another by.
    pub(super) fn key(&self) -> (Cidr, u32) {
        (self.to, self.priority)
    }

    /// The body of a message about it.
    fn structure(&self) -> Request {
        let Cidr { ip, prefix } = self.to;
        let mut structure = vec![net::family(ip.is_ipv6()), prefix, 0, 0];
        structure.extend([libc::RT_TABLE_MAIN, libc::RTPROT_BOOT, self.scope, libc::RTN_UNICAST]);
        structure.extend(self.flags.to_ne_bytes());
        Request::new(0, 0, &structure)
    }

    fn request(&self) -> Request {
        let Cidr { ip, prefix } = self.to;
        let optional = |ip: Option<IpAddr>| ip.map(|ip| net::octets(&ip));
        let request = self
            .structure()
            .maybe(libc::RTA_DST, (prefix > 0).then(|| net::octets(&ip)).as_deref())
            .maybe(libc::RTA_GATEWAY, optional(self.gateway).as_deref())
            .maybe(libc::RTA_OIF, self.link.map(u32::to_ne_bytes).as_ref().map(<[u8; 4]>::as_slice))
            .maybe(libc::RTA_PREFSRC, optional(self.source).as_deref())
            .number(libc::RTA_PRIORITY, self.priority);
        match self.mtu {
            Some(mtu) => request.nested(libc::RTA_METRICS, METRIC_MTU, &mtu.to_ne_bytes()),
            None => request,
        }
    }
}

/// `default via 10.0.0.1`.
impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.to.prefix == 0 {
            f.write_str("default")?
        } else {
            write!(f, "{}", self.to)?
        }
        if let Some(gateway) = self.gateway {
            write!(f, " via {gateway}")?;
        }
        Ok(())
    }
}

/// A route with the message that makes it: the kernel's own words for one that is there, so that it can come back as
/// it was, with whatever this agent does not know of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) route: Route,
    /// Who made it: `RTPROT_*`.
    pub(super) protocol: u8,
    /// A body to send.
    body: Vec<u8>,
}

impl Entry {
    /// A route that is to be.
    pub(super) fn new(route: Route) -> Self {
        let body = route.request().into_body();
        Self { route, protocol: libc::RTPROT_BOOT, body }
    }

    /// Whether nobody has asked for it but the kernel itself.
    pub(super) fn is_the_kernels(&self) -> bool {
        matches!(self.protocol, libc::RTPROT_KERNEL | libc::RTPROT_REDIRECT | ADVERTISED)
    }

    /// Reads the body of an `RTM_NEWROUTE`. None: it is no unicast route of the main table.
    pub(super) fn parse(body: &[u8]) -> Option<Self> {
        let mut fields = Fields(body);
        let (family, prefix, _from, _tos) = (fields.u8()?, fields.u8()?, fields.u8()?, fields.u8()?);
        let (table, protocol, scope, kind) = (fields.u8()?, fields.u8()?, fields.u8()?, fields.u8()?);
        let flags = lasting(fields.u32()?);
        let is_v6 = family == net::family(true);
        if table != libc::RT_TABLE_MAIN
            || kind != libc::RTN_UNICAST
            || !(is_v6 || family == net::family(false))
        {
            return None;
        }
        let to = Cidr { prefix, ..Cidr::everywhere(is_v6) };
        let scope = if is_v6 { 0 } else { scope };
        let (gateway, link, source, mtu, priority) = (None, None, None, None, 0);
        let mut route = Route { to, gateway, link, source, scope, flags, mtu, priority };
        for (kind, value) in fields.attributes() {
            match kind {
                libc::RTA_DST => route.to.ip = net::from_octets(value)?,
                libc::RTA_GATEWAY => route.gateway = net::from_octets(value),
                libc::RTA_OIF => route.link = Fields(value).u32(),
                libc::RTA_PREFSRC => route.source = net::from_octets(value),
                libc::RTA_PRIORITY => route.priority = Fields(value).u32()?,
                libc::RTA_METRICS => {
                    let mtu = Attributes(value).find(|(kind, _)| *kind == METRIC_MTU);
                    route.mtu = mtu.and_then(|(_, value)| Fields(value).u32());
                }
                _ => {}
            }
        }
        // The kernel would not take back what only tells a state.
        let mut lasting = body.to_vec();
        lasting.get_mut(FLAGS_AT..STRUCTURE)?.copy_from_slice(&flags.to_ne_bytes());
        Some(Self { route, protocol, body: lasting })
    }

    /// Asks for all routes of a family.
    pub(super) fn all(is_v6: bool) -> Request {
        let mut structure = [0; STRUCTURE];
        if let Some(family) = structure.first_mut() {
            *family = net::family(is_v6);
        }
        Request::new(libc::RTM_GETROUTE, 0, &structure)
    }

    /// A message that adds, replaces or removes it.
    pub(super) fn request(&self, kind: u16, flags: u16) -> Request {
        Request::new(kind, flags, &self.body)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn route() -> Route {
        Route {
            to: Cidr::parse("10.1.0.0/16").unwrap(),
            gateway: Some([10, 0, 0, 1].into()),
            link: Some(3),
            source: Some([10, 0, 0, 2].into()),
            scope: 0,
            flags: 4,
            mtu: Some(1400),
            priority: 7,
        }
    }

    #[test]
    fn what_is_asked_for_is_what_is_read() {
        let v6 = Route {
            to: Cidr::parse("fd01::/64").unwrap(),
            gateway: Some("fe80::1".parse().unwrap()),
            source: None,
            mtu: None,
            ..route()
        };
        let default = Route { to: Cidr::everywhere(false), ..route() };
        let on_link = Route { gateway: None, scope: 253, ..route() };
        for route in [route(), v6, default, on_link] {
            let entry = Entry::new(route.clone());
            let read = Entry::parse(&entry.body).unwrap();
            assert_eq!(read, entry);
            assert!(!read.is_the_kernels());
        }
    }

    #[test]
    fn states_are_no_part_of_a_route() {
        let mut body = Entry::new(Route { flags: 0, ..route() }).body;
        let clean = body.clone();
        // RTNH_F_LINKDOWN
        body[FLAGS_AT] |= 16;
        let read = Entry::parse(&body).unwrap();
        assert_eq!((read.route.flags, read.body), (0, clean));
    }

    #[test]
    fn other_tables_and_types_are_left_alone() {
        let body = Entry::new(route()).body;
        for (at, value) in [(0, 7), (4, 255), (7, 2)] {
            let mut body = body.clone();
            body[at] = value;
            assert_eq!(Entry::parse(&body), None);
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..120)) {
            let _ = Entry::parse(&bytes);
            let mut mangled = Entry::new(route()).body;
            for (at, byte) in bytes.iter().enumerate() {
                let len = mangled.len();
                mangled[(at * 7 + usize::from(*byte)) % len] = *byte;
            }
            let _ = Entry::parse(&mangled);
            let _ = crate::network::link::Link::parse(&bytes);
            let _ = crate::network::link::Address::parse(&bytes);
        }
    }
}
