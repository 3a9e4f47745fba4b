//! A virtual machine with an agent in it, as a guard: QEMU and its daemons end with [`Vm`].
//!
//! ```text
//! daemons listen -> QEMU starts -> kernel boots -> agent: "serving" on the console -> connect
//! ```
//!
//! Nothing connects to the guest before its console says that the agent serves: vhost-device-vsock
//! hangs for good when it is asked for a connection before the guest's driver is up.
//!
//! Everything that belongs to the VM (sockets, logs, console) is in a run directory that goes with
//! it. If the boot fails, the error holds the end of the console.

mod accel;
mod config;
mod console;
mod daemons;
mod keeper;
mod qemu;
mod run_directory;
pub(crate) mod tools;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nakai_protocols::agent::CreateSandboxRequest;

use crate::address::Address;
use crate::client::Client;
use crate::connect::{CONNECT_TIMEOUT, ConnectError, Stream, connect};
use crate::error::CallError;
use crate::qmp::{Qmp, QmpError};
use crate::sandbox;

pub use config::{Accel, VmConfig};
pub use tools::ToolMissing;

use console::Console;
use keeper::Keeper;
use qemu::{Sockets, Vsock};
pub(crate) use run_directory::{
    RunDirectory, is_held as run_directory_is_held, remove_all_left as remove_run_directories_left,
    remove_left as remove_run_directory,
};

