//! The host's client as its user meets it: machines that stay, and containers of images in them.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use nakai_ctl::image::Digest;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

use crate::harness::context::SHELL_LIMIT;
use crate::harness::{Ctx, Fallible, Outcome, Scenario, scenario};

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        scenario!(a_machine_outlives_the_client_that_started_it).vm_only(),
        Scenario { in_vm: false, ..scenario!(all_front_ends_have_one_notebook) },
        Scenario { in_vm: false, ..scenario!(failures_have_dockers_exit_codes) },
        scenario!(an_attendant_outlives_the_server).ends_its_agent().host_only(),
    ]
}

/// `nakai-ctl`, which finds kernel and initrd in the environment, with notes and images of its own.
pub(super) struct Client {
    program: PathBuf,
    directory: tempfile::TempDir,
}

impl Client {
    pub(super) fn new() -> Fallible<Self> {
        // Cargo puts programs above its tests.
        let tests = std::env::current_exe()?;
        let beside = tests.ancestors().nth(2).unwrap_or_else(|| Path::new("")).join("nakai-ctl");
        let program = std::env::var_os("NAKAI_CTL").map_or(beside, PathBuf::from);
        if !program.exists() {
            let hint = "cargo build -p nakai-ctl makes it";
            return Err(format!("{} is not there: {hint}", program.display()).into());
        }
        // Host scenarios leave out mounts of that name when they look at theirs.
        Ok(Self { program, directory: tempfile::Builder::new().prefix("nakai-vm-client-").tempdir()? })
    }

