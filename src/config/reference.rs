//! The table of options as text: for `--help`, and for `docs/configuration.md`.

use std::fmt::Write as _;

use super::table::{NO_EFFECT, OPTIONS};

/// The text of `--help`.
pub fn help() -> String {
    let mut text = String::from(
        "The guest agent for VM-sandboxed containers.\n\nUsage: nakai [OPTIONS]\n\nOptions:\n  \
         -c, --config FILE\n          Read options from a TOML file.\n",
    );
    for option in OPTIONS {
        let Some(name) = option.argument else { continue };
        let doc = option.doc.replace('`', "");
        // Writing to a String can't fail.
        let _ = writeln!(
            text,
            "      {name} {}\n          {doc}\n          [default: {}]",
            option.value, option.default
        );
    }
    text.push_str("  -v, --version\n          Print the version.\n  -h, --help\n          Print this.\n");
    text.push_str("\nMore options in the file and on the kernel's command line: docs/configuration.md\n");
    text
}

const HEAD: &str = "\
# Configuration

<!-- Printed from the table in src/config/table.rs. After a change there:
     NAKAI_WRITE_DOCS=1 cargo test -p nakai --lib configuration_md -->

Options are read from these places. A later one wins over an earlier one.

1. The defaults below.
2. A TOML file of the keys below: `--config FILE`, or else the kernel parameter `agent.config_file=FILE`.
3. The kernel's command line, if the agent is PID 1 or has no `--config`. A name without `=` means `true`.
4. The environment.
5. The command line.

A wrong value on the command line or in the file of `--config` stops the agent. Anywhere else it is logged and the
value before it stays, because a typing error on a kernel's command line must not cost a VM. If the file of
`agent.config_file` is wrong, all of it is ignored.

A duration in the file is a number, or the table `{ secs = 3, nanos = 0 }`.

";

/// The text of `docs/configuration.md`.
pub fn configuration_md() -> String {
    let mut text = String::from(HEAD);
    for option in OPTIONS {
        // Writing to a String can't fail.
        let _ = writeln!(text, "## `{}`\n\n{}\n", option.key, option.doc);
        let default = if option.default.is_empty() { "empty" } else { option.default };
        let _ = writeln!(text, "- Value: {}, default `{default}`", option.value);
        for name in option.kernel {
            let _ = writeln!(text, "- Kernel parameter: `{name}`");
        }
        if let Some(name) = option.env {
            let _ = writeln!(text, "- Environment: `{name}`");
        }
        if let Some(name) = option.argument {
            let _ = writeln!(text, "- Command line: `{name} {}`", option.value);
        }
        text.push('\n');
    }
    text.push_str("## Known, without effect\n\n");
    text.push_str("Other agents of this protocol know these keys. They are accepted and logged:\n\n");
    for key in NO_EFFECT {
        let _ = writeln!(text, "- `{key}`");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configuration_md_is_what_the_table_says() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/configuration.md");
        if std::env::var_os("NAKAI_WRITE_DOCS").is_some() {
            std::fs::write(path, configuration_md()).unwrap();
        }
        let committed = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            committed == configuration_md(),
            "{path} is out of date: NAKAI_WRITE_DOCS=1 cargo test -p nakai --lib configuration_md"
        );
    }

    #[test]
    fn help_tells_every_argument() {
        let text = help();
        for name in ["--config", "--server-addr", "--log-level", "--version", "--help", "vsock://-1:1024"] {
            assert!(text.contains(name), "{name} is missing:\n{text}");
        }
    }
}
