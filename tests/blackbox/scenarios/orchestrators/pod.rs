//! What a pod's containers share.

use nakai_ctl::cri::config::NamespaceMode;
use serde_json::json;

use super::bench::Bench;
use super::{Check, Group, Row, Section, check, group};
use crate::harness::{Ctx, Outcome, scenario};

pub(super) fn groups() -> Vec<Group> {
    // On cgroup v1 libcontainer can't mount the cgroups of a container in another's PID namespace.
    vec![group(Section::Pod, scenario!(cri_a_pod).own_agent().vm_only(), POD, POD_ROWS)]
}

const POD: &[Check] = &[
    check(
        "`hostname`",
        "the host name, `/etc/hostname` and `HOSTNAME`; refused when the sandbox has another",
        "hostname; cat /etc/hostname; echo $HOSTNAME",
        &["web-pod\nweb-pod\nweb-pod"],
    ),
    check(
        "`dns_config`",
        "`/etc/resolv.conf`",
        "cat /etc/resolv.conf",
        &["search a.example b.example\nnameserver 192.0.2.1\noptions ndots:5"],
    ),
    check(
        "`linux.sysctls`",
        "the kernel parameters",
        "cat /proc/sys/kernel/msgmax /proc/sys/net/ipv4/ip_forward",
        &["4097\n1"],
    ),
    check(
        "shared memory",
        "what one container writes to `/dev/shm` the other reads",
        "cat /dev/shm/greeting",
        &["hello"],
    ),
    check(
        "`namespace_options.pid` POD, TARGET",
        "the other container's processes are seen",
        "cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -o 'sleep 100000[1]'",
        &["sleep 1000001"],
    ),
];

const POD_ROWS: &[Row] = &[
    ("`namespace_options.ipc` POD, TARGET", "the IPC namespace is the pod's"),
    ("`namespace_options.network` POD, NODE, TARGET", "the network is the pod's, which is the VM's"),
    (
        "`labels`, `annotations`",
        "the container's specification, with the names of containerd's CRI plugin beside them",
    ),
    ("`linux.cgroup_parent`", "the cgroup above the container's"),
    (
        "`metadata.name`, `attempt`",
        "the container's name; the attempt counts up when one of the same name is made again",
    ),
];

async fn cri_a_pod(ctx: Ctx) -> Outcome {
    let bench = Bench::new(&ctx)?;
    let shared = |target: &str| match target {
        "" => json!({"linux": {"security_context": {"namespace_options": {"pid": "POD"}}}}),
        id => {
            json!({"linux": {"security_context": {"namespace_options": {"pid": "TARGET", "target_id": id}}}})
        }
    };
    let pod = json!({
        "metadata": {"name": "web", "uid": "1-2-3", "namespace": "shop"},
        "hostname": "web-pod",
        "dns_config": {"servers": ["192.0.2.1"], "searches": ["a.example", "b.example"], "options": ["ndots:5"]},
        "linux": {
            "sysctls": {"kernel.msgmax": "4097", "net.ipv4.ip_forward": "1"},
            "security_context": {"namespace_options": {"pid": 0}},
        },
    });
    let mut first = shared("");
    first["command"] = json!(["sleep", "1000001"]);
    first["labels"] = json!({"app": "shop"});
    first["annotations"] = json!({"example.com/note": "seen"});
    let first = bench.order(pod.clone(), first)?;
    // Whoever comes first may want PID namespaces of its containers' own, and nobody is to get into one of those.
    let mut apart = first.pod.clone();
    apart.linux.security_context.namespace_options.pid = NamespaceMode::Container;
    assert!(bench.engine.need_sandbox(&apart).await?);
    let private = bench.start(&bench.order(pod.clone(), json!({"metadata": {"name": "private"}}))?).await?;
    let first = bench.start(&first).await?;
    let processes = "readlink /proc/self/ns/pid";
    assert_ne!(bench.sh(&first.id, processes).await?, bench.sh(&private.id, processes).await?);
    bench.engine.remove(&private.id).await?;
    assert_eq!(first.id, "web-box-0");
    bench.sh(&first.id, "echo hello > /dev/shm/greeting").await?;

    let spaces = "readlink /proc/self/ns/ipc; readlink /proc/self/ns/net";
    let first_spaces = bench.sh(&first.id, spaces).await?;
    let node = ctx.guest_sh("readlink $PROC/$SERVER/ns/net").await?;
    assert!(first_spaces.trim_end().ends_with(node.trim()), "{first_spaces} {node}");
    for (attempt, target, network) in [(1, "", "NODE"), (2, "web-box-0", "TARGET")] {
        let mut other = shared(target);
        let options = &mut other["linux"]["security_context"]["namespace_options"];
        options["network"] = json!(network);
        options["ipc"] = json!(if target.is_empty() { "POD" } else { "TARGET" });
        let other = bench.order(pod.clone(), other)?;
        assert!(!bench.engine.need_sandbox(&other.pod).await?);
        let other = bench.start(&other).await?;
        bench.look(&other.id, POD).await?;
        assert_eq!(bench.sh(&other.id, spaces).await?, first_spaces);
        assert_eq!(other.attempt, attempt);
        bench.engine.remove(&other.id).await?;
    }
    let record = ctx.guest_sh("cat $RUN/nakai/records/containers/web-box-0").await?;
    let record: serde_json::Value = serde_json::from_str(&record)?;
    let annotations = &record["made"]["annotations"];
    for (name, value) in [
        ("app", "shop"),
        ("example.com/note", "seen"),
        ("io.kubernetes.cri.container-type", "container"),
        ("io.kubernetes.cri.container-name", "box"),
        ("io.kubernetes.cri.sandbox-name", "web"),
        ("io.kubernetes.cri.sandbox-namespace", "shop"),
        ("io.kubernetes.cri.sandbox-uid", "1-2-3"),
    ] {
        assert_eq!(annotations[name], value, "{annotations}");
    }
    let parent = format!("/nakai-{}/web-box-0", ctx.prefix());
    assert_eq!(record["cgroup"], parent.trim_start_matches('/'));
    let places =
        ctx.guest_sh(&format!("cat $PROC/[0-9]*/cgroup 2>/dev/null | grep -c '{parent}$' || :")).await?;
    assert_ne!(places.trim(), "0");
    let mut other = bench.order(pod, json!({"metadata": {"name": "other"}}))?;
    (other.pod.hostname, other.extras.needs_hostname) = ("other".to_owned(), true);
    let error = bench.engine.create(&other).await.err().ok_or("a second host name is taken")?.to_string();
    assert!(error.contains("hostname: the sandbox is there already"), "{error}");
    bench.engine.remove(&first.id).await?;
    Ok(())
}
