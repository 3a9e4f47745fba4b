//! CRI's messages as JSON: with the protocol's names or protobuf's lowerCamel ones, and with unknown fields named.
//!
//! crictl writes snake_case; protobuf's own mapping is lowerCamel, gives 64-bit numbers as strings and enums by
//! name, and says "the default" by `null`. All of these are read. A field that nobody here knows is ignored, and
//! told to the caller, who has to tell the user.

use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use super::CriError;

/// Fields whose keys are the user's own.
const MAPS: [&str; 4] = ["labels", "annotations", "sysctls", "unified"];

/// Reads a message; `what` names it in errors. The second value is the paths of unknown fields.
///
/// # Errors
///
/// It is no JSON, a field has a wrong type, or one is there under two names.
pub fn read<T>(what: &str, text: &str) -> Result<(T, Vec<String>), CriError>
where
    T: DeserializeOwned + Serialize,
{
    let json = |source| CriError::Json { what: what.to_owned(), source };
    let given = snake_case(serde_json::from_str(text).map_err(json)?).map_err(json)?;
    if !given.is_object() {
        return Err(CriError::field(what, "not a JSON object"));
    }
    let message = T::deserialize(&given).map_err(|source| wrong::<T>(what, &given, &source))?;
    let mut unknown = Vec::new();
    compare(&given, &serde_json::to_value(&message).map_err(json)?, String::new(), &mut unknown);
    Ok((message, unknown))
}

/// Why an object is no message of this kind, with the path of the field that makes it so: the one that does it alone.
/// All fields of such a message may be left out.
pub(crate) fn wrong<T: DeserializeOwned>(what: &str, given: &Value, source: &serde_json::Error) -> CriError {
    let (mut path, mut value, mut reason) = (Vec::<Option<&str>>::new(), given, source.to_string());
    let mut name = String::new();
    loop {
        let children: Vec<(Option<&str>, String, &Value)> = match value {
            Value::Object(fields) => {
                let dot = if name.is_empty() { "" } else { "." };
                fields.iter().map(|(key, value)| (Some(&**key), format!("{dot}{key}"), value)).collect()
            }
            Value::Array(items) => {
                items.iter().enumerate().map(|(n, value)| (None, format!("[{n}]"), value)).collect()
            }
            _ => Vec::new(),
        };
        let culprit = children.into_iter().find_map(|(key, part, child)| {
            let alone = path.iter().chain([&key]).rev().fold(child.clone(), |inner, key| match key {
                Some(key) => Value::Object(Map::from_iter([((*key).to_owned(), inner)])),
                None => Value::Array(vec![inner]),
            });
            T::deserialize(&alone).err().map(|error| (key, part, child, error))
        });
        let Some((key, part, child, error)) = culprit else { break };
        path.push(key);
        name.push_str(&part);
        (value, reason) = (child, error.to_string());
    }
    let name = if name.is_empty() { what.to_owned() } else { format!("{what}: {name}") };
    CriError::field(name, reason)
}

/// Renames the fields of all objects; those that are `null` go.
fn snake_case(value: Value) -> Result<Value, serde_json::Error> {
    Ok(match value {
        Value::Array(items) => Value::Array(items.into_iter().map(snake_case).collect::<Result<_, _>>()?),
        Value::Object(fields) => {
            let mut renamed = Map::new();
            for (key, value) in fields.into_iter().filter(|(_, value)| !value.is_null()) {
                let name = snake_name(&key);
                let value = if MAPS.contains(&&*name) { value } else { snake_case(value)? };
                if renamed.insert(name, value).is_some() {
                    return Err(serde_json::Error::custom(format!("{key} is there twice")));
                }
            }
            Value::Object(renamed)
        }
        other => other,
    })
}

fn snake_name(key: &str) -> String {
    let mut name = String::with_capacity(key.len());
    let mut before = '_';
    for c in key.chars() {
        // `CDI_devices` has its underscore already.
        if c.is_ascii_uppercase() && before.is_ascii_lowercase() {
            name.push('_');
        }
        name.push(c.to_ascii_lowercase());
        before = c;
    }
    name
}

/// The fields of `given` that reading it and writing it again has lost.
fn compare(given: &Value, kept: &Value, path: String, unknown: &mut Vec<String>) {
    match (given, kept) {
        (Value::Object(given), Value::Object(kept)) => {
            for (key, value) in given {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                match kept.get(key) {
                    Some(kept) => compare(value, kept, path, unknown),
                    None => unknown.push(path),
                }
            }
        }
        (Value::Array(given), Value::Array(kept)) => {
            for (index, (given, kept)) in given.iter().zip(kept).enumerate() {
                compare(given, kept, format!("{path}[{index}]"), unknown);
            }
        }
        _ => {}
    }
}

