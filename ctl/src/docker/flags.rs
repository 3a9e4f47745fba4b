//! The flags, with Docker's names and letters.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args};

use super::parse;

/// A whole line behind `docker run`.
#[derive(Args, Clone, Debug)]
pub struct CommandLine {
    /// What the container is to be.
    #[command(flatten)]
    pub flags: Flags,
    /// The image: a directory or a tar file
    pub image: String,
    /// The program and its arguments, or what the image's entry point is given
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub args: Vec<String>,
}

/// What a container is to be, in the words of `docker run`.
#[derive(Args, Clone, Debug, Default)]
pub struct Flags {
    /// Give it standard input
    #[arg(short, long)]
    pub interactive: bool,
    /// Give it a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// A variable of its environment; without a value, this client's
    #[arg(short, long = "env", value_name = "NAME[=VALUE]")]
    pub env: Vec<String>,
    /// A file of such variables, one a line; what --env says counts more
    #[arg(long, value_name = "FILE")]
    pub env_file: Vec<PathBuf>,
    /// Its working directory [default: the image's]
    #[arg(short, long, default_value = "", hide_default_value = true)]
    pub workdir: String,
    /// Its user and group, by name or number [default: the image's]
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// A further group, by name or number
    #[arg(long, value_name = "GROUP")]
    pub group_add: Vec<String>,
    /// Its name [default: one made up]
    #[arg(long, visible_alias = "id")]
    pub name: Option<String>,
    /// Its host name [default: its name]
    #[arg(long)]
    pub hostname: Option<String>,
    /// The program, in the place of the image's entry point
    #[arg(long)]
    pub entrypoint: Option<String>,
    /// Its memory limit in bytes, or with a suffix K, M or G
    #[arg(short, long, value_parser = parse::bytes_argument, value_name = "BYTES")]
    pub memory: Option<u64>,
    /// Its limit of memory and swap together
    #[arg(long, value_parser = parse::bytes_argument, value_name = "BYTES")]
    pub memory_swap: Option<u64>,
    /// Its CPU limit, such as 0.5
    #[arg(long, value_parser = parse::cpus)]
    pub cpus: Option<f64>,
    /// Its share of the CPUs beside others, 2 to 262144
    #[arg(short, long)]
    pub cpu_shares: Option<i64>,
    /// The CPUs that it may use, such as 0-2,4
    #[arg(long, default_value = "", hide_default_value = true)]
    pub cpuset_cpus: String,
    /// The memory nodes that it may use
    #[arg(long, default_value = "", hide_default_value = true)]
    pub cpuset_mems: String,
    /// Its limit of processes
    #[arg(long, alias = "pids")]
    pub pids_limit: Option<i64>,
    /// The OOM killer's preference, -1000 to 1000
    #[arg(long, allow_hyphen_values = true)]
    pub oom_score_adj: Option<i64>,
    /// The cgroup above its own
    #[arg(long)]
    pub cgroup_parent: Option<String>,
    /// Make its root filesystem read-only
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false, action = ArgAction::Set, hide_default_value = true, hide_possible_values = true, value_name = "BOOL")]
    pub read_only: bool,
    /// Give it all privileges in the guest
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false, action = ArgAction::Set, hide_default_value = true, hide_possible_values = true, value_name = "BOOL")]
    pub privileged: bool,
    /// A capability more
    #[arg(long, value_name = "CAPABILITY")]
    pub cap_add: Vec<String>,
    /// A capability less
    #[arg(long, value_name = "CAPABILITY")]
    pub cap_drop: Vec<String>,
    /// seccomp=, apparmor=, label=, no-new-privileges, systempaths=unconfined
    #[arg(long, value_name = "OPTION")]
    pub security_opt: Vec<String>,
    /// A limit of the process, such as nofile=1024:4096
    #[arg(long, value_name = "NAME=SOFT[:HARD]")]
    pub ulimit: Vec<String>,
    /// A kernel parameter
    #[arg(long, value_name = "NAME=VALUE")]
    pub sysctl: Vec<String>,
    /// A directory or file of this host
    #[arg(short, long, value_name = "HOST:CONTAINER[:ro]")]
    pub volume: Vec<String>,
    /// The same with more words: type=bind,source=,target=,readonly or type=tmpfs,target=,tmpfs-size=
    #[arg(long, value_name = "KEY=VALUE,...")]
    pub mount: Vec<String>,
    /// A directory in memory
    #[arg(long, value_name = "PATH[:OPTIONS]")]
    pub tmpfs: Vec<String>,
    /// The size of /dev/shm, its own then
    #[arg(long, value_parser = parse::bytes_argument, value_name = "BYTES")]
    pub shm_size: Option<u64>,
    /// size=BYTES limits what it may write to its root filesystem
    #[arg(long, value_name = "size=BYTES")]
    pub storage_opt: Vec<String>,
    /// A device of the kernel's fixed numbers
    #[arg(long, value_name = "HOST[:CONTAINER[:rwm]]")]
    pub device: Vec<String>,
    /// Whose processes it sees: private or container:ID
    #[arg(long, default_value = "", hide_default_value = true)]
    pub pid: String,
    /// private, shareable, host or container:ID: all are the VM's
    #[arg(long, default_value = "", hide_default_value = true)]
    pub ipc: String,
    /// bridge, host, container:ID (all are what the VM has), none, or a card of its own: in the network `user`, which
    /// leads out through this host, or in one of --networks
    #[arg(long, alias = "net", value_name = "NAME")]
    pub network: Vec<String>,
    /// What networks this host has, as JSON: docs/ctl.md says how
    #[arg(long, value_name = "FILE")]
    pub networks: Option<PathBuf>,
    /// The address of its card
    #[arg(long, value_name = "ADDRESS")]
    pub ip: Option<Ipv4Addr>,
    /// The IPv6 address of its card
    #[arg(long, value_name = "ADDRESS")]
    pub ip6: Option<Ipv6Addr>,
    /// The MAC address of its card
    #[arg(long, value_name = "MAC")]
    pub mac_address: Option<String>,
    /// A name server
    #[arg(long, value_name = "ADDRESS")]
    pub dns: Vec<String>,
    /// A domain to search
    #[arg(long, value_name = "DOMAIN")]
    pub dns_search: Vec<String>,
    /// An option of resolv.conf
    #[arg(long, value_name = "OPTION")]
    pub dns_option: Vec<String>,
    /// A port of this host that leads to one of the container's; it gets a card in the network `user` then
    #[arg(short, long, value_name = "[ADDRESS:][HOST_PORT:]PORT[/udp]")]
    pub publish: Vec<String>,
    /// How large its log may get: max-size=BYTES of a file [default: 10m], max-file=COUNT [default: 5]
    #[arg(long, value_name = "OPTION")]
    pub log_opt: Vec<String>,
    /// A port for the description
    #[arg(long, value_name = "PORT")]
    pub expose: Vec<String>,
    /// When it is started again: no, always, unless-stopped, or `on-failure[:MAXIMUM]`
    #[arg(long, default_value = "no", value_name = "POLICY")]
    pub restart: String,
    /// Remove it when it has ended; without --detach that is the default
    #[arg(long = "rm", num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false, action = ArgAction::Set, hide_default_value = true, hide_possible_values = true, value_name = "BOOL")]
    pub auto_remove: bool,
    /// A command that tells whether it works [default: the image's]
    #[arg(long, value_name = "COMMAND")]
    pub health_cmd: Option<String>,
    /// How often [default: 30s]
    #[arg(long, value_parser = parse::duration, value_name = "TIME")]
    pub health_interval: Option<Duration>,
    /// How many failures in a row make it unhealthy [default: 3]
    #[arg(long, value_name = "COUNT")]
    pub health_retries: Option<u32>,
    /// How long it may take [default: 30s]
    #[arg(long, value_parser = parse::duration, value_name = "TIME")]
    pub health_timeout: Option<Duration>,
    /// Failures don't count for so long after the start [default: 0s]
    #[arg(long, value_parser = parse::duration, value_name = "TIME")]
    pub health_start_period: Option<Duration>,
    /// Don't run the image's check
    #[arg(long, conflicts_with = "health_cmd")]
    pub no_healthcheck: bool,
    /// The signal that asks it to end
    #[arg(long, value_name = "SIGNAL")]
    pub stop_signal: Option<String>,
    /// always, missing or never: all the same, as images are this host's and nothing is pulled
    #[arg(long, value_name = "POLICY", value_parser = ["always", "missing", "never"])]
    pub pull: Option<String>,
    /// A label
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub label: Vec<String>,
    /// An annotation of the specification
    #[arg(long, value_name = "NAME=VALUE")]
    pub annotation: Vec<String>,
}
