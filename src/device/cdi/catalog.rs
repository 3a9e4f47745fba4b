//! All that the specification files in the guest say: kinds, their devices, and what a container with them gets.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::name::{CdiName, check_kind};
use super::{CdiError, yaml};

/// The largest file that is read.
const FILE_MAX: u64 = 4 << 20;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    kind: String,
    #[serde(default)]
    container_edits: Option<Value>,
    #[serde(default)]
    devices: Vec<Device>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Device {
    name: Value,
    #[serde(default)]
    container_edits: Option<Value>,
}

/// A device: what its file says for all of the kind, and for it.
#[derive(Debug, Clone)]
struct Known {
    file: PathBuf,
    general: Option<Value>,
    own: Option<Value>,
}

/// What there is.
#[derive(Debug, Default)]
pub(super) struct Catalog {
    /// By kind and name.
    devices: BTreeMap<String, BTreeMap<String, Known>>,
    /// Files that can't be read, with the reason.
    broken: Vec<String>,
}

impl Catalog {
    /// Reads all files. One that can't be read may be half written, and is told of when something is missed.
    pub(super) fn read(directories: &[PathBuf]) -> Self {
        let mut catalog = Self::default();
        for directory in directories {
            let entries = fs::read_dir(directory).into_iter().flatten().flatten();
            let mut files: Vec<_> = entries.map(|entry| entry.path()).collect();
            files.sort_unstable();
            for file in files {
                let extension = file.extension().and_then(|extension| extension.to_str());
                if matches!(extension, Some("json" | "yaml" | "yml"))
                    && let Err(cause) = catalog.add(&file, extension == Some("json"))
                {
                    catalog.broken.push(format!("{}: {cause}", file.display()));
                }
            }
        }
        catalog
    }

    fn add(&mut self, path: &Path, is_json: bool) -> Result<(), String> {
        if fs::metadata(path).map_err(|error| error.to_string())?.len() > FILE_MAX {
            return Err(format!("it is larger than {FILE_MAX} bytes"));
        }
        let text = fs::read_to_string(path).map_err(|error| error.to_string())?;
        self.add_text(path, &text, is_json)
    }

    fn add_text(&mut self, path: &Path, text: &str, is_json: bool) -> Result<(), String> {
        let value = if is_json {
            serde_json::from_str(text).map_err(|error| error.to_string())?
        } else {
            yaml::parse(text).map_err(|error| error.to_string())?
        };
        let file: File = serde_json::from_value(value).map_err(|error| error.to_string())?;
        check_kind(&file.kind)?;
        let kind = self.devices.entry(file.kind).or_default();
        for device in file.devices {
            // YAML makes a number of a name that is one.
            let name = match device.name {
                Value::String(name) => name,
                other => other.to_string(),
            };
            let (general, own) = (file.container_edits.clone(), device.container_edits);
            kind.insert(name, Known { file: path.to_owned(), general, own });
        }
        Ok(())
    }

    /// All edits of the devices in a file with this text.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn edits_in(text: &str, is_json: bool) -> Result<Vec<Value>, String> {
        let mut catalog = Self::default();
        catalog.add_text(Path::new("/x"), text, is_json)?;
        let devices = catalog.devices.into_values().flat_map(BTreeMap::into_values);
        Ok(devices.flat_map(|known| known.general.into_iter().chain(known.own)).collect())
    }

    /// The edits for these devices, or those of which nobody knows the kind.
    pub(super) fn edits<'a>(
        &self,
        names: &'a [CdiName],
    ) -> Result<Result<Vec<Value>, Vec<&'a CdiName>>, CdiError> {
        let (mut edits, mut missing) = (Vec::new(), Vec::new());
        let mut general_of: Vec<&Path> = Vec::new();
        for name in names {
            let Some(kind) = self.devices.get(&name.kind) else {
                missing.push(name);
                continue;
            };
            let wanted: Vec<&Known> = match &name.device {
                None => kind.values().collect(),
                Some(device) => match kind.get(device) {
                    Some(known) => vec![known],
                    None => {
                        let known = kind.keys().cloned().collect::<Vec<_>>().join(", ");
                        return Err(CdiError::NoDevice { name: name.to_string(), known });
                    }
                },
            };
            for known in wanted {
                // What holds for all of a file holds once.
                if !general_of.contains(&known.file.as_path()) {
                    general_of.push(&known.file);
                    edits.extend(known.general.clone());
                }
                edits.extend(known.own.clone());
            }
        }
        Ok(if missing.is_empty() { Ok(edits) } else { Err(missing) })
    }

    /// What there is, for an error message.
    pub(super) fn describe(&self) -> String {
        let kinds = self.devices.keys().cloned().collect::<Vec<_>>().join(", ");
        let mut text = match kinds.is_empty() {
            true => "there are none".to_owned(),
            false => format!("there are those of {kinds}"),
        };
        for broken in &self.broken {
            text.push_str(&format!("; {}", broken.replace('\n', " ")));
        }
        text
    }
}
