//! Metrics in Prometheus' text format.

use crate::harness::{Ctx, Fallible, Outcome, Scenario, scenario};

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![scenario!(metrics_have_the_names_that_dashboards_know)]
}

/// The names of the Kata agent, with an item of each that every Linux has.
const KNOWN: [&str; 18] = [
    "kata_agent_threads",
    "kata_agent_total_time",
    "kata_agent_total_vm",
    "kata_agent_total_rss",
    "kata_agent_proc_status{item=\"vmrss\"}",
    "kata_agent_proc_status{item=\"nonvoluntary_ctxt_switches\"}",
    "kata_agent_proc_stat{item=\"utime\"}",
    "kata_guest_load{item=\"load1\"}",
    "kata_guest_tasks{item=\"max\"}",
    "kata_guest_cpu_time{cpu=\"total\",item=\"user\"}",
    "kata_guest_cpu_time{cpu=\"0\",item=\"idle\"}",
    "kata_guest_vm_stat{item=\"nr_free_pages\"}",
    "kata_guest_netdev_stat{interface=\"lo\",item=\"recv_bytes\"}",
    "kata_guest_meminfo{item=\"mem_total\"}",
    "kata_guest_meminfo{item=\"s_reclaimable\"}",
    "nakai_call_duration_seconds_count{method=\"CreateContainer\"}",
    "nakai_call_duration_seconds_bucket{method=\"StartContainer\",le=\"+Inf\"}",
    "nakai_calls_failed_total{method=\"CreateContainer\"}",
];

/// The number behind a name.
fn value(text: &str, name: &str) -> Fallible<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    Ok(line.ok_or_else(|| format!("no {name} in:\n{text}"))?.parse()?)
}

async fn metrics_have_the_names_that_dashboards_know(ctx: Ctx) -> Outcome {
    ctx.run(|spec| spec.args(["true"])).await?;
    let text = ctx.client().metrics().await?;
    for name in KNOWN {
        value(&text, name)?;
    }
    assert!(value(&text, "kata_guest_meminfo{item=\"mem_total\"}")? > 64.0 * 1024.0 * 1024.0, "not in bytes");
    assert!(value(&text, "nakai_call_duration_seconds_count{method=\"CreateContainer\"}")? >= 1.0);
    let scrapes = value(&text, "kata_agent_scrape_count")?;
    let again = ctx.client().metrics().await?;
    assert!(value(&again, "kata_agent_scrape_count")? > scrapes);
    assert!(value(&again, "nakai_call_duration_seconds_count{method=\"GetMetrics\"}")? >= 1.0);
    // Each name is introduced once, before its numbers.
    let mut types: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
    let number = types.len();
    types.sort_unstable();
    types.dedup();
    assert_eq!(types.len(), number, "{types:?}");
    Ok(())
}
