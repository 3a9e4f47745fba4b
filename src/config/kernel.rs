//! Options on the kernel's command line.
//!
//! The kernel hands over one text; words are parted by blanks outside of double quotes
//! (Documentation/admin-guide/kernel-parameters.rst). A word without `=` is a flag that is on.

use super::table::{self, OPTIONS};
use super::{CgroupVersion, Config, Source, Warning};

/// What all of our own parameters begin with.
const PREFIX: &str = "agent.";

/// The words of the command line, as name and value. A bare name has no value.
pub(super) fn parameters(cmdline: &str) -> Vec<(String, Option<String>)> {
    words(cmdline)
        .into_iter()
        .map(|word| match word.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (word, None),
        })
        .collect()
}

fn words(cmdline: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quoted = false;
    for c in cmdline.chars() {
        if c == '"' {
            quoted = !quoted;
        } else if !quoted && (c.is_ascii_whitespace() || c == '\0') {
            words.push(std::mem::take(&mut word));
        } else {
            word.push(c);
        }
    }
    words.push(word);
    words.retain(|word| !word.is_empty());
    words
}

/// The file named by `agent.config_file`, the last one if there are several.
pub(super) fn config_file(parameters: &[(String, Option<String>)]) -> Option<&str> {
    let is_ours = |name: &str| name == "agent.config_file";
    parameters.iter().rev().find_map(|(name, value)| value.as_deref().filter(|_| is_ours(name)))
}

/// Applies every parameter that is ours. What is wrong with one is a warning.
pub(super) fn apply(
    parameters: &[(String, Option<String>)],
    config: &mut Config,
    warnings: &mut Vec<Warning>,
) {
    for (name, value) in parameters {
        let text = value.as_deref().unwrap_or("true");
        if name == "cgroup_no_v1" && text == "all" {
            config.cgroup_version = CgroupVersion::V2;
        } else if let Some(option) = OPTIONS.iter().find(|option| option.kernel.contains(&name.as_str())) {
            if let Err(reason) = (option.set)(config, text) {
                warnings.push(Warning::value(Source::Kernel, name, text, reason));
            }
        } else if let Some(key) = name.strip_prefix(PREFIX).filter(|key| *key != "config_file") {
            let (source_kind, name) = (Source::Kernel, name.clone());
            warnings.push(match table::has_no_effect(key) {
                true => Warning::NoEffect { source_kind, name },
                false => Warning::Unknown { source_kind, name },
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_hold_blanks_together() {
        let found = words("  quiet a=1\tb=\"x y\" \"c=p q\" d=\"\" -- e\n");
        assert_eq!(found, ["quiet", "a=1", "b=x y", "c=p q", "d=", "--", "e"]);
        assert!(words("").is_empty());
    }

    proptest::proptest! {
        #[test]
        fn any_command_line_is_read(cmdline in ".*") {
            let mut warnings = Vec::new();
            apply(&parameters(&cmdline), &mut Config::default(), &mut warnings);
        }
    }
}