    pub(super) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(args).stdin(Stdio::null()).kill_on_drop(true);
        command.env("XDG_RUNTIME_DIR", self.directory.path()).env_remove("NAKAI_ADDRESS");
        command.env("NAKAI_IMAGES", self.directory.path().join("images"));
        command
    }

    /// Where its notes and images are.
    pub(super) fn path(&self) -> &Path {
        self.directory.path()
    }

    pub(super) async fn try_run(&self, args: &[&str]) -> Fallible<Output> {
        Ok(self.command(args).output().await?)
    }

    /// What a command prints. It has to succeed.
    pub(super) async fn run(&self, args: &[&str]) -> Fallible<String> {
        let output = self.try_run(args).await?;
        if !output.status.success() {
            let words = String::from_utf8_lossy(&output.stderr);
            return Err(format!("nakai-ctl {}: {}: {words}", args.join(" "), output.status).into());
        }
        Ok(String::from_utf8(output.stdout)?.trim_end().to_owned())
    }

    /// Runs a command until it prints what is wanted.
    pub(super) async fn until(&self, args: &[&str], wanted: &str) -> Outcome {
        let deadline = tokio::time::Instant::now() + SHELL_LIMIT;
        loop {
            let seen = self.run(args).await?;
            if seen.contains(wanted) {
                return Ok(());
            }
            if tokio::time::Instant::now() > deadline {
                return Err(format!("nakai-ctl {}: {wanted:?} is not in: {seen}", args.join(" ")).into());
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }

    /// All events until one, each as container, action and phase.
    pub(super) async fn events(&self, address: &str, last: &str) -> Fallible<Vec<String>> {
        let mut follower = self.command(&["--address", address, "events", "--all"]);
        let mut follower = follower.stdout(Stdio::piped()).spawn()?;
        let mut lines = BufReader::new(follower.stdout.take().ok_or("no output")?).lines();
        let mut seen = Vec::new();
        while seen.last().is_none_or(|seen| seen != last) {
            let line =
                tokio::time::timeout(SHELL_LIMIT, lines.next_line()).await??.ok_or("the events end")?;
            let event: Value = serde_json::from_str(&line)?;
            let words = ["container", "action", "phase"].map(|key| event[key].as_str().unwrap_or_default());
            seen.push(words.join(" ").trim_end().to_owned());
        }
        Ok(seen)
    }

    pub(super) fn write(&self, name: &str, text: &Value) -> Fallible<String> {
        let path = self.directory.path().join(name);
        std::fs::write(&path, text.to_string())?;
        Ok(path.display().to_string())
    }
}

/// Made by one front end, a container is seen, paused, stopped and removed by any client; each step is told.
async fn all_front_ends_have_one_notebook(ctx: Ctx) -> Outcome {
    let client = Client::new()?;
    let root = ctx.make_root(&format!("{}-image", ctx.prefix()))?;
    let (image, parent) = (root.display().to_string(), format!("/nakai-{}", ctx.prefix()));
    let address = ctx.address().to_string();
    let at = |args: &[&str]| {
        ["--address", &address].into_iter().chain(args.iter().copied()).map(str::to_owned).collect::<Vec<_>>()
    };
    let run =
        async |args: &[&str]| client.run(&at(args).iter().map(String::as_str).collect::<Vec<_>>()).await;
    let until = async |args: &[&str], wanted: &str| {
        client.until(&at(args).iter().map(String::as_str).collect::<Vec<_>>(), wanted).await
    };
    let [one, two, three] = ["one", "two", "three"].map(|name| format!("{}-{name}", ctx.prefix()));
    // More than a pipe holds: somebody has to take it.
    let script =
        "dd if=/dev/zero bs=64k count=32 2>/dev/null | tr '\\0' x; echo; echo all written; sleep 1000000";
    let flags = ["run", "-d", "--name", &one, "--cgroup-parent", &parent, "--restart", "always"];
    run(&[&flags[..], &["--rootfs", &image, "sh", "-c", script]].concat()).await?;
    until(&["logs", &one], "all written").await?;

    let pod = json!({"metadata": {"name": "pod", "uid": "pod"}, "linux": {"cgroup_parent": parent}});
    let pod = client.write("pod.json", &pod)?;
    let container = json!({
        "metadata": {"name": "box"}, "image": {"image": image}, "command": ["sleep", "1000000"],
        "linux": {"security_context": {"namespace_options": {"pid": "CONTAINER"}}},
    });
    let container = client.write("container.json", &container)?;
    assert_eq!(run(&["cri", "create", "--id", &two, &pod, &container]).await?, two);
    let docker =
        ["docker", "run", "--name", &three, "--cgroup-parent", &parent, "--image", &image, "sh", "-c"];
    let counts = "echo $HOSTNAME; echo >> /runs; echo run $(wc -l < /runs)";
    assert_eq!(run(&[&docker[..], &[counts]].concat()).await?, format!("{three}\nrun 1"));
    let taken =
        client.try_run(&at(&flags).iter().map(String::as_str).chain([&*image]).collect::<Vec<_>>()).await?;
    let words = String::from_utf8_lossy(&taken.stderr);
    assert!(words.contains(&format!("container {one} is there already: running")), "{words}");

    let states = async || {
        let listed = run(&["ps"]).await?;
        let words = |id: &String| {
            let line = listed.lines().find(|line| line.starts_with(&format!("{id} ")));
            line.and_then(|line| line.split_whitespace().nth(1)).unwrap_or("none").to_owned()
        };
        Fallible::Ok([&one, &two, &three].map(words).join(" "))
    };
    assert_eq!(states().await?, "running created stopped");
    run(&["pause", &one]).await?;
    assert_eq!(states().await?, "paused created stopped");
    let again = client.try_run(&at(&["pause", &one]).iter().map(String::as_str).collect::<Vec<_>>()).await?;
    assert!(String::from_utf8_lossy(&again.stderr).contains("is paused"));
    run(&["resume", &one]).await?;
    assert!(!run(&["exec", &one, "hostname"]).await?.is_empty());
    // What has ended runs again, and finds what it has left; nobody counts that as a restart.
    run(&["start", &three]).await?;
    until(&["logs", &three], "run 2").await?;
    until(&["inspect", &three], r#""status": "stopped""#).await?;
    let inspected = run(&["inspect", &three]).await?;
    assert!(inspected.contains(r#""restarts": 0"#) && inspected.contains(r#""code": 0"#), "{inspected}");
    run(&["start", &two]).await?;
    let twice = client.try_run(&at(&["start", &two]).iter().map(String::as_str).collect::<Vec<_>>()).await?;
    assert!(String::from_utf8_lossy(&twice.stderr).contains("is running"));
    assert_eq!(states().await?, "running running stopped");
    assert!(run(&["stats", &two]).await?.contains("processes"));
    run(&["kill", &two, "KILL"]).await?;
    // Who has stopped it does not want it started again, whatever its policy says.
    run(&["stop", "-t", "0", &one]).await?;
    until(&["inspect", &one], r#""status": "stopped""#).await?;
    until(&["inspect", &two], r#""code": 137"#).await?;
    for id in [&one, &two, &three] {
        run(&["rm", id]).await?;
    }
    assert_eq!(run(&["ps"]).await?.lines().count(), 1);

    let seen = client.events(&address, &format!("{three} remove done")).await?;
    for (id, steps) in [(&one, "create start pause resume exec remove"), (&two, "create start remove")] {
        for step in steps.split(' ') {
            assert!(seen.contains(&format!("{id} {step} done")), "{step} of {id}: {seen:#?}");
        }
        assert!(seen.contains(&format!("{id} kill")) && seen.contains(&format!("{id} die")), "{seen:#?}");
    }
    assert!(seen.contains(&format!("{three} image done")), "{seen:#?}");
    std::fs::remove_dir_all(root.parent().unwrap_or(&root))?;
    Ok(())
}

/// 127 for a program that is not there, 126 for one that can't be run, 125 for what is the client's own.
async fn failures_have_dockers_exit_codes(ctx: Ctx) -> Outcome {
    let client = Client::new()?;
    let root = ctx.make_root(&format!("{}-image", ctx.prefix()))?;
    let (image, parent) = (root.display().to_string(), format!("/nakai-{}", ctx.prefix()));
    let address = ctx.address().to_string();
    let [one, two] = ["one", "two"].map(|name| format!("{}-{name}", ctx.prefix()));
    let at = ["--address", &*address];
    let run = [&at[..], &["run", "--cgroup-parent", &parent]].concat();
    let made = client.directory.path().join("made/volume");
    let volume = format!("{}:/volume", made.display());
    for name in [&one, &two] {
        client.run(&[&run[..], &["-d", "--name", name, &image, "sleep", "1000000"]].concat()).await?;
    }
    let exec = [&at[..], &["exec", &one]].concat();
    let rm = [&at[..], &["rm", "-f"]].concat();
    for (start, words, code, told) in [
        (
            &run,
            &[&*image, "no-such-program"] as &[_],
            127,
            "the file no-such-program was not found: executable file not found in $PATH",
        ),
        (&run, &[&*image, "/no/such"], 127, "\"/no/such\""),
        (&run, &[&*image, "/etc/passwd"], 126, "Permission denied"),
        (&run, &[&*image, "/etc"], 126, "Is a directory"),
        (&run, &[&*image, "sh", "-c", "exit 42"], 42, ""),
        (&run, &["/no/image", "true"], 125, "/no/image"),
        (&run, &["--detech", &image, "true"], 125, "--detech is no option of run"),
        // The host's directory is made, as Docker and the kubelet's containerd do.
        (&run, &["-v", &volume, &image, "sh", "-c", "echo text > /volume/file"], 0, ""),
        (&exec, &["no-such-program"], 127, "not found in $PATH"),
        (&exec, &["/etc/passwd"], 126, "Permission denied"),
        (&exec, &["sh", "-c", "exit 42"], 42, ""),
        // One that fails keeps no other from its turn.
        (&rm, &["no-such-container", &one, &two], 125, "no-such-container"),
    ] {
        let output = client.try_run(&[&start[..], words].concat()).await?;
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{words:?}: {said}");
        assert!(said.contains(told) && said.is_empty() == told.is_empty(), "{words:?}: {said}");
    }
    assert_eq!(std::fs::read_to_string(made.join("file"))?, "text\n");
    assert_eq!(client.run(&[&at[..], &["ps", "-aq"]].concat()).await?, "");
    std::fs::remove_dir_all(root.parent().unwrap_or(&root))?;
    Ok(())
}

/// What a detached container prints, and how it ends, is known also when the agent's server has died meanwhile.
async fn an_attendant_outlives_the_server(ctx: Ctx) -> Outcome {
    let client = Client::new()?;
    let root = ctx.make_root(&format!("{}-image", ctx.prefix()))?;
    let (image, address) = (root.display().to_string(), ctx.address().to_string());
    let (at, parent) = (["--address", &*address], format!("--cgroup-parent=/nakai-{}", ctx.prefix()));
    let script = "echo before; while [ ! -e /stop ]; do sleep 0.1; done; echo after; exit 7";
    let run = ["run", &parent, "-d", "--name", "one", "--rootfs", &image, "sh", "-c", script];
    client.run(&[&at[..], &run].concat()).await?;
    client.until(&[&at[..], &["logs", "one"]].concat(), "before").await?;
    // A sandbox has one host name.
    let named = |name| ["run", &*parent, "--hostname", name, "--rootfs", &image, "hostname"];
    assert_eq!(client.run(&[&at[..], &named("one")].concat()).await?, "one");
    let other = client.try_run(&[&at[..], &named("two")].concat()).await?;
    let words = String::from_utf8_lossy(&other.stderr);
    assert!(words.contains("hostname: the sandbox is there already"), "{words}");

    // Who looks on meanwhile sees all of it: in the log, in the foreground, and of a further process.
    let counts = "echo before; while [ ! -e /stop ]; do sleep 0.1; done; echo after; exit 5";
    let mut lookers = Vec::new();
    for words in [
        &["logs", "-f", "one"] as &[_],
        &["run", &parent, "--name", "two", "--rootfs", &image, "sh", "-c", script],
        &["exec", "one", "sh", "-c", counts],
    ] {
        let mut looker = client.command(&[&at[..], words].concat()).stdout(Stdio::piped()).spawn()?;
        let mut lines = BufReader::new(looker.stdout.take().ok_or("no output")?).lines();
        let first = tokio::time::timeout(SHELL_LIMIT, lines.next_line()).await??;
        assert_eq!(first.as_deref(), Some("before"), "{words:?}");
        lookers.push((looker, lines));
    }

    ctx.guest_sh("kill -9 $SERVER").await?;
    let ctx = ctx.reconnected().await?;
    // The container's end may come before the process's, and kill it.
    client.try_run(&[&at[..], &["exec", "one", "touch", "/stop"]].concat()).await?;
    client.until(&[&at[..], &["inspect", "one"]].concat(), r#""code": 7"#).await?;
    let mut seen = Vec::new();
    for (mut looker, mut lines) in lookers {
        let mut text = Vec::new();
        while let Some(line) = tokio::time::timeout(SHELL_LIMIT, lines.next_line()).await?? {
            text.push(line);
        }
        seen.push((looker.wait().await?.code(), text.join(" ")));
    }
    let [logs, attached, exec] = &seen[..] else { panic!("{seen:?}") };
    let after = "after".to_owned();
    assert_eq!((logs, attached), (&(Some(0), after.clone()), &(Some(7), after.clone())));
    // The container's end has killed it before its last word or before its end, or it was faster.
    assert!(
        [(Some(5), after.clone()), (Some(137), after), (Some(137), String::new())].contains(exec),
        "{exec:?}"
    );
    assert_eq!(client.run(&[&at[..], &["logs", "one"]].concat()).await?, "before\nafter");
    client.run(&[&at[..], &["rm", "one"]].concat()).await?;
    ctx.client().destroy_sandbox().await?;
    std::fs::remove_dir_all(root.parent().unwrap_or(&root))?;
    Ok(())
}

/// A layout with two layers, `root` and one with another user file, and a configuration.
pub(super) fn write_layout(root: &Path, layout: &Path) -> Outcome {
    std::fs::create_dir_all(layout.join("blobs/sha256"))?;
    let blob = |bytes: &[u8]| {
        let digest = Digest::of(bytes);
        std::fs::write(layout.join("blobs/sha256").join(digest.hex()), bytes)?;
        Fallible::Ok(json!({ "digest": digest.to_string(), "size": bytes.len(), "mediaType": "" }))
    };
    let top = layout.with_extension("top");
    std::fs::create_dir_all(top.join("etc"))?;
    std::fs::write(top.join("etc/passwd"), "root:x:0:0::/:/bin/sh\nweb:x:1234:1234::/:/bin/sh\n")?;
    let (low, top) = (tar(root)?, tar(&top)?);
    let unpacked = [&low, &top].map(|tar| Digest::of(tar).to_string());
    let config = json!({
        "os": "linux", "architecture": "amd64",
        "config": {
            "Env": ["COLOR=blue"], "Cmd": ["sleep", "1000000"], "WorkingDir": "/tmp", "User": "web",
            "Healthcheck": { "Test": ["CMD-SHELL", "test -e /tmp/well"], "Interval": 100_000_000, "Retries": 1 },
        },
        "rootfs": { "type": "layers", "diff_ids": unpacked },
    });
    let manifest = json!({
        "schemaVersion": 2,
        "config": blob(config.to_string().as_bytes())?,
        "layers": [blob(&low)?, blob(&top)?],
    });
    let index = json!({ "schemaVersion": 2, "manifests": [blob(manifest.to_string().as_bytes())?] });
    std::fs::write(layout.join("index.json"), index.to_string())?;
    std::fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    Ok(())
}

pub(super) fn tar(directory: &Path) -> Fallible<Vec<u8>> {
    let tar = std::process::Command::new("tar").arg("-C").arg(directory).args(["-c", "."]).output()?;
    // Other scenarios make and remove links to the same programs meanwhile: "file changed as we read it" is 1.
    let words = String::from_utf8_lossy(&tar.stderr);
    assert!(tar.status.code().is_some_and(|code| code <= 1), "{}: {words}", tar.status);
    Ok(tar.stdout)
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
    let console = client.directory.path().join("console");
    let console = console.to_str().unwrap_or_default();
    let one = ["vm", "start", "--name", "one", "--console", console, "--append", "agent.log=debug"];
    let two = ["vm", "start", "--name", "two"];
    let (one, two) = tokio::join!(client.run(&one), client.run(&two));
    let (address, _) = (one?, two?);

    client.run(&["--address", &address, "run", "-d", "--id", "web", "--image", image]).await?;
    let exec = |script| ["--sandbox", "one", "exec", "-u", "0", "web", "sh", "-c", script];
    assert_eq!(client.run(&exec("echo new > /file; cat /file; echo $COLOR; pwd")).await?, "new\nblue\n/tmp");
    let listed = client.run(&["--sandbox", "one", "ps"]).await?;
    assert!(listed.contains("web ") && listed.contains(" running "), "{listed}");
    // The image says who it is, and how it is.
    assert_eq!(client.run(&["--sandbox", "one", "exec", "web", "id", "-u"]).await?, "1234");
    client.until(&["--sandbox", "one", "ps"], " unhealthy ").await?;
    client.run(&exec("touch /tmp/well")).await?;
    client.until(&["--sandbox", "one", "ps"], " healthy ").await?;

    // A client that is killed leaves its container to the others.
    let orphan = ["--sandbox", "one", "run", "--id", "orphan", "--image", image, "sh", "-c"];
    let mut killed = client.command(&[&orphan[..], &["echo runs; exec sleep 1000000"]].concat());
    let mut killed = killed.stdout(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(killed.stdout.take().ok_or("no output")?).lines();
    assert_eq!(tokio::time::timeout(SHELL_LIMIT, lines.next_line()).await??.as_deref(), Some("runs"));
    killed.kill().await?;
    client.until(&["--sandbox", "one", "exec", "orphan", "cat", "/proc/1/comm"], "sleep").await?;
    client.run(&["--sandbox", "one", "rm", "orphan"]).await?;

    // On a disk what is written past its end fails, and the share has nothing of it.
    let full = "grep -c '^/dev/vd. / ext4' /proc/mounts; echo $COLOR; cat /file 2>/dev/null || echo apart; \
                dd if=/dev/zero of=/fill bs=1M count=64 2>&1 | grep -o 'No space left on device'";
    let run = ["--sandbox", "one", "run", "--image", image];
    let args = [&run[..], &["--root-disk=24M", "--user", "0", "sh", "-c", full]].concat();
    assert_eq!(client.run(&args).await?, "1\nblue\napart\nNo space left on device");
    // The ports are free for the next, and the disks of layers for more than one.
    assert_eq!(client.run(&[&run[..], &["--root-disk", "id", "-u"]].concat()).await?, "1234");
    let layers =
        "grep -c ' / overlay .*multi-layer' /proc/mounts; id -un; cat /file 2>/dev/null || echo apart";
    let args = [&run[..], &["--root-layers", "sh", "-c", layers]].concat();
    let (first, second) = tokio::join!(client.run(&args), client.run(&args));
    assert_eq!([first?, second?], ["1\nweb\napart"; 2]);
    let limit = ["--root-layers", "--storage-opt", "size=8M", "--user", "0", "sh", "-c", full];
    let limited = client.run(&[&run[..], &limit].concat()).await?;
    assert!(limited.ends_with("blue\napart\nNo space left on device"), "{limited}");
    // What a container has is not pruned.
    assert_eq!(client.run(&["images", "prune"]).await?, "");
    assert_eq!(client.run(&["images", "ls"]).await?.matches(" yes").count(), 2);
    let zun = client.write("request.json", &json!({"name": "zun", "image": image, "run": true}))?;
    assert_eq!(client.run(&["--sandbox", "one", "zun", "create", &zun]).await?, "zun");
    client.run(&["--sandbox", "one", "rm", "zun"]).await?;

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
    // The guest was told, and has ended by itself.
    let said = std::fs::read_to_string(console)?;
    assert!(said.contains("DestroySandbox"), "{said}");
    assert_eq!(client.run(&["images", "prune"]).await?.lines().count(), 2);
    assert_eq!(client.run(&["images", "ls"]).await?.lines().count(), 1);
    assert_eq!(client.run(&["vm", "ls"]).await?.lines().count(), 1);
    assert!(!client.try_run(&["--address", &address, "check"]).await?.status.success());
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    let images = client.directory.path().display().to_string();
    assert!(!mounts.contains(&images), "{mounts}");
    Ok(())
}
