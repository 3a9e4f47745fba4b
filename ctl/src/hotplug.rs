//! A guest that grows: the host's side over QMP, and the calls that tell the agent.

use nakai_protocols::agent::{
    AddSwapPathRequest, AddSwapRequest, MemHotplugByProbeRequest, OnlineCPUMemRequest,
};
use serde_json::{Value, json};

use crate::client::Client;
use crate::error::CallError;
use crate::qmp::{Qmp, QmpError};

impl Client {
    /// Has the guest bring CPUs online until `cpus` are (0: leave them alone), and memory unless `cpu_only`.
    ///
    /// # Errors
    ///
    /// The call's own.
    pub async fn online_cpu_mem(&self, cpus: u32, cpu_only: bool, wait: bool) -> Result<(), CallError> {
        let request = OnlineCPUMemRequest { wait, nb_cpus: cpus, cpu_only, ..Default::default() };
        let answer = self.agent().online_cpu_mem(self.context(), &request).await;
        answer.map(drop).map_err(|error| CallError::new("OnlineCPUMem", "", error))
    }

    /// Tells the guest of memory blocks at these physical addresses.
    ///
    /// # Errors
    ///
    /// The call's own.
    pub async fn mem_hotplug_by_probe(&self, addresses: &[u64]) -> Result<(), CallError> {
        let request =
            MemHotplugByProbeRequest { memHotplugProbeAddr: addresses.to_vec(), ..Default::default() };
        let answer = self.agent().mem_hotplug_by_probe(self.context(), &request).await;
        answer.map(drop).map_err(|error| CallError::new("MemHotplugByProbe", "", error))
    }

    /// Makes swap of the disk at a place on the PCI bus.
    ///
    /// # Errors
    ///
    /// The call's own.
    pub async fn add_swap(&self, slots: &[u32]) -> Result<(), CallError> {
        let request = AddSwapRequest { PCIPath: slots.to_vec(), ..Default::default() };
        let answer = self.agent().add_swap(self.context(), &request).await;
        answer.map(drop).map_err(|error| CallError::new("AddSwap", "", error))
    }

    /// Makes swap of the disk or file at a path in the guest.
    ///
    /// # Errors
    ///
    /// The call's own.
    pub async fn add_swap_path(&self, path: &str) -> Result<(), CallError> {
        let request = AddSwapPathRequest { path: path.to_owned(), ..Default::default() };
        let answer = self.agent().add_swap_path(self.context(), &request).await;
        answer.map(drop).map_err(|error| CallError::new("AddSwapPath", path, error))
    }
}

impl Qmp {
    /// Plugs in a CPU: the first that there is room for.
    ///
    /// # Errors
    ///
    /// There is no room, or QEMU refuses.
    pub async fn plug_cpu(&mut self) -> Result<(), QmpError> {
        const COMMAND: &str = "query-hotpluggable-cpus";
        let cpus = self.execute(COMMAND, json!({})).await?;
        let Some(mut device) = free_cpu(&cpus) else {
            let answer = "no CPU that is not there yet".to_owned();
            return Err(QmpError::Answer { command: COMMAND.to_owned(), answer });
        };
        if let Some(device) = device.as_object_mut() {
            let id = device.values().map(ToString::to_string).collect::<Vec<_>>().join("-");
            device.insert("id".to_owned(), json!(format!("cpu-{}", id.replace('"', ""))));
        }
        self.execute("device_add", device).await.map(drop)
    }

    /// Plugs in a memory module, which must fit the guest's memory blocks.
    ///
    /// # Errors
    ///
    /// There is no room, or QEMU refuses.
    pub async fn plug_memory(&mut self, id: &str, mebibytes: u64) -> Result<(), QmpError> {
        let backend = format!("{id}-backend");
        let size = mebibytes.saturating_mul(1 << 20);
        // As the machine's own memory: vhost-user daemons map it.
        let memory = json!({"qom-type": "memory-backend-memfd", "id": backend, "size": size, "share": true});
        self.execute("object-add", memory).await?;
        let module = json!({"driver": "pc-dimm", "id": id, "memdev": backend});
        self.execute("device_add", module).await.map(drop)
    }
}

/// The arguments that plug in the first CPU that QEMU lists without a device. It lists the last one first.
fn free_cpu(cpus: &Value) -> Option<Value> {
    let free = cpus.as_array()?.iter().rev().find(|cpu| cpu.get("qom-path").is_none())?;
    let mut device = free.get("props")?.clone();
    device.as_object_mut()?.insert("driver".to_owned(), free.get("type")?.clone());
    Some(device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_free_cpu_is_plugged() {
        let cpu = |core: u32| json!({"type": "max-x86_64-cpu", "props": {"core-id": core, "node-id": 0}});
        let mut first = cpu(0);
        first["qom-path"] = json!("/machine/unattached/device[0]");
        let device = free_cpu(&json!([cpu(2), cpu(1), first])).unwrap();
        assert_eq!(device, json!({"driver": "max-x86_64-cpu", "core-id": 1, "node-id": 0}));
        assert_eq!(free_cpu(&json!([])), None);
    }
}
