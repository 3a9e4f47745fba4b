//! Typed calls about the guest's network.

use nakai_protocols::agent::{
    ARPNeighbors, AddARPNeighborsRequest, GetIPTablesRequest, ListInterfacesRequest, ListRoutesRequest,
    Routes, SetIPTablesRequest, UpdateInterfaceRequest, UpdateRoutesRequest,
};
use nakai_protocols::types::{ARPNeighbor, Interface, Route};

use crate::client::{Client, Result};
use crate::error::CallError;

impl Client {
    /// `UpdateInterface`: makes an interface what `interface` says and tells what it is then.
    ///
    /// # Errors
    ///
    /// The call's own.
    pub async fn update_interface(&self, interface: Interface) -> Result<Interface> {
        let name = interface.name.clone();
        let request = UpdateInterfaceRequest { interface: Some(interface).into(), ..Default::default() };
        let answer = self.agent().update_interface(self.context(), &request).await;
        answer.map_err(|e| CallError::new("UpdateInterface", &name, e))
    }

    /// `ListInterfaces`.
    ///
    /// # Errors
    ///
    /// The call's own.
    pub async fn list_interfaces(&self) -> Result<Vec<Interface>> {
        let answer = self.agent().list_interfaces(self.context(), &ListInterfacesRequest::new()).await;
        answer.map(|a| a.Interfaces).map_err(|e| CallError::new("ListInterfaces", "", e))
    }

    /// `UpdateRoutes`: makes the routes of the main table those of the list, for the links that are named in it, and
    /// tells what all are then.
    ///
    /// # Errors
    ///
    /// The call's own.
    pub async fn update_routes(&self, routes: Vec<Route>) -> Result<Vec<Route>> {
        let routes = Routes { Routes: routes, ..Default::default() };
        let request = UpdateRoutesRequest { routes: Some(routes).into(), ..Default::default() };
        let answer = self.agent().update_routes(self.context(), &request).await;
        answer.map(|a| a.Routes).map_err(|e| CallError::new("UpdateRoutes", "", e))
    }

    /// `ListRoutes`.
    ///
    /// # Errors
    ///
    /// The call's own.
    pub async fn list_routes(&self) -> Result<Vec<Route>> {
        let answer = self.agent().list_routes(self.context(), &ListRoutesRequest::new()).await;
        answer.map(|a| a.Routes).map_err(|e| CallError::new("ListRoutes", "", e))
    }

    /// `AddARPNeighbors`.
    ///
    /// # Errors
    ///
    /// The call's own.
    pub async fn add_arp_neighbors(&self, neighbors: Vec<ARPNeighbor>) -> Result<()> {
        let neighbors = ARPNeighbors { ARPNeighbors: neighbors, ..Default::default() };
        let request = AddARPNeighborsRequest { neighbors: Some(neighbors).into(), ..Default::default() };
        let answer = self.agent().add_arp_neighbors(self.context(), &request).await;
        answer.map(drop).map_err(|e| CallError::new("AddARPNeighbors", "", e))
    }

    /// `GetIPTables`: what iptables-save or ip6tables-save prints in the guest.
    ///
    /// # Errors
    ///
    /// The call's own.
    pub async fn get_ip_tables(&self, is_ipv6: bool) -> Result<Vec<u8>> {
        let request = GetIPTablesRequest { is_ipv6, ..Default::default() };
        let answer = self.agent().get_ip_tables(self.context(), &request).await;
        answer.map(|a| a.data).map_err(|e| CallError::new("GetIPTables", "", e))
    }

    /// `SetIPTables`: gives `data` to iptables-restore or ip6tables-restore in the guest.
    ///
    /// # Errors
    ///
    /// The call's own.
    pub async fn set_ip_tables(&self, is_ipv6: bool, data: Vec<u8>) -> Result<Vec<u8>> {
        let request = SetIPTablesRequest { is_ipv6, data, ..Default::default() };
        let answer = self.agent().set_ip_tables(self.context(), &request).await;
        answer.map(|a| a.data).map_err(|e| CallError::new("SetIPTables", "", e))
    }
}
