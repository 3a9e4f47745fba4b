//! What requests make of a network that is only pretended.

use std::net::IpAddr;

use nakai_protocols::types;
use nix::errno::Errno;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::interface::InterfaceRequest;
use super::kernel::{Change, Kernel};
use super::link::{Address, Link, UP};
use super::net::{Cidr, Mac};
use super::netlink::Refused;
use super::route::{Entry, Route};
use super::routes::RouteRequest;
use super::{NetworkError, interface, routes};

fn log() -> slog::Logger {
    slog::Logger::root(slog::Discard, slog::o!())
}

/// A network that knows as much as these tests do.
#[derive(Default)]
struct Fake {
    links: Vec<Link>,
    addresses: Vec<Address>,
    routes: Vec<Entry>,
    /// Refuses the change that is described so.
    refused: Option<&'static str>,
    /// Refuses one change, when so many have been done.
    refused_at: Option<usize>,
    done: Vec<String>,
}

impl Kernel for Fake {
    fn links(&mut self) -> Result<Vec<Link>, NetworkError> {
        Ok(self.links.clone())
    }

    fn addresses(&mut self) -> Result<Vec<Address>, NetworkError> {
        Ok(self.addresses.clone())
    }

    fn routes(&mut self) -> Result<Vec<Entry>, NetworkError> {
        Ok(self.routes.clone())
    }

    fn apply(&mut self, change: &Change) -> Result<(), Refused> {
        let what = change.describe(&self.links);
        if self.refused.is_some_and(|refused| what == refused) {
            return Err(Errno::ENETUNREACH.into());
        }
        if self.refused_at.take_if(|at| *at == self.done.len()).is_some() {
            return Err(Errno::ENETUNREACH.into());
        }
        self.done.push(what);
        match change {
            Change::Up(index) => self.link(*index)?.flags |= UP,
            Change::Down(index) => {
                self.link(*index)?.flags &= !UP;
                self.routes.retain(|entry| entry.route.link != Some(*index));
                self.addresses.retain(|address| address.link != *index || address.cidr.ip.is_ipv4());
            }
            Change::Rename { link, name } => {
                if self.links.iter().any(|other| other.name == *name) {
                    return Err(Errno::EEXIST.into());
                }
                let link = self.link(*link)?;
                if link.is_up() {
                    return Err(Errno::EBUSY.into());
                }
                link.name = name.clone();
            }
            Change::Mac { link, mac } => self.link(*link)?.mac = Some(*mac),
            Change::Mtu { link, mtu } => self.link(*link)?.mtu = *mtu,
            Change::AddAddress(address) if self.addresses.contains(address) => {
                return Err(Errno::EEXIST.into());
            }
            Change::AddAddress(address) => self.addresses.push(*address),
            Change::RemoveAddress(address) => self.remove_address(address)?,
            Change::AddRoute(entry) if self.routes.iter().any(|r| r.route.key() == entry.route.key()) => {
                return Err(Errno::EEXIST.into());
            }
            Change::AddRoute(entry) => self.routes.push(entry.clone()),
            Change::ReplaceRoute(entry) => {
                self.routes.retain(|other| other.route.key() != entry.route.key());
                self.routes.push(entry.clone());
            }
            Change::RemoveRoute(entry) => self.routes.retain(|other| other != entry),
            Change::Arp { .. } | Change::Neighbor(_) => {}
        }
        Ok(())
    }
}

impl Fake {
    fn link(&mut self, index: u32) -> Result<&mut Link, Refused> {
        self.links.iter_mut().find(|link| link.index == index).ok_or_else(|| Errno::ENODEV.into())
    }

