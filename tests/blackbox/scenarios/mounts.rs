//! What a host changes about mounts that are there.

use nakai_ctl::{CallError, SpecBuilder, sandbox};
use nakai_protocols::agent::{
    RemoveStaleVirtiofsShareMountsRequest, SharedMount, Storage, UpdateEphemeralMountsRequest,
};
use ttrpc::Code;

use crate::harness::expect::refused;
use crate::harness::{Ctx, Outcome, Scenario, scenario};

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        scenario!(an_ephemeral_mount_gets_another_size).own_agent(),
        scenario!(only_ephemeral_mounts_that_are_there_are_changed),
        scenario!(a_look_at_the_shares_always_succeeds),
        scenario!(a_mount_of_one_container_is_shared_with_another),
        scenario!(a_mount_in_a_shared_volume_reaches_the_containers_that_ask_for_it).own_agent().vm_only(),
        scenario!(what_is_left_mounted_in_a_shared_volume_goes_with_it).own_agent().vm_only(),
    ]
}

fn ephemeral(mount_point: &str, options: &[&str]) -> Storage {
    Storage {
        driver: "ephemeral".into(),
        source: "tmpfs".into(),
        fstype: "tmpfs".into(),
        mount_point: mount_point.into(),
        options: options.iter().map(|option| (*option).to_owned()).collect(),
        ..Default::default()
    }
}

pub(super) async fn remount(ctx: &Ctx, storage: Storage) -> Result<(), CallError> {
    let request = UpdateEphemeralMountsRequest { storages: vec![storage], ..Default::default() };
    let answer = ctx.client().agent().update_ephemeral_mounts(ctx.client().context(), &request).await;
    answer.map(drop).map_err(|error| CallError::new("UpdateEphemeralMounts", "", error))
}

/// Such a mount stays until the sandbox goes.
async fn an_ephemeral_mount_gets_another_size(ctx: Ctx) -> Outcome {
    ctx.client().create_sandbox(&sandbox::request("resized", "resized", !ctx.is_host())).await?;
    let container = ctx.container(|spec| spec.args(["sleep", "1000000"]))?;
    let place = format!("/run/kata-containers/sandbox/ephemeral/{}", container.id);
    let container = container.edit(|spec| spec.mount("/cache", &place, "bind", &["bind", "rw"]));
    let mut request = container.request();
    request.storages = vec![ephemeral(&place, &["size=1m"])];
    ctx.client().create_container_with(&request).await?;
    container.start().await?;
    let size = "df -k /cache | tail -n 1 | awk '{ print $2 }'";
    assert_eq!(container.sh(size).await?, "1024");
    container.sh("echo kept > /cache/file").await?;
    remount(&ctx, ephemeral(&place, &["remount", "size=2m"])).await?;
    assert_eq!(container.sh(size).await?, "2048");
    assert_eq!(container.sh("cat /cache/file").await?, "kept");
    remount(&ctx, ephemeral(&place, &[])).await?;
    container.remove().await?;
    Ok(())
}

async fn only_ephemeral_mounts_that_are_there_are_changed(ctx: Ctx) -> Outcome {
    let place = "/run/kata-containers/sandbox/nowhere";
    let storage = ephemeral(place, &["remount", "size=3m"]);
    refused(remount(&ctx, storage.clone()).await, Code::NOT_FOUND, &[place]);
    let local = Storage { driver: "local".into(), ..storage.clone() };
    refused(remount(&ctx, local).await, Code::INVALID_ARGUMENT, &["local"]);
    let outside = Storage { mount_point: "/tmp".into(), ..storage };
    refused(remount(&ctx, outside).await, Code::INVALID_ARGUMENT, &["/tmp"]);
    Ok(())
}

async fn a_look_at_the_shares_always_succeeds(ctx: Ctx) -> Outcome {
    let (client, request) = (ctx.client(), RemoveStaleVirtiofsShareMountsRequest::new());
    for _ in 0..3 {
        client.agent().remove_stale_virtiofs_share_mounts(client.context(), &request).await?;
    }
    Ok(())
}

