//! Interfaces, routes, neighbours and the packet filter: what the host asks for is what the guest's kernel has.
//!
//! On this host the agent's network namespace gets a pair of links, which `ip` of iproute2 makes and looks at.

use std::path::{Path, PathBuf};
use std::time::Duration;

use nakai_ctl::sandbox;
use nakai_ctl::vm::VmConfig;
use nakai_protocols::agent::KernelModule;
use nakai_protocols::types::{ARPNeighbor, IPAddress, IPFamily, Interface, Route};
use nakai_rootfs::tree::Tree;
use tokio::time::Instant;
use ttrpc::Code;

use super::disks::program;
use crate::harness::context::SHELL_LIMIT;
use crate::harness::expect::refused;
use crate::harness::{Container, Ctx, Fallible, Outcome, Scenario, own_vm, scenario};

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        scenario!(an_interface_becomes_what_the_host_asks_for).host_only(),
        scenario!(addresses_change_and_routes_stay).host_only(),
        scenario!(interfaces_swap_their_names).host_only(),
        scenario!(routes_become_those_of_the_list).host_only(),
        scenario!(neighbors_are_in_the_table).host_only(),
        scenario!(a_link_that_is_not_there_is_not_found),
        scenario!(the_packet_filter_becomes_what_the_host_asks_for).host_only(),
        scenario!(the_packet_filter_of_a_guest).machine(with_iptables),
        scenario!(iptables_is_missed_by_name).vm_only(),
    ]
}

/// Runs a command in the agent's network namespace.
async fn ip(ctx: &Ctx, command: &str) -> Fallible<String> {
    ctx.guest_sh(&format!("nsenter --target $SERVER --net ip {command}")).await
}

const MACS: [&str; 2] = ["02:00:ca:fe:00:01", "02:00:ca:fe:00:02"];

/// Two links with the addresses of [`MACS`] and the names `first` and `second`: the ends of one cable.
async fn make_links(ctx: &Ctx) -> Outcome {
    let [first, second] = MACS;
    let command = format!("link add first address {first} type veth peer name second address {second}");
    ip(ctx, &command).await.map(drop)
}

pub(super) fn address(text: &str) -> IPAddress {
    let (address, mask) = text.split_once('/').unwrap();
    let family = if address.contains(':') { IPFamily::v6 } else { IPFamily::v4 };
    IPAddress { family: family.into(), address: address.into(), mask: mask.into(), ..Default::default() }
}

/// What a shim sends for an interface.
pub(super) fn interface(name: &str, mac: &str, addresses: &[&str]) -> Interface {
    Interface {
        device: name.into(),
        name: name.into(),
        hwAddr: mac.into(),
        IPAddresses: addresses.iter().map(|text| address(text)).collect(),
        mtu: 1400,
        ..Default::default()
    }
}

pub(super) fn route(to: &str, gateway: &str, device: &str) -> Route {
    Route { dest: to.into(), gateway: gateway.into(), device: device.into(), ..Default::default() }
}

/// The addresses of an interface with their families, as sent back; without IPv6's link-local one, which comes by
/// itself when it likes.
pub(super) fn addresses_of(interface: &Interface) -> Vec<String> {
    let all = interface.IPAddresses.iter().filter(|address| !address.address.starts_with("fe80:"));
    let mut all: Vec<_> =
        all.map(|a| format!("{:?} {}/{}", a.family.enum_value_or_default(), a.address, a.mask)).collect();
    all.sort_unstable();
    all
}

