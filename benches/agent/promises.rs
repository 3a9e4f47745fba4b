//! The promises of `SPECIFICATION.md`, and whether they are kept.
//!
//! A promise is a ratio to another agent of the same protocol. If one was measured in the same run (`PEER`), the ratio
//! is to that. Otherwise it is to figures of kata-agent 4.1.0 that were taken once, on a machine with two cores; on the
//! host they are scaled by how fast `crun run` is here and was there, in a guest they are taken as they were.

use super::figures::Figures;
use super::subject::Place;

/// What `crun run` took, in ms, where the recorded figures were taken.
const RECORDED_CRUN: f64 = 6.7;

#[derive(Clone, Copy)]
enum Bound {
    /// At most this many times the other's.
    AtMost(f64),
    /// At least this many times the other's.
    AtLeast(f64),
    /// At most this much, whatever others do.
    Limit(f64),
}

struct Promise {
    figure: &'static str,
    bound: Bound,
    /// The other agent's figure, if it was recorded.
    recorded: Option<f64>,
    /// Whether a faster machine makes it smaller.
    scales: bool,
}

const fn time(figure: &'static str, ratio: f64, recorded: f64) -> Promise {
    Promise { figure, bound: Bound::AtMost(ratio), recorded: Some(recorded), scales: true }
}

const fn rate(figure: &'static str, ratio: f64, recorded: f64) -> Promise {
    Promise { figure, bound: Bound::AtLeast(ratio), recorded: Some(recorded), scales: true }
}

const fn size(figure: &'static str, ratio: f64, recorded: f64) -> Promise {
    Promise { figure, bound: Bound::AtMost(ratio), recorded: Some(recorded), scales: false }
}

const fn limit(figure: &'static str, most: f64) -> Promise {
    Promise { figure, bound: Bound::Limit(most), recorded: None, scales: false }
}

const HOST: &[Promise] = &[
    time("create + start + wait + remove", 0.6, 8.8),
    time("exec + wait", 0.5, 5.4),
    time("50 containers at once", 0.5, 390.0),
    time("first Check", 0.6, 4.6),
    rate("stdout, 1 MiB reads", 2.0, 586.0),
    rate("echo, 32 KiB writes", 1.5, 416.0),
    time("StatsContainer", 0.5, 0.6),
    size("PSS idle", 0.35, 10_800.0),
    size("PSS with 50 running", 0.4, 18_200.0),
    limit("anonymous memory a container", 40.0),
    limit("descriptors left of 50 containers", 0.0),
    time("CPU of a lifecycle", 0.6, 7.6),
    limit("binary", 6_000.0),
];

const VM: &[Promise] = &[
    time("create + start + wait + remove", 0.25, 189.0),
    time("exec + wait", 0.15, 117.0),
    time("50 containers at once", 0.25, 6_700.0),
    time("first Check", 0.8, 3_230.0),
    rate("stdout, 1 MiB reads", 2.0, 18.0),
    rate("echo, 32 KiB writes", 1.5, 14.5),
    time("StatsContainer", 0.5, 2.9),
    size("PSS idle", 0.35, 13_700.0),
    size("PSS with 50 running", 0.4, 16_000.0),
    limit("anonymous memory a container", 40.0),
    limit("descriptors left of 50 containers", 0.0),
    time("CPU of a lifecycle", 0.3, 181.0),
];

/// One promise, and what came of it.
pub(crate) struct Verdict {
    pub(crate) figure: &'static str,
    pub(crate) promised: String,
    pub(crate) measured: f64,
    pub(crate) ratio: Option<f64>,
    pub(crate) kept: bool,
}

pub(crate) fn judge(place: &Place, figures: &Figures) -> Vec<Verdict> {
    let promises = match place {
        Place::Host { .. } => HOST,
        Place::Vm { .. } => VM,
    };
    let crun = figures.get("crun", "create + start + wait + remove");
    let speed = crun.map_or(1.0, |samples| samples.median() / RECORDED_CRUN);
    let mut verdicts: Vec<Verdict> =
        promises.iter().filter_map(|promise| verdict(promise, figures, speed)).collect();
    verdicts.extend(seccomp(figures));
    verdicts
}

fn verdict(promise: &Promise, figures: &Figures, speed: f64) -> Option<Verdict> {
    let measured = figures.get("nakai", promise.figure)?.median();
    let peer = figures.get("peer", promise.figure).map(super::figures::Samples::median);
    let scaled = promise.recorded.map(|recorded| match (promise.scales, promise.bound) {
        (true, Bound::AtLeast(_)) => recorded / speed,
        (true, _) => recorded * speed,
        (false, _) => recorded,
    });
    let ratio = peer.or(scaled).map(|other| measured / other);
    let (promised, kept) = match promise.bound {
        Bound::AtMost(most) => (format!("<= {most}x"), ratio.is_some_and(|ratio| ratio <= most)),
        Bound::AtLeast(least) => (format!(">= {least}x"), ratio.is_some_and(|ratio| ratio >= least)),
        Bound::Limit(most) => (format!("<= {most}"), measured <= most),
    };
    Some(Verdict { figure: promise.figure, promised, measured, ratio, kept })
}

/// A profile of more than two hundred names costs at most a millisecond, or a tenth where all is slow.
fn seccomp(figures: &Figures) -> Option<Verdict> {
    let without = figures.get("nakai", "create + start + wait + remove")?.median();
    let more = figures.get("nakai", "the same with seccomp")?.median() - without;
    let most = (without / 10.0).max(1.0);
    let promised = format!("<= {most:.1} ms more");
    Some(Verdict {
        figure: "the same with seccomp",
        promised,
        measured: more,
        ratio: None,
        kept: more <= most,
    })
}
