//! Waiting for a device: look, help it along, and look again whenever the kernel says that something
//! happened.
//!
//! The order matters. Listening starts before the first look, so a device that comes right after it is not
//! missed. Scanning the buses goes on beside the waiting, because it may take long; when it is done everybody
//! who waits looks.

use std::sync::Arc;

use tokio::time::sleep;

use super::request::Address;
use super::rescan;
use super::sysfs::{Found, Tree};
use super::uevent::{Action, Notice, Subscription};
use super::{DeviceError, Inner};

/// The device at the address, as soon as it is there.
pub(super) async fn wait_for(inner: &Inner, address: &Address) -> Result<Found, DeviceError> {
    let mut notices = inner.uevents.subscribe();
    let expiry = sleep(inner.hotplug_timeout);
    tokio::pin!(expiry);
    if let Some(found) = look(&inner.tree, address).await? {
        return Ok(found);
    }
    start_rescan(inner, address);
    let mut in_time = true;
    while in_time {
        in_time = tokio::select! {
            () = &mut expiry => false,
            () = next_cue(&mut notices) => true,
        };
        if let Some(found) = look(&inner.tree, address).await? {
            return Ok(found);
        }
    }
    let timeout = inner.hotplug_timeout;
    let there = blocking(&inner.tree, address, Tree::surroundings).await?;
    Err(DeviceError::Timeout { wanted: address.to_string(), timeout, there })
}

/// The next notice that may be about a disk.
async fn next_cue(notices: &mut Subscription) {
    loop {
        match notices.next().await {
            Notice::Look => return,
            Notice::Event(event) if event.subsystem == "block" && event.action != Action::Remove => return,
            Notice::Event(_) => {}
        }
    }
}

fn start_rescan(inner: &Inner, address: &Address) {
    let (tree, drivers) = (Arc::clone(&inner.tree), Arc::clone(&inner.drivers));
    let (uevents, address, log) = (inner.uevents.clone(), address.clone(), inner.log.clone());
    tokio::task::spawn_blocking(move || {
        rescan::rescan(tree.sys(), &address, &*drivers, &log);
        uevents.publish(Notice::Look);
    });
}

async fn look(tree: &Arc<Tree>, address: &Address) -> Result<Option<Found>, DeviceError> {
    blocking(tree, address, Tree::look).await?
}

/// Reads sysfs off the runtime.
async fn blocking<T: Send + 'static>(
    tree: &Arc<Tree>,
    address: &Address,
    read: fn(&Tree, &Address) -> T,
) -> Result<T, DeviceError> {
    let (tree, wanted) = (Arc::clone(tree), address.clone());
    let joined = tokio::task::spawn_blocking(move || read(&tree, &wanted)).await;
    joined.map_err(|error| DeviceError::CutShort { wanted: address.to_string(), reason: error.to_string() })
}
