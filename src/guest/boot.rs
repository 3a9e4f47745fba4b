//! The boot after the root is there: what the server does to its guest, before and after it listens.
//!
//! ```text
//! supervisor   root::prepare, fork
//! server       before_listen: the vsock transport      needed to be reached at all
//!              listen, announce                        the host may connect from here on
//!              after_listen: cgroups, security         needed by the first container
//!                            modules, loopback, hostname
//! ```
//!
//! Each step is timed and logged. A step without which no container can run ends the boot; what only some
//! containers miss (security modules, loopback, hostname) is logged as an error, and the guest serves.
//!
//! All of this blocks, a few milliseconds in all but for modules under emulation. Not on an async thread.

use std::fmt;
use std::path::Path;
use std::time::Instant;

use nix::unistd::getpid;
use slog::{Logger, error, info, warn};

use super::cgroups::{self, CgroupError};
use super::modules::{ModuleError, Modules};
use super::{hostname, loopback, security};
use crate::config::{Config, ServerAddress};
use crate::observe::console;

/// What the agent is to the machine that it runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// The guest's first process: nobody else sets the guest up.
    Init,
    /// One process of many, under systemd in a guest or on a developer's host: the machine is not ours.
    Service,
}

impl Mode {
    /// The mode of the calling process. Only the supervisor may ask: its children are never PID 1.
    pub fn of_this_process() -> Self {
        if getpid().as_raw() == 1 { Self::Init } else { Self::Service }
    }
}

/// Why the guest can't be used.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The host could not reach the agent.
    #[error("vsock transport: {0}")]
    Transport(#[source] ModuleError),
    /// No container could be confined.
    #[error("cgroups: {0}")]
    Cgroups(#[from] CgroupError),
}

/// What has to be done for the listener to be reached.
///
/// # Errors
///
/// [`BootError::Transport`].
pub fn before_listen(mode: Mode, config: &Config, logger: &Logger) -> Result<(), BootError> {
    if mode == Mode::Init && matches!(config.server_addr, ServerAddress::Vsock { .. }) {
        timed(logger, "vsock transport", || load_transport(&Modules::of_this_kernel(), Path::new("/sys")))
            .map_err(BootError::Transport)?;
    }
    Ok(())
}

/// Tells whoever watches the console that the agent serves, exactly:
/// `nakai: serving on <address>`.
pub fn announce(address: &ServerAddress) {
    console::say(format_args!("serving on {address}"));
}

/// What the first container needs.
///
/// # Errors
///
/// [`BootError::Cgroups`].
pub fn after_listen(mode: Mode, config: &Config, logger: &Logger) -> Result<(), BootError> {
    if mode == Mode::Service {
        return Ok(());
    }
    let missing = timed(logger, "cgroups", || cgroups::set_up(config.cgroup_version))?;
    for controller in missing {
        warn!(logger, "cgroup controller not available"; "controller" => controller.name, "error" => %controller.source);
    }
    tolerated(logger, "security modules", security::mount_file_systems);
    tolerated(logger, "loopback", loopback::up);
    tolerated(logger, "hostname", || hostname::set_from(Path::new("/etc/hostname")));
    Ok(())
}

fn timed<T, E>(logger: &Logger, step: &'static str, run: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    let start = Instant::now();
    let result = run();
    let micros = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
    info!(logger, "boot step"; "step" => step, "us" => micros, "done" => result.is_ok());
    result
}

fn tolerated<E: fmt::Display>(logger: &Logger, step: &'static str, run: impl FnOnce() -> Result<(), E>) {
    if let Err(error) = timed(logger, step, run) {
        error!(logger, "boot step"; "step" => step, "error" => %error);
    }
}

/// Drivers that carry vsock: virtio's has a driver on its bus, built in or not; the others are modules.
const TRANSPORTS: [&str; 3] =
    ["bus/virtio/drivers/vmw_vsock_virtio_transport", "module/hv_sock", "module/vmw_vsock_vmci_transport"];

fn load_transport(modules: &Modules, sys: &Path) -> Result<(), ModuleError> {
    // Without PCI the device is on the mmio bus, whose driver is built into the kernels that have it.
    let needs_bus = sys.join("bus/pci").exists() && !sys.join("bus/pci/drivers/virtio-pci").exists();
    if needs_bus {
        modules.load("virtio_pci", &[])?;
    }
    if TRANSPORTS.iter().any(|driver| sys.join(driver).exists()) {
        return Ok(());
    }
    modules.load("vmw_vsock_virtio_transport", &[])
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn with(drivers: &[&str]) -> Result<(), ModuleError> {
        let dir = tempfile::tempdir().unwrap();
        for driver in drivers {
            fs::create_dir_all(dir.path().join(driver)).unwrap();
        }
        let root = dir.path().join("modules");
        load_transport(&Modules::with_trees(root, dir.path().into(), dir.path().into()), dir.path())
    }

    #[test]
    fn a_transport_that_is_built_in_needs_no_module() {
        with(&[TRANSPORTS[0]]).unwrap();
        with(&["bus/pci/drivers/virtio-pci", TRANSPORTS[0]]).unwrap();
        with(&["bus/pci/drivers/virtio-pci", TRANSPORTS[1]]).unwrap();
    }

    #[test]
    fn a_guest_without_transport_does_not_boot_silently() {
        let error = with(&["bus/pci/drivers/virtio-pci"]).unwrap_err().to_string();
        assert!(error.starts_with("module vmw_vsock_virtio_transport: "), "{error}");
        let error = with(&["bus/pci", TRANSPORTS[0]]).unwrap_err().to_string();
        assert!(error.starts_with("module virtio_pci: "), "{error}");
    }

    #[test]
    fn a_service_leaves_its_machine_alone() {
        assert_eq!(Mode::of_this_process(), Mode::Service);
        let logger = Logger::root(slog::Discard, slog::o!());
        before_listen(Mode::Service, &Config::default(), &logger).unwrap();
        let name = nix::unistd::gethostname().unwrap();
        after_listen(Mode::Service, &Config::default(), &logger).unwrap();
        assert_eq!(nix::unistd::gethostname().unwrap(), name);
    }
}
