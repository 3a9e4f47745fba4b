//! Stands in for the crate `netlink-packet-route`, which `Cargo.toml` replaces by this one (`[patch.crates-io]`).
//!
//! libcontainer moves interfaces into a container (`linux.netDevices`) with it. The agent refuses such
//! specifications, so that none of this ever runs; but the real crate has a reader and a writer for each attribute of
//! rtnetlink(7), a quarter of a megabyte, and the linker cannot know. Here are the few names that libcontainer says.
//! A message has no encoding: the kernel would refuse it for being too short, and an answer cannot be read.

use netlink_packet_core::{
    DecodeError, NetlinkDeserializable, NetlinkHeader, NetlinkPayload, NetlinkSerializable,
};

/// Interfaces.
pub mod link {
    /// Of an interface.
    #[derive(Debug, Clone, Default, PartialEq, Eq)]
    pub struct LinkMessage {
        /// What it begins with.
        pub header: LinkHeader,
        /// What follows.
        pub attributes: Vec<LinkAttribute>,
    }

    /// `struct ifinfomsg`.
    #[derive(Debug, Clone, Default, PartialEq, Eq)]
    pub struct LinkHeader {
        /// Which one.
        pub index: u32,
        /// What it shall be.
        pub flags: LinkFlags,
        /// Which of the flags are meant.
        pub change_mask: LinkFlags,
    }

    /// More about it.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub enum LinkAttribute {
        /// Its name.
        IfName(String),
        /// The network namespace that it moves to.
        NetNsFd(i32),
    }

    /// `IFF_*` of netdevice(7).
    #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
    pub struct LinkFlags(u32);

    impl LinkFlags {
        /// It is switched on.
        #[expect(non_upper_case_globals, reason = "the real crate's name")]
        pub const Up: Self = Self(1);

        /// Without those.
        pub fn remove(&mut self, flags: Self) {
            self.0 &= !flags.0;
        }
    }

    impl std::ops::BitOrAssign for LinkFlags {
        fn bitor_assign(&mut self, flags: Self) {
            self.0 |= flags.0;
        }
    }
}

/// Their addresses.
pub mod address {
    use super::AddressFamily;
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    /// Of an address.
    #[derive(Debug, Clone, Default, PartialEq, Eq)]
    pub struct AddressMessage {
        /// What it begins with.
        pub header: AddressHeader,
        /// What follows.
        pub attributes: Vec<AddressAttribute>,
    }

    /// `struct ifaddrmsg`.
    #[derive(Debug, Clone, Default, PartialEq, Eq)]
    pub struct AddressHeader {
        /// IPv4 or IPv6.
        pub family: AddressFamily,
        /// How many bits are the network's.
        pub prefix_len: u8,
        /// Whether it stays.
        pub flags: AddressHeaderFlags,
        /// From where it is valid.
        pub scope: AddressScope,
        /// The interface that has it.
        pub index: u32,
    }

    /// More about it.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub enum AddressAttribute {
        /// The address, or the other end's.
        Address(IpAddr),
        /// The address of this end.
        Local(IpAddr),
        /// For all on the network.
        Broadcast(Ipv4Addr),
        /// For a group.
        Multicast(Ipv6Addr),
    }

    /// `RT_SCOPE_*` of rtnetlink(7).
    #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
    pub enum AddressScope {
        /// Everywhere.
        #[default]
        Universe,
    }

    /// `IFA_F_*` of rtnetlink(7).
    #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
    pub struct AddressHeaderFlags(u8);

    impl AddressHeaderFlags {
        /// It does not run out.
        #[expect(non_upper_case_globals, reason = "the real crate's name")]
        pub const Permanent: Self = Self(0x80);

        /// Whether all of those are among them.
        #[must_use]
        pub const fn contains(self, flags: Self) -> bool {
            self.0 & flags.0 == flags.0
        }
    }
}

/// Which kind of addresses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum AddressFamily {
    /// Neither.
    #[default]
    Unspec,
    /// IPv4.
    Inet,
    /// IPv6.
    Inet6,
}

/// What is asked for or told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RouteNetlinkMessage {
    /// An interface that there is.
    NewLink(link::LinkMessage),
    /// To be told of one.
    GetLink(link::LinkMessage),
    /// To change one.
    SetLink(link::LinkMessage),
    /// An address that there is, or shall be.
    NewAddress(address::AddressMessage),
    /// To be told of them.
    GetAddress(address::AddressMessage),
}

impl NetlinkSerializable for RouteNetlinkMessage {
    fn message_type(&self) -> u16 {
        match self {
            Self::NewLink(_) => 16,
            Self::GetLink(_) => 18,
            Self::SetLink(_) => 19,
            Self::NewAddress(_) => 20,
            Self::GetAddress(_) => 22,
        }
    }

    fn buffer_len(&self) -> usize {
        0
    }

    fn serialize(&self, _: &mut [u8]) {}
}

impl NetlinkDeserializable for RouteNetlinkMessage {
    type Error = DecodeError;

    fn deserialize(_: &NetlinkHeader, _: &[u8]) -> Result<Self, DecodeError> {
        Err(DecodeError::from("not for this agent"))
    }
}

impl From<RouteNetlinkMessage> for NetlinkPayload<RouteNetlinkMessage> {
    fn from(message: RouteNetlinkMessage) -> Self {
        Self::InnerMessage(message)
    }
}
