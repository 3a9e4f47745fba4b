//! What is seen of `nakai-ctl` itself: forms of images, flags about names and terminals, `zun create` from its request to
//! its events.

use std::path::Path;
use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;

use super::super::client::{Client, tar, write_layout};
use super::{Group, Row, Section, group};
use crate::harness::{Ctx, Fallible, Outcome, scenario};

pub(super) fn groups() -> Vec<Group> {
    let (cri, docker, zun) = (Section::Kubernetes, Section::Docker, Section::Zun);
    vec![
        group(cri, scenario!(cri_images).host_only(), &[], IMAGES),
        group(docker, scenario!(docker_command_line).own_agent().host_only(), &[], DOCKER),
        group(zun, scenario!(zun_command_line).own_agent().host_only(), &[], ZUN),
    ]
}

const IMAGES: &[Row] = &[(
    "`image.image`",
    "a directory, a tar of a root filesystem, an OCI image layout (a directory or a tar) and a docker-archive: the files, \
     and what the image says of user, environment and directory",
)];

async fn cri_images(ctx: Ctx) -> Outcome {
    let client = Client::new()?;
    let place = |name: &str| client.path().join(name);
    let root = ctx.make_root(&format!("{}-image", ctx.prefix()))?;
    std::fs::write(root.join("mark"), "lower\n")?;
    let layout = place("layout");
    write_layout(&root, &layout)?;
    std::fs::write(place("root.tar"), tar(&root)?)?;
    std::fs::write(place("layout.tar"), tar(&layout)?)?;
    write_archive(&layout, &place("saved"))?;
    std::fs::write(place("saved.tar"), tar(&place("saved"))?)?;
    let (directory, plain, of_config) = (root.clone(), "lower/0//", "lower/1234/blue/tmp");
    for (image, expected) in [
        (directory, plain),
        (place("root.tar"), plain),
        (layout, of_config),
        (place("layout.tar"), of_config),
        (place("saved.tar"), of_config),
    ] {
        let pod = json!({
            "metadata": {"name": "pod", "uid": "pod"},
            "linux": {"cgroup_parent": format!("/nakai-{}", ctx.prefix())},
        });
        let container = json!({
            "metadata": {"name": "box"}, "image": {"image": image},
            "command": ["sh", "-c", "echo $(cat /mark)/$(id -u)/$COLOR$(pwd)"],
            "linux": {"security_context": {"namespace_options": {"pid": "CONTAINER"}}},
        });
        let (pod, container) = (client.write("pod.json", &pod)?, client.write("container.json", &container)?);
        let id = format!("{}-box", ctx.prefix());
        let run = ["--address", &ctx.address().to_string(), "cri", "run", "--id", &id, &pod, &container];
        assert_eq!(client.run(&run).await?, expected, "{}", image.display());
    }
    client.run(&["images", "prune"]).await?;
    std::fs::remove_dir_all(root.parent().unwrap_or(&root))?;
    Ok(())
}

/// What `docker save` writes, of a layout's layers and configuration.
fn write_archive(layout: &Path, archive: &Path) -> Outcome {
    let read =
        |name: &str| -> Fallible<Value> { Ok(serde_json::from_slice(&std::fs::read(layout.join(name))?)?) };
    let blob =
        |digest: &Value| -> Fallible<String> { Ok(digest.as_str().ok_or("no digest")?.replace(':', "/")) };
    let manifest = read(&format!("blobs/{}", blob(&read("index.json")?["manifests"][0]["digest"])?))?;
    std::fs::create_dir(archive)?;
    let copy = |digest: &Value, name: &str| -> Fallible<u64> {
        Ok(std::fs::copy(layout.join("blobs").join(blob(digest)?), archive.join(name))?)
    };
    copy(&manifest["config"]["digest"], "config.json")?;
    for (number, name) in [(0, "low.tar"), (1, "top.tar")] {
        copy(&manifest["layers"][number]["digest"], name)?;
    }
    let list = json!([{"Config": "config.json", "RepoTags": ["box:1"], "Layers": ["low.tar", "top.tar"]}]);
    std::fs::write(archive.join("manifest.json"), list.to_string())?;
    Ok(())
}

