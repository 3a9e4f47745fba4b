//! The table of options: the one place that knows their names, parsers, defaults and meanings.
//!
//! Invariant: every default is taken by its own parser (a unit test walks the table), so [`defaults`] can't
//! leave a field at its placeholder.

use std::path::PathBuf;
use std::time::Duration;

use super::{CgroupVersion, Config, MemAgentConfig, ORDERS, PERCENT, SWAPPINESS, ServerAddress, parse};

/// One option.
pub(super) struct Opt {
    /// Its key in the configuration file, and its name in the reference.
    pub(super) key: &'static str,
    /// Its names on the kernel's command line.
    pub(super) kernel: &'static [&'static str],
    /// Its environment variable.
    pub(super) env: Option<&'static str>,
    /// Its long option on the command line, with the dashes.
    pub(super) argument: Option<&'static str>,
    /// What kind of value it takes.
    pub(super) value: &'static str,
    /// What its parser makes the default from.
    pub(super) default: &'static str,
    /// What it means, in a sentence.
    pub(super) doc: &'static str,
    /// Parses a text and stores the value, or says what was expected and stores nothing.
    pub(super) set: fn(&mut Config, &str) -> Result<(), String>,
}

/// An option that is set by the file and the kernel's command line only.
const fn plain(
    key: &'static str,
    kernel: &'static [&'static str],
    (value, default): (&'static str, &'static str),
    doc: &'static str,
    set: fn(&mut Config, &str) -> Result<(), String>,
) -> Opt {
    Opt { key, kernel, env: None, argument: None, value, default, doc, set }
}

/// A setter that stores in a field what a parser returns.
macro_rules! set {
    ($($field:ident).+, $parser:expr) => {
        |config, text| {
            let parser = $parser;
            config.$($field).+ = parser(text)?;
            Ok(())
        }
    };
}

