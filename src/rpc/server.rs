//! The listening socket and the services behind it.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::sync::Arc;
use std::time::Duration;

use nakai_protocols::agent_ttrpc::AgentService;
use nix::errno::Errno;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use super::connection::{self, Router};
use super::{HealthService, listener};
use crate::config::ServerAddress;

/// How long the last answers may take to leave when the server stops.
const FAREWELL: Duration = Duration::from_secs(2);
/// How long to wait when descriptors are used up: nobody tells when there are some again.
const NO_DESCRIPTORS: Duration = Duration::from_millis(100);

/// Why the server could not listen.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address could not be bound.
    #[error("listen on {address}: {source}")]
    Listen {
        /// Where.
        address: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// The listening server.
#[derive(Debug)]
pub struct Server {
    stop: watch::Sender<bool>,
    accepting: JoinHandle<()>,
}

impl Server {
    /// Listens on `address`, or goes on listening on the socket that an earlier server `left`, and serves `agent`,
    /// behind its policy or not, and Health there. Returns a duplicate of a socket that is new, for the next server.
    ///
    /// # Errors
    /// When the address can't be bound.
    pub fn start(
        address: &ServerAddress,
        left: Option<OwnedFd>,
        agent: impl AgentService + Send + 'static,
    ) -> Result<(Self, Option<OwnedFd>), ServeError> {
        let failed = |source| ServeError::Listen { address: address.to_string(), source };
        let (socket, duplicate) = match left {
            Some(socket) => (socket, None),
            None => {
                remove_stale_socket(address);
                let socket = listener::bind(address).map_err(|errno| failed(errno.into()))?;
                let duplicate = socket.try_clone().ok();
                (socket, duplicate)
            }
        };
        let listener = listener::register(socket).map_err(failed)?;
        let router = Arc::new(Router::new(Arc::new(HealthService), Arc::new(agent)));
        let (stop, stopped) = watch::channel(false);
        let accepting = tokio::spawn(accept(listener, router, stopped));
        Ok((Self { stop, accepting }, duplicate))
    }

    /// Stops listening and lets the answers under way leave.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        if tokio::time::timeout(FAREWELL, &mut self.accepting).await.is_err() {
            self.accepting.abort();
        }
    }
}

/// Accepts connections until it is told to stop, then waits for them.
async fn accept(listener: AsyncFd<OwnedFd>, router: Arc<Router>, stopped: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    let mut stop = stopped.clone();
    loop {
        let ready = tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            ready = listener.readable() => ready,
        };
        let Ok(mut ready) = ready else { break };
        match listener::accept(listener.get_ref()) {
            Ok(connection) => {
                connections.spawn(connection::serve(connection, router.clone(), stopped.clone()));
            }
            Err(Errno::EAGAIN) => ready.clear_ready(),
            Err(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::ENOBUFS) => {
                // The connection stays in the queue, so the socket stays readable, and nothing tells when there is room again.
                tokio::time::sleep(NO_DESCRIPTORS).await;
            }
            // The peer has gone already.
            Err(_) => {}
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// A socket file that an earlier agent left, and on which nobody listens, is in the way of bind(2).
fn remove_stale_socket(address: &ServerAddress) {
    let ServerAddress::Unix(path) = address else { return };
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket());
    if is_socket && std::os::unix::net::UnixStream::connect(path).is_err() {
        let _ = std::fs::remove_file(path);
    }
}
