//! RemoveStaleVirtiofsShareMounts: a look at every mount of the host's share.
//!
//! The look makes the guest's kernel ask the host about the inode, so that virtiofsd closes what it held open for a
//! file that is gone (as the host removes or renames what it shares). Whether it succeeds does not matter.
//!
//! A share whose host does not answer holds whoever looks at it. So the looks are one thread's, callers wait for it
//! for [`PATIENCE`] only, and as long as it is held no other look begins.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use slog::warn;

use super::Sandbox;
use crate::guest::{kata_dir, mountinfo};

/// How long a caller waits for a share that does not answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whether a look is under way.
#[derive(Debug, Default)]
pub(super) struct Looking(AtomicBool);

impl Sandbox {
    /// Looks at every mount of the host's share.
    pub async fn look_at_shares(&self) {
        let sandbox = self.clone();
        if sandbox.inner.looking.0.swap(true, Ordering::AcqRel) {
            warn!(self.environment().logger, "a look at the shares is still under way");
            return;
        }
        let looks = tokio::task::spawn_blocking(move || {
            let environment = sandbox.environment();
            let mut shares = environment.storages.mount_points();
            shares.retain(|point| kata_dir::of_user(point).is_some());
            shares.push(environment.config.kata_dir.join("shared/containers"));
            let looked = shares.iter().try_for_each(|share| look(share));
            sandbox.inner.looking.0.store(false, Ordering::Release);
            looked
        });
        match tokio::time::timeout(PATIENCE, looks).await {
            Ok(Ok(Err(error))) => {
                warn!(self.environment().logger, "shares not looked at"; "error" => %error);
            }
            Ok(_) => {}
            Err(_) => {
                warn!(self.environment().logger, "a share does not answer"; "after" => ?PATIENCE);
            }
        }
    }
}

/// Looks at the mount points at and beneath `directory`.
fn look(directory: &Path) -> std::io::Result<()> {
    for mount in mountinfo::mounts_beneath(directory)? {
        let _gone_or_not = std::fs::metadata(mount.mount_point);
    }
    Ok(())
}
