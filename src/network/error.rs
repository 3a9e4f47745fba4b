//! What can't be done with the network.

use super::netlink::Refused;
use crate::device::DeviceError;
use crate::supervisor::tool::ToolError;

/// Why the network is not as the host wants it.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// A shim that reads these first words asks again.
    #[error("Link not found (Address: {mac})")]
    NoLinkWithMac {
        /// The MAC address.
        mac: String,
    },
    /// No link of that name.
    #[error("Link not found (Name: {name})")]
    NoLinkNamed {
        /// The name.
        name: String,
    },
    /// A link that was there a moment ago.
    #[error("Link not found (Index: {index})")]
    LinkGone {
        /// The kernel's number of it.
        index: u32,
    },
    /// A text that is no MAC address.
    #[error("Failed to parse MAC address {given:?}: it is not six bytes of two hexadecimal digits")]
    Mac {
        /// What was given.
        given: String,
    },
    /// A name that a link can't have.
    #[error("interface name {given:?} must have 1 to 15 plain characters without '/', ':' and '%'")]
    LinkName {
        /// What was given.
        given: String,
    },
    /// A request that names no interface.
    #[error("the interface has neither a name, nor a MAC address, nor a PCI path")]
    NamesNothing,
    /// A field of a request that can't be.
    #[error("{object}: {field} {given:?}: {reason}")]
    Field {
        /// What it is about.
        object: String,
        /// The field's name on the wire.
        field: &'static str,
        /// What was given.
        given: String,
        /// Why that can't be.
        reason: &'static str,
    },
    /// The kernel does not tell what there is.
    #[error("list the {what}: {source}")]
    List {
        /// Of what.
        what: &'static str,
        /// What it says.
        source: Refused,
    },
    /// A socket to the kernel.
    #[error("open a socket to the routing tables: {0}")]
    Socket(#[source] Refused),
    /// The kernel refuses a change.
    #[error("{what}: {source}")]
    Change {
        /// The change.
        what: String,
        /// What it says.
        source: Refused,
    },
    /// The card that a PCI path leads to.
    #[error("interface not available: {0}")]
    Device(#[from] DeviceError),
    /// A program of the guest.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// The earlier tables of the packet filter are not what they were.
    #[error("{refusal}; and the tables before keep the new rules: {cause}")]
    NotTakenBack {
        /// Why the rules were not taken.
        refusal: Box<NetworkError>,
        /// Why what was there before was not.
        cause: Box<NetworkError>,
    },
    /// The task that did the work ended early.
    #[error("the work on the network ended unexpectedly")]
    Task,
}
