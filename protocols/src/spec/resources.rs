//! Resource limits, for a container's specification and for an update of a running one.
//!
//! An absent number leaves the cgroup as it is, -1 lifts the limit: both must be sayable, since an
//! update can say either. Memory in bytes, CPU times in microseconds.

use oci_spec::runtime;

use super::value::{each, flag, items, list, narrow, nonzero_or_absent, not_carried, number, plain, text};
use super::{SpecError, blkio, devices};
use crate::oci;

pub(super) fn from_wire(wire: &oci::LinuxResources) -> Result<runtime::LinuxResources, SpecError> {
    let mut resources = runtime::LinuxResources::default();
    resources
        .set_devices(list(&wire.Devices, devices::rule_from_wire)?)
        .set_memory(wire.Memory.as_ref().map(memory_from_wire))
        .set_cpu(wire.CPU.as_ref().map(cpu_from_wire))
        .set_pids(wire.Pids.as_ref().map(pids_from_wire))
        .set_block_io(wire.BlockIO.as_ref().map(blkio::from_wire).transpose()?)
        .set_hugepage_limits(list(&wire.HugepageLimits, |limit| Ok(hugepages_from_wire(limit)))?)
        .set_network(wire.Network.as_ref().map(network_from_wire));
    Ok(resources)
}

pub(super) fn to_wire(resources: &runtime::LinuxResources) -> Result<oci::LinuxResources, SpecError> {
    not_carried("linux.resources.rdma", resources.rdma().as_ref().is_some_and(|map| !map.is_empty()))?;
    not_carried("linux.resources.unified", resources.unified().as_ref().is_some_and(|map| !map.is_empty()))?;
    Ok(oci::LinuxResources {
        Devices: items(resources.devices()).iter().map(devices::rule_to_wire).collect(),
        Memory: resources.memory().as_ref().map(memory_to_wire).transpose()?.into(),
        CPU: resources.cpu().as_ref().map(cpu_to_wire).transpose()?.into(),
        Pids: resources.pids().as_ref().map(pids_to_wire).into(),
        BlockIO: resources.block_io().as_ref().map(blkio::to_wire).transpose()?.into(),
        HugepageLimits: each(items(resources.hugepage_limits()), hugepages_to_wire)?,
        Network: resources.network().as_ref().map(network_to_wire).into(),
        ..Default::default()
    })
}

fn memory_from_wire(wire: &oci::LinuxMemory) -> runtime::LinuxMemory {
    let mut memory = runtime::LinuxMemory::default();
    memory
        .set_limit(number(wire.Limit))
        .set_reservation(number(wire.Reservation))
        .set_swap(number(wire.Swap))
        .set_kernel(number(wire.Kernel))
        .set_kernel_tcp(number(wire.KernelTCP))
        .set_swappiness(number(wire.Swappiness))
        .set_disable_oom_killer(flag(wire.DisableOOMKiller));
    memory
}

fn memory_to_wire(memory: &runtime::LinuxMemory) -> Result<oci::LinuxMemory, SpecError> {
    not_carried("linux.resources.memory.useHierarchy", memory.use_hierarchy() == Some(true))?;
    not_carried("linux.resources.memory.checkBeforeUpdate", memory.check_before_update() == Some(true))?;
    Ok(oci::LinuxMemory {
        Limit: memory.limit().unwrap_or_default(),
        Reservation: memory.reservation().unwrap_or_default(),
        Swap: memory.swap().unwrap_or_default(),
        Kernel: memory.kernel().unwrap_or_default(),
        KernelTCP: memory.kernel_tcp().unwrap_or_default(),
        Swappiness: nonzero_or_absent("linux.resources.memory.swappiness", memory.swappiness())?,
        DisableOOMKiller: memory.disable_oom_killer().unwrap_or_default(),
        ..Default::default()
    })
}

fn cpu_from_wire(wire: &oci::LinuxCPU) -> runtime::LinuxCpu {
    let mut cpu = runtime::LinuxCpu::default();
    cpu.set_shares(number(wire.Shares))
        .set_quota(number(wire.Quota))
        .set_period(number(wire.Period))
        .set_realtime_runtime(number(wire.RealtimeRuntime))
        .set_realtime_period(number(wire.RealtimePeriod))
        .set_cpus(text(&wire.Cpus))
        .set_mems(text(&wire.Mems));
    cpu
}

