//! The front ends' engine in a scenario's hands.

use std::path::{Path, PathBuf};
use std::time::Duration;

use nakai_ctl::cri::supervise::{Console, supervise};
use nakai_ctl::cri::{ContainerConfig, Engine, ImageConfig, Order, Places, PodSandboxConfig, json};
use nakai_ctl::state::{ContainerRecord, State};
use nakai_ctl::stdio::finish;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::Check;
use crate::harness::context::SHELL_LIMIT;
use crate::harness::{Ctx, Fallible, Outcome};

/// How often a note is looked at, which another task changes.
const POLL: Duration = Duration::from_millis(20);

pub(super) struct Bench {
    pub(super) engine: Engine,
    pub(super) ctx: Ctx,
    /// A root filesystem to make containers of.
    pub(super) image: PathBuf,
    /// For notes, logs and volumes.
    pub(super) directory: TempDir,
}

impl Bench {
    pub(super) fn new(ctx: &Ctx) -> Fallible<Self> {
        // What is mounted for a machine comes and goes while host scenarios look at their mounts, which leave out what
        // has that name.
        let prefix = if ctx.is_host() { "nakai-bench-" } else { "nakai-vm-bench-" };
        let directory = tempfile::Builder::new().prefix(prefix).tempdir()?;
        let root = ctx.container(|spec| spec)?.root;
        let places = match root.parent().and_then(Path::parent) {
            Some(share) if !ctx.is_host() => Places::Shared(share.to_owned()),
            _ => Places::Local(directory.path().join("lent")),
        };
        let state = State::at(directory.path().join("notes"));
        let engine = Engine::new(ctx.client().clone(), places, state, None);
        Ok(Self { engine, ctx: ctx.clone(), image: root, directory })
    }

    /// A directory of this host.
    pub(super) fn volume(&self, name: &str) -> Fallible<PathBuf> {
        let path = self.directory.path().join(name);
        std::fs::create_dir_all(&path)?;
        Ok(path)
    }

    /// An order by the two files' texts. `container` is laid over a container that sleeps.
    pub(super) fn order(&self, pod: Value, container: Value) -> Fallible<Order> {
        let mut all_pod = json!({
            "metadata": {"name": self.ctx.prefix(), "uid": self.ctx.prefix(), "namespace": "default"},
            "linux": {"cgroup_parent": format!("/nakai-{}", self.ctx.prefix())},
        });
        let mut all = json!({
            "metadata": {"name": "box"},
            "image": {"image": self.image},
            "command": ["sleep", "1000000"],
            "linux": {"security_context": {"namespace_options": {"pid": "CONTAINER"}}},
        });
        lay_over(&mut all_pod, pod);
        lay_over(&mut all, container);
        let (pod, unknown) = json::read::<PodSandboxConfig>("pod", &all_pod.to_string())?;
        assert_eq!(unknown, [""; 0]);
        let (config, unknown) = json::read::<ContainerConfig>("container", &all.to_string())?;
        assert_eq!(unknown, [""; 0]);
        Ok(Order { pod, config, ..Order::default() })
    }

    /// A container that runs.
    pub(super) async fn start(&self, order: &Order) -> Fallible<ContainerRecord> {
        let (record, warnings) = self.engine.create(order).await?;
        assert_eq!(warnings, [""; 0]);
        Ok(self.engine.start(&record.id).await?)
    }

    /// What a script prints in a container, with its errors, whatever its status.
    pub(super) async fn sh(&self, id: &str, script: &str) -> Fallible<String> {
        let args = ["sh", "-c", &format!("exec 2>&1; {script}")].map(str::to_owned);
        let exec = self.ctx.fresh_exec_id();
        let process = self.engine.process(id, &args, false);
        self.ctx.client().exec_process(id, &exec, process).await?;
        let finished = finish(self.ctx.client(), id, &exec, b"");
        let finished = tokio::time::timeout(SHELL_LIMIT, finished).await??;
        Ok(String::from_utf8_lossy(&finished.stdout).into_owned())
    }

    /// Runs a script until it prints what is wanted: files on this host change without telling the guest.
    pub(super) async fn until_sh(&self, id: &str, script: &str, wanted: &str) -> Outcome {
        let waited = async {
            while self.sh(id, script).await? != wanted {
                tokio::time::sleep(POLL).await;
            }
            Ok(())
        };
        tokio::time::timeout(SHELL_LIMIT, waited).await.map_err(|_| format!("{script}: never {wanted:?}"))?
    }

    /// Makes a container, looks at all that `checks` say, and removes it.
    pub(super) async fn prove(&self, order: &Order, checks: &[Check]) -> Outcome {
        let record = self.start(order).await?;
        let seen = self.look(&record.id, checks).await;
        self.remove(&record.id).await?;
        seen
    }

