//! A byte stream to an [`Address`].
//!
//! Hybrid vsock (Firecracker's, Cloud Hypervisor's and vhost-device-vsock's): after `CONNECT PORT\n`
//! the VMM answers `OK <host port>\n`, and every byte behind that line-feed is the guest's. So the
//! answer is read a byte at a time: a buffered reader would swallow the guest's first words.

use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixStream as StdUnixStream};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio_vsock::{VsockAddr, VsockStream};

use crate::address::Address;

/// How long [`connect`] waits for the other side unless told otherwise.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest answer to `CONNECT` that is read: `OK 4294967295\n` has 14 bytes.
const ANSWER_MAX: usize = 64;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The socket can't be connected to.
    #[error("connect {address}: {source}")]
    Socket {
        /// The address asked for.
        address: Address,
        /// The system's reason.
        source: io::Error,
    },
    /// The VMM closed the connection or could not be read in the hybrid handshake. It does so when
    /// nothing listens on the guest's port.
    #[error("connect {address}: the VMM ended the handshake ({source}): is the agent serving?")]
    Handshake {
        /// The address asked for.
        address: Address,
        /// The system's reason.
        source: io::Error,
    },
    /// The VMM answered something else than `OK`.
    #[error("connect {address}: the VMM answered {answer:?} to CONNECT")]
    Refused {
        /// The address asked for.
        address: Address,
        /// The answer, without its line-feed.
        answer: String,
    },
    /// No connection within the time.
    #[error("connect {address}: no answer within {} ms", .limit.as_millis())]
    TimedOut {
        /// The address asked for.
        address: Address,
        /// The time that was waited.
        limit: Duration,
    },
}

/// A connected byte stream.
pub trait Stream: AsyncRead + AsyncWrite + Send + Sync + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Stream for T {}

/// Connects to `address` within `limit`.
///
/// # Errors
///
/// See [`ConnectError`].
pub async fn connect(address: &Address, limit: Duration) -> Result<Box<dyn Stream>, ConnectError> {
    match tokio::time::timeout(limit, dial(address)).await {
        Ok(result) => result,
        Err(_) => Err(ConnectError::TimedOut { address: address.clone(), limit }),
    }
}

async fn dial(address: &Address) -> Result<Box<dyn Stream>, ConnectError> {
    let failed = |source| ConnectError::Socket { address: address.clone(), source };
    Ok(match address {
        Address::Unix(path) => Box::new(UnixStream::connect(path).await.map_err(failed)?),
        Address::Abstract(name) => Box::new(connect_abstract(name).map_err(failed)?),
        Address::Vsock { cid, port } => {
            Box::new(VsockStream::connect(VsockAddr::new(*cid, *port)).await.map_err(failed)?)
        }
        Address::Hybrid { path, port } => {
            let mut stream = UnixStream::connect(path).await.map_err(failed)?;
            handshake(&mut stream, *port, address).await?;
            Box::new(stream)
        }
    })
}

fn connect_abstract(name: &str) -> io::Result<UnixStream> {
    let stream = StdUnixStream::connect_addr(&SocketAddr::from_abstract_name(name)?)?;
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

async fn handshake(stream: &mut UnixStream, port: u32, address: &Address) -> Result<(), ConnectError> {
    let broken = |source| ConnectError::Handshake { address: address.clone(), source };
    stream.write_all(format!("CONNECT {port}\n").as_bytes()).await.map_err(broken)?;
    let mut answer = Vec::with_capacity(ANSWER_MAX);
    loop {
        match stream.read_u8().await.map_err(broken)? {
            b'\n' => break,
            byte => answer.push(byte),
        }
        if answer.len() == ANSWER_MAX {
            break;
        }
    }
    if answer == b"OK" || answer.starts_with(b"OK ") {
        return Ok(());
    }
    Err(ConnectError::Refused {
        address: address.clone(),
        answer: String::from_utf8_lossy(&answer).into_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixListener;

    /// A VMM that answers one CONNECT with `answer`; gives back the line it got.
    async fn dial_vmm(answer: &'static [u8]) -> (Result<Box<dyn Stream>, ConnectError>, Vec<u8>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vmm");
        let listener = UnixListener::bind(&path).unwrap();
        let vmm = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut line = Vec::new();
            while line.last() != Some(&b'\n') {
                line.push(stream.read_u8().await.unwrap());
            }
            stream.write_all(answer).await.unwrap();
            line
        };
        let address = Address::Hybrid { path, port: 1024 };
        tokio::join!(connect(&address, CONNECT_TIMEOUT), vmm)
    }

    #[tokio::test]
    async fn handshake_leaves_the_guests_first_bytes() {
        let (stream, line) = dial_vmm(b"OK 1073741824\nfirst\nwords").await;
        assert_eq!(line, b"CONNECT 1024\n");
        let mut rest = Vec::new();
        stream.unwrap().read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"first\nwords");
    }

    #[tokio::test]
    async fn bad_answers_are_told() {
        let error = |answer| async move { dial_vmm(answer).await.0.err().unwrap().to_string() };
        assert!(error(b"NO\n").await.ends_with(r#"the VMM answered "NO" to CONNECT"#));
        assert!(error(b"OKAY\n").await.contains(r#""OKAY""#));
        assert!(error(b"").await.contains("is the agent serving?"));
        assert!(error(&[b'x'; 200]).await.contains("xxx"));
    }

    #[tokio::test]
    async fn unix_and_abstract_sockets_connect() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let _listener = UnixListener::bind(&path).unwrap();
        connect(&Address::Unix(path), CONNECT_TIMEOUT).await.unwrap();

        let name = format!("nakai-ctl-test-{}", std::process::id());
        let abstract_address = SocketAddr::from_abstract_name(&name).unwrap();
        let _listener = std::os::unix::net::UnixListener::bind_addr(&abstract_address).unwrap();
        connect(&Address::Abstract(name), CONNECT_TIMEOUT).await.unwrap();
    }

    #[tokio::test]
    async fn a_missing_socket_names_address_and_cause() {
        let error = connect(&Address::Unix("/nonexistent/s".into()), CONNECT_TIMEOUT).await.err().unwrap();
        assert_eq!(
            error.to_string(),
            "connect unix:///nonexistent/s: No such file or directory (os error 2)"
        );
    }
}
