//! What this client remembers of an agent, since the protocol has no list of containers.
//!
//! ```text
//! $XDG_RUNTIME_DIR/nakai, or /run/nakai-ctl
//!   <address, escaped>/
//!     vm.json                 the shared directory, noted by `vm start`
//!     sandbox                 empty: this client has created the sandbox
//!     containers/<id>.json
//! ```
//!
//! It is a notebook, not the truth: the agent has that. Losing it costs `ps` its list and `run` its
//! knowledge of the shared directory.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use nakai_ctl::Address;
use serde::{Deserialize, Serialize};

/// A container that this client has started.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct ContainerRecord {
    pub(crate) id: String,
    pub(crate) args: Vec<String>,
    pub(crate) rootfs: PathBuf,
    /// Seconds since the epoch.
    pub(crate) created: u64,
    /// The directory in which its root filesystem is shared, if it is.
    pub(crate) share: Option<PathBuf>,
}

/// The VM behind an address.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct VmRecord {
    pub(crate) share: PathBuf,
}

/// The notebook of one address.
#[derive(Clone, Debug)]
pub(crate) struct State {
    directory: PathBuf,
}

impl State {
    pub(crate) fn of(address: &Address) -> Self {
        let base = match std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty()) {
            Some(dir) => PathBuf::from(dir).join("nakai"),
            None => PathBuf::from("/run/nakai-ctl"),
        };
        Self::in_directory(&base, address)
    }

    fn in_directory(base: &Path, address: &Address) -> Self {
        Self { directory: base.join(escape(&address.to_string())) }
    }

    pub(crate) fn vm(&self) -> Option<VmRecord> {
        read(&self.directory.join("vm.json"))
    }

    pub(crate) fn note_vm(&self, vm: &VmRecord) -> io::Result<()> {
        write(&self.directory.join("vm.json"), vm)
    }

    pub(crate) fn has_sandbox(&self) -> bool {
        self.directory.join("sandbox").exists()
    }

    pub(crate) fn note_sandbox(&self) -> io::Result<()> {
        write(&self.directory.join("sandbox"), &())
    }

    /// All containers, oldest first. What can't be read is left out.
    pub(crate) fn containers(&self) -> Vec<ContainerRecord> {
        let entries = fs::read_dir(self.directory.join("containers")).into_iter().flatten().flatten();
        let mut containers: Vec<ContainerRecord> = entries.filter_map(|entry| read(&entry.path())).collect();
        containers.sort_by(|a, b| (a.created, &a.id).cmp(&(b.created, &b.id)));
        containers
    }

    pub(crate) fn container(&self, id: &str) -> Option<ContainerRecord> {
        read(&self.container_file(id))
    }

    pub(crate) fn note_container(&self, container: &ContainerRecord) -> io::Result<()> {
        write(&self.container_file(&container.id), container)
    }

    pub(crate) fn forget_container(&self, id: &str) {
        // It may never have been noted.
        let _ = fs::remove_file(self.container_file(id));
    }

    /// Forgets the address: its VM is gone.
    pub(crate) fn forget(&self) {
        let _ = fs::remove_dir_all(&self.directory);
    }

    fn container_file(&self, id: &str) -> PathBuf {
        self.directory.join("containers").join(format!("{}.json", escape(id)))
    }
}

/// A text as one file name: all but letters, digits, `-`, `_` and inner dots as `%XX`.
fn escape(text: &str) -> String {
    let mut name = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'.' if !name.is_empty() => name.push('.'),
            b'-' | b'_' | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' => name.push(char::from(byte)),
            other => name.push_str(&format!("%{other:02X}")),
        }
    }
    name
}

fn read<T: for<'a> Deserialize<'a>>(path: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// Writes by renaming, so that no reader sees half a record.
fn write<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
    }
    let new = path.with_extension("new");
    fs::write(&new, serde_json::to_vec(value)?)?;
    fs::rename(new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_are_kept_by_address_and_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let address = |text: &str| text.parse::<Address>().unwrap();
        let state = State::in_directory(dir.path(), &address("unix:///a/b"));
        let other = State::in_directory(dir.path(), &address("unix:///a_b"));
        let record = |id: &str, created| ContainerRecord {
            id: id.to_owned(),
            args: vec!["sh".to_owned()],
            rootfs: "/r".into(),
            created,
            share: None,
        };
        assert!(state.containers().is_empty());
        state.note_container(&record("../b", 1)).unwrap();
        state.note_container(&record("a", 2)).unwrap();
        assert_eq!(state.containers(), [record("../b", 1), record("a", 2)]);
        assert_eq!(state.container("a"), Some(record("a", 2)));
        assert!(other.containers().is_empty());
        state.forget_container("a");
        assert_eq!(state.containers().len(), 1);

        assert!(!state.has_sandbox());
        state.note_sandbox().unwrap();
        state.note_vm(&VmRecord { share: "/s".into() }).unwrap();
        assert!(state.has_sandbox());
        assert_eq!(state.vm().unwrap().share, Path::new("/s"));
        state.forget();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
