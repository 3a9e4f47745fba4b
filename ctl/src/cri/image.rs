//! What an image says of the containers that are made of it: the `config` of its OCI configuration.

use serde::{Deserialize, Serialize};

use super::CriError;
use super::config::ContainerConfig;

/// The part of an image's configuration that a container takes over, with the names of the OCI image specification.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ImageConfig {
    /// `user`, `uid`, `user:group` or `uid:gid`.
    pub user: String,
    /// `NAME=VALUE`.
    #[serde(deserialize_with = "or_default")]
    pub env: Vec<String>,
    /// The program.
    #[serde(deserialize_with = "or_default")]
    pub entrypoint: Vec<String>,
    /// Its arguments, or the program where there is no entry point.
    #[serde(deserialize_with = "or_default")]
    pub cmd: Vec<String>,
    /// The working directory.
    pub working_dir: String,
    /// What asks it to end.
    pub stop_signal: String,
}

fn or_default<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl ImageConfig {
    /// What an image of the store says.
    pub fn of(image: &crate::image::ImageConfig) -> Self {
        Self {
            user: image.user.clone(),
            env: image.env.clone(),
            entrypoint: image.entrypoint.clone(),
            cmd: image.cmd.clone(),
            working_dir: image.working_dir.clone(),
            stop_signal: image.stop_signal.clone(),
        }
    }

    /// Reads an image's configuration, or its `config` alone.
    ///
    /// # Errors
    ///
    /// It is not of that shape.
    pub fn read(what: &str, text: &str) -> Result<Self, CriError> {
        let json = |source| CriError::Json { what: what.to_owned(), source };
        let mut value: serde_json::Value = serde_json::from_str(text).map_err(json)?;
        let inner = value.get_mut("config").map(serde_json::Value::take);
        serde_json::from_value(inner.unwrap_or(value)).map_err(json)
    }

    /// The program and its arguments, by Kubernetes' rules: `command` stands for the entry point and makes the
    /// image's `Cmd` void, `args` stands for `Cmd`.
    ///
    /// # Errors
    ///
    /// There is none.
    pub fn arguments(&self, config: &ContainerConfig) -> Result<Vec<String>, CriError> {
        let (command, args) = match (config.command.is_empty(), config.args.is_empty()) {
            (true, true) => (&self.entrypoint, &self.cmd),
            (true, false) => (&self.entrypoint, &config.args),
            (false, _) => (&config.command, &config.args),
        };
        let all: Vec<String> = command.iter().chain(args).cloned().collect();
        if all.is_empty() {
            return Err(CriError::field(
                "command",
                "neither the configuration nor the image names a program",
            ));
        }
        Ok(all)
    }
}

/// A signal's number by its name, with or without `SIG`, or by its digits; SIGTERM where nothing is said.
pub fn signal(text: &str) -> Option<u32> {
    use std::str::FromStr as _;
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIGNAL_").unwrap_or(&upper);
    let name = if name.starts_with("SIG") { name.to_owned() } else { format!("SIG{name}") };
    match text.parse::<u32>() {
        Ok(number) => (1..=64).contains(&number).then_some(number),
        Err(_) if text.is_empty() || name == "SIGRUNTIME_DEFAULT" => Some(libc::SIGTERM.unsigned_abs()),
        Err(_) => nix::sys::signal::Signal::from_str(&name).ok().map(|signal| (signal as i32).unsigned_abs()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        let table = [("", Some(15)), ("SIGINT", Some(2)), ("quit", Some(3)), ("9", Some(9)), ("NOPE", None)];
        for (text, expected) in table {
            assert_eq!(signal(text), expected, "{text}");
        }
    }

    #[test]
    fn command_and_args_replace_entrypoint_and_cmd() {
        let text = r#"{"architecture": "amd64", "config": {"Entrypoint": ["e"], "Cmd": ["c"], "Env": null}}"#;
        let image = ImageConfig::read("image", text).unwrap();
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        for (command, args, expected) in
            [("", "", "e c"), ("", "a", "e a"), ("x", "", "x"), ("x y", "a b", "x y a b")]
        {
            let config =
                ContainerConfig { command: words(command), args: words(args), ..ContainerConfig::default() };
            assert_eq!(image.arguments(&config).unwrap(), words(expected), "{command:?} {args:?}");
        }
        assert!(ImageConfig::default().arguments(&ContainerConfig::default()).is_err());
    }
}
