//! Zun's create request, seen from inside.

use std::time::Duration;

use nakai_ctl::state::Health;
use nakai_ctl::zun::{Host, Request};
use serde_json::{Value, json};

use super::bench::Bench;
use super::{Check, Group, Row, Section, check, group};
use crate::harness::{Ctx, Fallible, Outcome, Scenario, scenario};

pub(super) fn groups() -> Vec<Group> {
    let here = |scenario: Scenario| Scenario { in_vm: false, ..scenario };
    vec![
        group(Section::Zun, here(scenario!(zun_a_container)), CONTAINER, MORE),
        group(Section::Zun, here(scenario!(zun_lives)), &[], LIVES),
        group(Section::Zun, scenario!(zun_a_disk).vm_only(), DISK, &[]),
        group(Section::Zun, here(scenario!(zun_volumes_and_refusals)), &[], REFUSED),
    ]
}

const CONTAINER: &[Check] = &[
    check(
        "`command` as a string",
        "split as a shell does",
        "until grep -qx sh /proc/1/comm; do sleep 0.01; done; tr '\\0' '|' < /proc/1/cmdline",
        &["sh|-c|sleep 1000000; echo 'a  b'|"],
    ),
    check("`environment`, `workdir`", "environment and directory", "echo $A; pwd", &["1\n/tmp"]),
    check(
        "`memory` (MiB)",
        "the limit",
        "cd /sys/fs/cgroup; cat memory.max 2>/dev/null || cat memory/memory.limit_in_bytes",
        &["67108864"],
    ),
    check(
        "`cpu` (fractional)",
        "a quota in a period of 100000",
        "cd /sys/fs/cgroup; cat cpu.max 2>/dev/null || cat cpu/cpu.cfs_quota_us",
        &["25000 100000", "25000"],
    ),
    check(
        "`cpu_policy` dedicated",
        "the cpuset",
        "cd /sys/fs/cgroup; cat cpuset.cpus 2>/dev/null || cat cpuset/cpuset.cpus",
        &["0"],
    ),
    check(
        "`privileged` false",
        "the usual capabilities",
        "grep CapEff /proc/self/status | cut -f 2",
        &["00000000a80425fb"],
    ),
    check("`mounts` of a volume", "the volume", "cat /data/file", &["text"]),
];

const MORE: &[Row] = &[
    ("`cpu_policy` shared, which is the default", "no cpuset of its own"),
    ("`cpuset.mems` with `cpu_policy` dedicated", "the memory nodes"),
    ("`interactive`", "a terminal, and an input that stays open"),
    ("`labels`, `exposed_ports`, `name`", "`nakai-ctl cri inspect` tells them"),
];

const LIVES: &[Row] = &[
    (
        "`healthcheck`",
        "`cmd` runs at the `interval`: unhealthy after `retries` failures in a row, healthy after a success",
    ),
    ("`restart_policy` on-failure with MaximumRetryCount", "started again so many times"),
    ("`auto_remove`", "nothing is known of it after its end"),
];

const DISK: &[Check] = &[check(
    "`disk` (GiB)",
    "the root filesystem has that size",
    "df -k / | tail -n 1 | awk '{ print $2 }'",
    &["1048576"],
)];

const REFUSED: &[Row] = &[
    (
        "`mounts` of a volume that does not come",
        "an error with its name after 60 s (or what `--volume-timeout` says); nothing stays attached",
    ),
    ("`mounts` of a volume that comes late", "it is waited for"),
    (
        "`privileged` and the other booleans",
        "booleans, `null` and words for them; anything else is refused with the list of words",
    ),
    ("`auto_remove` with `restart_policy`", "refused"),
    (
        "`hints`, `availability_zone`, `host`, `security_groups`, `registry`, `auto_heal`",
        "control plane only: refused by name",
    ),
    (
        "`nets`, `pci_requests` of what this host does not have, or for an agent without a machine",
        "refused by the field's name",
    ),
];

fn order(bench: &Bench, host: &Host, fields: Value) -> Fallible<nakai_ctl::cri::Order> {
    let mut request = json!({"image": bench.image, "command": "sleep 1000000"});
    for (key, value) in fields.as_object().into_iter().flatten() {
        request[key] = value.clone();
    }
    let mut order = Request::read("request", &request.to_string())?
        .order(&format!("{}-zun", bench.ctx.prefix()), host)?;
    order.pod.linux.cgroup_parent = format!("/nakai-{}", bench.ctx.prefix());
    Ok(order)
}

