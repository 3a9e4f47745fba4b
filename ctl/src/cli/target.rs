//! Where a container is to run: at an agent that is there, or in a VM that is booted for it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use nakai_ctl::rootfs::SharedRootfs;
use nakai_ctl::vm::{Vm, VmConfig};
use nakai_ctl::{Address, Client, sandbox};
use ttrpc::Code;

use super::error::CliError;
use super::state::State;

/// An agent, and what this client knows of it.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) client: Client,
    pub(crate) address: Address,
    /// None for a VM that ends with this command.
    pub(crate) state: Option<State>,
    share: Option<PathBuf>,
    vm: Option<Vm>,
}

/// A root filesystem as the agent sees it.
#[derive(Debug)]
pub(crate) struct Rootfs {
    /// The specification's root path.
    pub(crate) path: String,
    /// The guard, where it had to be shared with a guest.
    pub(crate) shared: Option<SharedRootfs>,
}

/// The agent at `address`.
pub(crate) async fn client(address: Option<&Address>) -> Result<Client, CliError> {
    Ok(Client::connect(address.ok_or(CliError::NoAddress)?).await?)
}

impl Target {
    /// The agent at `address`, with `share` as the host's side of its shared directory.
    pub(crate) async fn at(address: &Address, share: Option<PathBuf>) -> Result<Self, CliError> {
        let client = Client::connect(address).await?;
        let state = State::of(address);
        let share = share.or_else(|| state.vm().map(|vm| vm.share));
        Ok(Self { client, address: address.clone(), state: Some(state), share, vm: None })
    }

    /// A VM of its own.
    pub(crate) async fn boot(config: &VmConfig) -> Result<Self, CliError> {
        let vm = Vm::start(config, |step| eprintln!("nakai-ctl: {step}")).await?;
        eprintln!("nakai-ctl: the agent serves after {}", seconds(vm.boot_time()));
        let (address, share) = (vm.address().clone(), Some(vm.share().to_owned()));
        Ok(Self { client: vm.client().await?, address, state: None, share, vm: Some(vm) })
    }

    /// Creates the sandbox, unless there is one.
    pub(crate) async fn need_sandbox(&self, id: &str) -> Result<(), CliError> {
        if self.state.as_ref().is_some_and(State::has_sandbox) {
            return Ok(());
        }
        let request = sandbox::request(id, id, self.share.is_some());
        match self.client.create_sandbox(&request).await {
            Ok(()) => {}
            // Another client's.
            Err(error) if matches!(error.code, Code::ALREADY_EXISTS | Code::FAILED_PRECONDITION) => {}
            Err(error) => return Err(error.into()),
        }
        if let Some(state) = &self.state {
            state.note_sandbox().map_err(CliError::io("note of the sandbox"))?;
        }
        Ok(())
    }

    /// Makes `source` visible to the agent as the root of `container`.
    pub(crate) async fn rootfs(&self, source: &Path, container: &str) -> Result<Rootfs, CliError> {
        let Some(share) = self.share.clone() else {
            return self.local_rootfs(source);
        };
        let (source, container) = (source.to_owned(), container.to_owned());
        let sharing = tokio::task::spawn_blocking(move || SharedRootfs::share(&source, &share, &container));
        let shared = sharing.await.map_err(|error| CliError::io("rootfs")(error.into()))??;
        Ok(Rootfs { path: shared.guest_path().to_owned(), shared: Some(shared) })
    }

    /// Behind a unix socket and with nothing shared, the agent is a process of this host.
    fn local_rootfs(&self, source: &Path) -> Result<Rootfs, CliError> {
        let path = source.display().to_string();
        if !matches!(self.address, Address::Unix(_) | Address::Abstract(_)) || !source.is_dir() {
            return Err(CliError::NoShare { path, address: self.address.to_string() });
        }
        let full = source.canonicalize().map_err(CliError::io(format!("--rootfs {path}")))?;
        Ok(Rootfs { path: full.display().to_string(), shared: None })
    }

    /// The shared directory, for the notebook.
    pub(crate) fn share(&self) -> Option<&Path> {
        self.share.as_deref()
    }

    /// The end of the VM's console, if this is a VM of its own that says something.
    pub(crate) fn console_tail(&self) -> Option<String> {
        self.vm.as_ref().map(Vm::console_tail)
    }
}

/// A duration for people.
pub(crate) fn seconds(time: Duration) -> String {
    if time < Duration::from_secs(1) {
        format!("{:.1} ms", time.as_secs_f64() * 1e3)
    } else {
        format!("{:.2} s", time.as_secs_f64())
    }
}
