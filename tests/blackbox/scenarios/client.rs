//! The host's client as its user meets it: machines that stay, and containers of images in them.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use nakai_ctl::image::Digest;
use serde_json::json;
use tokio::process::Command;

use crate::harness::{Ctx, Fallible, Outcome, Scenario, scenario};

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![scenario!(a_machine_outlives_the_client_that_started_it).vm_only()]
}

/// `nakai-ctl`, which finds kernel and initrd in the environment, with notes and images of its own.
struct Client {
    program: PathBuf,
    directory: tempfile::TempDir,
}

impl Client {
    fn new() -> Fallible<Self> {
        // Cargo puts programs above its tests.
        let tests = std::env::current_exe()?;
        let beside = tests.ancestors().nth(2).unwrap_or_else(|| Path::new("")).join("nakai-ctl");
        let program = std::env::var_os("NAKAI_CTL").map_or(beside, PathBuf::from);
        if !program.exists() {
            let hint = "cargo build -p nakai-ctl makes it";
            return Err(format!("{} is not there: {hint}", program.display()).into());
        }
        Ok(Self { program, directory: tempfile::tempdir()? })
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(args).stdin(Stdio::null()).kill_on_drop(true);
        command.env("XDG_RUNTIME_DIR", self.directory.path()).env_remove("NAKAI_ADDRESS");
        command.env("NAKAI_IMAGES", self.directory.path().join("images"));
        command
    }

    async fn try_run(&self, args: &[&str]) -> Fallible<Output> {
        Ok(self.command(args).output().await?)
    }

    /// What a command prints. It has to succeed.
    async fn run(&self, args: &[&str]) -> Fallible<String> {
        let output = self.try_run(args).await?;
        if !output.status.success() {
            let words = String::from_utf8_lossy(&output.stderr);
            return Err(format!("nakai-ctl {}: {}: {words}", args.join(" "), output.status).into());
        }
        Ok(String::from_utf8(output.stdout)?.trim_end().to_owned())
    }
}

/// A layout with one layer, which is `root`, and a configuration.
fn write_layout(root: &Path, layout: &Path) -> Outcome {
    std::fs::create_dir_all(layout.join("blobs/sha256"))?;
    let blob = |bytes: &[u8]| {
        let digest = Digest::of(bytes);
        std::fs::write(layout.join("blobs/sha256").join(digest.hex()), bytes)?;
        Fallible::Ok(json!({ "digest": digest.to_string(), "size": bytes.len(), "mediaType": "" }))
    };
    let tar = std::process::Command::new("tar").arg("-C").arg(root).args(["-c", "."]).output()?;
    assert!(tar.status.success(), "{}", String::from_utf8_lossy(&tar.stderr));
    let config = json!({
        "os": "linux", "architecture": "amd64",
        "config": { "Env": ["COLOR=blue"], "Cmd": ["sleep", "1000000"], "WorkingDir": "/tmp" },
        "rootfs": { "type": "layers", "diff_ids": [Digest::of(&tar.stdout).to_string()] },
    });
    let manifest = json!({
        "schemaVersion": 2,
        "config": blob(config.to_string().as_bytes())?,
        "layers": [blob(&tar.stdout)?],
    });
    let index = json!({ "schemaVersion": 2, "manifests": [blob(manifest.to_string().as_bytes())?] });
    std::fs::write(layout.join("index.json"), index.to_string())?;
    std::fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    Ok(())
}

/// Two machines at once; a container of an image in the one, by a share and on a disk; the other is killed.
async fn a_machine_outlives_the_client_that_started_it(ctx: Ctx) -> Outcome {
    let client = Client::new()?;
    let layout = client.directory.path().join("layout");
    let root = ctx.make_root(&format!("{}-image", ctx.prefix()))?;
    write_layout(&root, &layout)?;
    // The sandbox that scenarios share is to be as it was.
    std::fs::remove_dir_all(root.parent().unwrap_or(&root))?;
    let image = layout.to_str().unwrap_or_default();
    let (one, two) = (["vm", "start", "--name", "one"], ["vm", "start", "--name", "two"]);
    let (one, two) = tokio::join!(client.run(&one), client.run(&two));
    let (address, _) = (one?, two?);

    client.run(&["--address", &address, "run", "-d", "--id", "web", "--image", image]).await?;
    let exec = |script| ["--sandbox", "one", "exec", "web", "sh", "-c", script];
    assert_eq!(client.run(&exec("echo new > /file; cat /file; echo $COLOR; pwd")).await?, "new\n\n/");
    let listed = client.run(&["--sandbox", "one", "ps"]).await?;
    assert!(listed.contains("web ") && listed.contains(" running "), "{listed}");

    // On a disk what is written past its end fails, and the share has nothing of it.
    let full = "grep -c '^/dev/vd. / ext4' /proc/mounts; echo $COLOR; cat /file 2>/dev/null || echo apart; \
                dd if=/dev/zero of=/fill bs=1M count=64 2>&1 | grep -o 'No space left on device'";
    let args = ["--sandbox", "one", "run", "--image", image, "--root-disk=24M", "sh", "-c", full];
    assert_eq!(client.run(&args).await?, "1\nblue\napart\nNo space left on device");
    // The port is free for the next.
    assert_eq!(client.run(&[&args[..6], &["echo", "again"]].concat()).await?, "again");

    let machines = client.run(&["vm", "ls"]).await?;
    let line = machines.lines().find(|line| line.starts_with("two ")).ok_or("two is not listed")?;
    let keeper: i32 = line.split_whitespace().nth(2).ok_or("no pid")?.parse()?;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(keeper), nix::sys::signal::Signal::SIGKILL)?;
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(60);
    while client.run(&["vm", "ls"]).await?.contains("two ") {
        assert!(tokio::time::Instant::now() < deadline, "a machine without a keeper is still listed");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let gone = client.try_run(&["--sandbox", "two", "ps"]).await?;
    let words = String::from_utf8_lossy(&gone.stderr);
    assert_eq!(words, "nakai-ctl: no VM two (there are: one)\n");

    client.run(&["vm", "stop", "one"]).await?;
    assert_eq!(client.run(&["vm", "ls"]).await?.lines().count(), 1);
    assert!(!client.try_run(&["--address", &address, "check"]).await?.status.success());
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    let images = client.directory.path().display().to_string();
    assert!(!mounts.contains(&images), "{mounts}");
    Ok(())
}
