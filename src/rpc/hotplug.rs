//! OnlineCPUMem, MemHotplugByProbe, AddSwap and AddSwapPath.

use nakai_protocols::agent::{
    AddSwapPathRequest, AddSwapRequest, MemHotplugByProbeRequest, OnlineCPUMemRequest,
};
use nakai_protocols::empty::Empty;

use super::{Agent, Answer};
use crate::device::Address;
use crate::device::pci::PciPath;
use crate::ids::GuestPath;
use crate::sandbox::{Grow, Swap};

pub(super) async fn online(agent: &Agent, request: OnlineCPUMemRequest) -> Answer<Empty> {
    let grow = Grow { cpus: request.nb_cpus, cpu_only: request.cpu_only, wait: request.wait };
    agent.sandbox().await?.grow(grow).await?;
    Ok(Empty::new())
}

pub(super) async fn probe_memory(agent: &Agent, request: MemHotplugByProbeRequest) -> Answer<Empty> {
    agent.sandbox().await?.probe_memory(request.memHotplugProbeAddr).await?;
    Ok(Empty::new())
}

pub(super) async fn add_swap(agent: &Agent, request: AddSwapRequest) -> Answer<Empty> {
    let path = PciPath::from_slots(&request.PCIPath).map_err(crate::device::DeviceError::from)?;
    agent.sandbox().await?.add_swap(Swap::Device(Address::Pci(path))).await?;
    Ok(Empty::new())
}

pub(super) async fn add_swap_path(agent: &Agent, request: AddSwapPathRequest) -> Answer<Empty> {
    let path = GuestPath::try_from(request.path.as_str())?;
    // A device may still have to come.
    let swap = if path.as_path().starts_with("/dev") {
        Swap::Device(Address::parse("mmioblk", &request.path)?)
    } else {
        Swap::File(path)
    };
    agent.sandbox().await?.add_swap(swap).await?;
    Ok(Empty::new())
}
