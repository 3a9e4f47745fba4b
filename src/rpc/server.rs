//! The listening socket and the services behind it.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::sync::Arc;
use std::time::Duration;

use nakai_protocols::agent_ttrpc::AgentService;
use nix::errno::Errno;
use slog::{Logger, warn};
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, watch};
use tokio::task::coop::consume_budget;
use tokio::task::{JoinHandle, JoinSet};

use super::connection::{self, Router};
use super::{Agent, HealthService, listener};
use crate::config::ServerAddress;
use crate::journal::{Journal, LeftLine, Line};
use crate::supervisor::client::{Hold, Launcher};

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

/// What the server leaves to the next one, and has from the one before it.
#[derive(Debug)]
pub struct Continuity {
    /// Where calls and connections are noted.
    pub journal: Arc<Journal>,
    /// Has them held.
    pub launcher: Launcher,
    /// The socket that the one before it listened on.
    pub listener: Option<OwnedFd>,
    /// Its connections.
    pub connections: Vec<(OwnedFd, Hold, LeftLine)>,
    /// What it said when it panicked.
    pub panic: Option<String>,
}

/// The listening server.
#[derive(Debug)]
pub struct Server {
    stop: watch::Sender<bool>,
    accepting: JoinHandle<()>,
    called: Arc<Notify>,
}

impl Server {
    /// Listens on `address`, or goes on with the socket and the connections of an earlier server's, and serves `agent`
    /// there, behind its policy or not, and Health; `effects` is the same agent without policy. Returns a duplicate
    /// of a socket that is new, for the next server.
    ///
    /// # Errors
    /// When the address can't be bound.
    pub fn start(
        address: &ServerAddress,
        continuity: Continuity,
        agent: impl AgentService + Send + 'static,
        effects: Agent,
    ) -> Result<(Self, Option<OwnedFd>), ServeError> {
        let failed = |source| ServeError::Listen { address: address.to_string(), source };
        let Continuity { journal, launcher, listener, connections, panic } = continuity;
        let (socket, duplicate) = match listener {
            Some(socket) => (socket, None),
            None => {
                remove_stale_socket(address);
                let socket = listener::bind(address).map_err(|errno| failed(errno.into()))?;
                let duplicate = socket.try_clone().ok();
                (socket, duplicate)
            }
        };
        let listener = listener::register(socket).map_err(failed)?;
        let logger = effects.logger.clone();
        let router =
            Arc::new(Router::new(Arc::new(HealthService), Arc::new(agent), Arc::new(effects), panic));
        let called = router.called.clone();
        let (stop, stopped) = watch::channel(false);
        let is_for_all = address.is_for_this_machine();
        let connections_now = JoinSet::new();
        let serving =
            Serving { router, journal, launcher, logger, stopped, is_for_all, connections: connections_now };
        let accepting = tokio::spawn(serving.accept(listener, connections));
        Ok((Self { stop, accepting, called }, duplicate))
    }

    /// Waits until a call has been answered, or waits for something itself; for `limit` at most.
    pub async fn first_call(&self, limit: Duration) {
        let _ = tokio::time::timeout(limit, self.called.notified()).await;
    }

    /// Stops listening and lets the answers under way leave.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        if tokio::time::timeout(FAREWELL, &mut self.accepting).await.is_err() {
            self.accepting.abort();
        }
    }
}

/// What serves the connections.
struct Serving {
    router: Arc<Router>,
    journal: Arc<Journal>,
    launcher: Launcher,
    logger: Logger,
    stopped: watch::Receiver<bool>,
    /// The guest's own processes may connect, too.
    is_for_all: bool,
    connections: JoinSet<()>,
}

impl Serving {
    /// Goes on with connections, and accepts more, until it is told to stop. Then it waits for them.
    async fn accept(mut self, listener: AsyncFd<OwnedFd>, left: Vec<(OwnedFd, Hold, LeftLine)>) {
        for (connection, hold, line) in left {
            self.serve(connection, hold, line);
        }
        let mut stop = self.stopped.clone();
        loop {
            let ready = tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => break,
                Some(_) = self.connections.join_next(), if !self.connections.is_empty() => continue,
                ready = listener.readable() => ready,
            };
            let Ok(mut ready) = ready else { break };
            match listener::accept(listener.get_ref(), self.is_for_all) {
                Ok(connection) => self.begin(connection),
                Err(Errno::EAGAIN) => ready.clear_ready(),
                Err(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::ENOBUFS) => {
                    // The connection stays in the queue, so the socket stays readable, and nothing tells when there
                    // is room again.
                    tokio::time::sleep(NO_DESCRIPTORS).await;
                }
                // The peer has gone already, or is not heard here.
                Err(Errno::ECONNABORTED | Errno::ECONNREFUSED | Errno::EINTR) => consume_budget().await,
                Err(_) => tokio::time::sleep(NO_DESCRIPTORS).await,
            }
        }
        drop(listener);
        while self.connections.join_next().await.is_some() {}
    }

    /// Serves a new connection. One that can't be held ends with this server.
    fn begin(&mut self, connection: OwnedFd) {
        let line = match Line::open(&self.journal) {
            Ok(line) => line,
            Err(error) => {
                warn!(self.logger, "a connection is closed: it can't be noted"; "error" => %error);
                return;
            }
        };
        let duplicate = connection.try_clone().ok().filter(|_| Arc::ptr_eq(line.journal(), &self.journal));
        let hold = duplicate.map(|fd| self.launcher.hold_connection(line.number(), fd));
        self.serve(connection, hold, LeftLine::new(line));
    }

    fn serve(&mut self, connection: OwnedFd, hold: impl Into<Option<Hold>>, line: LeftLine) {
        let (router, stopped, hold) = (self.router.clone(), self.stopped.clone(), hold.into());
        self.connections.spawn(async move {
            connection::serve(connection, line, router, stopped).await;
            drop(hold);
        });
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
