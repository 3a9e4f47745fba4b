//! Where the sources of storages come from: block devices are found as devices are, images come from the hub.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::Cause;
use super::hub::Hub;
use super::ops::BlockLookup;
use crate::device::{Address, DeviceError, Devices};

/// The guest's devices and its hub.
#[derive(Debug)]
pub struct Lookup {
    devices: Devices,
    hub: Hub,
}

impl Lookup {
    /// Looks there.
    pub fn new(devices: Devices, hub: Hub) -> Self {
        Self { devices, hub }
    }
}

#[async_trait::async_trait]
impl BlockLookup for Lookup {
    async fn find_block(&self, driver: &'static str, address: &str) -> Result<PathBuf, Cause> {
        let cause = |error: DeviceError| -> Cause { Arc::new(error) };
        let address = Address::parse(driver, address).map_err(cause)?;
        self.devices.find_block(&address).await.map_err(cause)
    }

    async fn pull_image(&self, image: &str, bundle: &Path) -> Result<(), Cause> {
        self.hub.pull(image, bundle).await.map_err(|error| -> Cause { Arc::new(error) })
    }
}
