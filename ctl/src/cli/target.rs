//! Where a container is to run: at an agent that is there, or in a VM that is booted for it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use nakai_ctl::disk::RootDisk;
use nakai_ctl::image::{Image, make_disk};
use nakai_ctl::rootfs::SharedRootfs;
use nakai_ctl::state::{Lock, State};
use nakai_ctl::vm::{Vm, VmConfig};
use nakai_ctl::{Address, Client, sandbox};
use ttrpc::Code;

use super::error::CliError;

/// An agent, and what this client knows of it.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) client: Client,
    pub(crate) address: Address,
    /// None for a VM that ends with this command.
    pub(crate) state: Option<State>,
    pub(crate) share: Option<PathBuf>,
    vm: Option<Vm>,
}

/// A root filesystem as the agent sees it.
#[derive(Debug)]
pub(crate) struct Rootfs {
    /// The specification's root path.
    pub(crate) path: String,
    /// The guard, where it had to be shared with a guest or copied.
    pub(crate) shared: Option<SharedRootfs>,
    /// The directory that the guard's is in.
    pub(crate) directory: Option<PathBuf>,
    /// The disk, where it is on one.
    pub(crate) disk: Option<RootDisk>,
}

impl Rootfs {
    /// Takes it away, when its container is gone.
    pub(crate) async fn release(self) {
        if let Some(disk) = &self.disk
            && let Err(error) = disk.unplug().await
        {
            eprintln!("nakai-ctl: {error}");
        }
    }
}

/// The agent at `address`.
pub(crate) async fn client(address: Option<&Address>) -> Result<Client, CliError> {
    Ok(known(address).await?.0)
}

/// The agent at `address`, and what is noted of it and is true of it.
pub(crate) async fn known(address: Option<&Address>) -> Result<(Client, State), CliError> {
    let address = address.ok_or(CliError::NoAddress)?;
    let (client, state) = (Client::connect(address).await?, State::of(address));
    state.settle(&client);
    Ok((client, state))
}

/// The turn to change a container.
pub(crate) async fn lock(state: &State, id: &str) -> Result<Lock, CliError> {
    state.lock_container(id).await.map_err(CliError::io(format!("lock of container {id}")))
}

impl Target {
    /// The agent at `address`, with `share` as the host's side of its shared directory.
    pub(crate) async fn at(address: &Address, share: Option<PathBuf>) -> Result<Self, CliError> {
        let (client, state) = known(Some(address)).await?;
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
        let _turn = match &self.state {
            Some(state) => Some(state.lock_sandbox().await.map_err(CliError::io("lock of the sandbox"))?),
            None => None,
        };
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

    /// Whether the agent sees files of this host: as a process of it, or through a shared directory.
    ///
    /// # Errors
    ///
    /// It does not.
    pub(crate) fn need_share(&self, image: &str) -> Result<(), CliError> {
        if self.share.is_some() || matches!(self.address, Address::Unix(_) | Address::Abstract(_)) {
            return Ok(());
        }
        Err(CliError::NoShare { path: image.to_owned(), address: self.address.to_string() })
    }

    /// Makes `source` visible to the agent as the root of `container`.
    pub(crate) async fn rootfs(&self, source: &Path, container: &str) -> Result<Rootfs, CliError> {
        let Some(share) = self.share.clone() else {
            return self.local_rootfs(source);
        };
        let (source, container) = (source.to_owned(), container.to_owned());
        let directory = share.clone();
        let sharing = tokio::task::spawn_blocking(move || SharedRootfs::share(&source, &share, &container));
        let shared = sharing.await.map_err(|error| CliError::io("rootfs")(error.into()))??;
        Ok(Rootfs {
            path: shared.guest_path().to_owned(),
            shared: Some(shared),
            directory: Some(directory),
            disk: None,
        })
    }

    /// Makes a disk of an image and plugs it into the machine. The caller releases it.
    pub(crate) async fn image_disk(
        &self,
        image: Image,
        container: &str,
        size: Option<u64>,
    ) -> Result<Rootfs, CliError> {
        let known = self.state.as_ref().and_then(State::vm);
        let machine = match (&self.vm, known) {
            (Some(vm), _) => Some((vm.qmp_socket(), vm.run_directory().to_owned())),
            (None, Some(vm)) => vm.qmp.zip(vm.run),
            (None, None) => None,
        };
        let address = || self.address.to_string();
        let (qmp, run) = machine.ok_or_else(|| CliError::NoMachine { address: address() })?;
        let file = run.join(format!("root-{container}.ext4"));
        let (layers, path) = (image.layers, file.clone());
        let making = tokio::task::spawn_blocking(move || make_disk(&layers, size, &path));
        making.await.map_err(|error| CliError::io("disk")(error.into()))??;
        let disk = RootDisk::plug(qmp, file).await?;
        let path = disk.storage(container).mount_point;
        Ok(Rootfs { path, shared: None, directory: None, disk: Some(disk) })
    }

    /// Makes an image visible to the agent as the root of `container`.
    pub(crate) async fn image_rootfs(&self, image: Image, container: &str) -> Result<Rootfs, CliError> {
        let (container, address) = (container.to_owned(), self.address.to_string());
        let path = image.layers.first().map(|layer| layer.display().to_string()).unwrap_or_default();
        let (share, state) = (self.share.clone(), self.state.clone());
        let local = matches!(self.address, Address::Unix(_) | Address::Abstract(_));
        let sharing = tokio::task::spawn_blocking(move || match (share, state) {
            (Some(share), _) => {
                let shared = SharedRootfs::share_image(&image, &share, &container)?;
                Ok(Rootfs {
                    path: shared.guest_path().to_owned(),
                    directory: Some(share),
                    shared: Some(shared),
                    disk: None,
                })
            }
            (None, Some(state)) if local => {
                let roots = state.roots().map_err(CliError::io("directory of roots"))?;
                let shared = SharedRootfs::copy_image(&image, &roots, &container)?;
                let path = shared.host_path().display().to_string();
                Ok(Rootfs { path, directory: Some(roots), shared: Some(shared), disk: None })
            }
            _ => Err(CliError::NoShare { path, address }),
        });
        sharing.await.map_err(|error| CliError::io("image")(error.into()))?
    }

    /// Behind a unix socket and with nothing shared, the agent is a process of this host.
    fn local_rootfs(&self, source: &Path) -> Result<Rootfs, CliError> {
        let path = source.display().to_string();
        if !matches!(self.address, Address::Unix(_) | Address::Abstract(_)) || !source.is_dir() {
            return Err(CliError::NoShare { path, address: self.address.to_string() });
        }
        let full = source.canonicalize().map_err(CliError::io(format!("--rootfs {path}")))?;
        Ok(Rootfs { path: full.display().to_string(), shared: None, directory: None, disk: None })
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