const DOCKER: &[Row] = &[
    ("`-d`", "its name is printed, and it runs on; `logs` has its output"),
    (
        "`--log-opt max-size=`, `max-file=`",
        "the log has so many files of that size; `logs` and `logs -f` read across them",
    ),
    ("`--name`", "by it `ps`, `exec` and the others find it"),
    ("`--hostname`", "the host name; refused when the sandbox has another"),
    ("`--label`", "`nakai-ctl inspect` tells it"),
    (
        "`--ipc` private, shareable, container:ID, `--network` container:ID",
        "the sandbox's IPC namespace and network, for all its containers; another container has to be there",
    ),
    ("`--mount type=tmpfs`", "a filesystem in memory of `tmpfs-size`"),
    ("`-i`", "input reaches the program, and its end"),
    ("`-t`", "the program has a terminal"),
    ("`-v` of what is not there", "the directory is made on the host"),
    ("`--mount type=bind` of what is not there", "refused, and nothing is made"),
    ("`--memory` below 6 MiB", "refused, and nothing is made"),
    ("`--user` that the image does not know", "refused by the flag and the name"),
    ("`--publish` for an agent without a machine, networks that are not there", "refused"),
];

async fn docker_command_line(ctx: Ctx) -> Outcome {
    let client = Client::new()?;
    let root = ctx.make_root(&format!("{}-image", ctx.prefix()))?;
    let (image, address) = (root.display().to_string(), ctx.address().to_string());
    let parent = format!("--cgroup-parent=/nakai-{}", ctx.prefix());
    let at = |words: &[&str]| {
        [&["--address", &*address], words].concat().iter().map(|w| (*w).to_owned()).collect::<Vec<_>>()
    };
    let run =
        async |words: &[&str]| client.run(&at(words).iter().map(String::as_str).collect::<Vec<_>>()).await;
    let flags = [
        "run",
        &parent,
        "-d",
        "--name",
        "box",
        "--hostname",
        "box-host",
        "--label",
        "color=blue",
        "--ipc",
        "private",
        "--mount",
        "type=tmpfs,target=/memory,tmpfs-size=1m",
    ];
    let program = ["sh", "-c", "echo one; echo two; echo three; exec sleep 1000000"];
    assert_eq!(run(&[&flags[..], &[&image], &program].concat()).await?, "box");
    let exec = async |script| run(&["exec", "box", "sh", "-c", script]).await;
    assert_eq!(exec("hostname; grep -c ' /memory tmpfs .*size=1024k' /proc/mounts").await?, "box-host\n1");
    let inspected: Value = serde_json::from_str(&run(&["inspect", "box"]).await?)?;
    assert_eq!(inspected["order"]["config"]["labels"]["color"], "blue", "{inspected:#}");
    let ipc = "readlink /proc/self/ns/ipc";
    let other = run(&["run", &parent, "--ipc", "shareable", &image, "sh", "-c", ipc]).await?;
    assert_eq!(exec(ipc).await?, other);
    let both = "readlink /proc/self/ns/ipc; readlink /proc/self/ns/net";
    let joined =
        ["run", &parent, "--ipc", "container:box", "--network", "container:box", &image, "sh", "-c", both];
    assert_eq!(run(&joined).await?, exec(both).await?);
    client.until(&at(&["logs", "box"]).iter().map(String::as_str).collect::<Vec<_>>(), "three").await?;
    assert_eq!(run(&["logs", "--tail", "2", "box"]).await?, "two\nthree");
    assert_eq!(run(&["logs", "-n", "0", "--since", "1h", "box"]).await?, "");
    assert_eq!(run(&["logs", "--since", "2999-01-01T00:00:00Z", "box"]).await?, "");

    let terminal =
        run(&["run", &parent, "-t", &image, "sh", "-c", "[ -t 0 ] && [ -t 1 ] && echo terminal"]).await?;
    assert_eq!(terminal, "terminal");
    let mut given = client.command(
        &at(&["run", &parent, "-i", &image, "wc", "-c"]).iter().map(String::as_str).collect::<Vec<_>>(),
    );
    let mut given = given.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    given.stdin.take().ok_or("no input")?.write_all(&[b'x'; 100_000]).await?;
    assert_eq!(given.wait_with_output().await?.stdout, b"100000\n");

    // Two thousand lines in files of 20 KiB, of which there are three; who follows has all of them.
    let count = "while [ ! -e /go ]; do sleep 0.1; done; for i in $(seq 2000); do echo line $i; done";
    let limits = ["--log-opt", "max-size=20k", "--log-opt", "max-file=3"];
    run(&[&["run", &parent, "-d", "--name", "loud"], &limits[..], &[&image, "sh", "-c", count]].concat())
        .await?;
    let follow = at(&["logs", "-f", "loud"]);
    let follow = client
        .command(&follow.iter().map(String::as_str).collect::<Vec<_>>())
        .stdout(Stdio::piped())
        .spawn()?;
    run(&["exec", "loud", "touch", "/go"]).await?;
    let followed = String::from_utf8(follow.wait_with_output().await?.stdout)?;
    let last: Vec<&str> = followed.lines().rev().take(300).collect();
    assert_eq!((last.first(), last.last()), (Some(&"line 2000"), Some(&"line 1701")));
    let log: Value = serde_json::from_str(&run(&["inspect", "loud"]).await?)?;
    let log = Path::new(log["log"].as_str().ok_or("no log")?).to_owned();
    let mut sizes = std::fs::read_dir(log.parent().ok_or("no directory")?)?
        .map(|entry| Ok(entry?.metadata()?.len()))
        .collect::<Fallible<Vec<_>>>()?;
    sizes.sort_unstable();
    assert!(sizes.len() == 3 && sizes.iter().all(|size| *size <= 20 << 10), "{sizes:?}");
    let kept = run(&["logs", "loud"]).await?;
    assert!(followed.ends_with(&format!("{kept}\n")) && kept.lines().count() > 600, "{}", kept.len());
    run(&["rm", "loud"]).await?;

    let missing = client.path().join("missing");
    let bind = format!("type=bind,source={},target=/x", missing.display());
    for (flags, words) in [
        (["--mount", &*bind], "--mount: source"),
        (["--memory", "1"], "--memory: 1 bytes"),
        (["--user", "nobody1"], "--user: the container's /etc/passwd has no user \"nobody1\""),
        (["--group-add", "none"], "--group-add: the container's /etc/group has no group \"none\""),
        (["--hostname", "other"], "hostname: the sandbox is there already"),
        (["--publish", "80:80"], "--publish"),
        (["--ipc", "container:none"], "--ipc: TARGET: no container none"),
        (["--ipc", "other"], "--ipc"),
        (["--network", "mine"], "--network"),
    ] {
        let all = at(&[&["run", &parent], &flags[..], &[&*image, "true"]].concat());
        let output = client.try_run(&all.iter().map(String::as_str).collect::<Vec<_>>()).await?;
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(125) && said.contains(words), "{words}: {said}");
    }
    assert!(!missing.exists());
    let volume = format!("{}:/x", missing.display());
    run(&["run", &parent, "-v", &volume, &image, "true"]).await?;
    assert!(missing.is_dir());
    assert_eq!(run(&["ps", "-q"]).await?, "box");
    run(&["rm", "-f", "box"]).await?;
    std::fs::remove_dir_all(root.parent().unwrap_or(&root))?;
    Ok(())
}

