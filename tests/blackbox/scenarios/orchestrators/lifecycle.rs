//! Arguments, output, ends, restarts, health.

use std::time::Duration;

use nakai_ctl::cri::log;
use nakai_ctl::cri::supervise::{Console, supervise};
use nakai_ctl::state::{ContainerState, Health};
use serde_json::json;

use super::bench::{Bench, image};
use super::{Group, Row, Section, docker, group};
use crate::harness::{Ctx, Fallible, Outcome, Scenario, scenario};

pub(super) fn groups() -> Vec<Group> {
    let here = |section, scenario: Scenario, rows: &[Row]| {
        group(section, Scenario { in_vm: false, ..scenario }, &[], rows)
    };
    let (cri, docker) = (Section::Kubernetes, Section::Docker);
    vec![
        here(
            cri,
            scenario!(cri_command_and_args),
            &[(
                "`command`, `args`",
                "they stand for the image's entry point and `Cmd`, in all four combinations",
            )],
        ),
        here(
            cri,
            scenario!(cri_users_by_name),
            &[
                (
                    "`run_as_username`, the image's user",
                    "the user and its groups by the image's own passwd and group",
                ),
                (
                    "`supplemental_groups_policy`",
                    "Merge: the groups that the image has the user in count, too; Strict: they don't",
                ),
            ],
        ),
        here(
            cri,
            scenario!(cri_logs),
            &[
                (
                    "`log_path`",
                    "CRI's format: time, stream, `P` for a part of a line that is longer than 16 KiB, `F`",
                ),
                ("`log_directory` alone", "`<container>/<attempt>.log` below it, as the kubelet has it"),
                (
                    "`log_path` that is renamed (ReopenContainerLog)",
                    "what is printed afterwards is in a new file at the path",
                ),
                ("`stdin`, `stdin_once`", "input reaches the process, and its end after the first attach"),
                ("`tty`", "standard input and output are a terminal"),
            ],
        ),
        here(
            cri,
            scenario!(cri_ends),
            &[
                (
                    "`stop_signal` and the grace period",
                    "the signal reaches the process; SIGKILL when the time is over",
                ),
                ("exec", "a further process has the container's user, environment and directory"),
            ],
        ),
        here(
            docker,
            scenario!(docker_restarts),
            &[
                ("`--restart on-failure:2`", "started again twice, with a pause between, and counted"),
                ("`--restart always`", "started again after a success too, until it is stopped"),
                ("`--rm`", "nothing is known of it after its end"),
            ],
        ),
        here(
            docker,
            scenario!(docker_health),
            &[
                (
                    "`--health-cmd`, `--health-interval`",
                    "the command runs in the container: starting, then healthy",
                ),
                ("`--health-retries`", "unhealthy after so many failures in a row"),
                ("`--health-timeout`", "a run that takes longer has failed, and is killed"),
            ],
        ),
    ]
}

async fn cri_command_and_args(ctx: Ctx) -> Outcome {
    let bench = Bench::new(&ctx)?;
    let config = image(&json!({"Entrypoint": ["echo", "entry"], "Cmd": ["cmd"]}))?;
    for (command, args, expected) in [
        (json!([]), json!([]), "entry cmd"),
        (json!([]), json!(["args"]), "entry args"),
        (json!(["echo", "command"]), json!([]), "command"),
        (json!(["echo", "command"]), json!(["args"]), "command args"),
    ] {
        let mut order = bench.order(json!({}), json!({"command": command, "args": args}))?;
        order.image = config.clone();
        assert_eq!(bench.run(&order).await?, (0, expected.to_owned()));
    }
    Ok(())
}

async fn cri_users_by_name(ctx: Ctx) -> Outcome {
    let bench = Bench::new(&ctx)?;
    std::fs::write(bench.image.join("etc/group"), "root:x:0:\napp:x:1000:\naudio:x:29:app\n")?;
    for (image_user, security, expected) in [
        ("", json!({"run_as_username": "app"}), "1000 1000 1000 29"),
        ("app", json!({}), "1000 1000 1000 29"),
        ("app:audio", json!({"run_as_non_root": true}), "1000 29 29"),
        ("app", json!({"run_as_user": 7}), "7 0 0"),
        (
            "app",
            json!({"supplemental_groups_policy": "Strict", "supplemental_groups": [8]}),
            "1000 1000 1000 8",
        ),
    ] {
        let container = json!({
            "command": ["sh", "-c", "echo $(id -u) $(id -g) $(id -G)"],
            "linux": {"security_context": security},
        });
        let mut order = bench.order(json!({}), container)?;
        order.image.user = image_user.to_owned();
        assert_eq!(bench.run(&order).await?, (0, expected.to_owned()), "{image_user:?}");
    }
    Ok(())
}

