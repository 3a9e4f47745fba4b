//! The arguments of every command.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand};
use nakai_ctl::Address;
use nakai_ctl::docker::Flags;
use nix::sys::signal::Signal;

use super::cri::CriCommand;
use super::images::ImagesCommand;
use super::zun::ZunCommand;

/// Talks to a nakai guest agent: runs containers in it, or boots the VM that it lives in.
#[derive(Debug, Parser)]
#[command(name = "nakai-ctl", version)]
pub(crate) struct Cli {
    /// The agent: unix://PATH, unix://@NAME, vsock://CID:PORT or hvsock://PATH:PORT
    #[arg(long, env = "NAKAI_ADDRESS", global = true)]
    pub(crate) address: Option<Address>,
    /// The agent of a VM that `vm start --name` has started, instead of an address [env: NAKAI_SANDBOX, below an address]
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) sandbox: Option<String>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Virtual machines
    Vm {
        #[command(subcommand)]
        command: VmCommand,
    },
    /// Run a container and exit with its status, with the flags of `docker run`
    Run(Box<RunOptions>),
    /// Run a further process in a container and exit with its status
    Exec(ExecOptions),
    /// Containers by Kubernetes' CRI: the JSON that crictl reads
    Cri {
        #[command(subcommand)]
        command: CriCommand,
    },
    /// `docker run` is `run`, but the container stays when it has ended
    Docker {
        #[command(subcommand)]
        command: DockerCommand,
    },
    /// Containers by the request of OpenStack's Zun
    Zun {
        #[command(subcommand)]
        command: ZunCommand,
    },
    /// Layers of images on this host
    Images {
        #[command(subcommand)]
        command: ImagesCommand,
    },
    /// List the containers that clients of this host have made at the address, those too that have ended
    Ps {
        /// Their names only
        #[arg(short, long)]
        quiet: bool,
        /// All of them, as without it
        #[arg(short, long)]
        all: bool,
    },
    /// Follow what happens to containers, a JSON object a line
    Events {
        /// Begin with what has happened before
        #[arg(long)]
        all: bool,
    },
    /// Stay with a detached container to its end; `run --detach` and `start` leave this behind
    #[command(hide = true)]
    Attend {
        /// The container
        id: String,
    },
    /// Show what a container uses
    Stats {
        /// The container
        id: String,
    },
    /// Start containers that have been created, or have ended, and leave them running
    Start {
        /// The containers
        #[arg(required = true)]
        ids: Vec<String>,
    },
    /// Ask containers to end, and kill those that do not; they are not started again
    Stop {
        /// How long each may take, in seconds
        #[arg(short, long, visible_alias = "time", default_value_t = 10)]
        timeout: u64,
        /// The containers
        #[arg(required = true)]
        ids: Vec<String>,
    },
    /// Freeze all processes of containers
    Pause {
        /// The containers
        #[arg(required = true)]
        ids: Vec<String>,
    },
    /// Let them go on
    #[command(visible_alias = "unpause")]
    Resume {
        /// The containers
        #[arg(required = true)]
        ids: Vec<String>,
    },
    /// Print the output of a container that runs detached, or is kept
    Logs(LogsOptions),
    /// Print all that is known of a container, as JSON
    Inspect {
        /// The container
        id: String,
    },
    /// Send a signal to a container's init process
    Kill {
        /// The container
        id: String,
        /// The signal, by name or number
        #[arg(default_value = "TERM", value_parser = parse_signal)]
        signal: i32,
        /// The same, where Docker's users write it
        #[arg(short = 's', long = "signal", value_parser = parse_signal, value_name = "SIGNAL", conflicts_with = "signal")]
        by_flag: Option<i32>,
        /// Kill every process of the container (SIGKILL only)
        #[arg(long)]
        all: bool,
    },
    /// Remove containers, killing what still runs in them
    Rm {
        /// Also those that run, as without it
        #[arg(short, long)]
        force: bool,
        /// The containers
        #[arg(required = true)]
        ids: Vec<String>,
    },
    /// Tell whether the agent answers
    Check,
    /// Print the agent's and the protocol's version
    Version,
    /// Print what the guest can do
    Details,
    /// Boot a VM, run two containers in it and say what happens
    Demo(DemoOptions),
}

#[derive(Debug, Subcommand)]
pub(crate) enum DockerCommand {
    /// Run a container; it stays when it has ended, unless --rm says otherwise
    Run(Box<RunOptions>),
}

#[derive(Debug, Subcommand)]
pub(crate) enum VmCommand {
    /// Boot a VM, print its agent's address and stay until ^C; with a name, leave it running
    Start(VmOptions),
    /// List the VMs that have a name
    Ls,
    /// End VMs with all that is in them
    Stop {
        /// Their names
        #[arg(required_unless_present = "all")]
        names: Vec<String>,
        /// All that have a name
        #[arg(long)]
        all: bool,
    },
}