const ZUN: &[Row] = &[
    ("`run` false", "it is created, and not started"),
    ("`run` true", "it is started, too"),
    ("`hostname`", "the sandbox's; refused when the sandbox has another"),
    ("`runtime`", "the machine that `--sandbox` names: `nakai` and `kata` are it, another is refused"),
    ("`image_driver`", "the host's store: `local` and `docker` are it, another is refused"),
    (
        "`image_pull_policy`",
        "`always`, `never` and `ifnotpresent` are the same, as the host's store is looked up each time and nothing is \
         pulled; another word is refused",
    ),
    ("`restart_policy` always, unless-stopped, no", "each is what it says, in `nakai-ctl inspect` too"),
    ("`memory` below Docker's least of 6 MiB", "refused"),
    ("events", "each step with its begin and its end, or with the reason of its failure"),
    (
        "a step that fails",
        "what was done before is undone; it is listed as `error`, and `inspect` has the reason",
    ),
    ("two requests with one name", "the second is refused"),
];

async fn zun_command_line(ctx: Ctx) -> Outcome {
    let client = Client::new()?;
    let root = ctx.make_root(&format!("{}-image", ctx.prefix()))?;
    let address = ctx.address().to_string();
    let at = ["--address", &*address];
    let create = async |fields: Value| -> Fallible<String> {
        let mut request = json!({"image": root, "command": "sleep 1000000"});
        request.as_object_mut().ok_or("no object")?.extend(fields.as_object().cloned().unwrap_or_default());
        let path = client.write("request.json", &request)?;
        let output = client.try_run(&[&at[..], &["zun", "create", &path]].concat()).await?;
        let text = [output.stdout, output.stderr].concat();
        Ok(String::from_utf8_lossy(&text).trim_end().to_owned())
    };
    let inspect = async |id: &str| -> Fallible<Value> {
        Ok(serde_json::from_str(&client.run(&[&at[..], &["inspect", id]].concat()).await?)?)
    };
    for (name, pull, driver, runtime, restart, run) in [
        ("pull0", "always", "docker", "kata", "always", false),
        ("pull1", "never", "local", "nakai", "unless-stopped", true),
        ("pull2", "ifnotpresent", "", "", "no", false),
    ] {
        let fields = json!({
            "name": name, "hostname": "zun-host", "image_pull_policy": pull, "image_driver": driver, "runtime": runtime,
            "restart_policy": {"Name": restart}, "run": run,
        });
        assert_eq!(create(fields).await?, name);
        let record = inspect(name).await?;
        let state = if run { "running" } else { "created" };
        let seen = (record["state"]["status"].as_str(), record["order"]["extras"]["restart"].as_str());
        assert_eq!(seen, (Some(state), Some(restart)), "{record:#}");
    }
    assert_eq!(client.run(&[&at[..], &["exec", "pull1", "hostname"]].concat()).await?, "zun-host");
    for (fields, words) in [
        (json!({"runtime": "runc"}), "runtime: \"runc\" is none of"),
        (json!({"image_driver": "glance"}), "image_driver: \"glance\" is none of"),
        (json!({"image_pull_policy": "rarely"}), "image_pull_policy: \"rarely\" is none of"),
        (json!({"memory": 5}), "memory: 5242880 bytes are too few"),
        (json!({"name": "new", "hostname": "other"}), "hostname: the sandbox is there already"),
        (json!({"name": "pull0"}), "container pull0 is there already: created"),
    ] {
        let said = create(fields).await?;
        assert!(said.contains(words), "{words}: {said}");
    }
    let failed = json!({"name": "failing", "command": "/no/such", "run": true});
    let said = create(failed).await?;
    assert!(said.contains("/no/such"), "{said}");
    let record = inspect("failing").await?;
    assert_eq!(record["state"]["status"], "error", "{record:#}");
    assert!(
        record["state"]["reason"].as_str().is_some_and(|reason| reason.contains("/no/such")),
        "{record:#}"
    );
    for id in ["pull0", "pull1", "pull2", "failing"] {
        client.run(&[&at[..], &["rm", id]].concat()).await?;
    }
    let events = client.events(&address, "failing remove done").await?;
    for expected in [
        "pull1 image begin",
        "pull1 image done",
        "pull1 create begin",
        "pull1 create done",
        "pull1 start begin",
        "pull1 start done",
        "pull0 create done",
        "pull0 remove done",
        "failing create begin",
        "failing create failed",
    ] {
        assert!(events.iter().any(|event| event == expected), "{expected}: {events:#?}");
    }
    assert!(
        !events.iter().any(|event| event.starts_with("pull0 start") || event.starts_with("new ")),
        "{events:#?}"
    );
    std::fs::remove_dir_all(root.parent().unwrap_or(&root))?;
    Ok(())
}