fn cpu_to_wire(cpu: &runtime::LinuxCpu) -> Result<oci::LinuxCPU, SpecError> {
    not_carried("linux.resources.cpu.idle", cpu.idle().is_some_and(|idle| idle != 0))?;
    not_carried("linux.resources.cpu.burst", cpu.burst().is_some_and(|burst| burst != 0))?;
    Ok(oci::LinuxCPU {
        Shares: cpu.shares().unwrap_or_default(),
        Quota: cpu.quota().unwrap_or_default(),
        Period: cpu.period().unwrap_or_default(),
        RealtimeRuntime: cpu.realtime_runtime().unwrap_or_default(),
        RealtimePeriod: cpu.realtime_period().unwrap_or_default(),
        Cpus: cpu.cpus().clone().unwrap_or_default(),
        Mems: cpu.mems().clone().unwrap_or_default(),
        ..Default::default()
    })
}

/// A shim that sends the message has a limit to say: 0 and below is "no limit", said to the model
/// as -1. (0 itself is taken by some for "no process at all".)
fn pids_from_wire(wire: &oci::LinuxPids) -> runtime::LinuxPids {
    let mut pids = runtime::LinuxPids::default();
    pids.set_limit(if wire.Limit > 0 { wire.Limit } else { -1 });
    pids
}

fn pids_to_wire(pids: &runtime::LinuxPids) -> oci::LinuxPids {
    oci::LinuxPids { Limit: pids.limit(), ..Default::default() }
}

/// The model's largest limit stands for all above it: the kernel counts pages in a signed long, so
/// both are no limit to it. 0 is a limit (no huge page of this size).
fn hugepages_from_wire(wire: &oci::LinuxHugepageLimit) -> runtime::LinuxHugepageLimit {
    let mut limit = runtime::LinuxHugepageLimit::default();
    limit.set_page_size(wire.Pagesize.clone()).set_limit(i64::try_from(wire.Limit).unwrap_or(i64::MAX));
    limit
}

fn hugepages_to_wire(limit: &runtime::LinuxHugepageLimit) -> Result<oci::LinuxHugepageLimit, SpecError> {
    let bytes = match limit.limit() {
        -1 => u64::MAX,
        bytes => narrow("linux.resources.hugepageLimits.limit", bytes)?,
    };
    Ok(oci::LinuxHugepageLimit { Pagesize: limit.page_size().clone(), Limit: bytes, ..Default::default() })
}

fn network_from_wire(wire: &oci::LinuxNetwork) -> runtime::LinuxNetwork {
    let priorities: Vec<_> = wire
        .Priorities
        .iter()
        .map(|wire| {
            let mut priority = runtime::LinuxInterfacePriority::default();
            priority.set_name(wire.Name.clone()).set_priority(wire.Priority);
            priority
        })
        .collect();
    let mut network = runtime::LinuxNetwork::default();
    network.set_class_id(number(wire.ClassID)).set_priorities(plain(&priorities));
    network
}

