//! Streams as connections of their own, beside the calls.
//!
//! With `passfd_listener_port` set the agent listens on that port, too. The host connects once for each stream, and
//! names the ports of *its* ends in CreateContainer or ExecProcess (`stdin_port` and so on). Connections wait here
//! until a call names them. What is moved over them is the business of `sandbox`.
//!
//! | `server_addr` | the listener | the port of a connection |
//! |---|---|---|
//! | `vsock://CID:PORT` | the same CID, `passfd_listener_port` | of the peer's address |
//! | `unix://PATH` | `PATH_<port>` | the number behind the last `_` of the peer's own name |
//! | `unix://@NAME` | `@NAME_<port>` | the same |
//!
//! Owns the listening socket. A connection that nobody asks for is closed when `MAX_WAITING` others have come
//! after it, so that a host can't use up the descriptors.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net as std_unix;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::socket::{UnixAddr, getpeername};
use slog::{Logger, debug, warn};
use tokio::net::UnixListener;
use tokio::sync::Notify;
use tokio_vsock::{VsockAddr, VsockListener};

use super::StreamName;
use crate::config::ServerAddress;
use crate::vsock;

/// How many connections wait for a call that names them.
const MAX_WAITING: usize = 256;

/// How long a call waits for a connection that it names: the host has made it before.
const PATIENCE: Duration = Duration::from_secs(3);

/// How long nothing is accepted when the descriptors are used up.
const RECOVERY: Duration = Duration::from_millis(100);

/// A connection of the host's, non-blocking.
pub type Connection = OwnedFd;

/// The ports that a call names; 0 names none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StreamPorts {
    /// Where standard input comes from.
    pub stdin: u32,
    /// Where standard output goes, or what a terminal shows.
    pub stdout: u32,
    /// Where standard error goes.
    pub stderr: u32,
}

/// The connections behind [`StreamPorts`].
#[derive(Debug, Default)]
pub struct StreamConnections {
    /// Where standard input comes from.
    pub stdin: Option<Connection>,
    /// Where standard output goes, or what a terminal shows.
    pub stdout: Option<Connection>,
    /// Where standard error goes.
    pub stderr: Option<Connection>,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// Nobody listens for any.
    #[error("{stream}_port is {port}, but passfd_listener_port is not set")]
    Off {
        /// Which stream.
        stream: StreamName,
        /// What was named.
        port: u32,
    },
    /// It has not come.
    #[error("{stream}_port is {port}, but no connection has come from there within {} s", PATIENCE.as_secs())]
    Missing {
        /// Which stream.
        stream: StreamName,
        /// What was named.
        port: u32,
    },
}

/// The listener, and the connections that wait.
pub struct Ports {
    waiting: Mutex<VecDeque<(u32, Connection)>>,
    came: Notify,
}

impl fmt::Debug for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ports").finish_non_exhaustive()
    }
}

enum Listener {
    Vsock(VsockListener),
    Unix(UnixListener),
}

impl Ports {
    /// Waits for connections to a socket that listens beside the server at `address`, see [`bind`].
    ///
    /// # Errors
    /// When it can't be put into the event loop.
    pub fn accept(address: &ServerAddress, listener: OwnedFd, logger: Logger) -> io::Result<Arc<Self>> {
        let listener = Listener::of(address, listener)?;
        let ports = Arc::new(Self { waiting: Mutex::default(), came: Notify::new() });
        let accepting = accept(listener, address.is_for_this_machine(), ports.clone(), logger);
        tokio::spawn(accepting);
        Ok(ports)
    }

    fn put(&self, port: u32, connection: Connection) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        // The kernel gives no port twice: an earlier one is dead.
        waiting.retain(|(other, _)| *other != port);
        if waiting.len() >= MAX_WAITING {
            waiting.pop_front();
        }
        waiting.push_back((port, connection));
        drop(waiting);
        self.came.notify_waiters();
    }

    fn try_take(&self, port: u32) -> Option<Connection> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let place = waiting.iter().position(|(other, _)| *other == port)?;
        waiting.remove(place).map(|(_, connection)| connection)
    }

    async fn take(&self, stream: StreamName, port: u32) -> Result<Connection, PortError> {
        let arrival = async {
            loop {
                let came = self.came.notified();
                if let Some(connection) = self.try_take(port) {
                    return connection;
                }
                came.await;
            }
        };
        tokio::time::timeout(PATIENCE, arrival).await.map_err(|_| PortError::Missing { stream, port })
    }
}

/// Takes the connections that `wanted` names out of `ports`; waits a while for those that have not come yet.
///
/// # Errors
/// [`PortError`]. Those that were there are closed then.
pub async fn take(ports: Option<&Ports>, wanted: StreamPorts) -> Result<StreamConnections, PortError> {
    let take = async |stream: StreamName, port: u32| match (port, ports) {
        (0, _) => Ok(None),
        (port, None) => Err(PortError::Off { stream, port }),
        (port, Some(ports)) => ports.take(stream, port).await.map(Some),
    };
    Ok(StreamConnections {
        stdin: take(StreamName::Stdin, wanted.stdin).await?,
        stdout: take(StreamName::Stdout, wanted.stdout).await?,
        stderr: take(StreamName::Stderr, wanted.stderr).await?,
    })
}

