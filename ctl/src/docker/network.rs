//! `--network`, `--publish` and what belongs to them.

use std::net::IpAddr;

use super::Flags;
use crate::cri::CriError;
use crate::cri::config::NamespaceMode;
use crate::nets::file::Asked;
use crate::nets::{CardOrder, Forward, HostNetworks, USER};

/// Whose network it is, where it is no card of its own.
pub(super) fn mode(flags: &Flags) -> NamespaceMode {
    match flags.network.first().map(String::as_str) {
        Some("host") => NamespaceMode::Node,
        Some("none") => NamespaceMode::Container,
        _ => NamespaceMode::Pod,
    }
}

/// The cards that are asked for.
///
/// # Errors
///
/// There is no such network, or flags that contradict each other, by name.
pub(super) fn cards(flags: &Flags) -> Result<Vec<CardOrder>, CriError> {
    let host = HostNetworks::of(flags.networks.as_deref())?;
    let refuse = |flag: &str, reason: String| Err(CriError::field(flag, reason));
    let is_no_card = |name: &str| {
        matches!(name, "" | "default" | "bridge" | "host" | "none") || name.starts_with("container:")
    };
    if let (Some(alone), true) = (flags.network.iter().find(|name| is_no_card(name)), flags.network.len() > 1)
    {
        return refuse("--network", format!("{alone:?} is not for more than one"));
    }
    let mut cards = Vec::new();
    for name in flags.network.iter().filter(|name| !is_no_card(name)) {
        cards.push(card(&host, "--network", name, flags)?);
    }
    let is_others = |name: &&str| matches!(*name, "host" | "none") || name.starts_with("container:");
    let alone = flags.network.first().map(String::as_str).filter(is_others);
    match (alone, flags.publish.is_empty()) {
        (Some(name), false) => return refuse("--publish", format!("not together with --network {name}")),
        (None, false) if cards.is_empty() => cards.push(card(&host, "--publish", USER, flags)?),
        _ => {}
    }
    for (flag, given) in [
        ("--ip", flags.ip.is_some()),
        ("--ip6", flags.ip6.is_some()),
        ("--mac-address", flags.mac_address.is_some()),
    ] {
        if given && cards.len() != 1 {
            return refuse(flag, format!("it is for one card, and there are {}: see --network", cards.len()));
        }
    }
    let mut forwards = Vec::new();
    for text in &flags.publish {
        forwards.push(Forward::parse(text).map_err(|reason| CriError::field("--publish", reason))?);
    }
    if !forwards.is_empty() {
        let is_user = |card: &&mut CardOrder| card.netdev.get("type").is_some_and(|kind| kind == "user");
        let Some(card) = cards.iter_mut().find(is_user) else {
            return refuse(
                "--publish",
                "only a network of QEMU's type \"user\" leads ports of this host in".into(),
            );
        };
        card.forwards = forwards;
    }
    Ok(cards)
}

fn card(host: &HostNetworks, field: &str, name: &str, flags: &Flags) -> Result<CardOrder, CriError> {
    let addresses = flags.ip.map(IpAddr::from).into_iter().chain(flags.ip6.map(IpAddr::from)).collect();
    let mac = flags.mac_address.as_deref();
    host.card(&Asked { field, network: Some(name), addresses, mac, ..Asked::default() })
}
