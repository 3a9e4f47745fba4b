//! A byte stream to an [`Address`].
//!
//! Hybrid vsock (Firecracker's, Cloud Hypervisor's and vhost-device-vsock's): after `CONNECT PORT\n`
//! the VMM answers `OK <host port>\n`, and every byte behind that line-feed is the guest's. So the
//! answer is read a byte at a time: a buffered reader would swallow the guest's first words.
//!
//! vhost-device-vsock 0.3 panics when it has to answer a client that has gone, and no guest is reached through it from
//! then on. So who gives up waiting leaves the handshake to a task of its own ([`pending`]), which reads the answer.

use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixStream as StdUnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{UnixSocket, UnixStream};
use tokio_vsock::{VsockAddr, VsockStream};

use crate::address::Address;
use crate::hybrid::Hybrid;
use crate::pending;

/// How long [`connect`] waits for the other side unless told otherwise.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

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
    #[error("connect {address}: no answer within {} ms{}", .limit.as_millis(), see_log(address))]
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
    Ok(connect_peer(address, limit).await?.0)
}

/// As [`connect`]; says too which process of this host it is connected to, where that can be told.
pub(crate) async fn connect_peer(address: &Address, limit: Duration) -> Result<Connected, ConnectError> {
    match tokio::time::timeout(limit, dial(address)).await {
        Ok(result) => result,
        Err(_) => Err(ConnectError::TimedOut { address: address.clone(), limit }),
    }
}

/// A stream, and a text that is another for each process that may be at its other end.
type Connected = (Box<dyn Stream>, Option<String>);

async fn dial(address: &Address) -> Result<Connected, ConnectError> {
    let failed = |source| ConnectError::Socket { address: address.clone(), source };
    let stream = match address {
        Address::Unix(path) => UnixStream::connect(path).await.map_err(failed)?,
        Address::Abstract(name) => connect_abstract(name).map_err(failed)?,
        Address::Vsock { cid, port } => {
            let stream = VsockStream::connect(VsockAddr::new(*cid, *port)).await.map_err(failed)?;
            return Ok((Box::new(stream), None));
        }
        Address::Hybrid { path, port } => {
            let (stream, _) = dial_hybrid(address, path, *port).await?;
            let peer = stream.peer();
            return Ok((Box::new(stream), peer));
        }
    };
    let peer = peer(&stream);
    Ok((Box::new(stream), peer))
}

/// A stream through a VMM, and the port of this end as far as the VMM says it.
async fn dial_hybrid(
    address: &Address,
    path: &Path,
    port: u32,
) -> Result<(Hybrid, Option<u32>), ConnectError> {
    let failed = |source| ConnectError::Socket { address: address.clone(), source };
    let mut stream = UnixStream::connect(path).await.map_err(failed)?;
    let to = address.clone();
    let shaken = pending::to_its_end(async move {
        let own = handshake(&mut stream, port, &to).await?;
        Ok((Hybrid::new(stream), own))
    });
    shaken.await.map_err(failed)?
}

/// Where a VMM's device may have said why it does not answer.
fn see_log(address: &Address) -> String {
    let Address::Hybrid { path, .. } = address else { return String::new() };
    let log = path.with_file_name("vhost-device-vsock.log");
    let says = std::fs::metadata(&log).is_ok_and(|log| log.len() > 0);
    if says { format!("; see {}", log.display()) } else { String::new() }
}

pub(crate) fn peer(stream: &UnixStream) -> Option<String> {
    stream.peer_cred().ok().and_then(|peer| peer.pid()).and_then(process)
}

/// A process by pid and start time, since pids come again (proc_pid_stat(5)); none for one that is not seen from here.
pub(crate) fn process(pid: i32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may have anything in it; the start is the 20th field behind it.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    // A zombie has ended, though nobody has looked yet.
    let lives = fields.next().is_some_and(|state| !matches!(state, "Z" | "X"));
    let start = fields.nth(18)?;
    lives.then(|| format!("{pid}@{start}"))
}

/// The pid in such a text, while that process lives.
pub(crate) fn pid_of(known: &str) -> Option<i32> {
    let pid = known.split('@').next()?.parse().ok()?;
    (process(pid).as_deref() == Some(known)).then_some(pid)
}

/// This process.
pub(crate) fn this_process() -> Option<String> {
    i32::try_from(std::process::id()).ok().and_then(process)
}