async fn cri_logs(ctx: Ctx) -> Outcome {
    let bench = Bench::new(&ctx)?;
    let logs = bench.volume("pods/default_web_1")?;
    let pod = json!({"log_directory": logs});
    let script = "echo out; echo err >&2; head -c 20000 /dev/zero | tr '\\0' z; echo; printf end";
    let mut order = bench.order(pod.clone(), json!({"command": ["sh", "-c", script]}))?;
    for attempt in ["0", "1"] {
        assert_eq!(bench.run(&order).await?.0, 0);
        let text = std::fs::read(logs.join("box").join(format!("{attempt}.log")))?;
        let lines: Vec<&[u8]> =
            text.strip_suffix(b"\n").unwrap_or(&text).split(|&byte| byte == b'\n').collect();
        assert!(
            lines.iter().all(|line| line.get(29) == Some(&b'Z') && line.get(10) == Some(&b'T')),
            "{lines:?}"
        );
        let mut seen: Vec<_> = lines
            .iter()
            .map(|line| log::parse(line).unwrap())
            .map(|entry| format!("{:?} {} {}", entry.output, entry.partial, entry.text.len()))
            .collect();
        // The order of the two streams is nobody's promise.
        seen.sort();
        let expected =
            ["Stderr false 3", "Stdout false 3", "Stdout false 3", "Stdout false 3616", "Stdout true 16384"];
        assert_eq!(seen, expected);
    }
    order.config.log_path = "mine/named.log".to_owned();
    assert_eq!(bench.run(&order).await?.0, 0);
    assert!(logs.join("mine/named.log").metadata()?.len() > 20_000);

    // Who looks after the logs renames one, and finds a new one.
    let script = "echo before; while [ ! -e /go ]; do sleep 0.1; done; sleep 1; echo after";
    let (record, _) =
        bench.engine.create(&bench.order(pod.clone(), json!({"command": ["sh", "-c", script]}))?).await?;
    let path = record.log.clone().ok_or("no log")?;
    let rename = async {
        bench.until_file(&path, " stdout F before").await?;
        std::fs::rename(&path, path.with_extension("log.20260131-120000"))?;
        bench.sh(&record.id, "touch /go").await
    };
    let (status, renamed): (_, Fallible<String>) = tokio::join!(bench.attend(&record.id), rename);
    assert_eq!((status?, renamed?), (0, String::new()));
    let text = std::fs::read_to_string(&path)?;
    assert!(text.ends_with(" stdout F after\n") && !text.contains("before"), "{text}");
    bench.engine.remove(&record.id).await?;

    let container = json!({"stdin": true, "stdin_once": true, "command": ["cat"]});
    let (record, _) = bench.engine.create(&bench.order(pod.clone(), container)?).await?;
    bench.engine.start(&record.id).await?;
    let stdin: Box<dyn tokio::io::AsyncRead + Send + Unpin> = Box::new(&b"given\n"[..]);
    let status = supervise(&bench.engine, &record.id, Console { stdin: Some(stdin), echo: false }).await?;
    assert_eq!(status, 0);
    bench.until_file(record.log.as_deref().ok_or("no log")?, " stdout F given").await?;
    bench.engine.remove(&record.id).await?;

    let container = json!({"tty": true, "command": ["sh", "-c", "[ -t 0 ] && [ -t 1 ] && echo terminal"]});
    let (status, output) = bench.run(&bench.order(pod, container)?).await?;
    assert_eq!((status, output.trim()), (0, "terminal"));
    Ok(())
}

