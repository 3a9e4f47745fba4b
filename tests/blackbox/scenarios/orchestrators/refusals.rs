//! What can't be carried out, and is refused by name before anything is made.

use serde_json::json;

use super::bench::Bench;
use super::{Group, Row, Section, group};
use crate::harness::context::SHELL_LIMIT;
use crate::harness::{Ctx, Outcome, Scenario, scenario};

pub(super) fn groups() -> Vec<Group> {
    let scenario = Scenario { in_vm: false, ..scenario!(cri_refusals) };
    let pod = Scenario { in_vm: false, ..scenario!(cri_pods_as_far_as_they_go) };
    vec![group(Section::Kubernetes, scenario, &[], REFUSED), group(Section::Pod, pod, &[], PODS)]
}

const PODS: &[Row] = &[
    (
        "`port_mappings`",
        "`nakai-ctl inspect` tells them; with `host_port` refused where there is no machine to plug a card into",
    ),
    (
        "`linux.overhead`, `linux.resources`",
        "a warning by name: they are the size of the machine, which whoever boots it gives",
    ),
    ("`namespace_options.ipc` NODE", "a warning: it is the pod's"),
    ("`mounts.selinux_relabel`", "a warning where the guest has no SELinux: files get no label"),
];

/// What is no container's affair is told, and what nobody does is refused.
async fn cri_pods_as_far_as_they_go(ctx: Ctx) -> Outcome {
    let bench = Bench::new(&ctx)?;
    let ports = |host_port: u16| json!({"port_mappings": [{"container_port": 80, "host_port": host_port}]});
    bench
        .refused(&bench.order(ports(8080), json!({}))?, "port_mappings[0].host_port: it needs a machine")
        .await?;
    let record = bench.start(&bench.order(ports(0), json!({}))?).await?;
    assert_eq!(bench.engine.record(&record.id)?.order.pod.port_mappings[0].container_port, 80);
    bench.remove(&record.id).await?;

    let volume = bench.volume("volume")?;
    let sized = |field: &str| json!({"linux": {field: {"memory_limit_in_bytes": 64 << 20}}});
    let node = json!({"linux": {"security_context": {"namespace_options": {"ipc": "NODE"}}}});
    let labelled =
        json!({"mounts": [{"container_path": "/a", "host_path": volume, "selinux_relabel": true}]});
    for (pod, container, words) in [
        (sized("overhead"), json!({}), "linux.overhead of the pod"),
        (sized("resources"), json!({}), "linux.resources of the pod"),
        (json!({}), node, "namespace_options.ipc: NODE"),
        (json!({}), labelled, "mounts[0].selinux_relabel"),
    ] {
        let (record, warnings) = bench.engine.create(&bench.order(pod, container)?).await?;
        assert!(warnings.len() == 1 && warnings[0].contains(words), "{words}: {warnings:?}");
        bench.remove(&record.id).await?;
    }
    Ok(())
}

const REFUSED: &[Row] = &[
    (
        "`run_as_non_root` (the kubelet's check)",
        "refused where the user resolves to root, by number, name or image",
    ),
    ("`run_as_group` without a user", "refused"),
    ("`run_as_username` that the image does not know", "refused; no user is made"),
    (
        "`apparmor` Localhost, `selinux_options` where the guest has no such module",
        "refused, by the profile's name",
    ),
    (
        "`apparmor` RuntimeDefault where the guest has no such profile",
        "the container runs without it, and the agent's log warns by the profile's name",
    ),
    ("`privileged` in a pod that is not", "refused"),
    (
        "`namespace_options` NODE for `pid` (in a VM that is the agent's own), CONTAINER for `ipc` (the agent gives all \
         containers the sandbox's), `userns_options` POD without one mapping of users and one of groups",
        "refused",
    ),
    (
        "`namespace_options` TARGET of a container with a PID or network namespace of its own, or that is not there",
        "refused",
    ),
    ("`mounts` with id mappings, images or no absolute path", "refused"),
    ("`devices` that the guest does not have, or of block devices for an agent without a machine", "refused"),
    ("`resources.memory_limit_in_bytes` of less than a page", "refused"),
    ("`CDI_devices` with what is no CDI name, unknown `unified` keys, unknown capabilities", "refused"),
];