async fn zun_a_container(ctx: Ctx) -> Outcome {
    let bench = Bench::new(&ctx)?;
    let host = Host { volumes: Some(bench.volume("volumes")?), volume_seconds: 60, ..Host::default() };
    std::fs::write(bench.volume("volumes/data")?.join("file"), "text\n")?;
    let fields = json!({
        "command": "sh -c \"sleep 1000000; echo 'a  b'\"", "environment": {"A": "1"}, "workdir": "/tmp",
        "memory": "64", "cpu": 0.25, "cpu_policy": "dedicated", "cpuset": {"cpus": "0", "mems": "0"},
        "privileged": "False", "mounts": [{"source": "data", "destination": "/data", "type": "volume"}],
        "labels": {"l": "v"}, "exposed_ports": {"80/tcp": {}}, "hints": {}, "nets": null,
    });
    let mems =
        check("mems", "", "cd /sys/fs/cgroup; cat cpuset.mems 2>/dev/null || cat cpuset/cpuset.mems", &["0"]);
    let dedicated = order(&bench, &host, fields)?;
    bench.prove(&dedicated, CONTAINER).await?;
    bench.prove(&dedicated, &[mems]).await?;
    let shared = json!({"cpu_policy": "shared", "cpuset": {"cpus": "0", "mems": "0"}});
    let shared = order(&bench, &host, shared)?;
    assert_eq!(shared.config.linux.resources.cpuset_cpus, "");

    let fields =
        json!({"interactive": true, "command": "sh -c 'tty > /dev/null && read line && echo got $line'"});
    let record = bench.start(&order(&bench, &host, fields)?).await?;
    ctx.client().write_stdin(&record.id, &record.id, b"keys\n".to_vec()).await?;
    let (stdout, status) = tokio::join!(
        async {
            let mut text = Vec::new();
            loop {
                let more = ctx.client().read_stdout(&record.id, &record.id, 4096).await?;
                if more.is_empty() {
                    return Fallible::Ok(String::from_utf8_lossy(&text).into_owned());
                }
                text.extend(more);
            }
        },
        ctx.client().wait_process(&record.id, &record.id)
    );
    assert_eq!((stdout?.contains("got keys"), status?), (true, 0));
    bench.engine.remove(&record.id).await?;
    Ok(())
}

async fn zun_lives(ctx: Ctx) -> Outcome {
    let bench = Bench::new(&ctx)?;
    let host = Host::default();
    let fields =
        json!({"healthcheck": {"cmd": "test -e /tmp/ok", "interval": 1, "retries": "2", "timeout": 30}});
    let (record, _) = bench.engine.create(&order(&bench, &host, fields)?).await?;
    let id = record.id.as_str();
    let look = async {
        bench.until(id, |record| record.health == Some(Health::Unhealthy)).await?;
        bench.sh(id, "touch /tmp/ok").await?;
        bench.until(id, |record| record.health == Some(Health::Healthy)).await?;
        Ok(bench.engine.stop(id, Duration::from_millis(300)).await?)
    };
    let (attended, looked): (_, Outcome) = tokio::join!(bench.attend(id), look);
    looked?;
    attended?;
    bench.engine.remove(id).await?;

    let policy = json!({"Name": "on-failure", "MaximumRetryCount": "1"});
    let fields = json!({"command": "sh -c 'exit 5'", "restart_policy": policy});
    let (record, _) = bench.engine.create(&order(&bench, &host, fields)?).await?;
    assert_eq!(bench.attend(&record.id).await?, 5);
    assert_eq!(bench.engine.record(&record.id)?.restarts, 1);
    bench.engine.remove(&record.id).await?;

    let fields = json!({"command": "true", "auto_remove": "yes"});
    let (record, _) = bench.engine.create(&order(&bench, &host, fields)?).await?;
    assert_eq!(bench.attend(&record.id).await?, 0);
    assert!(bench.engine.record(&record.id).is_err());
    Ok(())
}

async fn zun_a_disk(ctx: Ctx) -> Outcome {
    let bench = Bench::new(&ctx)?;
    bench.prove(&order(&bench, &Host::default(), json!({"disk": 1}))?, DISK).await
}

async fn zun_volumes_and_refusals(ctx: Ctx) -> Outcome {
    let bench = Bench::new(&ctx)?;
    let volumes = bench.volume("volumes")?;
    let host = |volume_seconds| Host { volumes: Some(volumes.clone()), volume_seconds, ..Host::default() };
    let mount = json!({"mounts": [{"source": "late", "destination": "/data"}]});
    let missing = order(&bench, &host(0), mount.clone())?;
    bench.refused(&missing, "volume late: not at").await?;
    let late = order(&bench, &host(60), mount)?;
    let attach = async {
        tokio::task::yield_now().await;
        std::fs::create_dir(volumes.join("late"))
    };
    let (record, attached) = tokio::join!(bench.start(&late), attach);
    attached?;
    let record = record?;
    bench.sh(&record.id, "echo kept > /data/file").await?;
    bench.engine.remove(&record.id).await?;
    assert_eq!(std::fs::read_to_string(volumes.join("late/file"))?, "kept\n");

    for (fields, words) in [
        (json!({"privileged": "maybe"}), "acceptable values are"),
        (json!({"auto_remove": 1}), "acceptable values are"),
        (json!({"auto_remove": true, "restart_policy": {"Name": "always"}}), "auto_remove: not together"),
        (json!({"hints": {"a": "b"}}), "hints: control plane only"),
        (json!({"availability_zone": "nova"}), "availability_zone: control plane only"),
        (json!({"host": "compute-1"}), "host: control plane only"),
        (json!({"security_groups": ["a"]}), "security_groups: control plane only"),
        (json!({"registry": "r"}), "registry: control plane only"),
        (json!({"auto_heal": true}), "auto_heal: control plane only"),
        (json!({"nets": [{"network": "n"}]}), "nets[0].network: no network \"n\""),
        (json!({"nets": [{"network": "user", "v4-fixed-ip": "::1"}]}), "nets[0].v4-fixed-ip: \"::1\""),
        (json!({"pci_requests": [{}]}), "pci_requests[0]: 1 wanted, and 0 of the 0"),
    ] {
        let error = order(&bench, &host(0), fields).err().ok_or_else(|| format!("accepted: {words}"))?;
        assert!(error.to_string().contains(words), "{error}");
    }
    let nets = order(&bench, &host(0), json!({"nets": [{"network": "user"}]}))?;
    bench.refused(&nets, "nets[0]: it needs a machine").await
}
