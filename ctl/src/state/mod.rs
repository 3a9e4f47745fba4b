//! What clients remember of an agent, since the protocol has no list of containers.
//!
//! ```text
//! $XDG_RUNTIME_DIR/nakai, or /run/nakai-ctl
//!   pci.lock                  held while PCI functions are claimed
//!   <address, escaped>/
//!     vm.json                 the shared directory, noted by `vm start`
//!     agent                   which process answered at the address
//!     agent.lock              held while notes about another agent are dropped
//!     sandbox                 there is one; its host name, if it was made from here
//!     sandbox.lock            held while the sandbox is created
//!     network.json            the pod's own network cards
//!     network.lock            held while the guest's network is changed
//!     oom.lock                held by whoever takes the agent's OOM events
//!     events, events.1        what happened, a JSON object a line
//!     attempts.json           the last attempt of each pod's container names
//!     logs/<id>/...           output of containers that run detached
//!     disks/<id>/             what a container with a limited root writes to
//!     containers/<id>.json    one record for each container
//!     containers/<id>.lock    held by whoever changes the container
//!     containers/<id>.attended  held by whoever stays with it, to be told how it ends
//! ```
//!
//! All front ends use the one notebook, so `ps`, `events` and `rm` know every container, whoever has made it.
//!
//! It is a notebook, not the truth: the agent has that. Losing it costs `ps` its list and `run` its
//! knowledge of the shared directory. Notes about an agent that is gone are recognised by the process that
//! answers ([`State::settle`]) and dropped.
//!
//! Commands for one container come one after the other: whoever changes it holds its [`Lock`]. Signals and
//! questions don't wait.

mod journal;
mod lock;
mod record;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::address::Address;
use crate::client::Client;
use crate::connect::this_process;
use crate::mounts;
use crate::nets::Card;
use crate::removal;

pub use journal::{Action, Event, Journal, Phase};
pub use lock::Lock;
pub use record::{ContainerRecord, ContainerState, Health};

/// The VM behind an address.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct VmRecord {
    /// The host's side of the shared directory.
    pub share: PathBuf,
    /// QEMU's control socket.
    #[serde(default)]
    pub qmp: Option<PathBuf>,
    /// Its sockets and logs.
    #[serde(default)]
    pub run: Option<PathBuf>,
    /// The process that ends it, by pid and start time; none where this client has not started it.
    #[serde(default)]
    pub keeper: Option<String>,
}

impl VmRecord {
    /// A machine that this process keeps.
    pub fn kept(share: PathBuf, qmp: PathBuf, run: PathBuf) -> Self {
        Self { share, qmp: Some(qmp), run: Some(run), keeper: this_process() }
    }
}

/// The notebook of one address.
#[derive(Clone, Debug)]
pub struct State {
    directory: PathBuf,
}