async fn an_interface_becomes_what_the_host_asks_for(ctx: Ctx) -> Outcome {
    make_links(&ctx).await?;
    let client = ctx.client();
    let updated = client.update_interface(interface("eth0", MACS[1], &["10.9.0.2/24", "fd09::2/64"])).await?;
    assert_eq!((&*updated.name, &*updated.hwAddr, updated.mtu), ("eth0", MACS[1], 1400));
    assert_eq!(addresses_of(&updated), ["v4 10.9.0.2/24", "v6 fd09::2/64"]);
    let seen = ip(&ctx, "-o addr show dev eth0").await?;
    assert!(seen.contains("inet 10.9.0.2/24 brd 10.9.0.255 scope global eth0"), "{seen}");
    assert!(!seen.contains("tentative"), "it has to wait for its address: {seen}");
    assert!(ip(&ctx, "-o link show dev eth0").await?.contains(",UP,"), "not up");

    // The same again: nothing but the addresses changes, and those that were not named go.
    let again = Interface { raw_flags: 0x80, ..interface("eth0", MACS[1], &["10.9.0.3/24"]) };
    let updated = client.update_interface(again).await?;
    assert_eq!(addresses_of(&updated), ["v4 10.9.0.3/24"]);
    assert!(ip(&ctx, "-o link show dev eth0").await?.contains("NOARP"));
    let listed = client.list_interfaces().await?;
    let named = |name: &str| listed.iter().find(|interface| interface.name == name);
    assert_eq!((named("first").unwrap().hwAddr.as_str(), listed.len()), (MACS[0], 3));
    assert_eq!(addresses_of(named("eth0").unwrap()), addresses_of(&updated));

    // A part that can't be: nothing is as it was asked for.
    let before = ip(&ctx, "addr").await?;
    let absurd = Interface { mtu: 4_000_000_000, ..interface("other", MACS[1], &["10.9.0.4/24"]) };
    refused(client.update_interface(absurd).await, Code::INVALID_ARGUMENT, &["set the MTU of other"]);
    stays(&ctx, "addr", &before).await
}

