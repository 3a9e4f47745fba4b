//! UpdateInterface, ListInterfaces, UpdateRoutes, ListRoutes, AddARPNeighbors, GetIPTables and SetIPTables.

use std::net::IpAddr;

use nakai_protocols::agent::{
    AddARPNeighborsRequest, GetIPTablesRequest, GetIPTablesResponse, Interfaces, Routes, SetIPTablesRequest,
    SetIPTablesResponse, UpdateInterfaceRequest, UpdateRoutesRequest,
};
use nakai_protocols::empty::Empty;
use nakai_protocols::types::{self, IPFamily};

use super::{Agent, Answer, RpcError};
use crate::network::{Interface, InterfaceRequest, NeighborRequest, PacketFilter, RouteInfo, RouteRequest};

pub(super) async fn update_interface(
    agent: &Agent,
    request: UpdateInterfaceRequest,
) -> Answer<types::Interface> {
    let wire = request.interface.as_ref().ok_or(RpcError::Missing { field: "interface" })?;
    let wanted = InterfaceRequest::try_from(wire)?;
    let interface = agent.sandbox().await?.environment().network.update_interface(wanted).await?;
    // Where it is plugged in does not change; what it is on the host only the host knows.
    let (device, path) = (wire.device.clone(), wire.devicePath.clone());
    Ok(types::Interface { device, devicePath: path, ..interface_to_wire(interface) })
}

pub(super) async fn list_interfaces(agent: &Agent) -> Answer<Interfaces> {
    let interfaces = agent.sandbox().await?.environment().network.interfaces().await?;
    let interfaces = interfaces.into_iter().map(interface_to_wire).collect();
    Ok(Interfaces { Interfaces: interfaces, ..Default::default() })
}

pub(super) async fn update_routes(agent: &Agent, request: UpdateRoutesRequest) -> Answer<Routes> {
    let wire = request.routes.as_ref().ok_or(RpcError::Missing { field: "routes" })?;
    let wanted = wire.Routes.iter().map(RouteRequest::try_from).collect::<Result<_, _>>()?;
    let routes = agent.sandbox().await?.environment().network.update_routes(wanted).await?;
    Ok(routes_to_wire(routes))
}

pub(super) async fn list_routes(agent: &Agent) -> Answer<Routes> {
    Ok(routes_to_wire(agent.sandbox().await?.environment().network.routes().await?))
}

pub(super) async fn add_neighbors(agent: &Agent, request: AddARPNeighborsRequest) -> Answer<Empty> {
    let wire = request.neighbors.as_ref().ok_or(RpcError::Missing { field: "neighbors" })?;
    let wanted = wire.ARPNeighbors.iter().map(NeighborRequest::try_from).collect::<Result<_, _>>()?;
    agent.sandbox().await?.environment().network.add_neighbors(wanted).await?;
    Ok(Empty::new())
}

pub(super) async fn get_ip_tables(agent: &Agent, request: GetIPTablesRequest) -> Answer<GetIPTablesResponse> {
    let sandbox = agent.sandbox().await?;
    let data = packet_filter(request.is_ipv6).rules(&sandbox.environment().launcher).await?;
    Ok(GetIPTablesResponse { data, ..Default::default() })
}

pub(super) async fn set_ip_tables(agent: &Agent, request: SetIPTablesRequest) -> Answer<SetIPTablesResponse> {
    let sandbox = agent.sandbox().await?;
    let filter = packet_filter(request.is_ipv6);
    let data = filter.replace(&sandbox.environment().launcher, &request.data).await?;
    Ok(SetIPTablesResponse { data, ..Default::default() })
}

fn packet_filter(is_ipv6: bool) -> PacketFilter {
    if is_ipv6 { PacketFilter::V6 } else { PacketFilter::V4 }
}

fn family(ip: &IpAddr) -> IPFamily {
    if ip.is_ipv6() { IPFamily::v6 } else { IPFamily::v4 }
}

fn interface_to_wire(interface: Interface) -> types::Interface {
    let Interface { name, mac, mtu, flags, kind, addresses } = interface;
    let address = |cidr: &crate::network::Cidr| types::IPAddress {
        family: family(&cidr.ip).into(),
        address: cidr.ip.to_string(),
        mask: cidr.prefix.to_string(),
        ..Default::default()
    };
    types::Interface {
        name,
        hwAddr: mac,
        mtu: mtu.into(),
        raw_flags: flags,
        type_: kind,
        IPAddresses: addresses.iter().map(address).collect(),
        ..Default::default()
    }
}

fn routes_to_wire(routes: Vec<RouteInfo>) -> Routes {
    Routes { Routes: routes.into_iter().map(route_to_wire).collect(), ..Default::default() }
}

/// The default route has no destination, as in what a shim sends.
fn route_to_wire(route: RouteInfo) -> types::Route {
    let RouteInfo { to, gateway, device, source, scope, flags, mtu } = route;
    let text = |ip: Option<IpAddr>| ip.map(|ip| ip.to_string()).unwrap_or_default();
    types::Route {
        dest: if to.prefix == 0 { String::new() } else { to.to_string() },
        gateway: text(gateway),
        device,
        source: text(source),
        scope: scope.into(),
        family: family(&to.ip).into(),
        flags,
        mtu: mtu.unwrap_or_default(),
        ..Default::default()
    }
}