    /// As Linux does without `promote_secondaries`: the others of the network go with its first address, and the routes
    /// of a family with its last one.
    fn remove_address(&mut self, gone: &Address) -> Result<(), Refused> {
        let is_near = |other: &Address| {
            let (a, b) = (other.cidr, gone.cidr);
            let network = |ip: IpAddr| match ip {
                IpAddr::V4(ip) => ip.to_bits() >> (32 - u32::from(a.prefix)),
                IpAddr::V6(_) => 0,
            };
            let same = a.ip.is_ipv4() && b.ip.is_ipv4() && a.prefix == b.prefix;
            same && other.link == gone.link && network(a.ip) == network(b.ip)
        };
        let first = self.addresses.iter().find(|other| is_near(other)).copied();
        if !self.addresses.contains(gone) {
            return Err(Errno::EADDRNOTAVAIL.into());
        }
        self.addresses.retain(|other| other != gone && !(first == Some(*gone) && is_near(other)));
        let is_v6 = gone.cidr.ip.is_ipv6();
        let is_left = |other: &Address| other.link == gone.link && other.cidr.ip.is_ipv6() == is_v6;
        if !self.addresses.iter().any(is_left) {
            self.routes.retain(|entry| entry.route.link != Some(gone.link) || entry.route.is_v6() != is_v6);
        }
        Ok(())
    }

    /// `eth0` with index 2 and `eth1` with index 3, both up.
    fn with_two_links() -> Self {
        let link = |index: u8, name: &str| Link {
            index: index.into(),
            name: name.to_owned(),
            mac: Some(Mac([2, 0, 0, 0, 0, index])),
            mtu: 1500,
            flags: UP,
            kind: String::new(),
        };
        Self { links: vec![link(2, "eth0"), link(3, "eth1")], ..Self::default() }
    }

    fn state(&self) -> (Vec<Link>, Vec<String>, Vec<Entry>) {
        let mut addresses: Vec<_> =
            self.addresses.iter().map(|address| format!("{} {}", address.link, address.cidr)).collect();
        addresses.sort_unstable();
        let mut routes = self.routes.clone();
        routes.sort_by_key(|entry| format!("{entry:?}"));
        (self.links.clone(), addresses, routes)
    }
}

fn wanted(name: &str, mac: &str, addresses: &[&str]) -> InterfaceRequest {
    let address = |text: &&str| {
        let (address, mask) = text.split_once('/').unwrap();
        types::IPAddress { address: address.into(), mask: mask.into(), ..Default::default() }
    };
    let wire = types::Interface {
        name: name.into(),
        hwAddr: mac.into(),
        IPAddresses: addresses.iter().map(address).collect(),
        mtu: 1400,
        ..Default::default()
    };
    InterfaceRequest::try_from(&wire).unwrap()
}

fn route(to: &str, gateway: &str, device: &str) -> types::Route {
    types::Route { dest: to.into(), gateway: gateway.into(), device: device.into(), ..Default::default() }
}

fn requests(routes: &[types::Route]) -> Vec<RouteRequest> {
    routes.iter().map(|route| RouteRequest::try_from(route).unwrap()).collect()
}

fn address(link: u32, text: &str) -> Address {
    Address::new(link, Cidr::parse(text).unwrap())
}

#[test]
fn names_are_swapped_and_what_was_lost_on_the_way_comes_back() {
    let mut fake = Fake::with_two_links();
    fake.addresses = vec![address(2, "10.0.0.2/24"), address(2, "fd00::2/64"), address(3, "10.9.0.9/24")];
    routes::update(&mut fake, &requests(&[route("", "10.0.0.1", "eth0")]), &log()).unwrap();
    let there = fake.routes.clone();
    let request = wanted("eth0", "02:00:00:00:00:03", &["10.1.0.3/24"]);
    let updated = interface::update(&mut fake, 3, &request, &|_| true, &log()).unwrap();
    assert_eq!((updated.name.as_str(), updated.mtu), ("eth0", 1400));
    let names: Vec<_> =
        fake.links.iter().map(|link| (link.index, link.name.as_str(), link.is_up())).collect();
    assert_eq!(names, [(2, "eth1", true), (3, "eth0", true)]);
    assert_eq!(fake.state().1, ["2 10.0.0.2/24", "2 fd00::2/64", "3 10.1.0.3/24"]);
    assert_eq!(fake.routes, there);
}

