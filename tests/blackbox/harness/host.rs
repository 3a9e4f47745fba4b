//! An agent on this host, in mount, pid, network, IPC and UTS namespaces of its own.
//!
//! A shell is the first process of the pid namespace: as PID 1 the agent would take the host for a guest. The
//! kernel kills everything in the namespace when that shell ends, and the shell ends with this process
//! (`PR_SET_PDEATHSIG`), so no container survives a test. `/run` is an empty tmpfs. Cgroups are the only thing that
//! is shared with the host.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use libtest_mimic::Failed;
use nakai_ctl::{Address, Client};

use super::context::{Ctx, Hooks, Parts, Roots};
use super::guest_view::GuestView;
use super::{Fallible, Images, Outcome, QUIET_MILLISECONDS, STREAM_PORT, Scenario};

/// How long an agent may take to serve.
const START_LIMIT: Duration = Duration::from_secs(120);

/// How long it may take to end.
const END_LIMIT: Duration = Duration::from_secs(120);

/// Nothing that a service is given, such as its OOM score, may reach its containers. As a service manager does, it
/// starts an agent that was killed again.
const SETUP: &str = "set -e
echo 300 > /proc/self/oom_score_adj
mount -t tmpfs -o mode=755 tmpfs /run
mount -t proc proc /proc
status=137
while [ $status = 137 ]; do
    \"$@\" &
    if wait $!; then status=0; else status=$?; fi
done
exit $status";

/// Runs a scenario with an agent of its own.
pub(crate) fn run(images: &Images, scenario: &Scenario) -> Result<(), Failed> {
    super::runtime().block_on(async {
        let mut agent = HostAgent::start(images, scenario.policy)?;
        let mut outcome = scenario_with(images, scenario, &mut agent).await;
        if outcome.is_ok() {
            outcome = agent.ended().await;
        }
        let log = fs::read_to_string(agent.directory.join("agent.log")).unwrap_or_default();
        agent.stop();
        let cgroups = agent.remove_cgroups();
        outcome.map_err(|error| super::failed(&error, &log))?;
        if !cgroups.is_empty() {
            return Err(super::failed(&format!("cgroups are left behind: {cgroups:?}"), &log));
        }
        fs::remove_dir_all(&agent.directory)?;
        Ok(())
    })
}

async fn scenario_with(images: &Images, scenario: &Scenario, agent: &mut HostAgent) -> Outcome {
    let ctx = agent.context(images).await?;
    if scenario.own_agent {
        super::drive(scenario, &ctx).await?;
    } else {
        super::create_sandbox(&ctx, false).await?;
        super::drive_in_sandbox(scenario, &ctx).await?;
    }
    if scenario.ends_its_agent {
        return Ok(());
    }
    ctx.client().destroy_sandbox().await?;
    Ok(())
}

struct HostAgent {
    /// `unshare`, whose child is the first process of the pid namespace.
    child: Child,
    prefix: String,
    directory: PathBuf,
}

impl HostAgent {
    fn start(images: &Images, policy: Option<&str>) -> Fallible<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let prefix = format!("t{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let directory = images.directory()?.join(&prefix);
        fs::create_dir(&directory)?;
        fs::create_dir(directory.join("roots"))?;
        let config = directory.join("agent.toml");
        let mut settings =
            format!("passfd_listener_port = {STREAM_PORT}\nstream_quiet_time = {QUIET_MILLISECONDS}\n");
        if let Some(policy) = policy {
            let file = directory.join("policy.rego");
            fs::write(&file, policy)?;
            settings.push_str(&format!("policy_file = \"{}\"\n", file.display()));
        }
        fs::write(&config, settings)?;
        let log = File::create(directory.join("agent.log"))?;
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--net", "--ipc", "--uts"])
            .args(["--fork", "--kill-child=KILL", "--propagation", "private", "sh", "-c", SETUP, "sh"])
            .arg(images.agent())
            .arg("--config")
            .arg(config)
            .args(["--log-level", "debug", "--server-addr"])
            .arg(format!("unix://{}", socket(&directory).display()))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .map_err(|error| format!("setpriv (of util-linux): {error}"))?;
        Ok(Self { child, prefix, directory })
    }

    async fn context(&mut self, images: &Images) -> Fallible<Ctx> {
        let address = Address::Unix(socket(&self.directory));
        let client = self.connect(&address).await?;
        let supervisor = first_child(first_child(self.child.id())?)?;
        let roots = self.directory.join("roots");
        let hooks = self.directory.join("hooks");
        Ok(Ctx::new(Parts {
            client,
            address,
            prefix: self.prefix.clone(),
            images: images.clone(),
            roots: Roots { guest: roots.display().to_string(), host: roots },
            view: Arc::new(GuestView::Host { supervisor }),
            hooks: Hooks(hooks.display().to_string()),
            machine: None,
        }))
    }

    async fn connect(&mut self, address: &Address) -> Fallible<Client> {
        let deadline = Instant::now() + START_LIMIT;
        loop {
            match Client::connect(address).await {
                Ok(client) => return Ok(client),
                Err(error) if Instant::now() > deadline || self.child.try_wait()?.is_some() => {
                    let log = fs::read_to_string(self.directory.join("agent.log")).unwrap_or_default();
                    return Err(format!("no agent (are you root?): {error}\n{log}").into());
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(2)).await,
            }
        }
    }

    /// Waits until the agent has ended by itself, which has to be with 0.
    async fn ended(&mut self) -> Outcome {
        let deadline = Instant::now() + END_LIMIT;
        loop {
            match self.child.try_wait()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(format!("the agent ended with {status}").into()),
                None if Instant::now() > deadline => return Err("the agent has not ended".into()),
                None => tokio::time::sleep(Duration::from_millis(2)).await,
            }
        }
    }

    /// Kills the pid namespace; when this returns, nothing in it runs any more.
    fn stop(&mut self) {
        if let Ok(init) = first_child(self.child.id()) {
            let init = nix::unistd::Pid::from_raw(i32::try_from(init).unwrap_or(0));
            // It may just have ended by itself.
            let _ = nix::sys::signal::kill(init, nix::sys::signal::Signal::SIGKILL);
        }
        // unshare ends after its child, and that is only reaped when its namespace is empty.
        let _ = self.child.wait();
    }

    /// Removes cgroups that containers have left; returns which.
    fn remove_cgroups(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        find_directories(Path::new("/sys/fs/cgroup"), &self.prefix, &mut found);
        for cgroup in found.iter().rev() {
            let _ = fs::remove_dir(cgroup);
        }
        found
    }
}

impl Drop for HostAgent {
    fn drop(&mut self) {
        self.stop();
    }
}

fn socket(directory: &Path) -> PathBuf {
    directory.join("agent.sock")
}

fn first_child(pid: u32) -> Fallible<u32> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let children = fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
    let first = children.split_whitespace().next().ok_or_else(|| format!("process {pid} has no child"))?;
    Ok(first.parse()?)
}

/// The directories that have `name`, which ends with a number, in theirs; parents first.
fn find_directories(directory: &Path, name: &str, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        if is_named(&entry.path().to_string_lossy(), name) {
            found.push(entry.path());
        }
        find_directories(&entry.path(), name, found);
    }
}

/// Whether a path has `name` in it; `t7-12` is another agent's than `t7-1`, and may be at work.
fn is_named(path: &str, name: &str) -> bool {
    path.split(name).skip(1).any(|rest| !rest.starts_with(|next: char| next.is_ascii_digit()))
}
