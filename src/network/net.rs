//! What is written on the wire and meant by the kernel: addresses with a prefix, MAC addresses, names of links.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nix::libc;

use super::NetworkError;

/// The longest name of a link (`IFNAMSIZ` less the NUL).
const MAX_NAME: usize = 15;

/// An address and how much of it is the network's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cidr {
    /// The address; of a network, its first one.
    pub ip: IpAddr,
    /// The length of the network's part, in bits.
    pub prefix: u8,
}

impl Cidr {
    /// Where a default route leads: everywhere.
    pub(super) fn everywhere(is_v6: bool) -> Self {
        let ip = if is_v6 { Ipv6Addr::UNSPECIFIED.into() } else { IpAddr::from(Ipv4Addr::UNSPECIFIED) };
        Self { ip, prefix: 0 }
    }

    /// `address` or `address/prefix`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(decimal(prefix)?)),
            None => (text, None),
        };
        let ip: IpAddr = address.parse().ok()?;
        let prefix = prefix.unwrap_or_else(|| bits(&ip));
        (prefix <= bits(&ip)).then_some(Self { ip, prefix })
    }

    /// Whether the address is that of the network itself.
    pub(super) fn is_network(&self) -> bool {
        match self.ip {
            IpAddr::V4(ip) => ip.to_bits().checked_shl(self.prefix.into()).unwrap_or(0) == 0,
            IpAddr::V6(ip) => ip.to_bits().checked_shl(self.prefix.into()).unwrap_or(0) == 0,
        }
    }

    /// Its last address, if the network is one that has a broadcast address.
    pub(super) fn broadcast(&self) -> Option<Ipv4Addr> {
        match self.ip {
            IpAddr::V4(ip) if self.prefix <= 30 => {
                let hosts = u32::MAX.checked_shr(self.prefix.into()).unwrap_or(0);
                Some(Ipv4Addr::from_bits(ip.to_bits() | hosts))
            }
            _ => None,
        }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.prefix)
    }
}

/// Digits and nothing else.
pub(super) fn decimal(text: &str) -> Option<u8> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// How long an address is.
pub(super) fn bits(ip: &IpAddr) -> u8 {
    if ip.is_ipv6() { 128 } else { 32 }
}

/// The family as the kernel numbers it.
pub(super) fn family(is_v6: bool) -> u8 {
    // AF_INET is 2 and AF_INET6 is 10.
    u8::try_from(if is_v6 { libc::AF_INET6 } else { libc::AF_INET }).unwrap_or_default()
}

/// The bytes of an address as they go over a wire.
pub(super) fn octets(ip: &IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// The address in an attribute.
pub(super) fn from_octets(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(v4.into());
    }
    <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from)
}

/// A MAC address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mac(pub(super) [u8; 6]);

impl Mac {
    pub(super) fn parse(text: &str) -> Result<Self, NetworkError> {
        let parse = || {
            let mut bytes = [0; 6];
            let mut parts = text.split([':', '-']);
            for byte in &mut bytes {
                let part = parts.next().filter(|part| part.len() <= 2)?;
                let is_hex = !part.is_empty() && part.bytes().all(|b| b.is_ascii_hexdigit());
                *byte = is_hex.then(|| u8::from_str_radix(part, 16).ok()).flatten()?;
            }
            parts.next().is_none().then_some(Self(bytes))
        };
        parse().ok_or_else(|| NetworkError::Mac { given: text.to_owned() })
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// A name that the kernel takes for a link as it is: it would fill in the number for a `%d`.
pub(super) fn check_name(name: &str) -> Result<(), NetworkError> {
    let is_harmless = |b: u8| b.is_ascii_graphic() && !matches!(b, b'/' | b':' | b'%');
    if (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(is_harmless) && !matches!(name, "." | "..") {
        return Ok(());
    }
    Err(NetworkError::LinkName { given: name.to_owned() })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn networks_with_and_without_prefix() {
        for (text, expected) in [
            ("10.0.0.1", Some("10.0.0.1/32")),
            ("10.0.0.0/8", Some("10.0.0.0/8")),
            ("0.0.0.0/0", Some("0.0.0.0/0")),
            ("fd00::1", Some("fd00::1/128")),
            ("fd00::/64", Some("fd00::/64")),
            ("10.0.0.0/33", None),
            ("fd00::/129", None),
            ("10.0.0.0/+8", None),
            ("10.0.0.0/", None),
            ("10.0.0/8", None),
            ("", None),
            ("host", None),
        ] {
            let parsed = Cidr::parse(text).map(|network| network.to_string());
            assert_eq!(parsed.as_deref(), expected, "{text:?}");
        }
    }

    #[test]
    fn a_network_has_no_bits_behind_its_prefix() {
        let is_network = |text| Cidr::parse(text).unwrap().is_network();
        for text in ["10.0.0.0/8", "0.0.0.0/0", "10.0.0.1", "fd00::/8", "::/0", "fd00::1", "128.0.0.0/1"] {
            assert!(is_network(text), "{text}");
        }
        for text in ["10.0.0.1/31", "10.0.0.1/0", "fd00::1/64", "::1/0"] {
            assert!(!is_network(text), "{text}");
        }
    }

    #[test]
    fn broadcast_addresses() {
        let broadcast = |text| Cidr::parse(text).unwrap().broadcast().map(|ip| ip.to_string());
        assert_eq!(broadcast("10.1.2.3/24").as_deref(), Some("10.1.2.255"));
        assert_eq!(broadcast("10.1.2.3/0").as_deref(), Some("255.255.255.255"));
        for text in ["10.1.2.3/31", "10.1.2.3/32", "fd00::1/64"] {
            assert_eq!(broadcast(text), None, "{text}");
        }
    }

    #[test]
    fn mac_addresses() {
        for text in ["02:00:ca:fe:0:48", "02-00-CA-FE-00-48"] {
            assert_eq!(Mac::parse(text).unwrap().to_string(), "02:00:ca:fe:00:48");
        }
        for text in [
            "",
            "02:00:ca:fe:00",
            "02:00:ca:fe:00:48:01",
            "02:00:ca:fe:00:+8",
            "2::ca:fe:00:48",
            "02:00:ca:fe:00:148",
        ] {
            assert!(Mac::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn names_of_links() {
        for name in ["eth0", "a", "vlan.100", "x23456789012345"] {
            assert!(check_name(name).is_ok(), "{name:?}");
        }
        for name in ["", ".", "..", "eth 0", "eth/0", "eth:0", "eth%d", "eth\n", "x234567890123456", "ethü"]
        {
            assert!(check_name(name).is_err(), "{name:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(ip: u128, is_v6: bool, prefix in 0_u8..=32) {
            let v4 = u32::try_from(ip & u128::from(u32::MAX)).unwrap();
            let ip = if is_v6 { IpAddr::from(Ipv6Addr::from_bits(ip)) } else { Ipv4Addr::from_bits(v4).into() };
            let network = Cidr { ip, prefix };
            prop_assert_eq!(Cidr::parse(&network.to_string()), Some(network));
            prop_assert_eq!(from_octets(&octets(&ip)), Some(ip));
        }

        #[test]
        fn no_text_makes_it_panic(text: String) {
            let _ = Cidr::parse(&text);
            let _ = Mac::parse(&text);
            let _ = check_name(&text);
        }
    }
}
