//! The cost of calls by the number of containers, as an SVG with logarithmic axes.

use std::fmt::Write as _;

use super::scale::Step;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 400.0;
const LEFT: f64 = 60.0;
const BOTTOM: f64 = 40.0;
const TOP: f64 = 20.0;
const RIGHT: f64 = 110.0;

type Line = (&'static str, &'static str, fn(&Step) -> f64);

const LINES: [Line; 4] = [
    ("Check", "#4477aa", |step| step.check),
    ("Stats", "#228833", |step| step.stats),
    ("exec + wait", "#ccbb44", |step| step.exec),
    ("create", "#ee6677", |step| step.create),
];

pub(crate) fn svg(steps: &[Step]) -> String {
    let most = steps.iter().map(|step| step.containers as f64).fold(1.0, f64::max).log10().max(1.0);
    let x = |containers: f64| LEFT + containers.log10() / most * (WIDTH - LEFT - RIGHT);
    // From 10 us to 1 s.
    let y = |ms: f64| TOP + (3.0 - ms.max(0.01).log10()) / 5.0 * (HEIGHT - TOP - BOTTOM);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n"
    );
    for (label, ms) in
        [("10 us", 0.01), ("100 us", 0.1), ("1 ms", 1.0), ("10 ms", 10.0), ("100 ms", 100.0), ("1 s", 1000.0)]
    {
        let at = y(ms);
        let _ = writeln!(
            out,
            "<line x1=\"{LEFT}\" y1=\"{at}\" x2=\"{}\" y2=\"{at}\" stroke=\"#ddd\"/><text x=\"4\" y=\"{}\">{label}</text>",
            WIDTH - RIGHT,
            at + 4.0
        );
    }
    for step in steps {
        let at = x(step.containers as f64);
        let _ = writeln!(
            out,
            "<text x=\"{at}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            HEIGHT - BOTTOM + 16.0,
            step.containers
        );
    }
    let _ = writeln!(out, "<text x=\"{LEFT}\" y=\"{}\">containers in the sandbox</text>", HEIGHT - 6.0);
    for (name, colour, value) in LINES {
        let points: Vec<String> = steps
            .iter()
            .map(|step| format!("{:.1},{:.1}", x(step.containers as f64), y(value(step))))
            .collect();
        let _ = writeln!(
            out,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            points.join(" ")
        );
        if let Some(last) = steps.last() {
            let (at_x, at_y) = (x(last.containers as f64) + 6.0, y(value(last)) + 4.0);
            let _ = writeln!(out, "<text x=\"{at_x:.1}\" y=\"{at_y:.1}\" fill=\"{colour}\">{name}</text>");
        }
    }
    out.push_str("</svg>\n");
    out
}
