//! Waiting for a device: look, help it along, and look again whenever the kernel says that something
//! happened.
//!
//! The order matters. Listening starts before the first look, so a device that comes right after it is not
//! missed. Scanning the buses goes on beside the waiting, because it may take long; when it is done everybody
//! who waits looks.

use std::fmt;
use std::sync::Arc;

use tokio::time::sleep;

use super::request::Address;
use super::rescan;
use super::sysfs::{Found, Tree};
use super::uevent::{Action, Notice, Subscription, Uevent};
use super::{DeviceError, Inner};

/// Something that may appear. Everything but [`Target::is_cue`] may block.
pub(super) trait Target: Clone + fmt::Display + Send + Sync + 'static {
    /// What it is when it is there.
    type Found: Send + 'static;

    /// What it is called, for messages.
    fn what(&self) -> &'static str;

    /// Looks for it.
    fn look(&self, tree: &Tree) -> Result<Option<Self::Found>, DeviceError>;

    /// Whether the event may be about it.
    fn is_cue(&self, event: &Uevent) -> bool;

    /// Does what may bring it to light.
    fn help(&self, inner: &Inner);

    /// What there is instead, for an error message.
    fn surroundings(&self, tree: &Tree) -> String;
}

impl Target for Address {
    type Found = Found;

    fn what(&self) -> &'static str {
        "block device"
    }

    fn look(&self, tree: &Tree) -> Result<Option<Found>, DeviceError> {
        tree.look(self)
    }

    fn is_cue(&self, event: &Uevent) -> bool {
        event.subsystem == "block" && event.action != Action::Remove
    }

    fn help(&self, inner: &Inner) {
        rescan::rescan(inner.tree.sys(), self, &*inner.drivers, &inner.log);
    }

    fn surroundings(&self, tree: &Tree) -> String {
        tree.surroundings(self)
    }
}

/// The target, as soon as it is there.
pub(super) async fn wait_for<T: Target>(inner: &Arc<Inner>, target: &T) -> Result<T::Found, DeviceError> {
    let mut notices = inner.uevents.subscribe();
    // The limit of the wait for events below.
    let expiry = sleep(inner.hotplug_timeout);
    tokio::pin!(expiry);
    if let Some(found) = blocking(inner, target, |target, inner| target.look(&inner.tree)).await?? {
        return Ok(found);
    }
    start_help(inner, target);
    let mut in_time = true;
    while in_time {
        in_time = tokio::select! {
            () = &mut expiry => false,
            () = next_cue(&mut notices, target) => true,
        };
        if let Some(found) = blocking(inner, target, |target, inner| target.look(&inner.tree)).await?? {
            return Ok(found);
        }
    }
    let timeout = inner.hotplug_timeout;
    let there = blocking(inner, target, |target, inner| target.surroundings(&inner.tree)).await?;
    Err(DeviceError::Timeout { what: target.what(), wanted: target.to_string(), timeout, there })
}

/// The next notice that may be about the target.
async fn next_cue<T: Target>(notices: &mut Subscription, target: &T) {
    loop {
        match notices.next().await {
            Notice::Look | Notice::Scanned => return,
            Notice::Event(event) if target.is_cue(&event) => return,
            Notice::Event(_) => {}
        }
    }
}

fn start_help<T: Target>(inner: &Arc<Inner>, target: &T) {
    let (inner, target) = (Arc::clone(inner), target.clone());
    tokio::task::spawn_blocking(move || {
        target.help(&inner);
        inner.uevents.publish(Notice::Scanned);
    });
}

/// Does what blocks off the runtime.
pub(super) async fn blocking<T: Target, R: Send + 'static>(
    inner: &Arc<Inner>,
    target: &T,
    work: impl FnOnce(&T, &Inner) -> R + Send + 'static,
) -> Result<R, DeviceError> {
    let (inner, wanted) = (Arc::clone(inner), target.clone());
    let joined = tokio::task::spawn_blocking(move || work(&wanted, &inner)).await;
    joined.map_err(|error| DeviceError::CutShort { wanted: target.to_string(), reason: error.to_string() })
}
