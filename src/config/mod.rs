//! What the operator can set, and where it is read from.
//!
//! One table (`table.rs`) holds every option: its name in each source, its parser, its default and a
//! line about it. The defaults, the `--help` text and `docs/configuration.md` are made from that table, so
//! they can't disagree with what the agent does.
//!
//! Sources, a later one wins over an earlier one:
//!
//! 1. the defaults;
//! 2. a TOML file, named by `--config` or by the kernel parameter `agent.config_file`;
//! 3. the kernel's command line, if the caller hands it over: PID 1 does, and a service that has no `--config`, because
//!    a shim gives the options of its guests there;
//! 4. the environment;
//! 5. the command line.
//!
//! Failure behaviour: what the operator asked for by hand (command line, `--config` file) is refused with an
//! error when it is wrong. What reaches a booting guest from afar (kernel parameters, environment, a file
//! that a kernel parameter names) only yields a [`Warning`], and the value before it stays: a typo must not
//! cost a VM.
//!
//! Nothing here does I/O or keeps state: [`Sources`] brings the texts and the function that reads the file.

mod address;
mod cli;
mod error;
mod file;
mod kernel;
mod mem_agent;
mod parse;
mod reference;
mod table;
#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use address::{AddressError, ServerAddress};
pub use cli::{Command, Overrides, parse_args};
pub use error::{ConfigError, Source, Warning};
pub use mem_agent::{CompactSettings, MemAgentConfig, MemcgSettings, ORDERS, PERCENT, SWAPPINESS};
pub use reference::{configuration_md, help};

/// The hierarchy that PID 1 mounts on `/sys/fs/cgroup`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CgroupVersion {
    /// One hierarchy for each controller.
    V1,
    /// The unified hierarchy.
    V2,
}

/// Every option with its value.
///
/// A port that is `None` means that the service behind it is off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Where the server listens.
    pub server_addr: ServerAddress,
    /// The least severe level that is logged.
    pub log_level: slog::Level,
    /// The vsock port on which the log is served. `None`: it goes to standard output.
    pub log_vport: Option<u32>,
    /// The vsock port on which stdio streams are taken as connections of their own.
    pub passfd_listener_port: Option<u32>,
    /// Whether a debug console is offered.
    pub debug_console: bool,
    /// The vsock port of the debug console. `None`: it runs on `/dev/console`.
    pub debug_console_vport: Option<u32>,
    /// How long to wait for a device that the host says it has plugged.
    pub hotplug_timeout: Duration,
    /// How long to wait for the CDI specifications of devices that were asked for.
    pub cdi_timeout: Duration,
    /// Whether a container's environment may name CDI devices.
    pub visible_cdi_devices: bool,
    /// Whether a container whose AppArmor profile the guest has not is refused.
    pub apparmor_required: bool,
    /// The longest call to the confidential data hub, image pulls apart.
    pub cdh_api_timeout: Duration,
    /// Whether encrypted volumes notice that their disk was changed behind their back.
    pub secure_storage_integrity: bool,
    /// The longest image pull inside the guest.
    pub image_pull_timeout: Duration,
    /// The capacity asked for the pipes of standard output and error, in bytes. `None`: the kernel's own.
    pub container_pipe_size: Option<u32>,
    /// Which cgroup hierarchy PID 1 mounts.
    pub cgroup_version: CgroupVersion,
    /// The request policy. `None`: every request is allowed.
    pub policy_file: Option<PathBuf>,
    /// Where the runtime's own state of each container lives.
    pub state_dir: PathBuf,
    /// Where bundles, shared directories and sandbox files live: the places that shims know.
    pub kata_dir: PathBuf,
    /// How long the output of an ended process stays open with nothing to read, because another process holds
    /// it.
    pub stream_quiet_time: Duration,
    /// Reclaiming and compacting memory before it is short.
    pub mem_agent: MemAgentConfig,
}

/// Reads the configuration file.
pub type ReadFile<'a> = &'a dyn Fn(&Path) -> io::Result<String>;

/// Where options come from. See the module for which wins.
#[expect(missing_debug_implementations, reason = "holds a function")]
pub struct Sources<'a> {
    /// The text of `/proc/cmdline`; `None` if it is not to be read.
    pub kernel: Option<&'a str>,
    /// The environment.
    pub env: &'a [(String, String)],
    /// What [`parse_args`] made of the command line.
    pub overrides: &'a Overrides,
    /// Reads the configuration file, if one is named. `std::fs::read_to_string` but for tests.
    pub read_file: ReadFile<'a>,
}

impl Config {
    /// The configuration that `sources` add up to, and what in them was ignored.
    ///
    /// # Errors
    ///
    /// A wrong value on the command line, and a file named by `--config` that can't be read or holds a wrong
    /// value.
    pub fn load(sources: &Sources<'_>) -> Result<(Self, Vec<Warning>), ConfigError> {
        let mut config = Self::default();
        let mut warnings = Vec::new();
        let parameters = sources.kernel.map(kernel::parameters).unwrap_or_default();

        if let Some(path) = &sources.overrides.config_file {
            file::apply(path, sources.read_file, &mut config, &mut warnings)?;
        } else if let Some(path) = kernel::config_file(&parameters) {
            let before = config.clone();
            if let Err(error) = file::apply(Path::new(path), sources.read_file, &mut config, &mut warnings) {
                config = before;
                warnings.push(Warning::File { error });
            }
        }
        kernel::apply(&parameters, &mut config, &mut warnings);
        apply_environment(sources.env, &mut config, &mut warnings);
        sources.overrides.apply(&mut config)?;
        warnings.extend(sources.overrides.ignored.iter().map(|a| Warning::Argument { argument: a.clone() }));
        Ok((config, warnings))
    }
}

impl Default for Config {
    fn default() -> Self {
        table::defaults()
    }
}

fn apply_environment(env: &[(String, String)], config: &mut Config, warnings: &mut Vec<Warning>) {
    for option in table::OPTIONS {
        let Some(name) = option.env else { continue };
        let Some((_, value)) = env.iter().find(|(key, _)| key == name) else { continue };
        if let Err(reason) = (option.set)(config, value) {
            warnings.push(Warning::value(Source::Environment, name, value, reason));
        }
    }
}
