//! UpdateRoutes: the routes of the main table become those of the host's list, as far as it names their links.
//!
//! A list may be a part: when a network card is passed through to a running sandbox, the Go shim sends the routes of that
//! card alone. So the routes of a link that no one of the list leads over stay, unless one of the list is in their place.
//!
//! What is there and wanted is not touched. What is not wanted goes, but for what the kernel made; then the missing ones
//! are added, those without a gateway first, because they may be how a gateway is reached. If one can't be, everything
//! is as it was before.

use std::net::IpAddr;

use nix::libc;
use slog::{Logger, info};

use super::NetworkError;
use super::kernel::{Change, Kernel};
use super::link::Link;
use super::net::{self, Cidr};
use super::route::{Entry, Route};
use super::steps::Steps;

/// A route as the host wants it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteRequest {
    to: Cidr,
    gateway: Option<IpAddr>,
    /// The name of its link.
    device: String,
    source: Option<IpAddr>,
    scope: u8,
    flags: u32,
    mtu: Option<u32>,
}

/// A route as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteInfo {
    /// Where to; the default route leads to a network with the prefix 0.
    pub to: Cidr,
    /// Over whom.
    pub gateway: Option<IpAddr>,
    /// Over which link; empty for one with several next hops.
    pub device: String,
    /// The address that packets get, if they have none yet.
    pub source: Option<IpAddr>,
    /// As in rtnetlink(7).
    pub scope: u8,
    /// As in rtnetlink(7), those that do not tell a state.
    pub flags: u32,
    /// The MTU of this route alone.
    pub mtu: Option<u32>,
}

/// All unicast routes of the main table.
pub(super) fn list(kernel: &mut dyn Kernel) -> Result<Vec<RouteInfo>, NetworkError> {
    let links = kernel.links()?;
    let name = |index: Option<u32>| {
        links.iter().find(|link| Some(link.index) == index).map(|link| link.name.clone())
    };
    let info = |Route { to, gateway, link, source, scope, flags, mtu, .. }| RouteInfo {
        to,
        gateway,
        device: name(link).unwrap_or_default(),
        source,
        scope,
        flags,
        mtu,
    };
    Ok(kernel.routes()?.into_iter().map(|entry| info(entry.route)).collect())
}

/// Makes the routes those of the list.
pub(super) fn update(
    kernel: &mut dyn Kernel,
    wanted: &[RouteRequest],
    log: &Logger,
) -> Result<(), NetworkError> {
    let links = kernel.links()?;
    let wanted = resolve(wanted, &links)?;
    let changes = plan(&kernel.routes()?, wanted);
    let number = changes.len();
    let mut steps = Steps::new(kernel, links, log);
    let done = changes.into_iter().try_for_each(|(change, back)| steps.apply(change, back));
    if done.is_err() {
        steps.undo();
    } else {
        info!(log, "routes updated"; "changes" => number);
    }
    done
}

/// The host's list with links instead of names, each route once, and routes to the same network in the order of the
/// list.
fn resolve(wanted: &[RouteRequest], links: &[Link]) -> Result<Vec<Route>, NetworkError> {
    let mut routes: Vec<Route> = Vec::with_capacity(wanted.len());
    for RouteRequest { to, gateway, device, source, scope, flags, mtu } in wanted {
        let link = links.iter().find(|link| link.name == *device);
        let link = link.ok_or_else(|| NetworkError::NoLinkNamed { name: device.clone() })?.index;
        let is_v6 = to.ip.is_ipv6();
        let before: Vec<&Route> = routes.iter().filter(|route| route.to == *to).collect();
        let route = Route {
            to: *to,
            gateway: *gateway,
            link: Some(link),
            source: *source,
            scope: if is_v6 { 0 } else { *scope },
            flags: *flags,
            mtu: *mtu,
            priority: Route::nth_priority(is_v6, before.len()),
        };
        let is_said_twice =
            before.iter().any(|other| Route { priority: other.priority, ..route.clone() } == **other);
        if !is_said_twice {
            routes.push(route);
        }
    }
    Ok(routes)
}

