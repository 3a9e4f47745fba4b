//! The figures as a table for people and as JSON for programs.

use std::fmt::Write as _;

use serde_json::json;

use super::figures::Figures;
use super::promises::Verdict;
use super::scale::Step;

const SUBJECTS: [&str; 5] = ["nakai", "peer", "crun", "runc", "unshare"];

pub(crate) fn table(place: &str, load: &str, figures: &Figures, verdicts: &[Verdict]) -> String {
    let mut out = format!("{place}: median (min to max); load when it began: {}\n\n", load.trim());
    if is_noisy(load) {
        out.push_str("This machine is busy with something else: don't trust the figures.\n\n");
    }
    for &(figure, unit) in &figures.names {
        for subject in SUBJECTS {
            let Some(samples) = figures.get(subject, figure) else { continue };
            let name = format!("{figure} [{unit}]");
            let (median, min, max) = (samples.median(), samples.min(), samples.max());
            let _ = writeln!(out, "{name:<42} {subject:<8} {median:>10.2}   ({min:.2} to {max:.2})");
        }
    }
    let _ = writeln!(out, "\n{:<34} {:>14} {:>12} {:>8}", "promise", "", "measured", "ratio");
    for verdict in verdicts {
        let ratio = verdict.ratio.map_or(String::new(), |ratio| format!("{ratio:.2}"));
        let kept = if verdict.kept { "kept" } else { "BROKEN" };
        let Verdict { figure, promised, measured, .. } = verdict;
        let _ = writeln!(out, "{figure:<34} {promised:>14} {measured:>12.2} {ratio:>8}  {kept}");
    }
    out
}

/// More than half a processor was at work before the measurements.
fn is_noisy(load: &str) -> bool {
    load.split_whitespace().next().and_then(|text| text.parse::<f64>().ok()).is_some_and(|load| load > 0.5)
}

pub(crate) fn scale_table(steps: &[Step]) -> String {
    let mut out = "\ncontainers   Check ms   Stats ms   exec + wait ms   create ms\n".to_owned();
    for Step { containers, check, stats, exec, create } in steps {
        let _ = writeln!(out, "{containers:>10} {check:>10.3} {stats:>10.3} {exec:>16.2} {create:>11.2}");
    }
    out
}

pub(crate) fn json(
    place: &str,
    load: &str,
    figures: &Figures,
    verdicts: &[Verdict],
    steps: &[Step],
) -> String {
    let mut measured = Vec::new();
    for &(figure, unit) in &figures.names {
        for subject in SUBJECTS {
            let Some(samples) = figures.get(subject, figure) else { continue };
            measured.push(json!({
                "figure": figure, "unit": unit, "subject": subject,
                "median": samples.median(), "min": samples.min(), "max": samples.max(),
            }));
        }
    }
    let promises: Vec<_> = verdicts
        .iter()
        .map(|v| json!({ "figure": v.figure, "promised": v.promised, "measured": v.measured, "ratio": v.ratio, "kept": v.kept }))
        .collect();
    let scale: Vec<_> = steps
        .iter()
        .map(|s| json!({ "containers": s.containers, "check_ms": s.check, "stats_ms": s.stats, "exec_ms": s.exec, "create_ms": s.create }))
        .collect();
    let all = json!({ "place": place, "load": load.trim(), "noisy": is_noisy(load), "figures": measured, "promises": promises, "scale": scale });
    format!("{all:#}\n")
}