async fn cri_refusals(ctx: Ctx) -> Outcome {
    let bench = Bench::new(&ctx)?;
    let security = |security| json!({"linux": {"security_context": security}});
    let namespaces = |options| security(json!({"namespace_options": options}));
    let target = bench.start(&bench.order(json!({}), json!({}))?).await?;
    let own = namespaces(json!({"pid": "TARGET", "target_id": target.id}));
    let order = bench.order(json!({}), own)?;
    let error = bench.engine.create(&order).await.err().ok_or("a foreign PID namespace is joined")?;
    assert!(error.to_string().contains("PID namespace of its own"), "{error}");
    bench.engine.remove(&target.id).await?;
    let alone = bench.start(&bench.order(json!({}), namespaces(json!({"network": "CONTAINER"})))?).await?;
    let joins = namespaces(json!({"network": "TARGET", "target_id": alone.id}));
    let error = bench.engine.create(&bench.order(json!({}), joins)?).await.err();
    let error = error.ok_or("a foreign network is joined")?.to_string();
    assert!(error.contains("a network namespace of its own"), "{error}");
    bench.engine.remove(&alone.id).await?;

    // What the host's engine names by itself is left out where the guest does not have it, but not in silence.
    let default = bench
        .start(&bench.order(json!({}), security(json!({"apparmor_profile": "runtime/default"})))?)
        .await?;
    assert_eq!(bench.sh(&default.id, "echo runs").await?, "runs\n");
    bench.engine.remove(&default.id).await?;
    // The exec is warned of, too.
    let warned = format!(
        "grep '\"{}\"' $PROC/$SUPERVISOR/fd/2 | grep '\"specification\"' | \
         grep -c 'cri-containerd.apparmor.d.*left out' || :",
        default.id
    );
    // Lines are written when the log's thread gets round to it.
    let logged = async {
        while ctx.guest_sh(&warned).await?.trim() == "0" {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        Outcome::Ok(())
    };
    tokio::time::timeout(SHELL_LIMIT, logged).await.map_err(|_| "the agent warns of no profile")??;
    assert_eq!(ctx.guest_sh(&warned).await?.trim(), "1");

    let cases = [
        (security(json!({"run_as_non_root": true})), "the image's user is root"),
        (security(json!({"run_as_non_root": true, "run_as_user": 0})), "run_as_user is root"),
        (security(json!({"run_as_non_root": true, "run_as_username": "root"})), "run_as_username is root"),
        (security(json!({"run_as_group": 5})), "run_as_group"),
        (security(json!({"run_as_username": "stranger"})), "has no user \"stranger\""),
        (security(json!({"apparmor": {"profile_type": "Localhost", "localhost_ref": "mine"}})), "mine"),
        (
            security(json!({"selinux_options": {"user": "u", "role": "r", "type": "mine_t", "level": "s0"}})),
            "u:r:mine_t:s0",
        ),
        (security(json!({"privileged": true})), "linux.security_context.privileged"),
        (namespaces(json!({"pid": "NODE"})), "namespace_options.pid"),
        (namespaces(json!({"ipc": "CONTAINER"})), "namespace_options.ipc"),
        (namespaces(json!({"network": "TARGET"})), "namespace_options.network: TARGET without target_id"),
        (
            namespaces(json!({"ipc": "TARGET", "target_id": "nobody"})),
            "namespace_options.ipc: TARGET: no container nobody",
        ),
        (namespaces(json!({"userns_options": {"mode": "POD"}})), "userns_options"),
        (
            json!({"mounts": [{"container_path": "/a", "host_path": "/tmp", "uidMappings": [{"length": 1}]}]}),
            "mounts[0]: uidMappings",
        ),
        (json!({"mounts": [{"container_path": "/a", "image": {"image": "i"}}]}), "mounts[0]: image"),
        (json!({"mounts": [{"container_path": "a", "host_path": "/tmp"}]}), "mounts[0]: container_path"),
        (json!({"devices": [{"host_path": "/not/there"}]}), "devices[0].host_path /not/there"),
        (json!({"devices": [{"host_path": "/etc/passwd"}]}), "/etc/passwd is no device"),
        (json!({"CDI_devices": [{"name": "vendor/gpu"}]}), "CDI_devices[0].name: \"vendor/gpu\""),
        (json!({"linux": {"resources": {"unified": {"io.max": "8:0 rbps=1"}}}}), "unified[\"io.max\"]"),
        (security(json!({"capabilities": {"add_capabilities": ["FLY"]}})), "\"FLY\" is no capability"),
        (json!({"image": {"image": "/not/there"}}), "image /not/there"),
        (json!({"linux": {"resources": {"memory_limit_in_bytes": 1}}}), "memory_limit_in_bytes: 1 bytes"),
        (json!({"command": []}), "command"),
    ];
    for (container, words) in cases {
        bench.refused(&bench.order(json!({}), container)?, words).await?;
    }
    Ok(())
}
