//! What a sandbox sees of its storages, on the [recording guest](super::testing).

mod drivers;
mod lifetime;
mod recovery;
mod words;

use std::sync::Arc;
use std::time::Duration;

use nakai_protocols::agent;

use super::testing::FakeGuest;
use super::*;
use crate::ids::ContainerId;

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(60);

/// Runs a test on a runtime like the server's.
fn run<F: Future<Output = ()>>(test: impl FnOnce(Arc<FakeGuest>, Storages) -> F) {
    let guest = FakeGuest::new();
    let storages = guest.storages();
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(test(guest, storages));
}

async fn attach(storages: &Storages, wire: &agent::Storage) -> Result<StorageHandle, StorageError> {
    let container = ContainerId::try_from("c1").unwrap();
    storages.attach(StorageRequest::try_from(wire)?, Some(&container)).await
}

async fn refused(storages: &Storages, wire: &agent::Storage) -> String {
    let message = attach(storages, wire).await.expect_err("it was attached").to_string();
    assert!(!message.contains('\n'), "{message}");
    message
}
