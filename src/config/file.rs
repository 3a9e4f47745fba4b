//! Options in a TOML file: one flat table of the keys of [`OPTIONS`].

use std::path::Path;

use toml::Value;

use super::table::{self, OPTIONS};
use super::{Config, ConfigError, ReadFile, Source, Warning};

/// Reads the file and applies it. Keys that are not known are warnings; everything else that is wrong is an
/// error.
pub(super) fn apply(
    path: &Path,
    read: ReadFile<'_>,
    config: &mut Config,
    warnings: &mut Vec<Warning>,
) -> Result<(), ConfigError> {
    let text = read(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| ConfigError::Syntax {
        path: path.to_owned(),
        reason: place(&text, &error),
    })?;
    for (key, value) in &table {
        let name = key.clone();
        if let Some(option) = OPTIONS.iter().find(|option| option.key == key) {
            let text =
                scalar(value).ok_or_else(|| wrong(key, value, "expected a single value".to_owned()))?;
            (option.set)(config, &text).map_err(|reason| wrong(key, value, reason))?;
        } else if table::has_no_effect(key) {
            warnings.push(Warning::NoEffect { source_kind: Source::File, name });
        } else {
            warnings.push(Warning::Unknown { source_kind: Source::File, name });
        }
    }
    Ok(())
}

/// `line 3: what is wrong`, in one line.
fn place(text: &str, error: &toml::de::Error) -> String {
    let message = error.message().replace('\n', ", ");
    match error.span().and_then(|span| text.get(..span.start)) {
        Some(before) => format!("line {}: {message}", before.matches('\n').count().saturating_add(1)),
        None => message,
    }
}

fn wrong(key: &str, value: &Value, reason: String) -> ConfigError {
    let value = scalar(value).unwrap_or_else(|| value.type_str().to_owned());
    ConfigError::Value { source_kind: Source::File, name: key.to_owned(), value, reason }
}

/// The value as the text its option's parser takes. A duration may be the table `{ secs = 3, nanos = 0 }`; a part of a
/// second counts as one.
fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Integer(number) => Some(number.to_string()),
        Value::Boolean(truth) => Some(truth.to_string()),
        Value::Table(table) if table.keys().all(|key| key == "secs" || key == "nanos") => {
            let part = table.get("nanos").and_then(Value::as_integer).is_some_and(|nanos| nanos > 0);
            let secs = table.get("secs").and_then(Value::as_integer)?;
            Some(secs.saturating_add(part.into()).to_string())
        }
        _ => None,
    }
}