#[test]
fn a_name_on_the_way_is_one_that_nobody_has() {
    let mut fake = Fake::with_two_links();
    for (index, name) in [(4, "nk-0"), (5, "nk-2")] {
        let link = Link { index, name: name.to_owned(), mac: None, ..fake.links[0].clone() };
        fake.links.push(link);
    }
    let request = wanted("eth0", "02:00:00:00:00:03", &[]);
    interface::update(&mut fake, 3, &request, &|_| true, &log()).unwrap();
    let names: Vec<_> = fake.links.iter().map(|link| link.name.as_str()).collect();
    assert_eq!(names, ["eth1", "eth0", "nk-0", "nk-2"]);
}

#[test]
fn an_interface_that_is_right_already_is_not_touched() {
    let mut fake = Fake::with_two_links();
    let request = wanted("eth0", "02:00:00:00:00:02", &["10.0.0.2/24"]);
    interface::update(&mut fake, 2, &request, &|_| true, &log()).unwrap();
    fake.done.clear();
    interface::update(&mut fake, 2, &request, &|_| true, &log()).unwrap();
    assert_eq!(fake.done, [""; 0]);
}

#[test]
fn a_failed_update_leaves_the_interface_as_it_was() {
    let mut fake = Fake::with_two_links();
    fake.addresses = vec![address(2, "10.0.0.2/24"), address(2, "fd00::2/64")];
    routes::update(&mut fake, &requests(&[route("", "10.0.0.1", "eth0")]), &log()).unwrap();
    let before = fake.state();
    fake.refused = Some("add 10.1.0.3/24 to eth1");
    let request = wanted("eth1", "02:00:00:00:00:09", &["10.1.0.3/24"]);
    let error = interface::update(&mut fake, 2, &request, &|_| true, &log()).unwrap_err().to_string();
    assert!(error.starts_with("add 10.1.0.3/24 to eth1: "), "{error}");
    assert_eq!(fake.state(), before);
}

/// The kernel has removed the second one with the first by the time that its turn comes.
#[test]
fn all_addresses_of_a_network_can_go_at_once() {
    let mut fake = Fake::with_two_links();
    fake.addresses = vec![address(2, "10.0.0.2/24"), address(2, "10.0.0.3/24")];
    let request = wanted("eth0", "02:00:00:00:00:02", &["10.1.0.2/24", "10.1.0.2/24"]);
    let updated = interface::update(&mut fake, 2, &request, &|_| true, &log()).unwrap();
    assert_eq!(updated.addresses, [Cidr::parse("10.1.0.2/24").unwrap()]);
}

#[test]
fn an_address_that_changes_costs_no_route() {
    let mut fake = Fake::with_two_links();
    fake.addresses = vec![address(2, "10.0.0.2/24")];
    routes::update(&mut fake, &requests(&[route("", "10.0.0.1", "eth0")]), &log()).unwrap();
    let before = fake.routes.clone();
    let request = wanted("eth0", "02:00:00:00:00:02", &["10.0.0.3/24"]);
    interface::update(&mut fake, 2, &request, &|_| true, &log()).unwrap();
    assert_eq!(fake.state().1, ["2 10.0.0.3/24"]);
    assert_eq!(fake.routes, before);
}

#[test]
fn ipv6_addresses_are_left_out_where_it_is_off() {
    let mut fake = Fake::with_two_links();
    let request = wanted("eth0", "02:00:00:00:00:02", &["10.0.0.2/24", "fd00::2/64"]);
    interface::update(&mut fake, 2, &request, &|_| false, &log()).unwrap();
    assert_eq!(fake.state().1, ["2 10.0.0.2/24"]);
}

