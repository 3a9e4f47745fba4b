//! Named virtual machines that outlive the command that started them, as any client of this user finds them.
//!
//! ```text
//! $XDG_RUNTIME_DIR/nakai, or /run/nakai-ctl
//!   vms/<name>.json    the record
//!   vms/<name>.lock    held by the machine's keeper for as long as it lives
//!   vms/<name>.log     what the keeper has to say
//! ```
//!
//! The keeper is a process of its own, which holds the machine as a [`Vm`](crate::vm::Vm): QEMU and its daemons end with
//! it, however it ends. It is told by pid and start time, so a record whose keeper is gone is recognised, and cleaned up
//! by whoever meets it.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::address::{Address, AddressError};
use crate::connect::{pid_of, this_process};
use crate::state::{Lock, State, read_json, write_json};
use crate::time;
use crate::vm::remove_run_directory;

/// How long a keeper may take to end its machine before it is killed.
const STOP_LIMIT: Duration = Duration::from_secs(60);

/// How many lines of a keeper's log are told.
const LOG_LINES: usize = 10;

/// Why a named machine is not to be had.
#[derive(Debug, thiserror::Error)]
pub enum VmsError {
    /// A name that can't name a file.
    #[error("VM name {0:?}: letters, digits, '-', '_' and inner dots only, at most 64")]
    Name(String),
    /// Another machine has the name.
    #[error("VM {0} is there already")]
    Taken(String),
    /// No machine has it.
    #[error("no VM {name} (there are: {})", if known.is_empty() { "none".to_owned() } else { known.join(", ") })]
    Unknown {
        /// The name.
        name: String,
        /// Those that are.
        known: Vec<String>,
    },
    /// Its agent does not serve yet.
    #[error("VM {0} is still booting")]
    Booting(String),
    /// A record with an address that is none.
    #[error("record of VM {name}: {source}")]
    Address {
        /// The name.
        name: String,
        /// What is wrong.
        source: AddressError,
    },
    /// A record or a lock that can't be read or written, or a keeper that can't be told to end.
    #[error("VM {name}: {source}")]
    Io {
        /// The name.
        name: String,
        /// The system's reason.
        source: io::Error,
    },
}

/// A named machine.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct NamedVm {
    /// Its name.
    pub name: String,
    /// Its keeper, by pid and start time.
    pub keeper: String,
    /// Where its agent is; none while it boots.
    pub address: Option<String>,
    /// Its sockets and logs.
    pub run: Option<PathBuf>,
    /// Memory in MiB.
    pub memory: u32,
    /// CPUs.
    pub cpus: u32,
    /// Seconds since the epoch.
    pub started: u64,
}

/// The named machines of this user.
#[derive(Clone, Debug)]
pub struct Registry {
    directory: PathBuf,
}

impl Registry {
    /// Those of this user.
    pub fn of_user() -> Self {
        Self { directory: State::base().join("vms") }
    }

    /// Those with their records in `directory`.
    pub fn at(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// Takes a name for this process, the keeper, and notes that the machine boots.
    ///
    /// # Errors
    ///
    /// The name can't be, or is taken.
    pub fn reserve(&self, name: &str, memory: u32, cpus: u32) -> Result<(NamedVm, Lock), VmsError> {
        self.check_free(name)?;
        let lock = Lock::try_take(&self.file(name, "lock")).map_err(|source| match source.kind() {
            io::ErrorKind::WouldBlock => VmsError::Taken(name.to_owned()),
            _ => VmsError::Io { name: name.to_owned(), source },
        })?;
        let me = this_process().unwrap_or_default();
        let (name, started) = (name.to_owned(), time::seconds_now());
        let vm = NamedVm { name, keeper: me, memory, cpus, started, ..NamedVm::default() };
        self.note(&vm)?;
        Ok((vm, lock))
    }

    /// Whether a name can be taken.
    ///
    /// # Errors
    ///
    /// It can't be, or is taken.
    pub fn check_free(&self, name: &str) -> Result<(), VmsError> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if name.is_empty() || name.len() > 64 || name.starts_with('.') || !name.chars().all(allowed) {
            return Err(VmsError::Name(name.to_owned()));
        }
        match self.get(name) {
            Some(_) => Err(VmsError::Taken(name.to_owned())),
            None => Ok(()),
        }
    }

    /// Writes a record anew.
    ///
    /// # Errors
    ///
    /// It can't be written.
    pub fn note(&self, vm: &NamedVm) -> Result<(), VmsError> {
        let written = write_json(&self.file(&vm.name, "json"), vm);
        written.map_err(|source| VmsError::Io { name: vm.name.clone(), source })
    }

    /// Drops the record of a machine that has ended.
    pub fn forget(&self, name: &str) {
        let _ = fs::remove_file(self.file(name, "json"));
    }

    /// Removes the keeper's log, where it tells nothing that is not known.
    pub fn forget_log(&self, name: &str) {
        let _ = fs::remove_file(self.file(name, "log"));
    }

