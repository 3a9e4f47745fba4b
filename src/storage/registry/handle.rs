//! A user's hold on a storage.

use std::fmt;
use std::sync::Arc;

use slog::warn;
use tokio::sync::watch;

use super::{Inner, LetGo, Phase, StorageError};
use crate::ids::GuestPath;

/// One user's hold on a storage. Dropping it is [`undo`](Self::undo) in the background.
#[must_use = "a storage is detached when its handle is dropped"]
pub struct StorageHandle {
    pub(super) inner: Arc<Inner>,
    pub(super) mount_point: GuestPath,
    pub(super) serial: u64,
    pub(super) phase: watch::Receiver<Phase>,
    pub(super) held: bool,
}

impl fmt::Debug for StorageHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StorageHandle").field("mount_point", &self.mount_point).finish_non_exhaustive()
    }
}

impl StorageHandle {
    /// Where the storage is mounted.
    pub fn mount_point(&self) -> &GuestPath {
        &self.mount_point
    }

    /// Lets go of the storage after use. The last user's release unmounts it and removes the directory if it
    /// was made for it, unless the storage lives as long as the sandbox (`shared`, and the drivers
    /// `ephemeral` and `local`). Once polled, the work goes on even if the future is dropped, and what outlives its users
    /// stays.
    ///
    /// # Errors
    ///
    /// What could not be taken down. A mount that is busy stays registered: the next user finds it, and
    /// [`Storages::release_all`](super::Storages::release_all) tries again.
    pub async fn release(self) -> Result<(), StorageError> {
        self.let_go(LetGo::Release).await
    }

    /// Takes the attach back, because what it was for did not come about. Unlike [`release`](Self::release)
    /// it also takes down a storage that would live as long as the sandbox, if no other user has or had it.
    ///
    /// # Errors
    ///
    /// As for [`release`](Self::release).
    pub async fn undo(self) -> Result<(), StorageError> {
        self.let_go(LetGo::Undo).await
    }

    async fn let_go(mut self, how: LetGo) -> Result<(), StorageError> {
        if how == LetGo::Release {
            self.inner.note_used(&self.mount_point, self.serial).await?;
        }
        self.held = false;
        match self.inner.let_go(&self.mount_point, self.serial, how) {
            Some(attachment) => {
                let inner = Arc::clone(&self.inner);
                inner.detach_in_task(self.mount_point.clone(), self.serial, attachment).await
            }
            None => Ok(()),
        }
    }

    /// Waits until the storage is mounted, by whomever.
    pub(super) async fn ready(mut self) -> Result<Self, StorageError> {
        let mount_point = self.mount_point.as_path().to_owned();
        let phase = match self.phase.wait_for(|phase| !matches!(phase, Phase::Mounting)).await {
            Ok(phase) => phase.clone(),
            Err(_) => Phase::Gone,
        };
        match phase {
            Phase::Ready => Ok(self),
            Phase::Failed(error) => Err(error),
            Phase::Mounting | Phase::Detaching | Phase::Gone => Err(StorageError::Released { mount_point }),
        }
    }
}

impl Drop for StorageHandle {
    fn drop(&mut self) {
        if !std::mem::take(&mut self.held) {
            return;
        }
        // Without a runtime the agent is on its way out: containers live on, and so do their storages.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let Some(attachment) = self.inner.let_go(&self.mount_point, self.serial, LetGo::Undo) else { return };
        let (inner, point, serial) = (Arc::clone(&self.inner), self.mount_point.clone(), self.serial);
        runtime.spawn(async move {
            if let Err(error) = inner.detach(&point, serial, attachment).await {
                warn!(inner.log, "a storage stays"; "mount_point" => %point, "cause" => %error);
            }
        });
    }
}
