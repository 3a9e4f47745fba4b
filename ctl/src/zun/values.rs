//! Values as Zun's API takes them: numbers as strings, booleans in words, commands as one string.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::split;
use crate::cri::CriError;

/// The words for a boolean, those for "no" first.
pub const BOOL_WORDS: [&str; 12] = ["0", "f", "false", "n", "no", "off", "1", "on", "t", "true", "y", "yes"];

/// A boolean, or a word for one; nothing else.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Bool(Option<bool>);

impl Bool {
    /// What was said; no where nothing was.
    pub fn get(self) -> bool {
        self.0.unwrap_or(false)
    }
}

impl<'de> Deserialize<'de> for Bool {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let wrong = || {
            let known = BOOL_WORDS.join(", ");
            D::Error::custom(format!(
                "unrecognized value {value}, acceptable values are: true, false, null, or {known}"
            ))
        };
        match &value {
            Value::Null => Ok(Self(None)),
            Value::Bool(on) => Ok(Self(Some(*on))),
            Value::String(word) => {
                let word = word.trim().to_ascii_lowercase();
                let place = BOOL_WORDS.iter().position(|known| *known == word).ok_or_else(wrong)?;
                Ok(Self(Some(place >= BOOL_WORDS.len() / 2)))
            }
            _ => Err(wrong()),
        }
    }
}

/// A number, or a string of one.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Number(Option<String>);

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::Null => Ok(Self(None)),
            Value::String(text) => Ok(Self(Some(text))),
            Value::Number(number) => Ok(Self(Some(number.to_string()))),
            other => Err(D::Error::custom(format!("{other} is no number"))),
        }
    }
}

impl Number {
    fn wrong(&self, field: &str, what: &str) -> CriError {
        CriError::field(field, format!("{:?} is not {what}", self.0.as_deref().unwrap_or_default()))
    }

    /// A small count; nothing is 0.
    pub(super) fn count(&self, field: &str) -> Result<u32, CriError> {
        let Some(text) = &self.0 else { return Ok(0) };
        text.parse().map_err(|_| self.wrong(field, "a count"))
    }

    /// Memory in MiB as bytes.
    pub(super) fn mebibytes(&self) -> Result<Option<i64>, CriError> {
        let Some(text) = &self.0 else { return Ok(None) };
        let bytes = text.parse::<i64>().ok().filter(|n| *n > 0).and_then(|n| n.checked_mul(1 << 20));
        bytes.map(Some).ok_or_else(|| self.wrong("memory", "a number of MiB"))
    }

    /// A disk in GiB as bytes; 0 is no limit.
    pub(super) fn gibibytes(&self) -> Result<Option<u64>, CriError> {
        let Some(text) = &self.0 else { return Ok(None) };
        let number = text.parse::<u64>().ok().and_then(|n| n.checked_mul(1 << 30));
        let bytes = number.filter(|&bytes| i64::try_from(bytes).is_ok());
        Ok(Some(bytes.ok_or_else(|| self.wrong("disk", "a number of GiB"))?).filter(|&bytes| bytes > 0))
    }

    /// CPUs, also fractional, as a quota in `period`.
    #[expect(clippy::cast_possible_truncation, reason = "a saturating cast of a count of CPUs")]
    pub(super) fn quota(&self, period: i64) -> Result<Option<i64>, CriError> {
        let Some(text) = &self.0 else { return Ok(None) };
        let cpus = text.parse::<f64>().ok().filter(|cpus| cpus.is_finite() && *cpus > 0.0);
        let cpus = cpus.ok_or_else(|| self.wrong("cpu", "a positive number of CPUs"))?;
        Ok(Some((cpus * period as f64) as i64))
    }
}

/// A command: a list of words, or a string that is split as a shell would.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(untagged)]
pub(super) enum Words {
    #[default]
    None,
    Text(String),
    List(Vec<String>),
}

impl Words {
    pub(super) fn words(&self, field: &str) -> Result<Vec<String>, CriError> {
        match self {
            Self::None => Ok(Vec::new()),
            Self::Text(text) => split(text).map_err(|reason| CriError::field(field, reason)),
            Self::List(words) => Ok(words.clone()),
        }
    }
}

/// Says nothing: `null`, an empty text, list or object, or `false`.
pub(super) fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    }
}