/// As a program that serves a filesystem shares it with the containers that use it: also if it mounts it a little later.
async fn a_mount_of_one_container_is_shared_with_another(ctx: Ctx) -> Outcome {
    let name = format!("{}-server", ctx.prefix());
    let named = |spec: SpecBuilder| spec.annotation("io.kubernetes.cri.container-name", &name);
    let server = ctx.idle(|spec| named(spec).capabilities(["CAP_SYS_ADMIN"])).await?;
    let shared = |source: &str, target: &str| SharedMount {
        name: "shared".into(),
        src_ctr: name.clone(),
        src_path: source.into(),
        dst_path: target.into(),
        ..Default::default()
    };
    server
        .sh("mkdir /tmp/early /tmp/late && mount -t tmpfs early /tmp/early && echo early > /tmp/early/file")
        .await?;
    let user = ctx.container(|spec| spec.args(["sleep", "1000000"]))?;
    let mut request = user.request();
    request.shared_mounts = vec![shared("/tmp/early", "/seen/early"), shared("/tmp/late", "/seen/late")];
    let mount = "mount -t tmpfs late /tmp/late && echo late > /tmp/late/file";
    let (created, mounted) = tokio::join!(ctx.client().create_container_with(&request), server.sh(mount));
    mounted?;
    created?;
    user.start().await?;
    let seen = user
        .sh("until [ -e /seen/late/file ]; do sleep 0.1; done; cat /seen/early/file /seen/late/file")
        .await?;
    assert_eq!(seen, "early\nlate");
    user.remove().await?;
    assert_eq!(server.sh("cat /tmp/early/file").await?, "early");
    server.remove().await?;
    let orphan = ctx.container(|spec| spec)?;
    let mut request = orphan.request();
    request.shared_mounts = vec![shared("/tmp/early", "/seen")];
    refused(ctx.client().create_container_with(&request).await, Code::FAILED_PRECONDITION, &[name.as_str()]);
    request.shared_mounts = vec![shared("relative", "/seen")];
    refused(ctx.client().create_container_with(&request).await, Code::INVALID_ARGUMENT, &["relative"]);
    Ok(())
}

/// As a sidecar that serves a filesystem in a volume of the pod (`Bidirectional`) and its users (`HostToContainer`) have
/// it: in the guest alone, where no host's propagation helps. Later mounts count, for earlier ones are bound with the
/// rest.
async fn a_mount_in_a_shared_volume_reaches_the_containers_that_ask_for_it(ctx: Ctx) -> Outcome {
    ctx.client().create_sandbox(&sandbox::request("spread", "spread", true)).await?;
    let place = format!("/run/kata-containers/sandbox/ephemeral/{}-volume", ctx.prefix());
    let mut containers = Vec::new();
    for word in ["rshared", "rslave", "rprivate"] {
        let container = ctx.container(|spec| {
            spec.args(["sleep", "1000000"]).capabilities(["CAP_SYS_ADMIN"]).mount(
                "/volume",
                &place,
                "bind",
                &["rbind", word, "rw"],
            )
        })?;
        let mut request = container.request();
        request.storages = vec![ephemeral(&place, &["size=1m"])];
        ctx.client().create_container_with(&request).await?;
        container.start().await?;
        containers.push(container);
    }
    let [server, user, other] = &containers[..] else { return Err("three were made".into()) };
    let serve =
        "mkdir /volume/inner && mount -t tmpfs inner /volume/inner && echo served > /volume/inner/file";
    server.sh(serve).await?;
    assert_eq!(user.sh("cat /volume/inner/file").await?, "served");
    assert_eq!(other.sh("ls -A /volume/inner | wc -l").await?, "0");
    // One way only.
    user.sh("mkdir /volume/own && mount -t tmpfs own /volume/own && : > /volume/own/file").await?;
    assert_eq!(server.sh("ls -A /volume/own | wc -l").await?, "0");
    server.sh("umount /volume/inner").await?;
    assert_eq!(user.sh("ls -A /volume/inner | wc -l").await?, "0");
    for container in &containers {
        container.remove().await?;
    }
    Ok(())
}

/// As a sidecar that is killed leaves it: the guest's mount of the volume would be busy for ever.
async fn what_is_left_mounted_in_a_shared_volume_goes_with_it(ctx: Ctx) -> Outcome {
    ctx.client().create_sandbox(&sandbox::request("left", "left", true)).await?;
    let place = |name: &str| format!("/run/kata-containers/sandbox/storage/{}-{name}", ctx.prefix());
    let data = Storage { driver: "local".into(), mount_point: place("data"), ..Default::default() };
    let volume = Storage {
        driver: "bind".into(),
        source: place("data"),
        fstype: "bind".into(),
        options: vec!["bind".into()],
        mount_point: place("volume"),
        ..Default::default()
    };
    let other = Storage { source: place("data"), mount_point: place("other"), ..volume.clone() };
    let server = ctx.container(|spec| {
        spec.args(["sleep", "1000000"])
            .capabilities(["CAP_SYS_ADMIN"])
            .mount("/volume", &place("volume"), "bind", &["rbind", "rshared", "rw"])
            // Beside it, one in another: none of the two is shared, nor is the root.
            .mount("/other", &place("other"), "bind", &["rbind", "rprivate", "rw"])
            .mount("/other/below", "below", "tmpfs", &["size=16k"])
            .mount("/below", "below", "tmpfs", &["size=16k"])
    })?;
    let mut request = server.request();
    request.storages.extend([data, volume, other]);
    ctx.client().create_container_with(&request).await?;
    server.start().await?;
    assert_eq!(ctx.guest_sh("grep -c ' - tmpfs below ' $PROC/1/mountinfo; true").await?.trim(), "0");
    server.sh("mkdir /volume/inner && mount -t tmpfs inner /volume/inner").await?;
    let count = format!("grep -c ' {}' $PROC/1/mountinfo; true", place("volume"));
    assert_eq!(ctx.guest_sh(&count).await?.trim(), "2");
    server.remove().await?;
    assert_eq!(ctx.guest_sh(&count).await?.trim(), "0");
    Ok(())
}