fn network_to_wire(network: &runtime::LinuxNetwork) -> oci::LinuxNetwork {
    let priorities = items(network.priorities()).iter().map(|priority| oci::LinuxInterfacePriority {
        Name: priority.name().clone(),
        Priority: priority.priority(),
        ..Default::default()
    });
    oci::LinuxNetwork {
        ClassID: network.class_id().unwrap_or_default(),
        Priorities: priorities.collect(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use serde_json::json;

    use super::*;

    fn json(wire: &oci::LinuxResources) -> serde_json::Value {
        serde_json::to_value(from_wire(wire).unwrap()).unwrap()
    }

    #[test]
    fn nothing_sent_is_nothing_set() {
        assert_eq!(json(&oci::LinuxResources::default()), json!({}));
        let wire = oci::LinuxResources {
            Memory: Some(oci::LinuxMemory::default()).into(),
            CPU: Some(oci::LinuxCPU::default()).into(),
            ..Default::default()
        };
        assert_eq!(json(&wire), json!({"memory": {}, "cpu": {}}));
    }

    #[test]
    fn a_limit_is_lifted_by_minus_one() {
        let wire = oci::LinuxResources {
            Memory: Some(oci::LinuxMemory { Limit: -1, Swap: -1, Reservation: -1, ..Default::default() })
                .into(),
            CPU: Some(oci::LinuxCPU { Quota: -1, ..Default::default() }).into(),
            ..Default::default()
        };
        let expected = json!({"memory": {"limit": -1, "swap": -1, "reservation": -1}, "cpu": {"quota": -1}});
        assert_eq!(json(&wire), expected);
        assert_eq!(to_wire(&from_wire(&wire).unwrap()).unwrap(), wire);
    }

    #[test]
    fn a_pids_limit_arrives_and_none_is_unlimited() {
        for (sent, expected) in [(100, 100), (1, 1), (0, -1), (-1, -1), (i64::MIN, -1), (i64::MAX, i64::MAX)]
        {
            let pids = oci::LinuxPids { Limit: sent, ..Default::default() };
            let wire = oci::LinuxResources { Pids: Some(pids).into(), ..Default::default() };
            assert_eq!(json(&wire), json!({"pids": {"limit": expected}}), "{sent}");
        }
    }

    #[test]
    fn a_huge_page_limit_is_never_lowered() {
        for (sent, expected) in [(0, 0), (1 << 30, 1 << 30), (u64::MAX, i64::MAX), (1 << 63, i64::MAX)] {
            let wire = oci::LinuxHugepageLimit { Pagesize: "2MB".into(), Limit: sent, ..Default::default() };
            assert_eq!(hugepages_from_wire(&wire).limit(), expected);
        }
        let mut limit = runtime::LinuxHugepageLimit::default();
        assert_eq!(hugepages_to_wire(limit.set_limit(-1)).unwrap().Limit, u64::MAX);
        assert!(hugepages_to_wire(limit.set_limit(-2)).is_err());
    }

    #[test]
    fn all_limits_survive_both_ways() {
        let wire = oci::LinuxResources {
            Devices: vec![oci::LinuxDeviceCgroup { Access: "rwm".into(), ..Default::default() }],
            Memory: Some(oci::LinuxMemory {
                Limit: 1,
                Reservation: 2,
                Swap: 3,
                Kernel: 4,
                KernelTCP: 5,
                Swappiness: 6,
                DisableOOMKiller: true,
                ..Default::default()
            })
            .into(),
            CPU: Some(oci::LinuxCPU {
                Shares: 1,
                Quota: 2,
                Period: 3,
                RealtimeRuntime: 4,
                RealtimePeriod: 5,
                Cpus: "0-3".into(),
                Mems: "0".into(),
                ..Default::default()
            })
            .into(),
            Network: Some(oci::LinuxNetwork {
                ClassID: 9,
                Priorities: vec![oci::LinuxInterfacePriority {
                    Name: "eth0".into(),
                    Priority: 7,
                    ..Default::default()
                }],
                ..Default::default()
            })
            .into(),
            ..Default::default()
        };
        assert_eq!(to_wire(&from_wire(&wire).unwrap()).unwrap(), wire);
    }

    #[test]
    fn what_the_wire_lacks_is_refused_by_name() {
        let mut resources = runtime::LinuxResources::default();
        resources.set_unified(Some(HashMap::new()));
        assert!(to_wire(&resources).is_ok(), "an empty map asks for nothing");
        resources.set_unified(Some([("memory.high".to_owned(), "1".to_owned())].into()));
        assert!(matches!(
            to_wire(&resources),
            Err(SpecError::NotCarried { field: "linux.resources.unified" })
        ));

        let mut memory = runtime::LinuxMemory::default();
        memory.set_swappiness(Some(0));
        let error = memory_to_wire(&memory).unwrap_err().to_string();
        assert_eq!(error, "linux.resources.memory.swappiness: the agent protocol can't carry it");
    }
}
