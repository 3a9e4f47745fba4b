//! The guest's network: interfaces, routes, neighbours and the packet filter, as the host wants them.
//!
//! [`Networking`] is the way in. It speaks to the kernel by rtnetlink(7) (`netlink`), one request of the host's after
//! the other, on the blocking pool. What it answers is read back from the kernel. The packet filter is beside it
//! ([`PacketFilter`]), by the guest's own tools.
//!
//! Invariants: a request either has its whole effect, or what was there before is there again (`steps`). Routes and
//! addresses are reconciled: what the host does not name goes, what the kernel made by itself stays, and what is there
//! and wanted is not touched, so that connections live through a request that changes nothing for them.
//!
//! Names, addresses and paths come from the host and are checked before they meet the kernel (`net`); what the kernel
//! says is read without trust in its lengths.

mod error;
mod interface;
mod iptables;
mod kernel;
mod link;
mod neighbors;
mod net;
mod netlink;
mod route;
mod routes;
mod steps;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod turn_tests;

use std::collections::HashSet;
use std::sync::Arc;

use slog::Logger;
use tokio::sync::Mutex;

pub use self::error::NetworkError;
pub use self::interface::{Interface, InterfaceRequest};
pub use self::iptables::PacketFilter;
use self::kernel::Kernel;
use self::link::Link;
pub use self::neighbors::NeighborRequest;
pub use self::net::{Cidr, Mac};
pub use self::netlink::Refused;
use self::netlink::Socket;
pub use self::routes::{RouteInfo, RouteRequest};
use crate::device::Devices;

/// The guest's network. Clones are the same.
#[derive(Debug, Clone)]
pub struct Networking {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    devices: Devices,
    log: Logger,
    /// One request at a time, which wait without a thread; and the links that the host has claimed, by their number.
    claimed: Arc<Mutex<HashSet<u32>>>,
}

impl Networking {
    /// The network of this process's namespace.
    pub fn new(devices: Devices, log: Logger) -> Self {
        Self { inner: Arc::new(Inner { devices, log, claimed: Arc::default() }) }
    }

    /// Makes an interface what the host wants it to be, and tells what it is then. One with a PCI path is waited for.
    ///
    /// # Errors
    ///
    /// There is no such link, or the kernel refuses a part; then nothing has changed.
    pub async fn update_interface(&self, wanted: InterfaceRequest) -> Result<Interface, NetworkError> {
        let plugged = match &wanted.pci {
            Some(path) => Some(self.inner.devices.find_link(path).await?),
            None => None,
        };
        self.blocking(move |inner, kernel, claimed| {
            let index = match plugged {
                Some(index) => index,
                None => inner.find(kernel, &wanted, claimed)?,
            };
            let updated = interface::update(kernel, index, &wanted, &has_v6, &inner.log)?;
            claimed.insert(index);
            Ok(updated)
        })
        .await
    }

    /// All interfaces, with those whose driver nobody has asked for yet.
    ///
    /// # Errors
    ///
    /// The kernel does not tell.
    pub async fn interfaces(&self) -> Result<Vec<Interface>, NetworkError> {
        self.blocking(|inner, kernel, _| {
            inner.devices.load_link_drivers();
            interface::list(kernel)
        })
        .await
    }

    /// Makes the routes of the main table those of the list, and tells what they are then.
    ///
    /// # Errors
    ///
    /// There is no such link, or the kernel refuses a route; then nothing has changed.
    pub async fn update_routes(&self, wanted: Vec<RouteRequest>) -> Result<Vec<RouteInfo>, NetworkError> {
        self.blocking(move |inner, kernel, _| {
            routes::update(kernel, &wanted, &inner.log)?;
            routes::list(kernel)
        })
        .await
    }

    /// All unicast routes of the main table.
    ///
    /// # Errors
    ///
    /// The kernel does not tell.
    pub async fn routes(&self) -> Result<Vec<RouteInfo>, NetworkError> {
        self.blocking(|_, kernel, _| routes::list(kernel)).await
    }

    /// Puts neighbours into the table.
    ///
    /// # Errors
    ///
    /// There is no such link, or the kernel refuses one; those before it are in the table then.
    pub async fn add_neighbors(&self, wanted: Vec<NeighborRequest>) -> Result<(), NetworkError> {
        self.blocking(move |inner, kernel, _| neighbors::add(kernel, &wanted, &inner.log)).await
    }

    /// Runs `work` off the runtime, alone, with a socket of its own.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner, &mut Socket, &mut HashSet<u32>) -> Result<T, NetworkError> + Send + 'static,
    ) -> Result<T, NetworkError> {
        let inner = self.inner.clone();
        let mut claimed = inner.claimed.clone().lock_owned().await;
        let work = move || {
            let mut socket = Socket::open().map_err(NetworkError::Socket)?;
            work(&inner, &mut socket, &mut claimed)
        };
        tokio::task::spawn_blocking(work).await.map_err(|_| NetworkError::Task)?
    }
}

impl Inner {
    /// The number of the link that the host means. If there is none, the buses are asked once more, and their drivers
    /// loaded. A virtual machine that was cloned from another one may have a card with another MAC address: then the
    /// link with the name is meant, if nobody has claimed it before.
    fn find(
        &self,
        kernel: &mut dyn Kernel,
        wanted: &InterfaceRequest,
        claimed: &HashSet<u32>,
    ) -> Result<u32, NetworkError> {
        if let Some(link) = interface::find(&kernel.links()?, wanted) {
            return Ok(link.index);
        }
        self.devices.look_for_links();
        let links = kernel.links()?;
        if let Some(link) = interface::find(&links, wanted) {
            return Ok(link.index);
        }
        let is_free = |link: &&Link| {
            link.name == wanted.name && link.flags & link::LOOPBACK == 0 && !claimed.contains(&link.index)
        };
        links.iter().find(is_free).map(|link| link.index).ok_or_else(|| wanted.not_found())
    }
}

/// Whether a link takes IPv6 addresses: the kernel knows IPv6, and nobody has turned it off (ip-sysctl.rst).
fn has_v6(link: &str) -> bool {
    let setting = std::fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{link}/disable_ipv6"));
    setting.is_ok_and(|setting| setting.trim() == "0")
}
