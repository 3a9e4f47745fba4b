//! An agent that runs, on this machine or in a virtual machine, and how to look at its processes.

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nakai_ctl::sandbox::{self, guest_rootfs};
use nakai_ctl::spec::DEFAULT_CAPABILITIES;
use nakai_ctl::stdio::finish;
use nakai_ctl::vm::{Vm, VmConfig};
use nakai_ctl::{Address, Client, SpecBuilder};
use tempfile::TempDir;

use super::{Fallible, launcher, upload};

/// Where the agent runs, and the root filesystem of its containers.
pub(crate) enum Place {
    Host { root: PathBuf },
    Vm { kernel: PathBuf, root: PathBuf },
}

impl Place {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Host { .. } => "host",
            Self::Vm { .. } => "vm",
        }
    }
}

/// An agent that is no nakai does not say on the console that it serves: it is given this long.
const PEER_BOOT: Duration = Duration::from_secs(12);

enum Runs {
    OnHost {
        agent: Child,
        /// Its socket and its log.
        _directory: TempDir,
    },
    InVm {
        vm: Box<Vm>,
        /// The root filesystem, here.
        root: PathBuf,
    },
}

pub(crate) struct Subject {
    pub(crate) client: Client,
    /// Where more connections can be made.
    pub(crate) address: Address,
    /// From exec, or from the start of QEMU, to the answer to the first Check.
    pub(crate) first_check: Duration,
    /// The containers' root filesystem, as the agent sees it.
    pub(crate) root: String,
    runs: Runs,
}

impl Subject {
    /// Starts `agent`: a program on the host, an initrd in a VM.
    pub(crate) async fn start(place: &Place, agent: &Path, is_nakai: bool) -> Fallible<Self> {
        match place {
            Place::Host { root } => Self::on_host(agent, root).await,
            Place::Vm { kernel, root } => Self::in_vm(agent, kernel, root.clone(), is_nakai).await,
        }
    }

    async fn on_host(agent: &Path, root: &Path) -> Fallible<Self> {
        let directory = tempfile::Builder::new().prefix("nakai-bench-").tempdir()?;
        let socket = directory.path().join("agent.sock");
        let address = Address::Unix(socket.clone());
        let setup = "mount -t tmpfs -o mode=755 tmpfs /run; mount -t proc proc /proc; exec \"$@\"";
        let mut child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--net", "--ipc", "--uts", "--fork"])
            .args(["--kill-child=KILL", "--propagation", "private", "sh", "-c", setup, "sh"])
            .arg(std::env::current_exe()?)
            .arg(launcher::ARGUMENT)
            .arg(agent)
            .arg(directory.path().join("log"))
            // The environment and not an argument: agents have different arguments, and the same variables.
            .env("KATA_AGENT_SERVER_ADDR", format!("unix://{}", socket.display()))
            .env("KATA_AGENT_LOG_LEVEL", "error")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        // Then the mounts are made, and the launcher waits. What it costs to become that is not the agent's.
        child.stdout.as_mut().ok_or("no stdout")?.read_exact(&mut [0])?;
        let begin = Instant::now();
        child.stdin.as_mut().ok_or("no stdin")?.write_all(b"go")?;
        let client = loop {
            if let Ok(client) = Client::connect(&address).await {
                break client;
            }
            if begin.elapsed() > Duration::from_secs(20) {
                return Err(format!("{} does not serve", agent.display()).into());
            }
            // Timers of the runtime count milliseconds.
            std::thread::sleep(Duration::from_micros(50));
        };
        client.check().await?;
        let first_check = begin.elapsed();
        let root = fs::canonicalize(root)?.display().to_string();
        let runs = Runs::OnHost { agent: child, _directory: directory };
        Ok(Self { client, address, first_check, root, runs })
    }

    async fn in_vm(initrd: &Path, kernel: &Path, root: PathBuf, is_nakai: bool) -> Fallible<Self> {
        let mut config = VmConfig::new(kernel, initrd);
        config.cmdline.push("agent.log=error".to_owned());
        if !is_nakai {
            config.unannounced = Some(PEER_BOOT);
        }
        let vm = Box::new(Vm::start(&config, |_| {}).await?);
        let begin = Instant::now();
        let client = vm.client().await?;
        client.check().await?;
        let first_check = vm.boot_time() + begin.elapsed();
        let address = vm.address().clone();
        let runs = Runs::InVm { vm, root };
        Ok(Self { client, address, first_check, root: guest_rootfs("bench"), runs })
    }

    pub(crate) async fn create_sandbox(&self) -> Fallible<()> {
        self.client.create_sandbox(&sandbox::request("bench", "bench", false)).await?;
        if let Runs::InVm { root, .. } = &self.runs {
            upload::tree(&self.client, root, &self.root).await?;
            // The guest's processes are looked at from a container that sees its /proc.
            let spec = self.observer().args(["sleep", "1000000"]).mount(
                "/guest/proc",
                "/proc",
                "bind",
                &["rbind", "ro"],
            );
            self.client.create_container("observer", spec.build()).await?;
            self.client.start_container("observer").await?;
        }
        Ok(())
    }

    /// An ordinary container with the root filesystem that all share.
    pub(crate) fn spec(&self, id: &str) -> SpecBuilder {
        SpecBuilder::new(id, &self.root).private_shm()
    }

    /// A container that may look into other processes.
    fn observer(&self) -> SpecBuilder {
        self.spec("observer").capabilities(DEFAULT_CAPABILITIES.into_iter().chain(["CAP_SYS_PTRACE"]))
    }

    /// Runs a shell script that sees the agent's processes: `$PROC` is their /proc, `$AGENT` the topmost one.
    pub(crate) async fn look(&self, script: &str) -> Fallible<String> {
        match &self.runs {
            Runs::OnHost { agent, .. } => {
                let init = first_child(agent.id())?;
                let agent = first_child(init)?;
                let output = Command::new("sh")
                    .args(["-c", script])
                    .env("PROC", "/proc")
                    .env("AGENT", agent.to_string())
                    .output()?;
                Ok(String::from_utf8(output.stdout)?)
            }
            Runs::InVm { .. } => {
                let script = format!("PROC=/guest/proc AGENT=1\n{script}");
                let process = self.observer().args(["sh", "-c", &script]).process();
                self.client.exec_process("observer", "look", process).await?;
                let finished = finish(&self.client, "observer", "look", b"").await?;
                Ok(String::from_utf8(finished.stdout)?)
            }
        }
    }

    pub(crate) async fn stop(self) {
        match self.runs {
            Runs::OnHost { agent: mut child, .. } => {
                let _ = self.client.destroy_sandbox().await;
                if let Ok(init) = first_child(child.id()) {
                    let init = nix::unistd::Pid::from_raw(init.cast_signed());
                    let _ = nix::sys::signal::kill(init, nix::sys::signal::Signal::SIGKILL);
                }
                let _ = child.wait();
            }
            Runs::InVm { vm, .. } => vm.stop(),
        }
    }
}

fn first_child(pid: u32) -> Fallible<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    Ok(children.split_whitespace().next().ok_or("no child")?.parse()?)
}