/// The changes that lead from the routes that are there to those that are wanted, each with its way back.
fn plan(there: &[Entry], wanted: Vec<Route>) -> Vec<(Change, Change)> {
    // A list without any names no link, and changes nothing.
    let is_named = |entry: &Entry| wanted.iter().any(|route| route.link == entry.route.link);
    // The kernel's routes, and routes of links that are not named, that a wanted route replaces. A replaced route
    // can't serve another wanted one.
    let mut replaced: Vec<&Entry> = Vec::new();
    let mut missing: Vec<Entry>;
    loop {
        let is_there = |route: &Route| {
            there
                .iter()
                .any(|entry| entry.route == *route || (serves(entry, route) && !replaced.contains(&entry)))
        };
        missing = wanted.iter().filter(|route| !is_there(route)).cloned().map(Entry::new).collect();
        let gives_way = |entry: &&Entry| {
            (entry.is_the_kernels() || !is_named(entry))
                && !replaced.contains(entry)
                && missing.iter().any(|missing| missing.route.key() == entry.route.key())
        };
        let more: Vec<&Entry> = there.iter().filter(gives_way).collect();
        if more.is_empty() {
            break;
        }
        replaced.extend(more);
    }
    missing.sort_by_key(|entry| entry.route.gateway.is_some());
    let is_surplus =
        |entry: &&Entry| is_named(entry) && !entry.is_the_kernels() && !wanted.contains(&entry.route);
    let mut surplus: Vec<&Entry> = there.iter().filter(is_surplus).collect();
    surplus.sort_by_key(|entry| entry.route.gateway.is_none());
    let removals = surplus
        .into_iter()
        .map(|entry| (Change::RemoveRoute(entry.clone()), Change::AddRoute(entry.clone())));
    let additions = missing.into_iter().map(|entry| {
        match replaced.iter().find(|kernels| kernels.route.key() == entry.route.key()) {
            Some(&kernels) => (Change::ReplaceRoute(entry), Change::ReplaceRoute(kernels.clone())),
            None => (Change::AddRoute(entry.clone()), Change::RemoveRoute(entry)),
        }
    });
    removals.chain(additions).collect()
}

/// Whether a route that the kernel made does what the host wants of one: it is what the host's kernel made, too.
fn serves(entry: &Entry, wanted: &Route) -> bool {
    let there = &entry.route;
    entry.is_the_kernels()
        && (there.to, there.link, there.gateway, there.mtu)
            == (wanted.to, wanted.link, wanted.gateway, wanted.mtu)
        && wanted.source.is_none_or(|source| there.source.is_none_or(|there| there == source))
}

impl TryFrom<&nakai_protocols::types::Route> for RouteRequest {
    type Error = NetworkError;

    fn try_from(wire: &nakai_protocols::types::Route) -> Result<Self, NetworkError> {
        let object = || {
            let to = if wire.dest.is_empty() { "default" } else { &wire.dest };
            format!("route to {to} on {}", wire.device)
        };
        let field = |field, given: &str, reason| NetworkError::Field {
            object: object(),
            field,
            given: given.to_owned(),
            reason,
        };
        if wire.device.is_empty() {
            return Err(field("device", "", "a route needs one"));
        }
        let gateway = optional_ip(&wire.gateway)
            .ok_or_else(|| field("gateway", &wire.gateway, "it is not an IP address"))?;
        let says_v6 = wire.family.enum_value() == Ok(nakai_protocols::types::IPFamily::v6);
        let to = match wire.dest.as_str() {
            "" | "default" => Cidr::everywhere(gateway.map_or(says_v6, |gateway| gateway.is_ipv6())),
            dest => Cidr::parse(dest)
                .ok_or_else(|| field("dest", dest, "it is not an address or ADDRESS/PREFIX"))?,
        };
        let is_v6 = to.ip.is_ipv6();
        if says_v6 && !is_v6 {
            return Err(field("family", "v6", "its addresses are IPv4's"));
        }
        if !to.is_network() {
            return Err(field("dest", &wire.dest, "it has bits behind its prefix"));
        }
        if gateway.is_some_and(|gateway| gateway.is_ipv6() != is_v6) {
            return Err(field("gateway", &wire.gateway, "it is of another family than the destination"));
        }
        let source = optional_ip(&wire.source)
            .filter(|source| source.is_none_or(|source| source.is_ipv6() == is_v6))
            .ok_or_else(|| {
                field("source", &wire.source, "it is not an address of the destination's family")
            })?;
        let scope = u8::try_from(wire.scope)
            .map_err(|_| field("scope", &wire.scope.to_string(), "it is above 255"))?;
        // What is reached without a gateway is on the link: no gateway could be reached over it else.
        let scope = if gateway.is_none() && scope == 0 { libc::RT_SCOPE_LINK } else { scope };
        let mtu = (wire.mtu > 0).then_some(wire.mtu);
        let flags = super::route::lasting(wire.flags);
        Ok(Self { to, gateway, device: wire.device.clone(), source, scope, flags, mtu })
    }
}

/// An address that may be left out, with or without its full length behind it.
fn optional_ip(text: &str) -> Option<Option<IpAddr>> {
    if text.is_empty() {
        return Some(None);
    }
    let cidr = Cidr::parse(text)?;
    (cidr.prefix == net::bits(&cidr.ip)).then_some(Some(cidr.ip))
}