#[test]
fn what_the_kernel_made_stays() {
    let mut fake = Fake::with_two_links();
    let link_local = Address { scope: 253, ..address(2, "fe80::2/64") };
    let advertised = Address { is_lasting: false, ..address(2, "2001:db8::7/64") };
    fake.addresses = vec![address(2, "127.0.0.1/8"), link_local, advertised, address(2, "10.0.0.7/24")];
    interface::update(&mut fake, 2, &wanted("eth0", "", &[]), &|_| true, &log()).unwrap();
    assert_eq!(fake.state().1, ["2 127.0.0.1/8", "2 2001:db8::7/64", "2 fe80::2/64"]);

    let mut connected = Entry::new(on_link("10.0.0.0/24"));
    connected.protocol = 2;
    fake.routes = vec![connected, Entry::new(on_link("10.7.0.0/24"))];
    // The host's kernel has made the same one there.
    routes::update(&mut fake, &requests(&[route("10.0.0.0/24", "", "eth0")]), &log()).unwrap();
    let left: Vec<_> = fake.routes.iter().map(|entry| entry.route.to.to_string()).collect();
    assert_eq!(left, ["10.0.0.0/24"]);
    fake.done.clear();
    routes::update(&mut fake, &requests(&[route("10.0.0.0/24", "", "eth0")]), &log()).unwrap();
    assert_eq!(fake.done, [""; 0]);
    // Another one to the same network takes its place.
    routes::update(&mut fake, &requests(&[route("10.0.0.0/24", "10.9.0.1", "eth1")]), &log()).unwrap();
    assert_eq!(fake.done, ["add the route 10.0.0.0/24 via 10.9.0.1 on eth1"]);
}

fn on_link(to: &str) -> Route {
    let (gateway, link, source, mtu) = (None, Some(2), None, None);
    Route { to: Cidr::parse(to).unwrap(), gateway, link, source, scope: 0, flags: 0, mtu, priority: 0 }
}

#[test]
fn ways_to_a_gateway_come_first_and_routes_to_the_same_place_in_order() {
    let mut fake = Fake::with_two_links();
    let list = [
        route("", "10.0.0.1", "eth0"),
        route("", "10.1.0.1", "eth1"),
        route("10.0.0.1/32", "", "eth0"),
        route("", "10.0.0.1", "eth0"),
        route("", "fd00::1", "eth0"),
    ];
    routes::update(&mut fake, &requests(&list), &log()).unwrap();
    let expected = [
        "add the route 10.0.0.1/32 on eth0",
        "add the route default via 10.0.0.1 on eth0",
        "add the route default via 10.1.0.1 on eth1",
        "add the route default via fd00::1 on eth0",
    ];
    assert_eq!(fake.done, expected);
    let priorities: Vec<_> = fake.routes.iter().map(|entry| entry.route.priority).collect();
    assert_eq!(priorities, [0, 0, 1, 1024]);
    fake.done.clear();
    routes::update(&mut fake, &requests(&list), &log()).unwrap();
    assert_eq!(fake.done, [""; 0], "routes that are right were touched");
}

#[test]
fn routes_change_all_or_none() {
    let mut fake = Fake::with_two_links();
    routes::update(
        &mut fake,
        &requests(&[route("10.5.0.0/16", "", "eth0"), route("", "10.5.0.1", "eth0")]),
        &log(),
    )
    .unwrap();
    let before = fake.state();
    fake.refused = Some("add the route default via 10.9.0.1 on eth1");
    let list = [route("10.6.0.0/16", "", "eth0"), route("", "10.9.0.1", "eth1")];
    routes::update(&mut fake, &requests(&list), &log()).unwrap_err();
    assert_eq!(fake.state(), before);
    let error = routes::update(&mut fake, &requests(&[route("", "", "eth9")]), &log()).unwrap_err();
    assert_eq!(error.to_string(), "Link not found (Name: eth9)");
    assert_eq!(fake.state(), before);
}

