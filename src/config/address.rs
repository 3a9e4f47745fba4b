//! The address on which the server listens, as a checked type.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// `sun_path` of unix(7) has 108 bytes; a path ends with a NUL, an abstract name starts with one.
const MAX_UNIX_NAME: usize = 107;

/// `VMADDR_CID_ANY` of vsock(7), written -1.
const CID_ANY: u32 = u32::MAX;

/// `VMADDR_CID_LOCAL` of vsock(7).
const CID_LOCAL: u32 = 1;

/// Where the server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerAddress {
    /// `unix://PATH`, the path being absolute.
    Unix(PathBuf),
    /// `unix://@NAME`: a name in the abstract namespace, without the `@`.
    UnixAbstract(String),
    /// `vsock://CID:PORT`.
    Vsock {
        /// The context id to bind, [`u32::MAX`] (written `-1`) for any.
        cid: u32,
        /// The port, never 0.
        port: u32,
    },
}

/// Why a text is not an address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Neither `unix://` nor `vsock://`.
    #[error("expected unix://PATH, unix://@NAME or vsock://CID:PORT")]
    Scheme,
    /// A path that is relative.
    #[error("the socket's path must be absolute")]
    Relative,
    /// A path or name that is empty, holds a NUL, or is too long for the kernel.
    #[error("the socket's name must have 1 to {MAX_UNIX_NAME} bytes and no NUL")]
    Name,
    /// Not a context id.
    #[error("the context id must be -1 (any) or a number of 32 bits")]
    Cid,
    /// Not a port.
    #[error("the port must be a number of 32 bits, neither 0 nor 4294967295")]
    Port,
}

impl ServerAddress {
    /// Whether whoever listens there is for processes of this machine: as a unix socket is, and vsock's address for it.
    /// All other addresses of vsock are for the host, and containers must not be taken for it.
    pub fn is_for_this_machine(&self) -> bool {
        !matches!(self, Self::Vsock { cid, .. } if *cid != CID_LOCAL)
    }
}

impl FromStr for ServerAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if let Some(name) = text.strip_prefix("unix://") {
            return unix(name);
        }
        let address = text.strip_prefix("vsock://").ok_or(AddressError::Scheme)?;
        let (cid, port) = address.split_once(':').ok_or(AddressError::Scheme)?;
        let cid = if cid == "-1" { CID_ANY } else { cid.parse().map_err(|_| AddressError::Cid)? };
        let port = port.parse().map_err(|_| AddressError::Port)?;
        if port == 0 || port == u32::MAX {
            return Err(AddressError::Port);
        }
        Ok(Self::Vsock { cid, port })
    }
}

fn unix(name: &str) -> Result<ServerAddress, AddressError> {
    let bare = name.strip_prefix('@').unwrap_or(name);
    if bare.is_empty() || bare.len() > MAX_UNIX_NAME || bare.contains('\0') {
        return Err(AddressError::Name);
    }
    if bare.len() < name.len() {
        return Ok(ServerAddress::UnixAbstract(bare.to_owned()));
    }
    if !name.starts_with('/') {
        return Err(AddressError::Relative);
    }
    Ok(ServerAddress::Unix(PathBuf::from(name)))
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::UnixAbstract(name) => write!(f, "unix://@{name}"),
            Self::Vsock { cid: CID_ANY, port } => write!(f, "vsock://-1:{port}"),
            Self::Vsock { cid, port } => write!(f, "vsock://{cid}:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written_alike() {
        for text in [
            "unix:///run/a.sock",
            "unix://@a",
            "unix://@/run/a",
            "vsock://-1:1024",
            "vsock://3:1",
            "vsock://0:9",
        ] {
            assert_eq!(text.parse::<ServerAddress>().unwrap().to_string(), text);
        }
        assert_eq!("vsock://-1:1024".parse(), Ok(ServerAddress::Vsock { cid: u32::MAX, port: 1024 }));
    }

    #[test]
    fn what_cannot_be_bound_is_refused() {
        let long = format!("unix:///{}", "x".repeat(MAX_UNIX_NAME));
        for (text, error) in [
            ("", AddressError::Scheme),
            ("tcp://localhost:1", AddressError::Scheme),
            ("vsock://1024", AddressError::Scheme),
            ("unix://", AddressError::Name),
            ("unix://@", AddressError::Name),
            ("unix:///a\0b", AddressError::Name),
            (long.as_str(), AddressError::Name),
            ("unix://a.sock", AddressError::Relative),
            ("vsock://-2:1024", AddressError::Cid),
            ("vsock://any:1024", AddressError::Cid),
            ("vsock://-1:0", AddressError::Port),
            ("vsock://-1:-1", AddressError::Port),
            ("vsock://-1:4294967295", AddressError::Port),
            ("vsock://-1:1024:1", AddressError::Port),
        ] {
            assert_eq!(text.parse::<ServerAddress>(), Err(error), "{text:?}");
        }
    }
}