/// A 64-bit number, or a string of its digits.
pub(super) fn int<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    let value = Value::deserialize(deserializer)?;
    number(&value).ok_or_else(|| D::Error::custom(format!("{value} is not a number of 64 bits")))
}

/// protobuf's `Int64Value`: `{"value": 7}`, or the number alone.
pub(super) fn wrapped<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    let value = Value::deserialize(deserializer)?;
    let inner = match &value {
        Value::Object(fields) if fields.is_empty() => return Ok(Some(0)),
        Value::Object(fields) => fields.get("value").unwrap_or(&Value::Null),
        other => other,
    };
    match inner {
        Value::Null if value.is_null() => Ok(None),
        inner => number(inner)
            .map(Some)
            .ok_or_else(|| D::Error::custom(format!("{value} is not a number of 64 bits"))),
    }
}

/// A list of 64-bit numbers.
pub(super) fn ints<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<i64>, D::Error> {
    let values = Vec::<Value>::deserialize(deserializer)?;
    let numbers = values.iter().map(|value| {
        number(value).ok_or_else(|| D::Error::custom(format!("{value} is not a number of 64 bits")))
    });
    numbers.collect()
}

fn number(value: &Value) -> Option<i64> {
    match value {
        Value::String(digits) => digits.parse().ok(),
        other => other.as_i64(),
    }
}

/// An enum of the protocol, read by name or number and written by name.
macro_rules! wire_enum {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $number:literal $wire:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
        pub enum $name {
            #[default]
            $($(#[$variant_doc])* $variant,)+
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(match self { $(Self::$variant => $wire,)+ })
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let value = serde_json::Value::deserialize(deserializer)?;
                $(if value == $number || value.as_str() == Some($wire) { return Ok(Self::$variant); })+
                let known = [$($wire),+].join(", ");
                Err(serde::de::Error::custom(format!("{value} is none of {known}")))
            }
        }
    };
}
pub(super) use wire_enum;

#[cfg(test)]
mod tests {
    use super::super::config::{ContainerConfig, NamespaceMode, PodSandboxConfig};
    use super::*;

    #[test]
    fn both_spellings_are_one_message() {
        let snake = r#"{"metadata": {"name": "a"}, "working_dir": "/x", "labels": {"aB": "c"},
            "linux": {"resources": {"memory_limit_in_bytes": 7}, "security_context":
            {"run_as_user": {"value": 5}, "namespace_options": {"pid": 1}}}}"#;
        let camel = r#"{"metadata": {"name": "a"}, "workingDir": "/x", "labels": {"aB": "c"}, "command": null,
            "linux": {"resources": {"memoryLimitInBytes": "7"}, "securityContext":
            {"runAsUser": "5", "namespaceOptions": {"pid": "CONTAINER"}}}}"#;
        let (one, unknown) = read::<ContainerConfig>("c", snake).unwrap();
        assert_eq!((&one, unknown), (&read::<ContainerConfig>("c", camel).unwrap().0, vec![]));
        assert_eq!(one.linux.security_context.run_as_user, Some(5));
        assert_eq!(one.linux.security_context.namespace_options.pid, NamespaceMode::Container);
        assert_eq!(one.labels["aB"], "c");
        let again = serde_json::to_string(&one).unwrap();
        assert_eq!(read::<ContainerConfig>("c", &again).unwrap().0, one);
    }

    #[test]
    fn unknown_fields_are_named_and_wrong_ones_refused() {
        let text = r#"{"metadata": {"name": "p", "nmae": ""}, "windows": {}, "dns_config": {"servers": ["1.1.1.1"]},
            "port_mappings": [{"container_port": 80}, {"color": 1}]}"#;
        let (pod, unknown) = read::<PodSandboxConfig>("p", text).unwrap();
        assert_eq!(pod.dns_config.servers, ["1.1.1.1"]);
        assert_eq!(unknown, ["metadata.nmae", "port_mappings[1].color", "windows"]);
        for (text, words) in [
            (
                r#"{"envs": [{"value": "x"}, {"key": 1}]}"#,
                ": envs[1].key: invalid type: integer `1`, expected a string",
            ),
            (r#"{"log_path": "a", "logPath": "b"}"#, "is there twice"),
            (r#"{"mounts": [{"propagation": "SIDEWAYS"}]}"#, "PROPAGATION_BIDIRECTIONAL"),
            (
                r#"{"linux": {"security_context": {"run_as_user": "root"}}}"#,
                ": linux.security_context.run_as_user: \"root\" is not a number",
            ),
            ("[]", "not a JSON object"),
            ("{", "EOF"),
        ] {
            let error = read::<ContainerConfig>("container.json", text).unwrap_err().to_string();
            assert!(error.starts_with("container.json: ") && error.contains(words), "{error}");
        }
    }
}
