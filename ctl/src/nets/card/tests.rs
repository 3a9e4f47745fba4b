//! Cards, as far as they are decided before there is a machine.

use super::*;

fn cidr(text: &str) -> Cidr {
    text.parse().unwrap()
}

fn subnet(text: &str) -> Subnet {
    serde_json::from_str(text).unwrap()
}

fn order() -> CardOrder {
    let subnet = subnet(
        r#"{"cidr": "10.9.0.0/28", "gateway_ip": "10.9.0.1", "dns_nameservers": ["10.9.0.2"],
            "host_routes": [{"destination": "10.7.0.9/16", "nexthop": "10.9.0.3"}]}"#,
    );
    CardOrder { field: "nets[0]".into(), subnets: vec![subnet], ..CardOrder::default() }
}

#[test]
fn what_others_have_is_not_taken() {
    let others = Others {
        names: vec!["lo".into(), "eth0".into(), "eth2".into()],
        macs: vec!["02:00:00:00:00:01".into()],
        addresses: vec![cidr("10.9.0.4/28")],
    };
    let card = Card::planned("web", &order(), &others).unwrap();
    assert_eq!(card.name, "eth1");
    assert!(mac(&card.mac).is_ok() && !others.macs.contains(&card.mac));
    assert_eq!(card.take_addresses(&order(), &others).unwrap(), [cidr("10.9.0.5/28")]);
    let taken = CardOrder { mac: Some("02:00:00:00:00:01".into()), ..order() };
    assert!(Card::planned("web", &taken, &others).unwrap_err().contains("02:00:00:00:00:01"));
    let taken = CardOrder { addresses: vec![cidr("10.9.0.4/28")], ..order() };
    assert!(card.take_addresses(&taken, &others).unwrap_err().contains("10.9.0.4"));
    assert_eq!(user_subnet(0, &Others::default()).cidr, cidr("10.0.2.0/24"));
    let others = Others { addresses: vec![cidr("10.0.2.15/24")], ..Others::default() };
    assert_eq!(user_subnet(0, &others).cidr, cidr("10.0.3.0/24"));
}

#[test]
fn routes_lead_over_the_card_and_only_one_is_the_default() {
    let mut card = Card::planned("web", &order(), &Others::default()).unwrap();
    card.addresses = vec![cidr("10.9.0.5/28")];
    let routes = |has: bool| {
        let routes = card.routes(|_| has);
        routes
            .into_iter()
            .map(|route| format!("{} {} {}", route.dest, route.gateway, route.device))
            .collect::<Vec<_>>()
    };
    assert_eq!(routes(false), ["10.7.0.0/16 10.9.0.3 eth0", " 10.9.0.1 eth0"]);
    assert_eq!(routes(true), ["10.7.0.0/16 10.9.0.3 eth0"]);
}

#[test]
fn the_user_mode_network_is_what_the_subnet_says() {
    let order = CardOrder { forwards: vec![Forward::parse("8080:80").unwrap()], ..order() };
    let mut card = Card::planned("web", &order, &Others::default()).unwrap();
    card.addresses = vec![cidr("10.9.0.5/28")];
    let expected = json!({"type": "user", "net": "10.9.0.0/28", "host": "10.9.0.1", "dns": "10.9.0.2",
        "hostfwd": [{"str": "tcp::8080-10.9.0.5:80"}]});
    assert_eq!(card.user_netdev(&json!({"type": "user"})), expected);
    let own = card.user_netdev(&json!({"type": "user", "net": "10.1.0.0/16"}));
    assert_eq!(own["net"], "10.1.0.0/16");
}

#[test]
fn addresses_of_cards_are_one_cards() {
    assert_eq!(mac("02:00:5E:00:53:01"), Ok("02:00:5e:00:53:01".to_owned()));
    for wrong in [
        "",
        "02:00:5e:00:53",
        "02:00:5e:00:53:0x",
        "01:00:5e:00:53:01",
        "00:00:00:00:00:00",
        "+2:00:5e:00:53:01",
    ] {
        assert!(mac(wrong).is_err(), "{wrong}");
    }
}