async fn cri_ends(ctx: Ctx) -> Outcome {
    let bench = Bench::new(&ctx)?;
    let logs = bench.volume("logs")?;
    let cases = [
        ("trap 'echo bye; exit 3' INT; echo ready; while :; do sleep 0.05; done", 60, 3),
        ("trap '' INT; echo ready; while :; do sleep 0.05; done", 0, 137),
    ];
    for (script, grace, expected) in cases {
        let container = json!({
            "stop_signal": "SIGINT", "command": ["sh", "-c", script],
            "working_dir": "/tmp", "envs": [{"key": "A", "value": "own"}],
            "linux": {"security_context": {"run_as_user": 1000}},
        });
        let order = bench.order(json!({"log_directory": logs}), container)?;
        let (record, _) = bench.engine.create(&order).await?;
        let (id, log) = (record.id.as_str(), record.log.as_deref().ok_or("no log")?);
        let stop = async {
            bench.until_file(log, "ready").await?;
            assert_eq!(bench.sh(id, "echo $(id -u) $A $(pwd)").await?, "1000 own /tmp\n");
            Ok(bench.engine.stop(id, Duration::from_secs(grace).max(Duration::from_millis(300))).await?)
        };
        let (status, stopped) = tokio::join!(bench.attend(id), stop);
        let stopped: Outcome = stopped;
        stopped?;
        assert_eq!(status?, expected);
        let state = bench.engine.record(id)?.state;
        assert!(matches!(state, ContainerState::Stopped { code, .. } if code == expected), "{state}");
        bench.engine.remove(id).await?;
    }
    Ok(())
}

async fn docker_restarts(ctx: Ctx) -> Outcome {
    let bench = Bench::new(&ctx)?;
    let volume = bench.volume("volume")?;
    let order = |status: u8, flags: &str| {
        let script = format!("echo run >> /volume/runs; exit {status}");
        let flags = format!("{flags} -v {}:/volume", volume.display());
        docker::order(&bench, &flags, &["sh", "-c", &script])
    };
    let runs = || std::fs::read_to_string(volume.join("runs")).unwrap_or_default().lines().count();

    let (record, _) = bench.engine.create(&order(4, "--restart on-failure:2")?).await?;
    assert_eq!(bench.attend(&record.id).await?, 4);
    assert_eq!((runs(), bench.engine.record(&record.id)?.restarts), (3, 2));
    bench.engine.remove(&record.id).await?;

    let (record, _) = bench.engine.create(&order(0, "--restart always")?).await?;
    let stop = async {
        bench.until(&record.id, |record| record.restarts >= 3).await?;
        Ok(bench.engine.stop(&record.id, Duration::from_secs(60)).await?)
    };
    let (attended, stopped) = tokio::join!(bench.attend(&record.id), stop);
    let stopped: Outcome = stopped;
    stopped?;
    attended?;
    bench.engine.remove(&record.id).await?;
    assert!(runs() >= 6, "{}", runs());

    let (record, _) = bench.engine.create(&order(5, "--rm")?).await?;
    assert_eq!(bench.attend(&record.id).await?, 5);
    assert!(bench.engine.record(&record.id).is_err());
    Ok(())
}

const HEALTH: &str = "[ -e /tmp/hang ] && exec sleep 1000002; test -e /tmp/ok";

async fn docker_health(ctx: Ctx) -> Outcome {
    let bench = Bench::new(&ctx)?;
    // The time-out is long enough that a busy machine's shell is done, and short enough to be waited for.
    let flags =
        ["--health-interval=50ms", "--health-retries=2", "--health-timeout=2s", "--health-cmd", HEALTH];
    let order = docker::order_of(&bench, &flags, &["sleep", "1000000"])?;
    let (record, _) = bench.engine.create(&order).await?;
    assert_eq!(record.health, Some(Health::Starting));
    let id = record.id.as_str();
    let look = async {
        bench.until(id, |record| record.health == Some(Health::Unhealthy)).await?;
        bench.sh(id, "touch /tmp/ok").await?;
        bench.until(id, |record| record.health == Some(Health::Healthy)).await?;
        bench.sh(id, "touch /tmp/hang").await?;
        bench.until(id, |record| record.health == Some(Health::Unhealthy)).await?;
        bench.sh(id, "rm /tmp/hang").await?;
        bench.until(id, |record| record.health == Some(Health::Healthy)).await?;
        let hanging = bench.sh(id, "cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -c 1000002 || :").await?;
        // The process that counts has the number in its own arguments.
        assert!(hanging.trim().parse::<u32>()? <= 1, "{hanging}");
        Ok(bench.engine.stop(id, Duration::from_millis(300)).await?)
    };
    let (attended, looked) = tokio::join!(bench.attend(id), look);
    let looked: Outcome = looked;
    looked?;
    attended?;
    bench.engine.remove(id).await?;
    Ok(())
}