    /// All that live, by name.
    pub fn list(&self) -> Vec<NamedVm> {
        let entries = fs::read_dir(&self.directory).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| {
            entry.file_name().to_str().and_then(|name| name.strip_suffix(".json")).map(str::to_owned)
        });
        let mut vms: Vec<_> = names.filter_map(|name| self.get(&name)).collect();
        vms.sort_by(|a, b| a.name.cmp(&b.name));
        vms
    }

    /// The machine of that name, if it lives. What is left of a dead one is cleaned up.
    pub fn get(&self, name: &str) -> Option<NamedVm> {
        let vm: NamedVm = read_json(&self.file(name, "json"))?;
        if vm.pid().is_some() {
            return Some(vm);
        }
        // Whoever has the lock is a new keeper, or another that cleans up.
        if let Ok(lock) = Lock::try_take(&self.file(name, "lock"))
            && read_json(&self.file(name, "json")).as_ref() == Some(&vm)
        {
            if let Some(Ok(address)) = vm.address.as_ref().map(|address| address.parse::<Address>()) {
                State::of(&address).forget();
            }
            if let Some(run) = &vm.run {
                remove_run_directory(run);
            }
            self.forget(name);
            lock.remove();
        }
        None
    }

    /// The machine of that name.
    ///
    /// # Errors
    ///
    /// There is none.
    pub fn find(&self, name: &str) -> Result<NamedVm, VmsError> {
        self.get(name).ok_or_else(|| {
            let known = self.list().into_iter().map(|vm| vm.name).collect();
            VmsError::Unknown { name: name.to_owned(), known }
        })
    }

    /// Where the agent of the machine of that name is.
    ///
    /// # Errors
    ///
    /// There is no such machine, or it still boots.
    pub fn address(&self, name: &str) -> Result<Address, VmsError> {
        let address = self.find(name)?.address.ok_or_else(|| VmsError::Booting(name.to_owned()))?;
        address.parse().map_err(|source| VmsError::Address { name: name.to_owned(), source })
    }

    /// Ends a machine and waits until nothing of it is left.
    ///
    /// # Errors
    ///
    /// There is no such machine, or its keeper is another user's.
    pub async fn stop(&self, name: &str) -> Result<(), VmsError> {
        let failed = |source| VmsError::Io { name: name.to_owned(), source };
        let vm = self.find(name)?;
        vm.signal(Signal::SIGTERM).map_err(failed)?;
        let ended = Lock::wait(self.file(name, "lock"));
        match tokio::time::timeout(STOP_LIMIT, ended).await {
            Ok(lock) => lock.map_err(failed)?.remove(),
            Err(_) => {
                vm.signal(Signal::SIGKILL).map_err(failed)?;
                Lock::wait(self.file(name, "lock")).await.map_err(failed)?.remove();
            }
        }
        // If it was killed, this cleans up.
        let _ = self.get(name);
        self.forget_log(name);
        Ok(())
    }

    /// The last words of a keeper that has ended without having told why; empty where there are none.
    pub fn log_tail(&self, name: &str) -> String {
        let said = fs::read(self.file(name, "log")).unwrap_or_default();
        let said = String::from_utf8_lossy(&said);
        let lines: Vec<_> = said.trim_end().lines().rev().take(LOG_LINES).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    /// A new file for what a keeper has to say.
    ///
    /// # Errors
    ///
    /// It can't be made.
    pub fn new_log(&self, name: &str) -> io::Result<fs::File> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)?;
        fs::File::create(self.file(name, "log"))
    }

    fn file(&self, name: &str, kind: &str) -> PathBuf {
        self.directory.join(format!("{name}.{kind}"))
    }
}

impl NamedVm {
    /// The keeper's pid, while it lives.
    pub fn pid(&self) -> Option<i32> {
        pid_of(&self.keeper)
    }

    fn signal(&self, signal: Signal) -> io::Result<()> {
        match self.pid().map(|pid| kill(Pid::from_raw(pid), signal)) {
            None | Some(Ok(()) | Err(nix::Error::ESRCH)) => Ok(()),
            Some(Err(errno)) => Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_taken_once_and_free_when_its_keeper_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::at(dir.path().join("vms"));
        for bad in ["", ".", "../x", "a/b", "a b", &"x".repeat(65)] {
            assert!(matches!(registry.check_free(bad), Err(VmsError::Name(_))), "{bad}");
        }
        let (mut vm, lock) = registry.reserve("one", 512, 1).unwrap();
        assert!(matches!(registry.reserve("one", 1, 1), Err(VmsError::Taken(_))));
        assert!(matches!(registry.address("one"), Err(VmsError::Booting(_))));
        vm.address = Some("unix:///tmp/x".to_owned());
        registry.note(&vm).unwrap();
        assert_eq!(registry.address("one").unwrap(), Address::Unix("/tmp/x".into()));
        assert_eq!(registry.list(), [vm.clone()]);
        let error = registry.find("two").unwrap_err().to_string();
        assert_eq!(error, "no VM two (there are: one)");

        // The same pid with another start: that keeper is gone, and with it what it had.
        drop(lock);
        let run = tempfile::Builder::new().prefix("nakai-vm-").tempdir().unwrap().keep();
        let keeper = format!("{}@1", std::process::id());
        registry.note(&NamedVm { keeper, run: Some(run.clone()), ..vm }).unwrap();
        assert_eq!(registry.list(), []);
        assert!(!run.exists());
        assert_eq!(fs::read_dir(dir.path().join("vms")).unwrap().count(), 0);
    }
}
