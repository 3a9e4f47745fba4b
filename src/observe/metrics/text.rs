//! The text format of Prometheus, version 0.0.4: `# HELP`, `# TYPE`, then a line for each number.

use std::fmt::{Display, Write as _};

/// The text so far.
#[derive(Debug, Default)]
pub(super) struct Text(String);

/// One name with its numbers. Without any, the name is left out, too.
pub(super) struct Family<'a> {
    text: &'a mut Text,
    name: &'static str,
    help: &'static str,
    kind: &'static str,
    is_begun: bool,
}

impl Text {
    pub(super) fn gauge<'a>(&'a mut self, name: &'static str, help: &'static str) -> Family<'a> {
        Family { text: self, name, help, kind: "gauge", is_begun: false }
    }

    pub(super) fn counter<'a>(&'a mut self, name: &'static str, help: &'static str) -> Family<'a> {
        Family { kind: "counter", ..self.gauge(name, help) }
    }

    pub(super) fn histogram<'a>(&'a mut self, name: &'static str, help: &'static str) -> Family<'a> {
        Family { kind: "histogram", ..self.gauge(name, help) }
    }

    pub(super) fn finish(self) -> String {
        self.0
    }
}

impl Family<'_> {
    /// A number with its labels.
    pub(super) fn sample(&mut self, labels: &[(&str, &str)], value: impl Display) {
        self.part("", labels, value);
    }

    /// A number of a histogram: `_bucket`, `_sum` or `_count`.
    pub(super) fn part(&mut self, suffix: &str, labels: &[(&str, &str)], value: impl Display) {
        let (name, help, kind) = (self.name, self.help, self.kind);
        let text = &mut self.text.0;
        if !std::mem::replace(&mut self.is_begun, true) {
            // Writing to a string can't fail.
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        }
        text.push_str(name);
        text.push_str(suffix);
        for (n, (label, value)) in labels.iter().enumerate() {
            text.push(if n == 0 { '{' } else { ',' });
            let _ = write!(text, "{label}=\"");
            escape(text, value);
            text.push('"');
        }
        if !labels.is_empty() {
            text.push('}');
        }
        let _ = writeln!(text, " {value}");
    }
}

fn escape(text: &mut String, value: &str) {
    for c in value.chars() {
        match c {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            c => text.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_begins_once_and_only_with_a_number() {
        let mut text = Text::default();
        text.gauge("empty", "Nothing");
        let mut family = text.gauge("load", "How much");
        family.sample(&[("item", "a\"b\\c\nd"), ("cpu", "0")], 1);
        family.sample(&[], "2.5");
        text.histogram("time", "How long").part("_sum", &[], 3);
        let expected = "# HELP load How much\n# TYPE load gauge\nload{item=\"a\\\"b\\\\c\\nd\",cpu=\"0\"} 1\nload 2.5\n\
                        # HELP time How long\n# TYPE time histogram\ntime_sum 3\n";
        assert_eq!(text.finish(), expected);
    }
}
