//! Block devices for storages, found as devices are.

use std::path::PathBuf;
use std::sync::Arc;

use super::error::Cause;
use super::ops::BlockLookup;
use crate::device::{Address, DeviceError, Devices};

#[async_trait::async_trait]
impl BlockLookup for Devices {
    async fn find_block(&self, driver: &'static str, address: &str) -> Result<PathBuf, Cause> {
        let cause = |error: DeviceError| -> Cause { Arc::new(error) };
        let address = Address::parse(driver, address).map_err(cause)?;
        Devices::find_block(self, &address).await.map_err(cause)
    }
}