/// Why there is no VM.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// A program that the VM needs isn't installed.
    #[error(transparent)]
    Tool(#[from] ToolMissing),
    /// A kernel, initrd, share or disk that can't be read.
    #[error("{what} {path}: {source}", path = .path.display())]
    Input {
        /// Which part.
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The run directory can't be made or written.
    #[error("run directory of the VM: {0}")]
    RunDirectory(#[source] io::Error),
    /// A program can't be started.
    #[error("start {program}: {source}")]
    Start {
        /// The program.
        program: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// A daemon ended, or does not listen.
    #[error("{program}: {problem}: {log}")]
    Daemon {
        /// The program.
        program: &'static str,
        /// How it ended.
        problem: String,
        /// What it wrote.
        log: String,
    },
    /// QEMU ended before the agent served.
    #[error("the VM ended during boot: {qemu}\nlast lines of its console:\n{tail}")]
    Ended {
        /// QEMU's own words.
        qemu: String,
        /// The end of the console.
        tail: String,
    },
    /// The agent does not serve within the time.
    #[error("no agent in the VM within {} s\nlast lines of its console:\n{tail}", .limit.as_secs())]
    TimedOut {
        /// The time that was waited.
        limit: Duration,
        /// The end of the console.
        tail: String,
    },
}

/// A running VM whose agent serves.
#[derive(Debug)]
pub struct Vm {
    // Order matters: processes end before their directory goes.
    _keeper: Keeper,
    console: Console,
    address: Address,
    share: PathBuf,
    boot: Duration,
    kvm: bool,
    run: RunDirectory,
}

impl Vm {
    /// Boots a VM and waits for its agent. `progress` is called with a line of text at each step.
    ///
    /// # Errors
    ///
    /// See [`VmError`]. Nothing of the VM is left then.
    pub async fn start(config: &VmConfig, progress: impl Fn(&str)) -> Result<Self, VmError> {
        let mut config = config.clone();
        check_inputs(&config)?;
        let qemu = tools::QEMU.find()?;
        let run = RunDirectory::new().map_err(VmError::RunDirectory)?;
        let share = share_directory(&mut config, run.path())?;
        let keeper = Keeper::new().map_err(VmError::RunDirectory)?;
        let kvm = accel::use_kvm(config.accel, &qemu, &config.kernel, &progress).await;
        progress("starting virtiofsd and the vsock device");
        let host_vsock = run.path().join("vsock.host");
        let vsock = daemons::start_vsock(&keeper, run.path(), &host_vsock).await?;
        let fs = daemons::start_virtiofsd(&keeper, run.path(), &share).await?;
        let qmp = run.path().join("qmp.sock");
        let sockets = Sockets { qmp: &qmp, fs: &fs, vsock: &vsock };

        progress(if kvm { "booting the VM (KVM)" } else { "booting the VM (emulated: no working KVM)" });
        let begin = Instant::now();
        let mut command = Command::new(qemu);
        command.args(qemu::arguments(&config, kvm, &sockets));
        let console = start_qemu(&keeper, command, &config, run.path())?;
        let address = match vsock {
            Vsock::Kernel(cid) => Address::Vsock { cid, port: config.port },
            Vsock::User(_) => Address::Hybrid { path: host_vsock, port: config.port },
        };
        let vm = Self { _keeper: keeper, console, address, share, boot: Duration::ZERO, kvm, run };
        match config.unannounced {
            Some(time) => tokio::time::sleep(time).await,
            None => vm.wait_for_agent(config.boot_timeout).await?,
        }
        Ok(Self { boot: begin.elapsed(), ..vm })
    }

    async fn wait_for_agent(&self, limit: Duration) -> Result<(), VmError> {
        let seen = match tokio::time::timeout(limit, self.console.wait(|seen| seen.serving)).await {
            Ok(seen) => seen,
            Err(_) => return Err(VmError::TimedOut { limit, tail: self.console.tail() }),
        };
        if seen.serving {
            return Ok(());
        }
        let words = fs::read(self.run.path().join("qemu.log")).unwrap_or_default();
        let words = String::from_utf8_lossy(&words).trim_end().to_owned();
        // Silent, it did what it should: with -no-reboot a guest's panic ends it.
        let qemu = if words.is_empty() { "the guest stopped".to_owned() } else { words };
        Err(VmError::Ended { qemu, tail: self.console.tail() })
    }

    /// Where the agent is reached.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Connects to the agent.
    ///
    /// # Errors
    ///
    /// There is no connection.
    pub async fn client(&self) -> Result<Client, ConnectError> {
        Client::connect(&self.address).await
    }

    /// Connects to any vsock port of the guest: a debug console, passed-through stdio.
    ///
    /// # Errors
    ///
    /// There is no connection.
    pub async fn connect(&self, port: u32) -> Result<Box<dyn Stream>, ConnectError> {
        let address = match &self.address {
            Address::Vsock { cid, .. } => Address::Vsock { cid: *cid, port },
            Address::Hybrid { path, .. } => Address::Hybrid { path: path.clone(), port },
            other => other.clone(),
        };
        connect(&address, CONNECT_TIMEOUT).await
    }

    /// Creates a sandbox with the shared directory and shared memory.
    ///
    /// # Errors
    ///
    /// The call's own.
    pub async fn create_sandbox(&self, client: &Client, id: &str) -> Result<CreateSandboxRequest, CallError> {
        let request = sandbox::request(id, id, true);
        client.create_sandbox(&request).await?;
        Ok(request)
    }

    /// The host's side of the shared directory.
    pub fn share(&self) -> &Path {
        &self.share
    }

    /// Opens the machine's control socket; one client at a time.
    ///
    /// # Errors
    ///
    /// QEMU does not answer.
    pub async fn qmp(&self) -> Result<Qmp, QmpError> {
        Qmp::connect(&self.qmp_socket()).await
    }

    /// The machine's control socket.
    pub fn qmp_socket(&self) -> PathBuf {
        self.run.path().join("qmp.sock")
    }

    /// From QEMU's start until the agent served.
    pub fn boot_time(&self) -> Duration {
        self.boot
    }

    /// Whether the guest runs with KVM.
    pub fn is_kvm(&self) -> bool {
        self.kvm
    }

    /// The last lines of the console.
    pub fn console_tail(&self) -> String {
        self.console.tail()
    }

    /// Where sockets, logs and, unless the configuration says otherwise, the console are.
    pub fn run_directory(&self) -> &Path {
        self.run.path()
    }

    /// Waits until QEMU has ended, as it does when the guest powers off.
    pub async fn ended(&self) {
        self.console.wait(|_| false).await;
    }

    /// Kills QEMU and the daemons, and waits for their end. Dropping the VM does the same.
    pub fn stop(self) {
        drop(self);
    }
}

fn check_inputs(config: &VmConfig) -> Result<(), VmError> {
    let disks = config.disks.iter().chain(&config.pmem).map(|disk| ("disk", disk));
    for (what, path) in [("kernel", &config.kernel), ("initrd", &config.initrd)].into_iter().chain(disks) {
        File::open(path).map_err(|source| VmError::Input { what, path: path.clone(), source })?;
    }
    Ok(())
}

fn share_directory(config: &mut VmConfig, run: &Path) -> Result<PathBuf, VmError> {
    let share = match config.share.take() {
        Some(share) => share,
        None => {
            let share = run.join("share");
            fs::create_dir(&share).map_err(VmError::RunDirectory)?;
            share
        }
    };
    // virtiofsd's working directory is not ours.
    fs::canonicalize(&share).map_err(|source| VmError::Input { what: "share", path: share, source })
}

fn start_qemu(
    keeper: &Keeper,
    mut command: Command,
    config: &VmConfig,
    run: &Path,
) -> Result<Console, VmError> {
    let failed = |source| VmError::Start { program: tools::QEMU.name, source };
    let log = File::create(run.join("qemu.log")).map_err(failed)?;
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
    let spawned = keeper.spawn(command).map_err(failed)?;
    let stdout = spawned.stdout.ok_or_else(|| failed(io::Error::other("no standard output")))?;
    let file = config.console.clone().unwrap_or_else(|| run.join("console.log"));
    Console::read(stdout, &file, Box::new(|_| {})).map_err(|source| VmError::Input {
        what: "console",
        path: file,
        source,
    })
}