    /// The same of a container that has a network of its own: in it there is as little as in a guest without a card.
    pub(super) async fn prove_apart(&self, order: &Order, checks: &[Check]) -> Outcome {
        let record = self.start(order).await?;
        let seen = async {
            self.look(&record.id, checks).await?;
            let guests = self.ctx.guest_sh("readlink $PROC/$SERVER/ns/net").await?;
            let own = self.sh(&record.id, "readlink /proc/self/ns/net").await?;
            assert!(own.starts_with("net:[") && own.trim() != guests.trim(), "{own} {guests}");
            Ok(())
        };
        let seen = seen.await;
        self.remove(&record.id).await?;
        seen
    }

    /// Removes a container; the guest has let go of what was mounted in the shared directory when this returns.
    pub(super) async fn remove(&self, id: &str) -> Outcome {
        self.engine.remove(id).await?;
        let gone = async {
            // The guest believes what it knows of a name for a second (virtiofsd's time-out).
            while !self.ctx.is_host() && self.mounts_of(id).await? != "0" {
                self.engine.client().look_at_shares().await?;
                tokio::time::sleep(POLL).await;
            }
            Ok(())
        };
        tokio::time::timeout(SHELL_LIMIT, gone).await?
    }

    /// How many mounts of a container's directory the guest has.
    async fn mounts_of(&self, id: &str) -> Fallible<String> {
        let script = format!("grep -c 'containers/{id}/' $PROC/$SERVER/mountinfo || :");
        Ok(self.ctx.guest_sh(&script).await?.trim().to_owned())
    }

    /// Looks at a running container: one process runs all scripts. Its init may still have to become its program.
    pub(super) async fn look(&self, id: &str, checks: &[Check]) -> Outcome {
        const MARK: &str = "@@ next @@\n";
        let scripts: Vec<_> = checks.iter().map(|check| format!("({})", check.script)).collect();
        let output = self.sh(id, &scripts.join("\necho '@@ next @@'\n")).await?;
        let parts: Vec<&str> = output.split(MARK).collect();
        assert_eq!(parts.len(), checks.len(), "{output}");
        let wrong: Vec<String> = checks
            .iter()
            .zip(parts)
            .filter(|(check, seen)| !check.expected.contains(&seen.trim_end()))
            .map(|(check, seen)| format!("{}: {seen:?}, expected {:?}", check.row.0, check.expected))
            .collect();
        if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n").into()) }
    }

    /// Starts a created container and stays with it to its end.
    pub(super) async fn attend(&self, id: &str) -> Fallible<i32> {
        self.engine.start(id).await?;
        let attended = supervise(&self.engine, id, Console::default());
        Ok(tokio::time::timeout(SHELL_LIMIT, attended).await??)
    }

    /// Runs a container to its end and removes it; its status and its output without the log's tags.
    pub(super) async fn run(&self, order: &Order) -> Fallible<(i32, String)> {
        let mut order = order.clone();
        if order.pod.log_directory.is_empty() {
            order.pod.log_directory = self.directory.path().join("logs").display().to_string();
        }
        let (record, _) = self.engine.create(&order).await?;
        let status = self.attend(&record.id).await?;
        let log = std::fs::read_to_string(record.log.as_deref().ok_or("no log")?)?;
        let lines = log.lines().filter_map(|line| line.splitn(4, ' ').nth(3));
        let output = lines.collect::<Vec<_>>().join("\n");
        self.engine.remove(&record.id).await?;
        Ok((status, output))
    }

    /// Waits until the note of a container is as wanted.
    pub(super) async fn until(
        &self,
        id: &str,
        wanted: impl Fn(&ContainerRecord) -> bool,
    ) -> Fallible<ContainerRecord> {
        let waited = async {
            loop {
                let record = self.engine.record(id)?;
                if wanted(&record) {
                    return Ok(record);
                }
                tokio::time::sleep(POLL).await;
            }
        };
        tokio::time::timeout(SHELL_LIMIT, waited).await?
    }

    /// Waits until a file has this text in it.
    pub(super) async fn until_file(&self, path: &Path, text: &str) -> Outcome {
        let waited = async {
            while !std::fs::read_to_string(path).unwrap_or_default().contains(text) {
                tokio::time::sleep(POLL).await;
            }
        };
        Ok(tokio::time::timeout(SHELL_LIMIT, waited).await?)
    }

    /// A container is refused, in words that have these in them, and nothing of it is left.
    pub(super) async fn refused(&self, order: &Order, words: &str) -> Outcome {
        match self.engine.create(order).await {
            Ok((record, _)) => Err(format!("{} is accepted, expected {words:?}", record.id).into()),
            Err(error) if !error.to_string().contains(words) => {
                Err(format!("{words:?} is not in: {error}").into())
            }
            Err(_) if !self.engine.state().containers().is_empty() => {
                Err(format!("{words}: a note is left").into())
            }
            Err(_) => Ok(()),
        }
    }
}

/// An image's configuration.
pub(super) fn image(text: &Value) -> Fallible<ImageConfig> {
    Ok(ImageConfig::read("image", &text.to_string())?)
}

/// Objects are merged, everything else is replaced.
fn lay_over(base: &mut Value, over: Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                lay_over(base.entry(key).or_insert(Value::Null), value);
            }
        }
        (base, over) => *base = over,
    }
}