/// A socket that listens on `port` beside the server at `address`.
///
/// # Errors
/// When that can't be bound.
pub fn bind(address: &ServerAddress, port: u32) -> io::Result<OwnedFd> {
    let listener = match address {
        ServerAddress::Vsock { cid, .. } => {
            return VsockListener::bind(VsockAddr::new(*cid, port))?.as_fd().try_clone_to_owned();
        }
        ServerAddress::Unix(path) => {
            let mut path = path.clone().into_os_string();
            path.push(format!("_{port}"));
            let path = PathBuf::from(path);
            // An earlier agent's, on which nobody listens.
            if std_unix::UnixStream::connect(&path).is_err() {
                let _ = std::fs::remove_file(&path);
            }
            std_unix::UnixListener::bind(path)?
        }
        ServerAddress::UnixAbstract(name) => {
            let address = std_unix::SocketAddr::from_abstract_name(format!("{name}_{port}"))?;
            std_unix::UnixListener::bind_addr(&address)?
        }
    };
    Ok(listener.into())
}

async fn accept(listener: Listener, is_for_all: bool, ports: Arc<Ports>, logger: Logger) {
    loop {
        match listener.accept(is_for_all).await {
            Ok((Some(port), connection)) => {
                debug!(logger, "a connection for a stream"; "port" => port);
                ports.put(port, connection);
            }
            Ok((None, _)) => warn!(logger, "a connection for a stream without a port is closed"),
            Err(error) => {
                warn!(logger, "no connection for a stream can be accepted"; "error" => %error);
                // It stays in the queue, and no event tells of memory or descriptors.
                tokio::time::sleep(RECOVERY).await;
            }
        }
    }
}

impl Listener {
    fn of(address: &ServerAddress, listener: OwnedFd) -> io::Result<Self> {
        if let ServerAddress::Vsock { .. } = address {
            return Ok(Self::Vsock(VsockListener::from(listener)));
        }
        let listener = std_unix::UnixListener::from(listener);
        listener.set_nonblocking(true)?;
        UnixListener::from_std(listener).map(Self::Unix)
    }

    /// The next connection; of others than the host only if it is for all.
    async fn accept(&self, is_for_all: bool) -> io::Result<(Option<u32>, Connection)> {
        Ok(match self {
            Self::Vsock(listener) => loop {
                let (stream, peer) = listener.accept().await?;
                if is_for_all || vsock::is_the_host(peer.cid()) {
                    break (Some(peer.port()), stream.into());
                }
            },
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                // mio does not tell abstract names.
                let peer: UnixAddr = getpeername(stream.as_raw_fd())?;
                (port_of(&peer), stream.into_std()?.into())
            }
        })
    }
}

fn port_of(peer: &UnixAddr) -> Option<u32> {
    let path = peer.path().map(|path| path.as_os_str().as_encoded_bytes());
    let name = path.or_else(|| peer.as_abstract())?;
    let (_, port) = std::str::from_utf8(name).ok()?.rsplit_once('_')?;
    port.parse().ok().filter(|port| *port != 0)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{UnixSocket, UnixStream};

    use super::*;

    fn listen() -> (String, Arc<Ports>) {
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let count = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let name = format!("nakai-ports-{}-{count}", std::process::id());
        let logger = Logger::root(slog::Discard, slog::o!());
        let address = ServerAddress::UnixAbstract(name.clone());
        let ports = Ports::accept(&address, bind(&address, 1027).unwrap(), logger).unwrap();
        (name, ports)
    }

    async fn connect(name: &str, port: u32) -> UnixStream {
        let socket = UnixSocket::new_stream().unwrap();
        socket.bind(format!("\0{name}-peer_{port}")).unwrap();
        socket.connect(format!("\0{name}_1027")).await.unwrap()
    }

    #[tokio::test]
    async fn a_connection_is_found_by_its_port_whenever_it_comes() {
        let (name, ports) = listen();
        let mut early = connect(&name, 7).await;
        early.write_all(b"x").await.unwrap();
        let wanted = StreamPorts { stdin: 7, stdout: 8, stderr: 0 };
        let (taken, _late) = tokio::join!(take(Some(&ports), wanted), connect(&name, 8));
        let taken = taken.unwrap();
        assert!(taken.stdout.is_some() && taken.stderr.is_none());
        let stdin = std_unix::UnixStream::from(taken.stdin.unwrap());
        assert_eq!(UnixStream::from_std(stdin).unwrap().read_u8().await.unwrap(), b'x');
        assert!(ports.try_take(7).is_none(), "it is handed out once");
    }

    #[tokio::test]
    async fn without_a_listener_a_port_is_refused_and_none_is_fine() {
        assert!(take(None, StreamPorts::default()).await.unwrap().stdin.is_none());
        let error = take(None, StreamPorts { stderr: 9, ..Default::default() }).await.err().unwrap();
        assert_eq!(error.to_string(), "stderr_port is 9, but passfd_listener_port is not set");
    }

    #[tokio::test]
    async fn those_that_nobody_wants_make_room() {
        let (name, ports) = listen();
        let mut peers = Vec::new();
        for port in 1..=u32::try_from(MAX_WAITING).unwrap() + 1 {
            peers.push(connect(&name, port).await);
            // The kernel's own queue is shorter.
            tokio::task::yield_now().await;
        }
        // The last one has come, so all before it have.
        take(Some(&ports), StreamPorts { stdin: 257, ..Default::default() }).await.unwrap();
        assert_eq!(peers[0].read_u8().await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert!(ports.try_take(2).is_some());
    }
}