impl State {
    /// Where all notebooks are.
    pub fn base() -> PathBuf {
        match std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty()) {
            Some(dir) => PathBuf::from(dir).join("nakai"),
            None => PathBuf::from("/run/nakai-ctl"),
        }
    }

    /// The notebook of the agent at `address`.
    pub fn of(address: &Address) -> Self {
        Self::in_directory(&Self::base(), address)
    }

    /// As [`State::of`], with all notebooks in `base`.
    pub fn in_directory(base: &Path, address: &Address) -> Self {
        Self { directory: base.join(escape(&address.to_string())) }
    }

    /// The layers of images that containers of this user's notebooks have, and those that are mounted.
    pub fn layers_in_use() -> BTreeSet<PathBuf> {
        let notebooks = fs::read_dir(Self::base()).into_iter().flatten().flatten();
        let containers = notebooks.flat_map(|entry| Self::at(entry.path()).containers());
        let noted = containers.flat_map(|container| container.holdings.layers);
        noted.chain(mounts::overlay_lowers()).collect()
    }

    /// A notebook in a directory of its own.
    pub fn at(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into() }
    }

    /// Forgets what was noted about another agent than the one that `client` talks to, which listened at the same
    /// address before. Where the address does not tell who answers (vsock), nothing is forgotten.
    pub fn settle(&self, client: &Client) {
        if let Some(peer) = client.peer() {
            self.settle_with(peer);
        }
    }

    fn settle_with(&self, peer: &str) {
        let file = self.directory.join("agent");
        let known: Option<String> = read_json(&file);
        if known.as_deref() == Some(peer) {
            return;
        }
        // Of several clients that notice it one drops what was: another may have made new containers by then.
        let Ok(_turn) = Lock::take_blocking(&self.directory.join("agent.lock")) else { return };
        let known: Option<String> = read_json(&file);
        if known.as_deref() == Some(peer) {
            return;
        }
        if known.is_some() {
            self.drop_containers();
            // Whether they are there or not, they are not there behind this.
            for stale in ["sandbox", "attempts.json", "network.json"] {
                let _ = fs::remove_file(self.directory.join(stale));
            }
        }
        // Without the note the next client settles again.
        let _ = write_json(&file, &peer);
    }

    /// Drops all containers' records and takes away what they share.
    fn drop_containers(&self) {
        for container in self.containers() {
            removal::tell(container.holdings.take_back(&container.id));
            self.forget_container(&container.id);
            let gone = Event::new(&container.id, Action::Remove).detail("the agent is gone");
            self.journal().note(&gone);
        }
    }

    /// A place of its own for something of a container's.
    pub fn place(&self, kind: &str, id: &str) -> PathBuf {
        self.directory.join(kind).join(escape(id))
    }

    /// The name of this notebook, as one file name.
    pub fn name(&self) -> &str {
        self.directory.file_name().and_then(|name| name.to_str()).unwrap_or("agent")
    }

    /// What happens at this agent.
    pub fn journal(&self) -> Journal {
        Journal::new(self.directory.join("events"))
    }

    /// Waits for its turn to change container `id`.
    ///
    /// # Errors
    ///
    /// The lock's file can't be made.
    pub async fn lock_container(&self, id: &str) -> io::Result<Lock> {
        Lock::wait(self.container_file(id, "lock")).await
    }

    /// The turn to stay with a container, or none where somebody does.
    pub fn try_attend(&self, id: &str) -> Option<Lock> {
        Lock::try_take(&self.container_file(id, "attended")).ok()
    }

    /// Waits for its turn to make the sandbox.
    ///
    /// # Errors
    ///
    /// The lock's file can't be made.
    pub async fn lock_sandbox(&self) -> io::Result<Lock> {
        Lock::wait(self.directory.join("sandbox.lock")).await
    }

    /// Waits for its turn to take the agent's OOM events, each of which is told once.
    ///
    /// # Errors
    ///
    /// The lock's file can't be made.
    pub async fn lock_oom_events(&self) -> io::Result<Lock> {
        Lock::wait(self.directory.join("oom.lock")).await
    }

    /// Waits for its turn to change the guest's network, which all containers share.
    ///
    /// # Errors
    ///
    /// The lock's file can't be made.
    pub async fn lock_network(&self) -> io::Result<Lock> {
        Lock::wait(self.directory.join("network.lock")).await
    }

    /// Waits for its turn to claim PCI functions of this host.
    ///
    /// # Errors
    ///
    /// The lock's file can't be made.
    pub async fn lock_claims() -> io::Result<Lock> {
        Lock::wait(Self::base().join("pci.lock")).await
    }

    /// The addresses of the PCI functions that containers of this notebook and of this user's others have.
    pub fn claimed_functions(&self) -> BTreeSet<String> {
        let notebooks = fs::read_dir(Self::base()).into_iter().flatten().flatten();
        let others = notebooks.map(|entry| Self::at(entry.path()));
        let containers = others.chain([self.clone()]).flat_map(|notebook| notebook.containers());
        containers
            .flat_map(|container| container.holdings.functions)
            .map(|function| function.address)
            .collect()
    }

    /// The pod's own network cards.
    pub fn pod_cards(&self) -> Vec<Card> {
        read_json(&self.directory.join("network.json")).unwrap_or_default()
    }

    /// Notes them.
    ///
    /// # Errors
    ///
    /// The note can't be written.
    pub fn note_pod_cards(&self, cards: &[Card]) -> io::Result<()> {
        write_json(&self.directory.join("network.json"), &cards)
    }

    /// What is noted of the VM.
    pub fn vm(&self) -> Option<VmRecord> {
        read_json(&self.directory.join("vm.json"))
    }

    /// Notes what the VM shares.
    ///
    /// # Errors
    ///
    /// The note can't be written.
    pub fn note_vm(&self, vm: &VmRecord) -> io::Result<()> {
        write_json(&self.directory.join("vm.json"), vm)
    }

    /// Whether the sandbox has been made.
    pub fn has_sandbox(&self) -> bool {
        self.directory.join("sandbox").exists()
    }

    /// The sandbox's host name, which is that of all its containers; none where another client has made it.
    pub fn hostname(&self) -> Option<String> {
        read_json::<Option<String>>(&self.directory.join("sandbox")).flatten()
    }

    /// Notes that the sandbox has been made, by this client if the host name is known.
    ///
    /// # Errors
    ///
    /// The note can't be written.
    pub fn note_sandbox(&self, hostname: Option<&str>) -> io::Result<()> {
        write_json(&self.directory.join("sandbox"), &hostname)
    }

    /// All containers, oldest first. What can't be read is left out.
    pub fn containers(&self) -> Vec<ContainerRecord> {
        let entries = fs::read_dir(self.directory.join("containers")).into_iter().flatten().flatten();
        let records =
            entries.map(|entry| entry.path()).filter(|path| path.extension() == Some("json".as_ref()));
        let mut containers: Vec<ContainerRecord> = records.filter_map(|path| read_json(&path)).collect();
        containers.sort_by(|a, b| (a.created, &a.id).cmp(&(b.created, &b.id)));
        containers
    }

    /// The container `id`.
    pub fn container(&self, id: &str) -> Option<ContainerRecord> {
        read_json(&self.container_file(id, "json"))
    }

    /// Writes a record anew.
    ///
    /// # Errors
    ///
    /// The record can't be written.
    pub fn note_container(&self, container: &ContainerRecord) -> io::Result<()> {
        write_json(&self.container_file(&container.id, "json"), container)
    }

    /// Gives a container's lock back; that of one that is not on record leaves nothing.
    pub fn unlock(&self, id: &str, lock: Lock) {
        if self.container(id).is_none() {
            lock.remove();
        }
    }

    /// Changes a record, if there is one; its container's lock must be held.
    ///
    /// # Errors
    ///
    /// The record can't be written.
    pub fn change_container(&self, id: &str, change: impl FnOnce(&mut ContainerRecord)) -> io::Result<()> {
        let Some(mut record) = self.container(id) else { return Ok(()) };
        change(&mut record);
        self.note_container(&record)
    }

    /// The attempt that comes after the last one: 0 for a new name.
    ///
    /// # Errors
    ///
    /// The note can't be written.
    pub async fn next_attempt(&self, pod: &str, name: &str, least: u32) -> io::Result<u32> {
        let _turn = Lock::wait(self.directory.join("attempts.lock")).await?;
        let file = self.directory.join("attempts.json");
        let mut attempts: BTreeMap<String, u32> = read_json(&file).unwrap_or_default();
        let key = format!("{pod}/{name}");
        let next = attempts.get(&key).map_or(0, |last| last.saturating_add(1)).max(least);
        attempts.insert(key, next);
        write_json(&file, &attempts)?;
        Ok(next)
    }

    /// Drops a record and the log that only this client keeps.
    pub fn forget_container(&self, id: &str) {
        // It may never have been noted.
        for kind in ["json", "attended"] {
            let _ = fs::remove_file(self.container_file(id, kind));
        }
        let _ = fs::remove_dir_all(self.place("logs", id));
    }

    /// Forgets the address: its VM is gone.
    pub fn forget(&self) {
        // What they share may be a mount.
        for container in self.containers() {
            removal::tell(container.holdings.take_back(&container.id));
        }
        let _ = fs::remove_dir_all(&self.directory);
    }

    fn container_file(&self, id: &str, kind: &str) -> PathBuf {
        self.directory.join("containers").join(format!("{}.{kind}", escape(id)))
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

/// Reads a note; none for one that is not there or is none.
pub(crate) fn read_json<T: for<'a> Deserialize<'a>>(path: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// Writes by renaming, so that no reader sees half a record.
pub(crate) fn write_json<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
    }
    // Readers take what ends in `json`; two writers don't share a file.
    let new = path.with_extension(format!("new-{}", std::process::id()));
    let written = fs::write(&new, serde_json::to_vec(value)?).and_then(|()| fs::rename(&new, path));
    if written.is_err() {
        // Where the disk is full, half of it is there.
        let _ = fs::remove_file(new);
    }
    written
}

#[cfg(test)]
mod tests;