/// What a VM boots.
#[derive(Args, Clone, Debug)]
pub(crate) struct VmOptions {
    /// Leave it running under this name
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Be the process that holds it
    #[arg(long, hide = true, requires = "name")]
    pub(crate) keeper: bool,
    /// The kernel image
    #[arg(long, env = "NAKAI_KERNEL")]
    pub(crate) kernel: PathBuf,
    /// The initramfs with the agent
    #[arg(long, env = "NAKAI_INITRD")]
    pub(crate) initrd: PathBuf,
    /// Memory in MiB
    #[arg(long, default_value_t = 512)]
    pub(crate) memory: u32,
    /// CPUs
    #[arg(long, default_value_t = 1)]
    pub(crate) cpus: u32,
    /// Ports to plug disks into, one each
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(..=24))]
    pub(crate) ports: u8,
    /// The directory that is shared with the guest [default: one that goes with the VM]
    #[arg(long)]
    pub(crate) share: Option<PathBuf>,
    /// Where the console's text goes [default: the VM's run directory]
    #[arg(long)]
    pub(crate) console: Option<PathBuf>,
    /// A word for the kernel's command line, such as agent.log=debug
    #[arg(long = "append", value_name = "WORD")]
    pub(crate) append: Vec<String>,
}

#[derive(Args, Debug)]
pub(crate) struct RunOptions {
    #[command(flatten)]
    pub(crate) flags: Flags,
    /// The root filesystem: a directory (what the container writes is written there) or a tar file
    #[arg(long, value_name = "DIR|TAR")]
    pub(crate) rootfs: Option<PathBuf>,
    /// The image: an OCI image layout (a directory or a tar), what docker save writes, a tar or a directory of a root
    /// filesystem. What the container writes is its own [default: the first word that is no option]
    #[arg(long, value_name = "PATH[:NAME]", conflicts_with = "rootfs")]
    pub(crate) image: Option<String>,
    /// Give it the image as a disk of this size (with a suffix K, M or G), or as large as needed and some room
    #[arg(
        long,
        value_name = "BYTES",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "fit",
        value_parser = parse_disk,
        conflicts_with_all = ["rootfs", "root_layers"]
    )]
    pub(crate) root_disk: Option<DiskSize>,
    /// Give it each layer of the image as a read-only disk (EROFS); what it writes is in the guest's memory, or on a disk
    /// of --storage-opt size=
    #[arg(long, conflicts_with = "rootfs")]
    pub(crate) root_layers: bool,
    /// Don't remove it when it has ended
    #[arg(long, conflicts_with = "auto_remove")]
    pub(crate) keep: bool,
    /// Start it, print its name and leave it running; `logs` shows its output
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// The host's side of the directory shared with the guest [default: what `vm start` noted]
    #[arg(long)]
    pub(crate) share: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) vm: OwnVm,
    /// The image, unless an option names it; the program and its arguments [default: the image's]; behind an entry point
    /// of the image's, arguments only
    #[arg(value_name = "[IMAGE] PROGRAM", trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) args: Vec<String>,
}

/// A VM that ends with the command.
#[derive(Args, Clone, Debug)]
pub(crate) struct OwnVm {
    /// The kernel of a VM of its own
    #[arg(long, env = "NAKAI_KERNEL", requires = "initrd")]
    pub(crate) kernel: Option<PathBuf>,
    /// The initramfs of a VM of its own
    #[arg(long, env = "NAKAI_INITRD", requires = "kernel")]
    pub(crate) initrd: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub(crate) struct ExecOptions {
    /// Give it standard input
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Give it a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// A variable of its environment, beside the container's; without a value, this client's
    #[arg(short, long = "env", value_name = "NAME[=VALUE]")]
    pub(crate) env: Vec<String>,
    /// Its working directory [default: the container's]
    #[arg(short, long)]
    pub(crate) workdir: Option<String>,
    /// Its user and group, by name or number [default: the container's]
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub(crate) user: Option<String>,
    /// The container
    pub(crate) id: String,
    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) args: Vec<String>,
}

#[derive(Args, Debug)]
pub(crate) struct LogsOptions {
    /// Go on until the container has ended
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Only the last lines
    #[arg(short = 'n', long, value_name = "LINES")]
    pub(crate) tail: Option<usize>,
    /// Only what was printed since then: 2026-01-31T12:00:00Z, or 10m ago
    #[arg(long, value_parser = super::logs::since, value_name = "TIME")]
    pub(crate) since: Option<String>,
    /// The container
    pub(crate) id: String,
}

