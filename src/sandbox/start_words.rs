//! What an init says of its startContainer hooks, which it runs when it has been let go: see `worker::start_hooks`.

use std::io;

use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::{OpenOptions, Receiver};

use super::error::SandboxError;
use crate::ids::ContainerId;
use crate::supervisor::client::LaunchError;
use crate::worker::job::{Failure, start_words};

/// More than a [`Failure`] that is brief has.
const MAX_WORDS: u64 = 16 << 10;

/// The server's end.
pub(super) struct StartWords(Receiver);

impl StartWords {
    /// To be called before init is let go: else its end could not be told from there being none. Nothing if it has no
    /// such hooks.
    pub(super) fn listen(
        state_root: &std::path::Path,
        id: &ContainerId,
    ) -> Result<Option<Self>, SandboxError> {
        let path = start_words(state_root, id.as_str());
        match OpenOptions::new().open_receiver(&path) {
            Ok(receiver) => Ok(Some(Self(receiver))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(SandboxError::file("open", &path)(error)),
        }
    }

    /// Waits until the hooks have run.
    pub(super) async fn end(self, id: &ContainerId) -> Result<(), SandboxError> {
        let mut words = Vec::new();
        let read = self.0.take(MAX_WORDS).read_to_end(&mut words).await;
        let source = match read {
            Ok(0) => return Ok(()),
            Ok(_) => serde_json::from_slice::<Failure>(&words)
                .map_or_else(LaunchError::Garbled, LaunchError::Failed),
            Err(source) => LaunchError::HandOver { step: "hear of its hooks", source },
        };
        Err(SandboxError::Launch { what: format!("start container {id}"), source })
    }
}