/// As the Go shim sends it for a card that was passed through meanwhile.
#[test]
fn a_list_of_one_link_leaves_the_routes_of_others() {
    let mut fake = Fake::with_two_links();
    let first =
        [route("", "10.0.0.1", "eth0"), route("10.7.0.0/16", "", "eth0"), route("10.8.0.0/16", "", "eth1")];
    routes::update(&mut fake, &requests(&first), &log()).unwrap();
    routes::update(&mut fake, &requests(&[]), &log()).unwrap();
    assert_eq!(fake.routes.len(), 3, "a list of no link changes nothing");
    fake.done.clear();
    let list = [route("192.0.2.0/24", "", "eth1"), route("10.7.0.0/16", "192.0.2.1", "eth1")];
    routes::update(&mut fake, &requests(&list), &log()).unwrap();
    let done = [
        "remove the route 10.8.0.0/16 on eth1",
        "add the route 192.0.2.0/24 on eth1",
        "add the route 10.7.0.0/16 via 192.0.2.1 on eth1",
    ];
    assert_eq!(fake.done, done);
    let there =
        |to: &str| fake.routes.iter().filter(|entry| entry.route.to == Cidr::parse(to).unwrap()).count();
    assert_eq!(
        ["0.0.0.0/0", "192.0.2.0/24", "10.7.0.0/16"].map(there),
        [1, 1, 1],
        "one takes another's place"
    );
}

/// The kernel has made the route to a card's network, and the list names another card for it first.
#[test]
fn a_route_that_gives_way_serves_no_other() {
    let mut fake = Fake::with_two_links();
    let own = route("192.0.2.0/24", "", "eth0");
    routes::update(&mut fake, &requests(std::slice::from_ref(&own)), &log()).unwrap();
    fake.routes[0].protocol = nix::libc::RTPROT_KERNEL;
    let list = [route("192.0.2.0/24", "", "eth1"), own];
    routes::update(&mut fake, &requests(&list), &log()).unwrap();
    let links: Vec<_> = fake.routes.iter().map(|entry| (entry.route.link, entry.route.priority)).collect();
    assert_eq!(links, [(Some(3), 0), (Some(2), 1)]);
}

#[test]
fn requests_that_make_no_sense_are_refused_by_name() {
    let refused = |route: types::Route| RouteRequest::try_from(&route).unwrap_err().to_string();
    let with = |edit: fn(&mut types::Route)| {
        let mut route = route("10.0.0.0/8", "", "eth0");
        edit(&mut route);
        refused(route)
    };
    for (message, words) in [
        (with(|r| r.device.clear()), "device"),
        (with(|r| r.dest = "10.0.0.1/8".into()), "bits behind its prefix"),
        (with(|r| r.dest = "somewhere".into()), "\"somewhere\""),
        (with(|r| r.gateway = "fd00::1".into()), "another family"),
        (with(|r| r.source = "10.0.0.1/8".into()), "source"),
        (with(|r| r.source = "fd00::1".into()), "source"),
        (with(|r| r.family = types::IPFamily::v6.into()), "family"),
        (with(|r| r.scope = 256), "scope"),
    ] {
        assert!(message.contains(words), "{message:?} does not tell {words:?}");
    }
    let refused = |edit: fn(&mut types::Interface)| {
        let mut wire = types::Interface { name: "eth0".into(), ..Default::default() };
        edit(&mut wire);
        InterfaceRequest::try_from(&wire).unwrap_err().to_string()
    };
    for (message, words) in [
        (refused(|i| i.name.clear()), "neither a name"),
        (refused(|i| i.name = "eth/0".into()), "\"eth/0\""),
        (refused(|i| i.hwAddr = "02:00".into()), "Failed to parse MAC address"),
        (refused(|i| i.devicePath = "zz".into()), "\"zz\""),
        (refused(|i| i.mtu = 1 << 32), "mtu"),
        (refused(|i| i.IPAddresses.push(types::IPAddress::new())), "IPAddresses"),
    ] {
        assert!(message.contains(words), "{message:?} does not tell {words:?}");
    }
}

fn any_routes() -> impl Strategy<Value = Vec<types::Route>> {
    let to = select(vec!["", "10.0.0.0/8", "10.1.0.0/16", "192.0.2.0/24", "2001:db8::/32"]);
    let gateway = select(vec!["", "192.0.2.1", "192.0.2.2", "2001:db8::1"]);
    let one = (to, gateway, select(vec!["eth0", "eth1"]), select(vec![0, 1400]));
    let one = one.prop_filter_map("families differ", |(to, gateway, device, mtu)| {
        let route = types::Route { mtu, ..route(to, gateway, device) };
        RouteRequest::try_from(&route).is_ok().then_some(route)
    });
    vec(one, 0..6)
}