/// Connects to another `port` of the agent at `address`, from a port that the agent can tell this connection by: for a
/// stream of a process (`stdin_port` and so on). On a unix socket, where there are no ports, the agent listens on
/// `<address>_<port>` and reads the number behind the last `_` of our own name. A hybrid VMM has to say the port of its
/// end, as Firecracker and Cloud Hypervisor do; vhost-device-vsock says the one that was asked for.
///
/// # Errors
///
/// See [`ConnectError`].
pub async fn connect_stream(
    address: &Address,
    port: u32,
    limit: Duration,
) -> Result<(Box<dyn Stream>, u32), ConnectError> {
    match tokio::time::timeout(limit, dial_stream(address, port)).await {
        Ok(result) => result,
        Err(_) => Err(ConnectError::TimedOut { address: address.clone(), limit }),
    }
}

async fn dial_stream(address: &Address, port: u32) -> Result<(Box<dyn Stream>, u32), ConnectError> {
    let failed = |source| ConnectError::Socket { address: address.clone(), source };
    match address {
        Address::Unix(path) => {
            let (stream, own) = connect_unix(&format!("{}_{port}", path.display())).await.map_err(failed)?;
            Ok((Box::new(stream), own))
        }
        Address::Abstract(name) => {
            let (stream, own) = connect_unix(&format!("\0{name}_{port}")).await.map_err(failed)?;
            Ok((Box::new(stream), own))
        }
        Address::Vsock { cid, .. } => {
            let stream = VsockStream::connect(VsockAddr::new(*cid, port)).await.map_err(failed)?;
            let own = stream.local_addr().map_err(failed)?.port();
            Ok((Box::new(stream), own))
        }
        Address::Hybrid { path, .. } => {
            let (stream, own) = dial_hybrid(address, path, port).await?;
            let no_port =
                || failed(io::Error::other("the VMM does not say which port it has connected from"));
            Ok((Box::new(stream), own.filter(|own| *own != port).ok_or_else(no_port)?))
        }
    }
}

/// From a name that ends with a number which nobody else has.
async fn connect_unix(target: &str) -> io::Result<(UnixStream, u32)> {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    loop {
        let own = NEXT.fetch_add(1, Ordering::Relaxed);
        let socket = UnixSocket::new_stream()?;
        match socket.bind(format!("\0nakai-ctl_{own}")) {
            Ok(()) => return Ok((socket.connect(target).await?, own)),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            Err(error) => return Err(error),
        }
    }
}

fn connect_abstract(name: &str) -> io::Result<UnixStream> {
    let stream = StdUnixStream::connect_addr(&SocketAddr::from_abstract_name(name)?)?;
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

/// The port of this end, as far as the VMM says it.
async fn handshake(
    stream: &mut UnixStream,
    port: u32,
    address: &Address,
) -> Result<Option<u32>, ConnectError> {
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
    if answer == b"OK" {
        return Ok(None);
    }
    if let Some(own) = answer.strip_prefix(b"OK ") {
        return Ok(std::str::from_utf8(own).ok().and_then(|own| own.trim().parse().ok()));
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
    async fn who_gives_up_in_the_handshake_leaves_nobody_without_a_reader() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vmm");
        let listener = UnixListener::bind(&path).unwrap();
        let address = Address::Hybrid { path, port: 1024 };
        let begun = tokio::spawn(async move { connect(&address, Duration::from_millis(50)).await.map(drop) });
        let (mut vmm, _) = listener.accept().await.unwrap();
        let mut line = [0; 13];
        vmm.read_exact(&mut line).await.unwrap();
        let given_up = begun.await.unwrap().unwrap_err();
        assert!(matches!(given_up, ConnectError::TimedOut { .. }), "{given_up}");
        // It is still there, and takes the answer before it goes.
        let closed = vmm.read_u8();
        assert!(tokio::time::timeout(Duration::from_millis(50), closed).await.is_err());
        vmm.write_all(b"OK 7\n").await.unwrap();
        assert_eq!(vmm.read_u8().await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[tokio::test]
    async fn an_answer_that_does_not_come_is_looked_for_in_the_devices_log() {
        let dir = tempfile::tempdir().unwrap();
        let address = Address::Hybrid { path: dir.path().join("vsock.host"), port: 1024 };
        let log = dir.path().join("vhost-device-vsock.log");
        let error =
            || ConnectError::TimedOut { address: address.clone(), limit: CONNECT_TIMEOUT }.to_string();
        std::fs::write(&log, "").unwrap();
        assert!(error().ends_with("no answer within 30000 ms"), "{}", error());
        std::fs::write(&log, "thread panicked").unwrap();
        assert!(error().ends_with(&format!("30000 ms; see {}", log.display())), "{}", error());
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
    async fn the_other_ends_process_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let _listener = UnixListener::bind(&path).unwrap();
        let (_stream, peer) = connect_peer(&Address::Unix(path), CONNECT_TIMEOUT).await.unwrap();
        let me = std::process::id();
        assert_eq!(peer, process(i32::try_from(me).unwrap()));
        assert!(peer.unwrap().starts_with(&format!("{me}@")));
        assert_eq!(process(-1), None);
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