/// Every option, in the order of the reference.
pub(super) const OPTIONS: &[Opt] = &[
    Opt {
        env: Some("KATA_AGENT_SERVER_ADDR"),
        argument: Some("--server-addr"),
        ..plain(
            "server_addr",
            &["agent.server_addr"],
            ("URI", "vsock://-1:1024"),
            "Where the server listens: `unix://PATH`, `unix://@NAME` or `vsock://CID:PORT` (CID -1 is any).",
            set!(server_addr, address),
        )
    },
    Opt {
        env: Some("KATA_AGENT_LOG_LEVEL"),
        argument: Some("--log-level"),
        ..plain(
            "log_level",
            &["agent.log"],
            ("LEVEL", "info"),
            "The least severe level that is logged: critical, error, warning, info, debug or trace.",
            set!(log_level, parse::level),
        )
    },
    plain(
        "log_vport",
        &["agent.log_vport"],
        ("PORT", "0"),
        "Serve the log on this vsock port. 0 writes it to standard output.",
        set!(log_vport, parse::port),
    ),
    plain(
        "passfd_listener_port",
        &["agent.passfd_listener_port"],
        ("PORT", "0"),
        "Take stdio streams as connections of their own on this vsock port. 0 switches that off.",
        set!(passfd_listener_port, parse::port),
    ),
    plain(
        "debug_console",
        &["agent.debug_console"],
        ("BOOL", "false"),
        "Offer a shell in the guest. Whoever reaches the port or the console is root there.",
        set!(debug_console, parse::boolean),
    ),
    plain(
        "debug_console_vport",
        &["agent.debug_console_vport"],
        ("PORT", "0"),
        "The vsock port of the debug console. 0 puts it on /dev/console.",
        set!(debug_console_vport, parse::port),
    ),
    plain(
        "hotplug_timeout",
        &["agent.hotplug_timeout"],
        ("SECONDS", "3"),
        "How long to wait for a device that the host has plugged.",
        set!(hotplug_timeout, parse::seconds),
    ),
    plain(
        "cdi_timeout",
        &["agent.cdi_timeout"],
        ("SECONDS", "100"),
        "How long to wait for the CDI specifications of devices that were asked for.",
        set!(cdi_timeout, parse::seconds),
    ),
    plain(
        "visible_cdi_devices",
        &["agent.visible_cdi_devices"],
        ("BOOL", "false"),
        "Take names of CDI devices from a container's variable `VISIBLE_CDI_DEVICES`, too.",
        set!(visible_cdi_devices, parse::boolean),
    ),
    plain(
        "apparmor_required",
        &["agent.apparmor_required"],
        ("BOOL", "true"),
        "Refuse a container or process whose AppArmor profile is not loaded in the guest. If not, it runs without, and \
         the log warns. The host's engine's own default profile is never required.",
        set!(apparmor_required, parse::boolean),
    ),
    plain(
        "cdh_api_timeout",
        &["agent.cdh_api_timeout"],
        ("SECONDS", "50"),
        "The longest call to the confidential data hub, image pulls apart.",
        set!(cdh_api_timeout, parse::seconds),
    ),
    plain(
        "secure_storage_integrity",
        &["agent.secure_storage_integrity"],
        ("BOOL", "true"),
        "Encrypted volumes notice that their disk was changed behind their back.",
        set!(secure_storage_integrity, parse::boolean),
    ),
    plain(
        "image_pull_timeout",
        &["agent.image_pull_timeout"],
        ("SECONDS", "1200"),
        "The longest image pull inside the guest.",
        set!(image_pull_timeout, parse::seconds),
    ),
    plain(
        "container_pipe_size",
        &["agent.container_pipe_size"],
        ("BYTES", "0"),
        "The capacity asked for the pipes of standard output and error. 0 leaves it to the kernel.",
        set!(container_pipe_size, parse::pipe_size),
    ),
    plain(
        "unified_cgroup_hierarchy",
        &["agent.unified_cgroup_hierarchy", "systemd.unified_cgroup_hierarchy"],
        ("BOOL", "true"),
        "As PID 1, mount cgroup v2, or v1 if false. The kernel parameter `cgroup_no_v1=all` also asks for v2.",
        |config, text| {
            config.cgroup_version = if parse::boolean(text)? { CgroupVersion::V2 } else { CgroupVersion::V1 };
            Ok(())
        },
    ),
    Opt {
        env: Some("KATA_AGENT_POLICY_FILE"),
        ..plain(
            "policy_file",
            &[],
            ("PATH", ""),
            "The policy that every request is checked against, in Rego. Needs an agent built with the feature `policy`; that \
             one also looks for /etc/kata-opa/default-policy.rego. No policy: every request is allowed.",
            |config, text| {
                config.policy_file = if text.is_empty() { None } else { Some(parse::path(text)?) };
                Ok(())
            },
        )
    },
    plain(
        "state_dir",
        &["agent.state_dir"],
        ("PATH", "/run/nakai"),
        "Where the runtime's own state of each container lives. A tmpfs.",
        set!(state_dir, parse::path),
    ),
    plain(
        "kata_dir",
        &["agent.kata_dir"],
        ("PATH", "/run/kata-containers"),
        "Where bundles, shared directories and sandbox files live. Shims know the default by heart.",
        set!(kata_dir, parse::path),
    ),
    plain(
        "stream_quiet_time",
        &["agent.stream_quiet_time"],
        ("MILLISECONDS", "200"),
        "How long the output of an ended process stays open, with nothing to read, for another that holds it.",
        set!(stream_quiet_time, parse::milliseconds),
    ),
    plain(
        "mem_agent_enable",
        &["agent.mem_agent_enable"],
        ("BOOL", "false"),
        "Reclaim and compact memory before it is short. The options below, and the host's calls, say how.",
        set!(mem_agent.enable, parse::boolean),
    ),
    plain(
        "mem_agent_memcg_disable",
        &["agent.mem_agent_memcg_disable"],
        ("BOOL", "false"),
        "Do not reclaim pages that have not been used for long.",
        set!(mem_agent.memcg.disabled, parse::boolean),
    ),
    plain(
        "mem_agent_memcg_swap",
        &["agent.mem_agent_memcg_swap"],
        ("BOOL", "false"),
        "Reclaim anonymous pages too, to swap.",
        set!(mem_agent.memcg.swap, parse::boolean),
    ),
    plain(
        "mem_agent_memcg_swappiness_max",
        &["agent.mem_agent_memcg_swappiness_max"],
        ("NUMBER", "50"),
        "How much anonymous pages are preferred, as memory.swappiness: 0 to 200.",
        set!(mem_agent.memcg.swappiness_max, |text| parse::up_to(text, SWAPPINESS.into())),
    ),
    plain(
        "mem_agent_memcg_period_secs",
        &["agent.mem_agent_memcg_period_secs"],
        ("SECONDS", "600"),
        "From one run of reclaiming to the next.",
        set!(mem_agent.memcg.period, parse::seconds),
    ),
    plain(
        "mem_agent_memcg_period_psi_percent_limit",
        &["agent.mem_agent_memcg_period_psi_percent_limit"],
        ("PERCENT", "1"),
        "No run begins above this pressure: the part of the time that tasks wait for memory.",
        set!(mem_agent.memcg.period_psi_percent_limit, |text| parse::up_to(text, PERCENT.into())),
    ),
    plain(
        "mem_agent_memcg_eviction_psi_percent_limit",
        &["agent.mem_agent_memcg_eviction_psi_percent_limit"],
        ("PERCENT", "1"),
        "A run ends above this pressure.",
        set!(mem_agent.memcg.eviction_psi_percent_limit, |text| parse::up_to(text, PERCENT.into())),
    ),
    plain(
        "mem_agent_memcg_eviction_run_aging_count_min",
        &["agent.mem_agent_memcg_eviction_run_aging_count_min"],
        ("NUMBER", "3"),
        "How many runs long a page must not have been used.",
        set!(mem_agent.memcg.eviction_run_aging_count_min, |text| parse::up_to(text, u64::MAX)),
    ),
    plain(
        "mem_agent_compact_disable",
        &["agent.mem_agent_compact_disable"],
        ("BOOL", "false"),
        "Do not compact free memory.",
        set!(mem_agent.compact.disabled, parse::boolean),
    ),
    plain(
        "mem_agent_compact_period_secs",
        &["agent.mem_agent_compact_period_secs"],
        ("SECONDS", "600"),
        "From one look at the free memory to the next.",
        set!(mem_agent.compact.period, parse::seconds),
    ),
    plain(
        "mem_agent_compact_period_psi_percent_limit",
        &["agent.mem_agent_compact_period_psi_percent_limit"],
        ("PERCENT", "1"),
        "No run begins above this pressure.",
        set!(mem_agent.compact.period_psi_percent_limit, |text| parse::up_to(text, PERCENT.into())),
    ),
    plain(
        "mem_agent_compact_psi_percent_limit",
        &["agent.mem_agent_compact_psi_percent_limit"],
        ("PERCENT", "5"),
        "A run ends above this pressure.",
        set!(mem_agent.compact.psi_percent_limit, |text| parse::up_to(text, PERCENT.into())),
    ),
    plain(
        "mem_agent_compact_sec_max",
        &["agent.mem_agent_compact_sec_max"],
        ("SECONDS", "300"),
        "The longest run.",
        set!(mem_agent.compact.longest, parse::seconds),
    ),
    plain(
        "mem_agent_compact_order",
        &["agent.mem_agent_compact_order"],
        ("NUMBER", "9"),
        "Free blocks of a smaller order count as torn.",
        set!(mem_agent.compact.order, |text| parse::up_to(text, ORDERS.saturating_sub(1).into())),
    ),
    plain(
        "mem_agent_compact_threshold",
        &["agent.mem_agent_compact_threshold"],
        ("NUMBER", "1024"),
        "Pages in torn blocks, beyond those after the last run, from which on a run is worth it.",
        set!(mem_agent.compact.threshold, |text| parse::up_to(text, u64::MAX)),
    ),
    plain(
        "mem_agent_compact_force_times",
        &["agent.mem_agent_compact_force_times"],
        ("NUMBER", "9223372036854775807"),
        "After so many runs left out one is made all the same.",
        set!(mem_agent.compact.force_times, |text| parse::up_to(text, u64::MAX)),
    ),
];

