//! AddARPNeighbors: entries of the neighbour table that the host knows of.

use std::net::IpAddr;

use slog::Logger;

use super::NetworkError;
use super::kernel::{Change, Kernel};
use super::link::Neighbor;
use super::net::Mac;

/// `NUD_PERMANENT`.
const PERMANENT: u16 = 0x80;

/// A neighbour as the host wants it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NeighborRequest {
    ip: IpAddr,
    device: String,
    mac: Option<Mac>,
    state: u16,
    flags: u8,
}

/// Puts them into the table, in the place of what is there. All links are looked for first.
pub(super) fn add(
    kernel: &mut dyn Kernel,
    wanted: &[NeighborRequest],
    log: &Logger,
) -> Result<(), NetworkError> {
    let links = kernel.links()?;
    let resolve = |NeighborRequest { ip, device, mac, state, flags }: &NeighborRequest| {
        let link = links.iter().find(|link| link.name == *device);
        let link = link.ok_or_else(|| NetworkError::NoLinkNamed { name: device.clone() })?.index;
        Ok(Change::Neighbor(Neighbor { link, ip: *ip, mac: *mac, state: *state, flags: *flags }))
    };
    let changes = wanted.iter().map(resolve).collect::<Result<Vec<_>, NetworkError>>()?;
    for change in changes {
        let what = change.describe(&links);
        slog::debug!(log, "network"; "change" => &what);
        kernel.apply(&change).map_err(|source| NetworkError::Change { what, source })?;
    }
    Ok(())
}

impl TryFrom<&nakai_protocols::types::ARPNeighbor> for NeighborRequest {
    type Error = NetworkError;

    fn try_from(wire: &nakai_protocols::types::ARPNeighbor) -> Result<Self, NetworkError> {
        let address = wire.toIPAddress.as_ref().map(|to| to.address.as_str()).unwrap_or_default();
        let field = |field, given: String, reason| NetworkError::Field {
            object: format!("neighbor {address} on {}", wire.device),
            field,
            given,
            reason,
        };
        let ip = address
            .parse()
            .map_err(|_| field("toIPAddress", address.to_owned(), "it is not an IP address"))?;
        if wire.device.is_empty() {
            return Err(field("device", String::new(), "a neighbor needs one"));
        }
        let state = u16::try_from(wire.state)
            .map_err(|_| field("state", wire.state.to_string(), "it is not one of rtnetlink(7)"))?;
        let flags = u8::try_from(wire.flags)
            .map_err(|_| field("flags", wire.flags.to_string(), "they are not those of rtnetlink(7)"))?;
        let mac = (!wire.lladdr.is_empty()).then(|| Mac::parse(&wire.lladdr)).transpose()?;
        let state = if state == 0 { PERMANENT } else { state };
        Ok(Self { ip, device: wire.device.clone(), mac, state, flags })
    }
}
