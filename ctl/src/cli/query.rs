//! The commands that ask one thing: ps, stats, check, version, details.

use nakai_ctl::state::ContainerState;
use nakai_ctl::{Address, Client};
use nakai_protocols::agent::StatsContainerResponse;
use ttrpc::Code;

use super::error::CliError;
use super::say::say;
use super::target::{client, engine, notebook};

/// `ps`
pub(crate) async fn ps(address: Option<&Address>, quiet: bool) -> Result<u8, CliError> {
    if quiet {
        notebook(address).await?.containers().iter().for_each(|container| say!("{}", container.id));
        return Ok(0);
    }
    let engine = engine(address).await?;
    say!(
        "{:<24} {:<24} {:<10} {:<10} {:<10} {:<9} COMMAND",
        "CONTAINER",
        "STATE",
        "PROCESSES",
        "MEMORY",
        "HEALTH",
        "RESTARTS"
    );
    for container in engine.state().containers() {
        // Removed meanwhile, it is listed as it was.
        let container = engine.find_out(&container.id).await.unwrap_or(container);
        let (told, processes, memory) = usage(engine.client(), &container.id, &container.state).await;
        let health = container.health.map_or_else(|| "-".to_owned(), |health| health.to_string());
        let (restarts, command) = (container.restarts, container.args.join(" "));
        say!(
            "{:<24} {told:<24} {processes:<10} {memory:<10} {health:<10} {restarts:<9} {command}",
            container.id
        );
    }
    Ok(0)
}

/// State, processes and memory of a container, or what the agent says instead.
async fn usage(client: &Client, id: &str, state: &ContainerState) -> (String, String, String) {
    let nothing = || "-".to_owned();
    if matches!(state, ContainerState::Error { .. }) {
        return (state.to_string(), nothing(), nothing());
    }
    match client.stats_container(id).await {
        Ok(stats) => {
            let cgroup = &stats.cgroup_stats;
            let processes = cgroup.pids_stats.current.to_string();
            (state.to_string(), processes, size(cgroup.memory_stats.usage.usage))
        }
        Err(error) if is_gone(error.code) => ("gone".to_owned(), nothing(), nothing()),
        Err(error) => (format!("{:?}", error.code), nothing(), nothing()),
    }
}

/// `stats`
pub(crate) async fn stats(address: Option<&Address>, id: &str) -> Result<u8, CliError> {
    let stats = client(address).await?.stats_container(id).await?;
    for (name, value) in stats_table(&stats) {
        say!("{name:<20} {value}");
    }
    Ok(0)
}

fn stats_table(stats: &StatsContainerResponse) -> Vec<(String, String)> {
    let cgroup = &stats.cgroup_stats;
    let cpu = &cgroup.cpu_stats;
    let memory = &cgroup.memory_stats;
    let milliseconds = |nanoseconds: u64| format!("{} ms", nanoseconds / 1_000_000);
    let row = |name: &str, value: String| (name.to_owned(), value);
    let mut table = vec![
        row("cpu", milliseconds(cpu.cpu_usage.total_usage)),
        row("cpu in kernel", milliseconds(cpu.cpu_usage.usage_in_kernelmode)),
        row(
            "cpu throttled",
            format!("{} of {} periods", cpu.throttling_data.throttled_periods, cpu.throttling_data.periods),
        ),
        row("memory", format!("{} of {}", size(memory.usage.usage), limit(memory.usage.limit))),
        row("swap", size(memory.swap_usage.usage)),
        row("processes", format!("{} of {}", cgroup.pids_stats.current, unlimited(cgroup.pids_stats.limit))),
    ];
    for network in &stats.network_stats {
        let traffic = format!("{} in, {} out", size(network.rx_bytes), size(network.tx_bytes));
        table.push((format!("network {}", network.name), traffic));
    }
    table
}

/// cgroups have two ways to say "no limit": nothing, and a number near the largest.
fn limit(bytes: u64) -> String {
    if bytes == 0 || bytes >= 1 << 62 { "unlimited".to_owned() } else { size(bytes) }
}

fn unlimited(count: u64) -> String {
    if count == 0 || count >= 1 << 62 { "unlimited".to_owned() } else { count.to_string() }
}

/// A size for people.
pub(crate) fn size(bytes: u64) -> String {
    let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    match units.into_iter().find(|(shift, _)| bytes >> shift > 0) {
        #[expect(clippy::cast_precision_loss, reason = "one decimal is printed")]
        Some((shift, unit)) => format!("{:.1} {unit}", bytes as f64 / (1_u64 << shift) as f64),
        None => format!("{bytes} B"),
    }
}

/// The codes by which agents of this protocol say that they don't know a container.
fn is_gone(code: Code) -> bool {
    matches!(code, Code::NOT_FOUND | Code::INVALID_ARGUMENT)
}

/// `check`
pub(crate) async fn check(address: Option<&Address>) -> Result<u8, CliError> {
    client(address).await?.check().await?;
    say!("the agent serves");
    Ok(0)
}

/// `version`
pub(crate) async fn version(address: Option<&Address>) -> Result<u8, CliError> {
    let version = client(address).await?.version().await?;
    say!("agent    {}\nprotocol {}", version.agent_version, version.grpc_version);
    Ok(0)
}

/// `details`
pub(crate) async fn details(address: Option<&Address>) -> Result<u8, CliError> {
    let details = client(address).await?.guest_details().await?;
    let agent = &details.agent_details;
    let yes = |on: bool| if on { "yes" } else { "no" };
    say!("agent              {}", agent.version);
    say!("agent is PID 1     {}", yes(agent.init_daemon));
    say!("seccomp            {}", yes(agent.supports_seccomp));
    say!("devices            {}", agent.device_handlers.join(" "));
    say!("storages           {}", agent.storage_handlers.join(" "));
    say!("extra features     {}", agent.extra_features.join(" "));
    say!("memory block       {}", size(details.mem_block_size_bytes));
    say!("memory by probe    {}", yes(details.support_mem_hotplug_probe));
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_for_people() {
        let table =
            [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (64 << 20, "64.0 MiB"), (3 << 30, "3.0 GiB")];
        for (bytes, text) in table {
            assert_eq!(size(bytes), text);
        }
        assert_eq!((limit(0), limit(u64::MAX)), ("unlimited".to_owned(), "unlimited".to_owned()));
        assert_eq!(limit(1 << 20), "1.0 MiB");
    }

    #[test]
    fn stats_name_usage_and_limit() {
        let mut stats = StatsContainerResponse::new();
        let cgroup = stats.cgroup_stats.mut_or_insert_default();
        cgroup.pids_stats.mut_or_insert_default().current = 3;
        let usage = cgroup.memory_stats.mut_or_insert_default().usage.mut_or_insert_default();
        (usage.usage, usage.limit) = (1 << 20, 64 << 20);
        let table = stats_table(&stats);
        assert!(table.contains(&("memory".to_owned(), "1.0 MiB of 64.0 MiB".to_owned())));
        assert!(table.contains(&("processes".to_owned(), "3 of unlimited".to_owned())));
    }
}
