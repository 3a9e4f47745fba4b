//! Where a container is to run: at an agent that is there, or in a VM that is booted for it.

use std::path::PathBuf;
use std::time::Duration;

use nakai_ctl::cri::extras::RootKind;
use nakai_ctl::cri::{CriError, Engine, Machine, Order, Places};
use nakai_ctl::image::Store;
use nakai_ctl::state::{ContainerRecord, State};
use nakai_ctl::vm::{Vm, VmConfig};
use nakai_ctl::{Address, Client};

use super::error::CliError;
use super::say::tell;

/// An agent, and what this client knows of it.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) engine: Engine,
    pub(crate) address: Address,
    /// A VM that ends with this command, and its notebook.
    own: Option<(Vm, tempfile::TempDir)>,
}

/// The agent at `address`.
pub(crate) async fn client(address: Option<&Address>) -> Result<Client, CliError> {
    Ok(Client::connect(address.ok_or(CliError::NoAddress)?).await?)
}

/// The agent at `address`, and what is noted of it and is true of it.
pub(crate) async fn engine(address: Option<&Address>) -> Result<Engine, CliError> {
    Ok(Target::at(address.ok_or(CliError::NoAddress)?, None).await?.engine)
}

/// The notebook of the agent at `address`, which needs not be there. What is noted of another agent that was there
/// before is dropped where it is known without a call who listens.
pub(crate) async fn notebook(address: Option<&Address>) -> Result<State, CliError> {
    /// Who does not answer by then is away.
    const AWAY: Duration = Duration::from_secs(1);
    let address = address.ok_or(CliError::NoAddress)?;
    let state = State::of(address);
    if matches!(address, Address::Unix(_) | Address::Abstract(_))
        && let Ok(Ok(client)) = tokio::time::timeout(AWAY, Client::connect(address)).await
    {
        state.settle(&client);
    }
    Ok(state)
}

/// What `state` has of a container.
pub(crate) fn record(state: &State, id: &str) -> Result<ContainerRecord, CliError> {
    Ok(state.container(id).ok_or_else(|| CriError::Unknown(id.to_owned()))?)
}

impl Target {
    /// The agent at `address`, with `share` as the host's side of its shared directory.
    pub(crate) async fn at(address: &Address, share: Option<PathBuf>) -> Result<Self, CliError> {
        let (client, state) = (Client::connect(address).await?, State::of(address));
        state.settle(&client);
        let vm = state.vm();
        let machine = vm.as_ref().and_then(|vm| {
            let (qmp, run) = (vm.qmp.clone()?, vm.run.clone()?);
            Some(Machine { qmp, run })
        });
        let places = match share.or_else(|| vm.map(|vm| vm.share)) {
            Some(share) => Places::Shared(share),
            None => Places::Local(Store::of_user().roots(state.name())),
        };
        Ok(Self { engine: Engine::new(client, places, state, machine), address: address.clone(), own: None })
    }

    /// A VM of its own.
    pub(crate) async fn boot(config: &VmConfig) -> Result<Self, CliError> {
        let vm = Vm::start(config, |step| tell!("{step}")).await?;
        tell!("the agent serves after {}", seconds(vm.boot_time()));
        let notes = tempfile::tempdir().map_err(CliError::io("directory for notes"))?;
        let (places, state) = (Places::Shared(vm.share().to_owned()), State::at(notes.path()));
        let machine = Machine { qmp: vm.qmp_socket(), run: vm.run_directory().to_owned() };
        let engine = Engine::new(vm.client().await?, places, state, Some(machine));
        Ok(Self { engine, address: vm.address().clone(), own: Some((vm, notes)) })
    }

    /// Whether it ends with this command.
    pub(crate) fn ends(&self) -> bool {
        self.own.is_some()
    }

    /// Whether the agent sees files of this host: as a process of it, or through a shared directory.
    ///
    /// # Errors
    ///
    /// It does not.
    pub(crate) fn need_share(&self, order: &Order) -> Result<(), CliError> {
        let on_disks = matches!(order.extras.root, RootKind::Disk(_) | RootKind::Layers);
        let sees = self.engine.share().is_some()
            || on_disks
            || matches!(self.address, Address::Unix(_) | Address::Abstract(_));
        if sees {
            return Ok(());
        }
        Err(CliError::NoShare { path: order.config.image.image.clone(), address: self.address.to_string() })
    }

    /// The end of the VM's console, if this is a VM of its own that says something.
    pub(crate) fn console_tail(&self) -> Option<String> {
        self.own.as_ref().map(|(vm, _)| vm.console_tail())
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
