//! What ends a supervisor.

use nix::errno::Errno;

use super::channel::ChannelError;

/// Why the supervisor could not be set up, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    /// Signals could not be routed to a descriptor.
    #[error("route signals to a descriptor")]
    Signals(#[source] Errno),
    /// There is no server.
    #[error("fork the server")]
    ForkServer(#[source] Errno),
    /// poll(2) failed.
    #[error("wait for signals and messages")]
    Poll(#[source] Errno),
    /// waitid(2) failed.
    #[error("wait for children")]
    Wait(#[source] Errno),
    /// The channel could not be made or used.
    #[error(transparent)]
    Channel(#[from] ChannelError),
}
