//! Network cards of a virtual machine, from its start and plugged in later: packets really pass.

use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use nakai_ctl::vm::VmConfig;
use nakai_ctl::{CallError, sandbox};
use nakai_protocols::types::{ARPNeighbor, Interface};
use serde_json::json;
use tokio::time::Instant;

use super::network::{address, addresses_of, interface, route};
use crate::harness::expect::refused;
use crate::harness::wire::{PEER_MAC, Wire};
use crate::harness::{Ctx, Outcome, Scenario, scenario};

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        scenario!(packets_pass_over_cards_that_are_plugged_in)
            .machine(with_a_card)
            .kernel_parameter("agent.hotplug_timeout=60"),
    ]
}

/// What the machine's own card will be plugged to: the machine is made before the scenario begins.
static COLD: Mutex<Option<TcpListener>> = Mutex::new(None);

const COLD_MAC: &str = "02:00:ca:fe:00:01";
const HOT_MAC: &str = "02:00:ca:fe:00:02";
const LATE_MAC: &str = "02:00:ca:fe:00:03";

/// How long a shim may have to ask until a card is there.
const PLUG_LIMIT: Duration = Duration::from_secs(60);

fn with_a_card(config: &mut VmConfig, _: &Path) -> Outcome {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let netdev = format!("socket,id=cold,connect={}", listener.local_addr()?);
    let device = format!("virtio-net-pci,netdev=cold,mac={COLD_MAC}");
    config.qemu_args.extend(["-netdev".into(), netdev, "-device".into(), device]);
    *COLD.lock().unwrap() = Some(listener);
    Ok(())
}

async fn packets_pass_over_cards_that_are_plugged_in(ctx: Ctx) -> Outcome {
    let client = ctx.client();
    let cold = COLD.lock().unwrap().take().ok_or("no cable")?;
    let cold = Wire::on(cold, Ipv4Addr::new(10, 8, 0, 1))?;
    let hot = Wire::new(Ipv4Addr::new(10, 9, 0, 1))?;
    client.create_sandbox(&sandbox::request("cards", "cards", true)).await?;

    let mut qmp = ctx.qmp().await?;
    let slot = qmp.pci_slot("rp0").await?;
    qmp.execute("netdev_add", json!({ "type": "socket", "id": "hot", "connect": hot.address })).await?;
    let card = json!({ "netdev": "hot", "mac": HOT_MAC, "bus": "rp0" });
    qmp.plug("hot0", "virtio-net-pci", card).await?;
    let path = format!("{slot:02x}/00");
    let wanted = interface("eth0", HOT_MAC, &["10.9.0.2/24", "fd09::2/64"]);
    let updated = client.update_interface(Interface { devicePath: path.clone(), ..wanted }).await?;
    assert_eq!((&*updated.name, &*updated.hwAddr, &*updated.devicePath), ("eth0", HOT_MAC, &*path));
    assert_eq!(addresses_of(&updated), ["v4 10.9.0.2/24", "v6 fd09::2/64"]);
    let updated = client.update_interface(interface("eth1", COLD_MAC, &["10.8.0.2/24"])).await?;
    assert_eq!((&*updated.name, updated.mtu), ("eth1", 1400));

    let routes = vec![
        route("", "10.9.0.1", "eth0"),
        route("10.7.0.0/16", "10.8.0.1", "eth1"),
        route("", "fd09::1", "eth0"),
    ];
    client.update_routes(routes).await?;
    let neighbor = |ip: &str| ARPNeighbor {
        toIPAddress: Some(address(ip)).into(),
        device: "eth0".into(),
        lladdr: PEER_MAC.into(),
        ..Default::default()
    };
    // Nobody answers when these are looked for.
    client.add_arp_neighbors(vec![neighbor("10.9.0.7/32"), neighbor("fd09::1/128")]).await?;

    let container = ctx.idle(|spec| spec.capabilities(["CAP_NET_RAW"])).await?;
    for target in ["10.9.0.1", "192.0.2.7", "10.9.0.7", "fd08::8", "10.8.0.1", "10.7.1.1"] {
        let ping = format!("ping -c 1 -W 30 {target} | grep -o '1 packets received'");
        assert_eq!(container.sh(&ping).await?, "1 packets received", "{target}");
    }
    assert_eq!(hot.pinged(), ["10.9.0.1", "10.9.0.7", "192.0.2.7", "fd08::8"]);
    assert_eq!(cold.pinged(), ["10.7.1.1", "10.8.0.1"]);
    let metrics = client.metrics().await?;
    assert!(metrics.contains("kata_guest_netdev_stat{interface=\"eth0\",item=\"recv_packets\"}"));

    // The two change their names, as on a host that counts its cards otherwise. Packets find their way, by the routes of
    // before, and find it back.
    let of_hot = ["10.9.0.2/24", "fd09::2/64"];
    for (hot_name, cold_name) in [("eth1", "eth0"), ("eth0", "eth1")] {
        let updated = client.update_interface(interface(hot_name, HOT_MAC, &of_hot)).await?;
        assert_eq!(
            (&*updated.name, addresses_of(&updated)),
            (hot_name, vec!["v4 10.9.0.2/24".into(), "v6 fd09::2/64".into()])
        );
        let listed = client.list_interfaces().await?;
        let named = listed.iter().find(|interface| interface.name == cold_name).ok_or(cold_name)?;
        assert_eq!((&*named.hwAddr, addresses_of(named)), (COLD_MAC, vec!["v4 10.8.0.2/24".to_owned()]));
        for target in ["192.0.2.7", "10.7.1.1"] {
            let ping = format!("ping -c 1 -W 30 {target} | grep -o '1 packets received'");
            assert_eq!(
                container.sh(&ping).await?,
                "1 packets received",
                "{target} by {hot_name} and {cold_name}"
            );
        }
    }

    // Pulled out, it is forgotten.
    qmp.unplug("hot0").await?;
    let listed = client.list_interfaces().await?;
    assert!(listed.iter().all(|interface| interface.hwAddr != HOT_MAC), "{listed:?}");
    assert!(!client.metrics().await?.contains("interface=\"eth0\""), "a card that is gone is still told of");
    refused(
        client.update_interface(interface("eth0", HOT_MAC, &[])).await,
        ttrpc::Code::NOT_FOUND,
        &["Link not found (Address: 02:00:ca:fe:00:02)"],
    );

    // Another one, which a shim can't tell the place of: it asks until it is there.
    qmp.execute("netdev_del", json!({ "id": "hot" })).await?;
    qmp.execute("netdev_add", json!({ "type": "socket", "id": "late", "connect": hot.address })).await?;
    let card = json!({ "netdev": "late", "mac": LATE_MAC, "bus": "rp1" });
    qmp.plug("late0", "virtio-net-pci", card).await?;
    let updated = ask_until_found(&ctx, &interface("eth0", LATE_MAC, &["10.9.0.3/24"])).await?;
    assert_eq!((&*updated.name, &*updated.hwAddr), ("eth0", LATE_MAC));
    let ping = "ping -c 1 -W 30 10.9.0.1 | grep -o '1 packets received'";
    assert_eq!(container.sh(ping).await?, "1 packets received");
    container.remove().await?;
    Ok(())
}

/// What the Go shim does.
async fn ask_until_found(ctx: &Ctx, wanted: &Interface) -> Result<Interface, CallError> {
    let deadline = Instant::now() + PLUG_LIMIT;
    loop {
        match ctx.client().update_interface(wanted.clone()).await {
            Err(error) if error.message.contains("Link not found") && Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            answer => return answer,
        }
    }
}
