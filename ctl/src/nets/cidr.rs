//! An address and its network, `10.9.0.2/24`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An address with the length of its network's prefix.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidr {
    /// The address.
    pub address: IpAddr,
    /// The length of the prefix.
    pub prefix: u8,
}

/// How many addresses of a network are looked at for a free one.
const LOOKED_AT: u128 = 4096;

impl Cidr {
    fn bits(self) -> u8 {
        if self.address.is_ipv4() { 32 } else { 128 }
    }

    /// The numbers of its network: the first, and how many bits are free.
    fn network(self) -> (u128, u32) {
        let free = u32::from(self.bits().saturating_sub(self.prefix));
        let mask = u128::MAX.checked_shl(free).unwrap_or(0);
        (number(self.address) & mask, free)
    }

    /// Whether an address is in its network.
    pub fn contains(self, address: IpAddr) -> bool {
        let other = Self { address, prefix: self.prefix };
        self.address.is_ipv4() == address.is_ipv4() && other.network() == self.network()
    }

    /// Whether two networks have an address in common.
    pub fn overlaps(self, other: Self) -> bool {
        self.contains(other.address) && self.prefix <= other.prefix
            || other.contains(self.address) && other.prefix <= self.prefix
    }

    /// The network itself.
    #[must_use]
    pub fn base(self) -> Self {
        Self { address: self.of_number(self.network().0), prefix: self.prefix }
    }

    /// The `number`th address of its network; none where that has not so many.
    #[must_use]
    pub fn host(self, number: u128) -> Option<IpAddr> {
        let (first, free) = self.network();
        let inside = free >= 128 || number >> free == 0;
        let address = first.checked_add(number).filter(|_| inside)?;
        Some(self.of_number(address))
    }

    /// The first address for a host that `taken` does not say no to. The lowest are mostly somebody's.
    pub fn free(self, taken: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
        let free_bits = self.network().1;
        let last = 1_u128.checked_shl(free_bits.min(64)).unwrap_or(0).saturating_sub(2);
        let first = if last > 30 { 15 } else { 1 };
        let numbers = (first..=last.min(LOOKED_AT)).chain(1..first);
        numbers.filter_map(|number| self.host(number)).find(|address| !taken(*address))
    }

    fn of_number(self, number: u128) -> IpAddr {
        match u32::try_from(number) {
            Ok(number) if self.address.is_ipv4() => Ipv4Addr::from(number).into(),
            _ => Ipv6Addr::from(number).into(),
        }
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no address with a prefix, such as 10.9.0.0/24");
        let (address, prefix) = text.split_once('/').ok_or_else(wrong)?;
        let cidr = Self {
            address: address.parse().map_err(|_| wrong())?,
            prefix: prefix.parse().map_err(|_| wrong())?,
        };
        if cidr.prefix <= cidr.bits() { Ok(cidr) } else { Err(wrong()) }
    }
}

impl TryFrom<String> for Cidr {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Cidr> for String {
    fn from(cidr: Cidr) -> Self {
        cidr.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn networks_know_their_addresses() {
        let net = cidr("10.9.0.7/24");
        assert!(
            net.contains(ip("10.9.0.255")) && !net.contains(ip("10.9.1.0")) && !net.contains(ip("fd09::1"))
        );
        assert_eq!((net.base().to_string(), net.host(2)), ("10.9.0.0/24".to_owned(), Some(ip("10.9.0.2"))));
        assert_eq!(net.host(256), None);
        assert!(cidr("0.0.0.0/0").contains(ip("1.2.3.4")) && cidr("::/0").contains(ip("fd09::1")));
        assert!(cidr("10.0.0.0/8").overlaps(net) && net.overlaps(cidr("10.0.0.0/8")));
        assert!(!net.overlaps(cidr("10.8.0.0/24")));
        for wrong in ["", "10.9.0.0", "10.9.0.0/33", "x/24", "fd09::/129", "10.9.0.0/-1"] {
            assert!(wrong.parse::<Cidr>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_free_address_is_a_hosts() {
        assert_eq!(cidr("10.9.0.0/24").free(|_| false), Some(ip("10.9.0.15")));
        assert_eq!(cidr("10.9.0.0/24").free(|taken| taken == ip("10.9.0.15")), Some(ip("10.9.0.16")));
        assert_eq!(cidr("10.9.0.0/30").free(|taken| taken == ip("10.9.0.1")), Some(ip("10.9.0.2")));
        assert_eq!(cidr("10.9.0.0/30").free(|_| true), None);
        assert_eq!(cidr("10.9.0.1/32").free(|_| false), None);
        assert_eq!(cidr("fd09::/64").free(|_| false), Some(ip("fd09::f")));
        assert_eq!(cidr("::/0").free(|_| false), Some(ip("::f")));
    }
}