fn any_addresses() -> impl Strategy<Value = Vec<&'static str>> {
    vec(
        select(vec!["10.0.0.2/24", "10.0.0.3/24", "10.0.0.4/24", "10.1.0.2/24", "fd00::2/64", "fd00::3/64"]),
        0..5,
    )
}

proptest! {
    /// Whatever was there, an interface has the addresses of the request; or, if the kernel refuses any one change, those
    /// that it had, in their order, with all routes.
    #[test]
    fn an_interface_becomes_what_is_asked_for_or_stays(
        before in any_addresses(), after in any_addresses(), name in select(vec!["eth0", "eth1", "other"]),
        refused_at in prop::option::of(0_usize..12),
    ) {
        let mut network = Fake::with_two_links();
        let update = |network: &mut Fake, request| interface::update(network, 2, &request, &|_| true, &log());
        update(&mut network, wanted("eth0", "", &before)).unwrap();
        let routes = [route("", "10.0.0.1", "eth0"), route("10.9.0.0/16", "", "eth0"), route("", "fd00::1", "eth0")];
        routes::update(&mut network, &requests(&routes), &log()).unwrap();
        let v4 = |network: &Fake| {
            let v4 = network.addresses.iter().filter(|address| address.cidr.ip.is_ipv4());
            v4.copied().collect::<Vec<_>>()
        };
        let (start, order) = (network.state(), v4(&network));
        network.refused_at = refused_at.map(|at| at + network.done.len());
        match update(&mut network, wanted(name, "", &after)) {
            Ok(updated) => {
                let mut addresses: Vec<_> = updated.addresses.iter().map(Cidr::to_string).collect();
                let mut after = after;
                addresses.sort_unstable();
                after.sort_unstable();
                after.dedup();
                prop_assert_eq!(addresses, after);
                // The kernel may have refused what was to be put back.
                if refused_at.is_none() || network.refused_at.is_some() {
                    prop_assert_eq!(network.routes.len(), start.2.len());
                }
            }
            Err(_) => {
                prop_assert_eq!(network.state(), start);
                prop_assert_eq!(v4(&network), order);
            }
        }
    }

    /// Whatever was there, the routes are those of the list, the kernel's and those of links that are not in it, and
    /// asking again changes nothing; or, if the kernel refuses any one change, they are what they were.
    #[test]
    fn routes_become_the_list_or_stay(
        before in any_routes(), after in any_routes(), refused_at in prop::option::of(0_usize..8),
    ) {
        let kernels = RouteRequest::try_from(&route("192.0.2.0/24", "", "eth0")).unwrap();
        let mut network = Fake::with_two_links();
        routes::update(&mut network, &[kernels], &log()).unwrap();
        network.routes[0].protocol = nix::libc::RTPROT_KERNEL;
        routes::update(&mut network, &requests(&before), &log()).unwrap();
        let index = |name: &str| Some(if name == "eth0" { 2 } else { 3 });
        let named: Vec<_> = after.iter().map(|route| index(&route.device)).collect();
        let after = requests(&after);
        let start = network.state();
        network.done.clear();
        network.refused_at = refused_at;
        if routes::update(&mut network, &after, &log()).is_err() {
            prop_assert_eq!(network.state(), start);
            return Ok(());
        }
        let mut fresh = Fake::with_two_links();
        let stays = |entry: &Entry| entry.is_the_kernels() || !named.contains(&entry.route.link);
        fresh.routes = start.2.into_iter().filter(stays).collect();
        routes::update(&mut fresh, &after, &log()).unwrap();
        prop_assert_eq!(network.state(), fresh.state());
        network.refused_at = None;
        network.done.clear();
        routes::update(&mut network, &after, &log()).unwrap();
        prop_assert!(network.done.is_empty(), "{:?}", network.done);
    }
}