/// Names that other agents of this protocol know, as configuration keys, and that change nothing here. Known,
/// so that they aren't taken for typing errors.
pub(super) const NO_EFFECT: &[&str] = &[
    "dev_mode",
    "devmode",
    "tracing",
    "trace",
    "https_proxy",
    "no_proxy",
    "guest_components_rest_api",
    "guest_components_procs",
    "launch_process_timeout",
];

/// Whether a key is known and has no effect.
pub(super) fn has_no_effect(key: &str) -> bool {
    NO_EFFECT.contains(&key)
}

fn address(text: &str) -> Result<ServerAddress, String> {
    text.parse().map_err(|error: super::AddressError| error.to_string())
}

/// The configuration when nothing is said.
pub(super) fn defaults() -> Config {
    // Placeholders: the table below sets each of them.
    let mut config = Config {
        server_addr: ServerAddress::Vsock { cid: u32::MAX, port: 1024 },
        log_level: slog::Level::Info,
        log_vport: None,
        passfd_listener_port: None,
        debug_console: false,
        debug_console_vport: None,
        hotplug_timeout: Duration::ZERO,
        cdi_timeout: Duration::ZERO,
        visible_cdi_devices: false,
        apparmor_required: false,
        cdh_api_timeout: Duration::ZERO,
        secure_storage_integrity: false,
        image_pull_timeout: Duration::ZERO,
        container_pipe_size: None,
        cgroup_version: CgroupVersion::V2,
        policy_file: None,
        state_dir: PathBuf::new(),
        kata_dir: PathBuf::new(),
        stream_quiet_time: Duration::ZERO,
        mem_agent: MemAgentConfig::unset(),
    };
    for option in OPTIONS {
        let taken = (option.set)(&mut config, option.default);
        debug_assert!(taken.is_ok(), "{}: {taken:?}", option.key);
    }
    config
}