#[derive(Args, Debug)]
pub(crate) struct DemoOptions {
    /// The kernel image
    #[arg(long, env = "NAKAI_KERNEL")]
    pub(crate) kernel: PathBuf,
    /// The initramfs with the agent
    #[arg(long, env = "NAKAI_INITRD")]
    pub(crate) initrd: PathBuf,
    /// A root filesystem with busybox
    #[arg(long, value_name = "DIR|TAR")]
    pub(crate) busybox: PathBuf,
    /// A root filesystem of Debian
    #[arg(long, value_name = "DIR|TAR")]
    pub(crate) debian: PathBuf,
}

/// A signal's number: `TERM`, `SIGTERM`, `sigterm` or `15`.
fn parse_signal(text: &str) -> Result<i32, String> {
    if let Ok(number) = text.parse::<i32>() {
        return if (1..=libc::SIGRTMAX()).contains(&number) {
            Ok(number)
        } else {
            Err("no such signal".to_owned())
        };
    }
    let name = text.to_ascii_uppercase();
    let name = if name.starts_with("SIG") { name } else { format!("SIG{name}") };
    Signal::from_str(&name).map(|signal| signal as i32).map_err(|_| "no such signal".to_owned())
}

/// The size of a disk.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum DiskSize {
    /// What the files take, and some room.
    Fit,
    Bytes(u64),
}

fn parse_disk(text: &str) -> Result<DiskSize, String> {
    match text {
        "fit" => Ok(DiskSize::Fit),
        other => nakai_ctl::docker::parse::bytes(other)
            .filter(|&bytes| bytes > 0)
            .map(DiskSize::Bytes)
            .ok_or_else(|| "not a number of bytes".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    fn parse(line: &str) -> Result<Command, String> {
        Cli::try_parse_from(line.split(' ')).map(|cli| cli.command).map_err(|error| error.to_string())
    }

    #[test]
    fn definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn run_takes_options_then_the_program_with_its_own() {
        let line = "nakai-ctl --address unix://@a run -it -e A=1 -u 7:8 --memory 64M --cpus 0.5 \
                    --rootfs /r sh -c true --rm";
        let Ok(Command::Run(run)) = parse(line) else { panic!("{:?}", parse(line)) };
        assert_eq!(run.args, ["sh", "-c", "true", "--rm"]);
        assert!(run.flags.interactive && run.flags.tty && !run.flags.auto_remove && !run.keep);
        assert_eq!((run.flags.memory, run.flags.cpus), (Some(64 << 20), Some(0.5)));
    }

    #[test]
    fn address_may_stand_behind_the_command() {
        let cli = Cli::try_parse_from(["nakai-ctl", "check", "--address", "vsock://3:1024"]).unwrap();
        assert_eq!(cli.address, Some(Address::Vsock { cid: 3, port: 1024 }));
        let error = parse("nakai-ctl check --address tcp://x").unwrap_err();
        assert!(error.contains("unknown scheme"), "{error}");
    }

    #[test]
    fn nonsense_is_refused() {
        let table = [
            "nakai-ctl",
            "nakai-ctl run --rm --keep --rootfs /r sh",
            "nakai-ctl run --root-disk=none /i",
            "nakai-ctl exec web",
            "nakai-ctl rm",
            "nakai-ctl stop -t 1",
            "nakai-ctl kill web NOPE",
            "nakai-ctl kill web 0",
            "nakai-ctl kill -s HUP web TERM",
            "nakai-ctl run --rm=perhaps /i",
        ];
        for line in table {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn dockers_habits_are_understood() {
        for line in [
            "ps -a",
            "ps -aq",
            "exec -u root one sh",
            "run --rm=false --privileged=true --read-only=true /i",
            "rm -f one two",
            "unpause one",
            "stop --time 3 one two",
            "start one two",
        ] {
            parse(&format!("nakai-ctl {line}")).unwrap();
        }
    }

    #[test]
    fn signals_and_sizes_are_read() {
        let signal = |text: &str| match parse(&format!("nakai-ctl kill {text}")).unwrap() {
            Command::Kill { signal, by_flag, .. } => by_flag.unwrap_or(signal),
            other => panic!("{other:?}"),
        };
        assert_eq!((signal("web"), signal("web sigkill"), signal("web 64")), (15, 9, 64));
        assert_eq!((signal("-s HUP web"), signal("--signal=9 web")), (1, 9));
        assert_eq!((parse_disk("3k"), parse_disk("fit")), (Ok(DiskSize::Bytes(3072)), Ok(DiskSize::Fit)));
        assert!(parse_disk("9999999999G").is_err() && parse_disk("M").is_err() && parse_disk("").is_err());
    }
}
