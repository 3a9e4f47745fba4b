//! How requests wait for each other.

use std::sync::Arc;
use std::time::Duration;

use slog::{Discard, Logger, o};

use super::Networking;
use crate::device::{Devices, Drivers};

struct NoDrivers;

impl Drivers for NoDrivers {
    fn load(&self, _: &str) -> Result<(), String> {
        Ok(())
    }
}

/// The pool's threads are for containers' work too.
#[test]
fn a_request_that_waits_for_another_holds_no_thread() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(1).build();
    runtime.unwrap().block_on(async {
        let log = || Logger::root(Discard, o!());
        let devices = Devices::start(Duration::from_millis(10), Arc::new(NoDrivers), log());
        let networking = Networking::new(devices, log());
        let another = networking.inner.claimed.clone().lock_owned().await;
        let waiting = tokio::spawn(async move { networking.routes().await });
        tokio::task::yield_now().await;
        let work = tokio::task::spawn_blocking(|| "done");
        let done = tokio::time::timeout(Duration::from_secs(60), work).await;
        drop(another);
        assert_eq!(done.expect("the only thread waits").unwrap(), "done");
        waiting.await.unwrap().unwrap();
    });
}