/// Nothing has changed, or is as before when the kernel has noticed again how the cable is, which it does when it likes.
async fn stays(ctx: &Ctx, command: &str, before: &str) -> Outcome {
    let deadline = Instant::now() + SHELL_LIMIT;
    loop {
        let now = ip(ctx, command).await?;
        if without_lifetimes(&now) == without_lifetimes(before) {
            return Ok(());
        }
        assert!(Instant::now() < deadline, "ip {command} has changed from {before} to {now}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// `ip addr` without the link-local addresses, which the kernel makes anew when a link comes up.
fn without_lifetimes(text: &str) -> Vec<&str> {
    let lines = text.lines().filter(|line| !line.contains("fe80:") && !line.contains("valid_lft"));
    lines.collect()
}

/// Linux removes more than it is told to: with a network's first address the others, with the last one all routes.
async fn addresses_change_and_routes_stay(ctx: Ctx) -> Outcome {
    make_links(&ctx).await?;
    ip(&ctx, "link set second up").await?;
    let client = ctx.client();
    let update = |addresses: &[&str]| client.update_interface(interface("eth0", MACS[0], addresses));
    update(&["10.9.0.2/24", "10.9.0.3/24", "fd09::2/64"]).await?;
    let list = vec![
        route("", "10.9.0.1", "eth0"),
        Route { flags: 4, ..route("10.7.0.0/16", "10.6.0.1", "eth0") },
        Route { family: IPFamily::v6.into(), ..route("", "fd09::1", "eth0") },
    ];
    let routes = shown(&client.update_routes(list).await?);
    assert_eq!(routes.len(), 3);

    // The kernel refuses the last one, a multicast address, when the others have changed already.
    let before = state_of_eth0(&ctx).await?;
    let refusal = update(&["10.9.0.3/24", "10.8.0.2/24", "ff02::1:2/64"]).await;
    refused(refusal, Code::INTERNAL, &["add ff02::1:2/64 to eth0"]);
    assert_eq!(state_of_eth0(&ctx).await?, before);

    // What the new address still allows stays.
    let updated = update(&["10.9.0.4/24", "fd09::2/64"]).await?;
    assert_eq!(addresses_of(&updated), ["v4 10.9.0.4/24", "v6 fd09::2/64"]);
    assert_eq!(shown(&client.list_routes().await?), routes);

    // Two of one network give way to another's; the one that is said twice is meant once.
    update(&["10.9.0.2/24", "10.9.0.3/24"]).await?;
    let updated = update(&["10.8.0.2/24", "10.8.0.2/24"]).await?;
    assert_eq!(addresses_of(&updated), ["v4 10.8.0.2/24"]);
    let seen = ip(&ctx, "route").await?;
    assert!(!seen.contains("default"), "a gateway that can't be reached any more: {seen}");
    assert!(seen.contains("10.7.0.0/16 via 10.6.0.1 dev eth0 onlink"), "{seen}");
    Ok(())
}

/// Its addresses in their order, and all routes; without those of IPv6's own making, and without what tells how the
/// cable is, which the kernel notices when it likes.
async fn state_of_eth0(ctx: &Ctx) -> Fallible<Vec<String>> {
    let mut lines = Vec::new();
    for command in ["-o -4 addr show dev eth0", "-o -6 addr show dev eth0", "route", "-6 route"] {
        let seen = ip(ctx, command).await?.replace(" linkdown", "");
        lines.extend(seen.lines().filter(|line| !line.contains("fe80:")).map(str::to_owned));
    }
    Ok(lines)
}

async fn interfaces_swap_their_names(ctx: Ctx) -> Outcome {
    make_links(&ctx).await?;
    let client = ctx.client();
    client.update_interface(interface("eth0", MACS[0], &["10.9.0.2/24", "fd09::2/64"])).await?;
    client.update_routes(vec![route("", "10.9.0.1", "eth0"), route("", "fd09::1", "eth0")]).await?;
    client.update_interface(interface("eth1", MACS[1], &["10.8.0.2/24"])).await?;
    // The host had them the other way round.
    let updated = client.update_interface(interface("eth0", MACS[1], &["10.8.0.2/24"])).await?;
    assert_eq!((&*updated.name, &*updated.hwAddr), ("eth0", MACS[1]));
    let listed = client.list_interfaces().await?;
    let other = listed.iter().find(|interface| interface.hwAddr == MACS[0]).unwrap();
    assert_eq!(
        (&*other.name, addresses_of(other)),
        ("eth1", vec!["v4 10.9.0.2/24".into(), "v6 fd09::2/64".into()])
    );
    assert!(ip(&ctx, "-o link show dev eth1").await?.contains(",UP,"), "the other one is not up again");
    let routes = ip(&ctx, "route; nsenter --target $SERVER --net ip -6 route").await?;
    for expected in ["default via 10.9.0.1 dev eth1", "default via fd09::1 dev eth1"] {
        assert!(routes.contains(expected), "{expected:?} is lost: {routes}");
    }
    Ok(())
}

/// Routes as `destination gateway device source mtu`, without those of the kernel.
fn shown(routes: &[Route]) -> Vec<String> {
    let mut lines: Vec<_> = routes
        .iter()
        .filter(|route| !["10.9.0.0/24", "fd09::/64", "fe80::/64"].contains(&route.dest.as_str()))
        .map(|r| {
            let to = if r.dest.is_empty() { "default" } else { &r.dest };
            format!("{to} {} {} {} {}", r.gateway, r.device, r.source, r.mtu)
        })
        .collect();
    lines.sort_unstable();
    lines
}

async fn routes_become_those_of_the_list(ctx: Ctx) -> Outcome {
    make_links(&ctx).await?;
    let client = ctx.client();
    client.update_interface(interface("eth0", MACS[0], &["10.9.0.2/24", "fd09::2/64"])).await?;
    // The way to the gateway comes behind the route that needs it.
    let list = vec![
        Route { mtu: 1300, ..route("", "169.254.1.1", "eth0") },
        Route { source: "10.9.0.2".into(), ..route("169.254.1.1/32", "", "eth0") },
        Route { flags: 4, ..route("10.7.0.0/16", "10.6.0.1", "eth0") },
        Route { family: IPFamily::v6.into(), ..route("", "fd09::1", "eth0") },
        route("fd08::/32", "fd09::8", "eth0"),
    ];
    let expected = [
        "10.7.0.0/16 10.6.0.1 eth0  0",
        "169.254.1.1/32  eth0 10.9.0.2 0",
        "default 169.254.1.1 eth0  1300",
        "default fd09::1 eth0  0",
        "fd08::/32 fd09::8 eth0  0",
    ];
    assert_eq!(shown(&client.update_routes(list.clone()).await?), expected);
    assert_eq!(shown(&client.list_routes().await?), expected);
    let seen = ip(&ctx, "route; nsenter --target $SERVER --net ip -6 route").await?;
    for words in [
        "default via 169.254.1.1 dev eth0 mtu 1300",
        "169.254.1.1 dev eth0 src 10.9.0.2",
        "10.7.0.0/16 via 10.6.0.1 dev eth0 onlink",
        "10.9.0.0/24 dev eth0 proto kernel scope link src 10.9.0.2",
        "default via fd09::1 dev eth0 metric 1024",
    ] {
        let has_all = |line: &str| words.split(' ').all(|word| line.split(' ').any(|other| other == word));
        assert!(seen.lines().any(has_all), "{words:?} is not in: {seen}");
    }
    let families: Vec<_> = client.list_routes().await?.iter().map(|route| route.family.value()).collect();
    assert!(families.contains(&0) && families.contains(&1), "{families:?}");

    // All or none: the last gateway is nowhere.
    let before = ip(&ctx, "route").await?;
    let broken = vec![route("10.5.0.0/16", "10.9.0.1", "eth0"), route("10.4.0.0/16", "192.0.2.1", "eth0")];
    let words = ["add the route 10.4.0.0/16 via 192.0.2.1 on eth0", "unreachable"];
    refused(client.update_routes(broken).await, Code::INTERNAL, &words);
    stays(&ctx, "route", &before).await?;
    refused(
        client.update_routes(vec![route("", "10.9.0.1", "eth7")]).await,
        Code::NOT_FOUND,
        &["Link not found"],
    );
    stays(&ctx, "route", &before).await?;

    // What is not in the list goes, what the kernel made stays.
    assert_eq!(
        shown(&client.update_routes(vec![route("", "10.9.0.1", "eth0")]).await?),
        ["default 10.9.0.1 eth0  0"]
    );
    assert!(ip(&ctx, "route").await?.contains("10.9.0.0/24 dev eth0 proto kernel"));

    // A list may be of one card alone: the routes of the others stay.
    client.update_interface(interface("eth1", MACS[1], &["10.8.0.2/24"])).await?;
    let routes = shown(&client.update_routes(vec![route("10.3.0.0/16", "10.8.0.1", "eth1")]).await?);
    let expected =
        ["10.3.0.0/16 10.8.0.1 eth1  0", "10.8.0.0/24  eth1 10.8.0.2 0", "default 10.9.0.1 eth0  0"];
    assert_eq!(routes, expected);
    assert_eq!(shown(&client.update_routes(Vec::new()).await?), expected);
    Ok(())
}

async fn neighbors_are_in_the_table(ctx: Ctx) -> Outcome {
    make_links(&ctx).await?;
    // Without a carrier the kernel soon forgets neighbours that are not permanent (ip-sysctl, ndisc_evict_nocarrier).
    ip(&ctx, "link set second up").await?;
    let client = ctx.client();
    client.update_interface(interface("eth0", MACS[0], &["10.9.0.2/24", "fd09::2/64"])).await?;
    let neighbor = |ip: &str, state| ARPNeighbor {
        toIPAddress: Some(address(ip)).into(),
        device: "eth0".into(),
        lladdr: "02:00:ca:fe:00:99".into(),
        state,
        ..Default::default()
    };
    client.add_arp_neighbors(vec![neighbor("10.9.0.1/32", 0), neighbor("fd09::1/128", 0x40)]).await?;
    let seen = ip(&ctx, "neigh show nud all").await?;
    assert!(seen.contains("10.9.0.1 dev eth0 lladdr 02:00:ca:fe:00:99 PERMANENT"), "{seen}");
    assert!(seen.contains("fd09::1 dev eth0 lladdr 02:00:ca:fe:00:99 NOARP"), "{seen}");
    let elsewhere = ARPNeighbor { device: "eth7".into(), ..neighbor("10.9.0.1/32", 0) };
    refused(
        client.add_arp_neighbors(vec![elsewhere]).await,
        Code::NOT_FOUND,
        &["Link not found (Name: eth7)"],
    );
    refused(client.add_arp_neighbors(vec![neighbor("/", 0)]).await, Code::INVALID_ARGUMENT, &["toIPAddress"]);
    Ok(())
}

/// A shim asks again as long as it reads these words.
async fn a_link_that_is_not_there_is_not_found(ctx: Ctx) -> Outcome {
    let missing = interface("eth7", "02:00:ca:fe:0f:ff", &[]);
    let words = ["Link not found (Address: 02:00:ca:fe:0f:ff)"];
    refused(ctx.client().update_interface(missing).await, Code::NOT_FOUND, &words);
    let nameless = Interface::new();
    refused(ctx.client().update_interface(nameless).await, Code::INVALID_ARGUMENT, &["neither a name"]);
    let listed = ctx.client().list_interfaces().await?;
    assert!(listed.iter().any(|interface| interface.name == "lo"));
    Ok(())
}

/// Who looks at the rules beside the agent: a shell on this host, or a container that has the guest's programs.
struct Onlooker<'a>(&'a Ctx, Option<&'a Container>);

impl Onlooker<'_> {
    /// What iptables-save says in the agent's network namespace, without its comments, which have the time in them.
    async fn rules(&self, program: &str) -> Fallible<String> {
        let cut = "sed '/^#/d; s/\\[.*//'";
        let Self(ctx, inside) = self;
        match inside {
            Some(container) => container.sh(&format!("chroot /guest /usr/sbin/{program} | {cut}")).await,
            None => {
                let path = "PATH=$PATH:/usr/sbin:/sbin";
                ctx.guest_sh(&format!("{path} nsenter --target $SERVER --net {program} | {cut}")).await
            }
        }
    }
}

async fn got(ctx: &Ctx, is_ipv6: bool) -> Fallible<String> {
    Ok(String::from_utf8(ctx.client().get_ip_tables(is_ipv6).await?)?)
}

async fn the_packet_filter_becomes_what_the_host_asks_for(ctx: Ctx) -> Outcome {
    filter_follows(&ctx, &Onlooker(&ctx, None)).await
}

async fn filter_follows(ctx: &Ctx, onlooker: &Onlooker<'_>) -> Outcome {
    let client = ctx.client();
    for (is_ipv6, save, inside, other) in [
        (false, "iptables-save", "192.0.2.0/24", "198.51.100.0/24"),
        (true, "ip6tables-save", "fd09::/64", "fd08::/64"),
    ] {
        let set = |text: String| client.set_ip_tables(is_ipv6, text.into_bytes());
        let table = |name: &str, chain: &str, rule: &str| format!("*{name}\n-A {chain} {rule}\nCOMMIT\n");

        let answer = set(table("filter", "INPUT", &format!("-s {inside} -j DROP"))).await?;
        assert_eq!(String::from_utf8(answer)?, "", "iptables-restore has nothing to say");
        let rule = format!("-A INPUT -s {inside} -j DROP");
        for seen in [got(ctx, is_ipv6).await?, onlooker.rules(save).await?] {
            assert!(seen.lines().any(|line| line == rule), "{rule:?} is not in: {seen}");
        }

        // Rules that can't be read change nothing, not even a table before them.
        let before = onlooker.rules(save).await?;
        let broken = "*filter\n-A INPUT -j ACCEPT\n-A INPUT --nonsense\nCOMMIT\n".to_owned();
        let tool = save.replace("save", "restore");
        let words = [&*tool, "exit code", "nonsense", "line: 3"];
        refused(set(broken).await, Code::INTERNAL, &words);
        let late = table("filter", "INPUT", "-j ACCEPT") + &table("mangle", "INPUT", "--nonsense");
        refused(set(late).await, Code::INTERNAL, &[&tool, "nonsense", "line: 5"]);
        assert_eq!(onlooker.rules(save).await?, before);

        // What the kernel alone refuses, in a later table, leaves the earlier one with what it had.
        let late = table("filter", "INPUT", &format!("-s {other} -j DROP"))
            + &table("nat", "PREROUTING", "-j MASQUERADE");
        refused(set(late).await, Code::INTERNAL, &[&tool]);
        let seen = onlooker.rules(save).await?;
        assert!(!seen.contains(other) && seen.contains(&rule), "{seen}");

        // What is long takes more than a pipe holds, in both directions; and each named table is replaced.
        let many: String = (0..3000).map(|_| format!("-A INPUT -s {other} -j ACCEPT\n")).collect();
        set(format!("*filter\n{many}COMMIT\n") + &table("mangle", "INPUT", &format!("-d {inside} -j DROP")))
            .await?;
        let seen = got(ctx, is_ipv6).await?;
        assert_eq!(seen.lines().filter(|line| line.contains(other)).count(), 3000);
        assert!(seen.contains(&format!("-A INPUT -d {inside} -j DROP")), "{seen}");
        assert!(!seen.contains(&rule), "the rule of before has stayed");
    }
    let long = vec![b'#'; (3 << 20) + 1];
    refused(client.set_ip_tables(false, long).await, Code::INVALID_ARGUMENT, &["data", "3145729 bytes"]);
    Ok(())
}

/// What this host's iptables needs of the kernel, by its kind.
fn filter_modules(program: &Path) -> &'static [&'static str] {
    match program.to_string_lossy().contains("legacy") {
        true => &[
            "iptable_filter",
            "iptable_mangle",
            "iptable_nat",
            "ip6table_filter",
            "ip6table_mangle",
            "ip6table_nat",
            "xt_MASQUERADE",
        ],
        false => &["nft_chain_nat", "nft_compat", "nft_masq", "xt_MASQUERADE"],
    }
}

/// The program behind the four names, which it tells from each other.
fn iptables() -> Fallible<PathBuf> {
    Ok(program("iptables-save").canonicalize()?)
}

/// The guest that `make image` builds has no iptables: this one gets the host's.
fn with_iptables(config: &mut VmConfig, files: &Path) -> Outcome {
    let file = iptables()?;
    let mut tree = Tree::new();
    own_vm::add_program(&mut tree, &file)?;
    let target = file.to_str().ok_or("a name that is no text")?;
    for name in ["iptables-save", "iptables-restore", "ip6tables-save", "ip6tables-restore"] {
        tree.symlink(&format!("usr/sbin/{name}"), target)?;
    }
    for plugins in ["/usr/lib/x86_64-linux-gnu/xtables", "/usr/lib/xtables"] {
        for plugin in std::fs::read_dir(plugins).into_iter().flatten() {
            own_vm::add_file(&mut tree, &plugin?.path())?;
        }
    }
    let initrd = files.join("initrd-with-iptables");
    own_vm::add_modules(&config.initrd, filter_modules(&file), tree, &initrd)?;
    config.initrd = initrd;
    Ok(())
}

/// The kernel's part comes by the host's wish, too.
async fn the_packet_filter_of_a_guest(ctx: Ctx) -> Outcome {
    let mut request = sandbox::request("filter", "filter", true);
    let modules = filter_modules(&iptables()?).iter();
    request.kernel_modules =
        modules.map(|&name| KernelModule { name: name.into(), ..Default::default() }).collect();
    ctx.client().create_sandbox(&request).await?;
    // It has no network but the agent's.
    let container = ctx.idle(|spec| {
        let spec = spec.capabilities(["CAP_SYS_CHROOT", "CAP_NET_ADMIN", "CAP_NET_RAW"]);
        spec.mount("/guest", "/", "bind", &["bind", "ro"])
    });
    let container = container.await?;
    filter_follows(&ctx, &Onlooker(&ctx, Some(&container))).await?;
    container.remove().await?;
    Ok(())
}

async fn iptables_is_missed_by_name(ctx: Ctx) -> Outcome {
    let words = |tool: &'static str| [tool, "the guest has no", "/usr/sbin, /sbin"];
    let (client, code) = (ctx.client(), Code::FAILED_PRECONDITION);
    refused(client.get_ip_tables(false).await, code, &words("iptables-save"));
    refused(client.get_ip_tables(true).await, code, &words("ip6tables-save"));
    refused(client.set_ip_tables(false, Vec::new()).await, code, &words("iptables-restore"));
    refused(client.set_ip_tables(true, Vec::new()).await, code, &words("ip6tables-restore"));
    Ok(())
}
