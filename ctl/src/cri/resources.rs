//! Limits: CRI's numbers as the OCI specification has them.

use nakai_protocols::oci;

use super::CriError;
use super::config::LinuxContainerResources;
use super::extras::Extras;

/// What the kernel counts memory in.
const PAGE: i64 = 4096;

/// Writes the limits to the specification. A zero is no limit, as everywhere in the protocol.
///
/// # Errors
///
/// A number that can't be.
pub(super) fn apply(
    spec: &mut oci::Spec,
    asked: &LinuxContainerResources,
    extras: &Extras,
) -> Result<(), CriError> {
    let unsigned = |field: &str, number: i64| {
        u64::try_from(number)
            .map_err(|_| CriError::field(format!("linux.resources.{field}"), format!("{number} is negative")))
    };
    let resources = spec.Linux.mut_or_insert_default().Resources.mut_or_insert_default();
    let cpu = resources.CPU.mut_or_insert_default();
    cpu.Period = unsigned("cpu_period", asked.cpu_period)?;
    cpu.Quota = asked.cpu_quota;
    cpu.Shares = unsigned("cpu_shares", asked.cpu_shares)?;
    cpu.Cpus.clone_from(&asked.cpuset_cpus);
    cpu.Mems.clone_from(&asked.cpuset_mems);
    if (1..PAGE).contains(&asked.memory_limit_in_bytes) {
        let reason =
            format!("{} bytes are less than a page, and nothing can run", asked.memory_limit_in_bytes);
        return Err(CriError::field("linux.resources.memory_limit_in_bytes", reason));
    }
    if asked.memory_limit_in_bytes != 0 || asked.memory_swap_limit_in_bytes != 0 {
        let memory = resources.Memory.mut_or_insert_default();
        memory.Limit = asked.memory_limit_in_bytes;
        // No swap beyond the memory, unless it is asked for: as containerd does.
        memory.Swap = match asked.memory_swap_limit_in_bytes {
            0 => asked.memory_limit_in_bytes,
            swap => swap,
        };
    }
    for limit in &asked.hugepage_limits {
        resources.HugepageLimits.push(oci::LinuxHugepageLimit {
            Pagesize: limit.page_size.clone(),
            Limit: unsigned("hugepage_limits", limit.limit)?,
            ..Default::default()
        });
    }
    for (key, value) in &asked.unified {
        unified(resources, key, value)?;
    }
    if let Some(limit) = extras.pids_limit {
        resources.Pids.mut_or_insert_default().Limit = limit;
    }
    spec.Process.mut_or_insert_default().OOMScoreAdj = asked.oom_score_adj;
    Ok(())
}

/// A file of cgroup v2 by its name. The agent's protocol has no such map, so those files are known that it has other
/// fields for.
fn unified(resources: &mut oci::LinuxResources, key: &str, value: &str) -> Result<(), CriError> {
    let refuse = |reason: &str| CriError::field(format!("linux.resources.unified[{key:?}]"), reason);
    let number = |text: &str| match text {
        "max" => Ok(-1),
        digits => digits.parse::<i64>().map_err(|_| refuse("neither max nor a number")),
    };
    match key {
        "memory.max" => resources.Memory.mut_or_insert_default().Limit = number(value)?,
        "memory.low" => resources.Memory.mut_or_insert_default().Reservation = number(value)?,
        "pids.max" => resources.Pids.mut_or_insert_default().Limit = number(value)?,
        "cpuset.cpus" => value.clone_into(&mut resources.CPU.mut_or_insert_default().Cpus),
        "cpuset.mems" => value.clone_into(&mut resources.CPU.mut_or_insert_default().Mems),
        "cpu.max" => {
            let (quota, period) = value.split_once(' ').unwrap_or((value, "100000"));
            let cpu = resources.CPU.mut_or_insert_default();
            cpu.Quota = number(quota)?;
            cpu.Period = period.parse().map_err(|_| refuse("not a quota and a period"))?;
        }
        _ => return Err(refuse("the agent's protocol carries no such file")),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_reach_their_fields_and_wrong_ones_are_named() {
        let asked = LinuxContainerResources {
            cpu_quota: 50_000,
            cpu_period: 100_000,
            memory_limit_in_bytes: 1 << 20,
            oom_score_adj: 7,
            unified: [("pids.max".to_owned(), "9".to_owned())].into(),
            ..LinuxContainerResources::default()
        };
        let mut spec = crate::SpecBuilder::new("web", "/root").build();
        apply(&mut spec, &asked, &Extras::default()).unwrap();
        let resources = &spec.Linux.Resources;
        assert_eq!((resources.CPU.Quota, resources.Memory.Swap, resources.Pids.Limit), (50_000, 1 << 20, 9));
        assert_eq!(spec.Process.OOMScoreAdj, 7);
        for (key, value) in [("io.max", "1"), ("pids.max", "many")] {
            let unified = [(key.to_owned(), value.to_owned())].into();
            let asked = LinuxContainerResources { unified, ..LinuxContainerResources::default() };
            assert!(apply(&mut spec, &asked, &Extras::default()).unwrap_err().to_string().contains(key));
        }
    }
}
