//! Where an agent listens, as text and as a value.
//!
//! | form | meaning |
//! | --- | --- |
//! | `unix://PATH` | a unix socket; `PATH` is absolute, or relative to the working directory |
//! | `unix://@NAME` | a unix socket in the abstract namespace (unix(7)) |
//! | `vsock://CID:PORT` | AF_VSOCK (vsock(7)) |
//! | `hvsock://PATH:PORT` | hybrid vsock: the VMM's unix socket `PATH`, then `CONNECT PORT` |
//!
//! [`Display`](std::fmt::Display) gives back what [`FromStr`] reads.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// The longest path that fits in `sun_path` with its final NUL (unix(7)).
const SUN_PATH_MAX: usize = 107;

/// An address that an agent can be reached at.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Address {
    /// A unix socket in the file system.
    Unix(PathBuf),
    /// A unix socket in the abstract namespace, without the leading NUL.
    Abstract(String),
    /// A vsock port of a guest.
    Vsock {
        /// The guest's context id.
        cid: u32,
        /// The port that the agent listens on.
        port: u32,
    },
    /// A guest's vsock port behind the VMM's unix socket.
    Hybrid {
        /// The VMM's unix socket.
        path: PathBuf,
        /// The port that the agent listens on.
        port: u32,
    },
}

/// Why a text is not an address.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
pub enum AddressError {
    /// None of the four schemes.
    #[error("address {0:?}: unknown scheme (known: unix://, vsock://, hvsock://)")]
    Scheme(String),
    /// A unix address with no path, or with a NUL byte in it.
    #[error("address {0:?}: no usable socket path")]
    Path(String),
    /// The path does not fit in a unix socket address.
    #[error("address {0:?}: socket path is longer than {SUN_PATH_MAX} bytes")]
    PathTooLong(String),
    /// `:PORT` is missing or not a number of 32 bits.
    #[error("address {0:?}: no valid port after the last colon")]
    Port(String),
    /// The CID is not a number, or one that names no guest.
    #[error("address {0:?}: the CID is not a number that names one guest")]
    Cid(String),
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let all = || text.to_owned();
        if let Some(rest) = text.strip_prefix("unix://") {
            let path = checked_path(rest, text)?;
            return Ok(match path.strip_prefix('@') {
                Some("") => return Err(AddressError::Path(all())),
                Some(name) => Self::Abstract(name.to_owned()),
                None => Self::Unix(PathBuf::from(path)),
            });
        }
        if let Some(rest) = text.strip_prefix("vsock://") {
            let (cid, port) = split_port(rest, text)?;
            // VMADDR_CID_ANY is for listeners only.
            let cid =
                cid.parse().ok().filter(|&cid| cid != u32::MAX).ok_or_else(|| AddressError::Cid(all()))?;
            return Ok(Self::Vsock { cid, port });
        }
        if let Some(rest) = text.strip_prefix("hvsock://") {
            let (path, port) = split_port(rest, text)?;
            return Ok(Self::Hybrid { path: PathBuf::from(checked_path(path, text)?), port });
        }
        Err(AddressError::Scheme(all()))
    }
}

fn checked_path<'a>(path: &'a str, text: &str) -> Result<&'a str, AddressError> {
    if path.is_empty() || path.contains('\0') {
        return Err(AddressError::Path(text.to_owned()));
    }
    if path.len() > SUN_PATH_MAX {
        return Err(AddressError::PathTooLong(text.to_owned()));
    }
    Ok(path)
}

fn split_port<'a>(rest: &'a str, text: &str) -> Result<(&'a str, u32), AddressError> {
    let bad = || AddressError::Port(text.to_owned());
    let (before, port) = rest.rsplit_once(':').ok_or_else(bad)?;
    // u32's parser takes a leading plus sign, the wire's handshake does not.
    if !port.bytes().all(|b| b.is_ascii_digit()) {
        return Err(bad());
    }
    Ok((before, port.parse().map_err(|_| bad())?))
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Abstract(name) => write!(f, "unix://@{name}"),
            Self::Vsock { cid, port } => write!(f, "vsock://{cid}:{port}"),
            Self::Hybrid { path, port } => write!(f, "hvsock://{}:{port}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_form_parses_and_prints_back() {
        let table = [
            ("unix:///run/nakai.sock", Address::Unix("/run/nakai.sock".into())),
            ("unix://here.sock", Address::Unix("here.sock".into())),
            ("unix://@nakai", Address::Abstract("nakai".into())),
            ("vsock://3:1024", Address::Vsock { cid: 3, port: 1024 }),
            ("hvsock:///tmp/vm/vs:1024", Address::Hybrid { path: "/tmp/vm/vs".into(), port: 1024 }),
            ("hvsock:///a:b:7", Address::Hybrid { path: "/a:b".into(), port: 7 }),
        ];
        for (text, address) in table {
            assert_eq!(text.parse::<Address>(), Ok(address.clone()), "{text}");
            assert_eq!(address.to_string(), text);
        }
    }

    #[test]
    fn what_is_no_address_is_refused_with_its_reason() {
        let long = format!("unix:///{}", "x".repeat(SUN_PATH_MAX));
        type Case<'a> = (&'a str, fn(String) -> AddressError);
        let table: [Case; 13] = [
            ("", AddressError::Scheme),
            ("/run/nakai.sock", AddressError::Scheme),
            ("tcp://127.0.0.1:1", AddressError::Scheme),
            ("unix://", AddressError::Path),
            ("unix://@", AddressError::Path),
            ("unix://a\0b", AddressError::Path),
            ("hvsock://:1", AddressError::Path),
            ("vsock://3", AddressError::Port),
            ("vsock://3:+1", AddressError::Port),
            ("vsock://3:4294967296", AddressError::Port),
            ("hvsock:///a:", AddressError::Port),
            ("vsock://-1:1024", AddressError::Cid),
            (&long, AddressError::PathTooLong),
        ];
        for (text, error) in table {
            assert_eq!(text.parse::<Address>(), Err(error(text.to_owned())), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics_and_what_parses_prints_back(text in "(unix|vsock|hvsock)://[ -~]{0,20}") {
            if let Ok(address) = text.parse::<Address>() {
                prop_assert_eq!(address.to_string().parse::<Address>(), Ok(address));
            }
        }
    }
}
