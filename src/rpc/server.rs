//! The listening socket and the services behind it.

use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::sync::Arc;
use std::time::Duration;

use nakai_protocols::agent_ttrpc::{AgentService, create_agent_service};
use nakai_protocols::health_ttrpc::create_health;

use super::{HealthService, listener};
use crate::config::ServerAddress;

/// How long the last answers may take to leave when the server stops.
const FAREWELL: Duration = Duration::from_secs(2);

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
        source: ttrpc::Error,
    },
}

/// The listening server.
#[expect(missing_debug_implementations, reason = "ttrpc's server has none")]
pub struct Server {
    server: ttrpc::r#async::Server,
}

impl Server {
    /// Listens on `address`, or goes on listening on the socket that an earlier server `left`, and serves `agent`,
    /// behind its policy or not, and Health there. Returns a duplicate of a socket that is new, for the next server.
    ///
    /// # Errors
    /// When the address can't be bound.
    pub async fn start(
        address: &ServerAddress,
        left: Option<OwnedFd>,
        agent: impl AgentService + Send + 'static,
    ) -> Result<(Self, Option<OwnedFd>), ServeError> {
        let failed = |source| ServeError::Listen { address: address.to_string(), source };
        let (socket, duplicate) = match left {
            Some(socket) => (socket, None),
            None => {
                remove_stale_socket(address);
                let bound = listener::bind(address);
                let socket = bound.map_err(|error| failed(ttrpc::Error::Others(error.to_string())))?;
                let duplicate = socket.try_clone().ok();
                (socket, duplicate)
            }
        };
        let mut server = listener::listen(ttrpc::r#async::Server::new(), address, socket)
            .map_err(failed)?
            .register_service(create_health(Arc::new(HealthService)))
            .register_service(create_agent_service(Arc::new(agent)));
        server.start().await.map_err(failed)?;
        Ok((Self { server }, duplicate))
    }

    /// Stops listening and lets the answers under way leave.
    pub async fn stop(mut self) {
        let _ = tokio::time::timeout(FAREWELL, self.server.shutdown()).await;
    }
}

/// A socket file that an earlier agent left, and on which nobody listens, is in the way of bind(2).
fn remove_stale_socket(address: &ServerAddress) {
    let ServerAddress::Unix(path) = address else { return };
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket());
    if is_socket && std::os::unix::net::UnixStream::connect(path).is_err() {
        let _ = std::fs::remove_file(path);
    }
}
