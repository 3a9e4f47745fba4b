//! The command line.

use std::path::PathBuf;

use super::table::OPTIONS;
use super::{Config, ConfigError, Source};

/// What the command line asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Run the agent.
    Run(Overrides),
    /// Print [`help`](super::help) and leave.
    Help,
    /// Print the version and leave.
    Version,
}

/// Options given on the command line, not yet parsed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    /// The file named by `--config`.
    pub config_file: Option<PathBuf>,
    /// Option, with its dashes, and value.
    pub(super) values: Vec<(String, String)>,
    /// What PID 1 was given and does not know.
    pub(super) ignored: Vec<String>,
}

/// Reads the arguments, without the program's name.
///
/// With `lenient`, unknown arguments are kept for a warning: the kernel hands to PID 1 whatever stands on its
/// own command line that nothing else took.
///
/// # Errors
///
/// An unknown argument unless `lenient`, and an option without its value.
pub fn parse_args<I>(args: I, lenient: bool) -> Result<Command, ConfigError>
where
    I: IntoIterator<Item = String>,
{
    let mut overrides = Overrides::default();
    let mut args = args.into_iter();
    while let Some(argument) = args.next() {
        let (name, value) = match argument.split_once('=') {
            Some((name, value)) if name.starts_with("--") => (name, Some(value.to_owned())),
            _ => (argument.as_str(), None),
        };
        let is_option = OPTIONS.iter().any(|option| option.argument == Some(name));
        match name {
            "-h" | "--help" => return Ok(Command::Help),
            "-v" | "--version" => return Ok(Command::Version),
            "-c" | "--config" => overrides.config_file = Some(PathBuf::from(needed(name, value, &mut args)?)),
            _ if is_option => overrides.values.push((name.to_owned(), needed(name, value, &mut args)?)),
            _ if lenient => overrides.ignored.push(argument),
            _ => return Err(ConfigError::Argument { argument }),
        }
    }
    Ok(Command::Run(overrides))
}

fn needed(
    option: &str,
    value: Option<String>,
    rest: &mut impl Iterator<Item = String>,
) -> Result<String, ConfigError> {
    let value = value.or_else(|| rest.next()).filter(|value| !value.is_empty());
    value.ok_or_else(|| ConfigError::NoValue { option: option.to_owned() })
}

impl Overrides {
    pub(super) fn apply(&self, config: &mut Config) -> Result<(), ConfigError> {
        for (name, value) in &self.values {
            let Some(option) = OPTIONS.iter().find(|option| option.argument == Some(name)) else { continue };
            (option.set)(config, value).map_err(|reason| ConfigError::Value {
                source_kind: Source::Arguments,
                name: name.clone(),
                value: value.clone(),
                reason,
            })?;
        }
        Ok(())
    }
}
