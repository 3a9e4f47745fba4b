//! Networks and PCI functions that this host has for containers, and the cards that a machine gets of them.
//!
//! ```text
//! --networks FILE ─ file ─> CardOrder, FunctionOrder (in an order's extras) ─ card ─> Card, Function (in its holdings)
//! ```
//!
//! What a network is, only the host's control plane knows: the file says it in Neutron's words (`cidr`, `gateway_ip`,
//! `fixed_ips`, `mac_address`…), and names QEMU's `netdev` that leads there. One is there without a file: [`USER`].

pub mod card;
mod cidr;
pub mod file;
pub mod function;
mod publish;
mod way;

pub use card::{Card, CardOrder};
pub use cidr::Cidr;
pub use file::HostNetworks;
pub use function::{Function, FunctionOrder};
pub use publish::Forward;

/// A network that every machine can have a card in: QEMU's user-mode network, by which connections go out as this
/// host's own, and ports of this host lead in.
pub const USER: &str = "user";
