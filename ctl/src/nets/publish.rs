//! Ports of this host that lead to a port of a container: `[ADDRESS:][HOST_PORT:]PORT[/tcp|/udp]`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, TcpListener, UdpSocket};

use serde::{Deserialize, Serialize};

/// A port of this host's and one of the container's.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Forward {
    /// `tcp` or `udp`.
    pub protocol: String,
    /// Where this host listens; all of its addresses if none is said.
    pub host_address: Option<Ipv4Addr>,
    /// The port of this host's.
    pub host_port: u16,
    /// The container's.
    pub port: u16,
}

impl Forward {
    /// Reads Docker's words. Without a port of this host's a free one is taken.
    ///
    /// # Errors
    ///
    /// It is none, or a range.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not [ADDRESS:][HOST_PORT:]PORT[/tcp|/udp]; ranges are not taken");
        let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        if !matches!(protocol, "tcp" | "udp") {
            return Err(format!("{text:?}: protocol {protocol:?} is none of tcp, udp"));
        }
        let parts: Vec<&str> = ports.split(':').collect();
        let (address, host, port) = match *parts.as_slice() {
            [port] => ("", "", port),
            [host, port] => ("", host, port),
            [address, host, port] => (address, host, port),
            _ => return Err(wrong()),
        };
        let number = |text: &str| text.parse::<u16>().ok().filter(|&port| port > 0).ok_or_else(wrong);
        let host_address = match address {
            "" => None,
            text => Some(text.parse().map_err(|_| wrong())?),
        };
        let port = number(port)?;
        let host_port = match host {
            "" => free_port(protocol, host_address).map_err(|error| format!("{text:?}: {error}"))?,
            host => number(host)?,
        };
        Ok(Self { protocol: protocol.to_owned(), host_address, host_port, port })
    }

    /// As QEMU's user-mode network takes it.
    pub fn rule(&self, guest: IpAddr) -> String {
        let host = self.host_address.map(|address| address.to_string()).unwrap_or_default();
        format!("{}:{host}:{}-{guest}:{}", self.protocol, self.host_port, self.port)
    }
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(address) = self.host_address {
            write!(f, "{address}:")?;
        }
        write!(f, "{}:{}/{}", self.host_port, self.port, self.protocol)
    }
}

/// A port that nobody has at this moment.
fn free_port(protocol: &str, address: Option<Ipv4Addr>) -> std::io::Result<u16> {
    let any = (address.unwrap_or(Ipv4Addr::UNSPECIFIED), 0);
    let address = if protocol == "tcp" {
        TcpListener::bind(any)?.local_addr()?
    } else {
        UdpSocket::bind(any)?.local_addr()?
    };
    Ok(address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_or_refused() {
        let guest = IpAddr::from([10, 0, 2, 15]);
        for (text, rule) in [
            ("8080:80", "tcp::8080-10.0.2.15:80"),
            ("127.0.0.1:53:5353/udp", "udp:127.0.0.1:53-10.0.2.15:5353"),
        ] {
            assert_eq!(Forward::parse(text).unwrap().rule(guest), rule);
        }
        let free = Forward::parse("127.0.0.1::80").unwrap();
        assert!(free.host_port > 0 && free.port == 80, "{free}");
        for wrong in ["", "80:", "0:80", "80:0", "a:80", "1-2:1-2", "80/sctp", "::1:80:80", "70000:80"] {
            assert!(Forward::parse(wrong).is_err(), "{wrong}");
        }
    }
}
